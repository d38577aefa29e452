//! What rules see of an HTTP request, and how its parts are compared. Pure: it reads no connection, validates no
//! token and answers no request; the caller has done the first two and does the third with the verdict.

mod attribute;
mod claims;
mod forwarded;
mod path;
mod template;

use std::{fmt, net::IpAddr};

use serde_json::{Map, Value};

pub use crate::jwt::Headers;
pub(super) use attribute::{HttpAttribute, HttpTest};
pub use forwarded::ForwardedFor;
pub use path::{Normalization, NormalizedPath, PathError};
pub use template::{PathTemplate, TemplateError};

/// One request, as far as rules ask about it.
#[derive(Clone, Copy)]
pub struct HttpRequest<'a> {
    /// Such as `GET`; case matters (RFC 9110 section 9.1).
    pub method: &'a str,
    /// None: CONNECT, which has none. What cannot be normalized must not come here but be refused with 400.
    pub path: Option<&'a NormalizedPath<'a>>,
    /// `Host` or `:authority` as sent, with its port. None: an HTTP/1.0 request without one.
    pub authority: Option<&'a str>,
    /// All other headers.
    pub headers: &'a dyn Headers,
    /// Claims of a token that was validated; none: no token came. Claims that the `RequestAuthentication` calls
    /// space-delimited, beyond `scope` and `permission`, must be lists here.
    pub claims: Option<&'a Map<String, Value>>,
    /// The original client's address: who decides what `X-Forwarded-For` is worth is the caller.
    pub remote_ip: IpAddr,
}

impl fmt::Debug for HttpRequest<'_> {
    /// Without headers and claims, which are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRequest")
            .field("method", &self.method)
            .field("path", &self.path.map(NormalizedPath::path))
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl<'a> HttpRequest<'a> {
    /// The values of a header, one by one: Envoy 1.40 matches each on its own too, so that a second
    /// value cannot hide the first from a DENY rule. As in Envoy, `host` is `:authority`.
    fn each_header(&self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        let known = match name {
            ":method" => Some(self.method),
            ":path" => self.path.map(NormalizedPath::as_str),
            ":authority" | "host" => self.authority,
            _ => return self.headers.each_value(name, each),
        };
        known.map(str::as_bytes).into_iter().for_each(each);
    }
}
