//! What an authorizer is asked about, whatever protocol it speaks, and what it may answer. Plain data and pure functions.

use std::{borrow::Cow, net::SocketAddr, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Headers by which a message is read, or that Envoy and its authorizers tell each other: never taken over.
pub(super) const NOT_TOLD: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-envoy-auth-partial-body",
];

/// The question.
#[derive(Debug, Clone)]
pub struct Check {
    /// The client.
    pub source: Party,
    /// The workload.
    pub destination: Party,
    /// The server name that the client sent in TLS.
    pub sni: Option<String>,
    /// When the request came.
    pub time: SystemTime,
    /// None: a connection that is no HTTP.
    pub http: Option<HttpCheck>,
}

/// One end of the connection.
#[derive(Debug, Clone)]
pub struct Party {
    /// Its address.
    pub address: SocketAddr,
    /// Its SPIFFE ID as a URI; none: plaintext.
    pub principal: Option<String>,
}

/// The head of a request, as the application would get it.
#[derive(Debug, Clone)]
pub struct HttpCheck {
    /// Any number, for logs.
    pub id: u64,
    /// Case matters.
    pub method: String,
    /// Path and query, normalized; `*`, or empty for `CONNECT`.
    pub path: String,
    /// `Host` or `:authority` as sent.
    pub authority: String,
    /// `http` or `https`
    pub scheme: &'static str,
    /// Such as `HTTP/1.1`.
    pub protocol: String,
    /// All others.
    pub headers: HeaderMap,
}

impl HttpCheck {
    /// Each header once, several values as one (RFC 9110 section 5.3; of `cookie`, RFC 9113 section 8.2.3).
    pub(super) fn merged(&self) -> impl Iterator<Item = (&HeaderName, Cow<'_, [u8]>)> {
        self.headers.keys().map(|name| {
            let mut values = self.headers.get_all(name).iter().map(HeaderValue::as_bytes);
            let first = values.next().unwrap_or_default();
            let between: &[u8] = if *name == http::header::COOKIE { b"; " } else { b"," };
            let merged = values.fold(Cow::Borrowed(first), |mut merged, value| {
                merged.to_mut().extend_from_slice(between);
                merged.to_mut().extend_from_slice(value);
                merged
            });
            (name, merged)
        })
    }
}

/// How a header is put among those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// In place of the values that were there before this answer.
    Replace,
    /// Beside them.
    Add,
    /// Where there is none.
    AddIfAbsent,
    /// Where there is one, in its place.
    ReplaceIfPresent,
}

/// A header and how it is put.
pub type HeaderPut = (HeaderName, HeaderValue, Put);

/// What an authorizer that allows wants changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// For the application, in this order.
    pub request: Vec<HeaderPut>,
    /// Taken out of the request, after the others were put.
    pub remove: Vec<HeaderName>,
    /// For the client, in the application's response.
    pub response: Vec<HeaderPut>,
    /// Query parameters, as they stand in a URL.
    pub set_parameters: Vec<(String, String)>,
    /// Query parameters that go.
    pub remove_parameters: Vec<String>,
}

/// What a client gets instead of the application's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// 200 to 599.
    pub status: StatusCode,
    /// As the authorizer wants them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// As the authorizer wants it.
    pub body: Bytes,
}

impl Denied {
    /// A status and nothing else.
    pub(super) fn bare(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }
}

/// What an authorizer said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Allow(Changes),
    Deny(Denied),
    /// It says itself that it failed; with what the client is to get, where it says that too.
    Failed(String, Option<Denied>),
    /// Nothing that can be followed in full: never let through, whatever `failOpen` says.
    Invalid(String),
}

impl Changes {
    /// Path and query with the parameters changed, others left as they were; none: nothing changes.
    pub fn path(&self, path: &str) -> Option<String> {
        if self.set_parameters.is_empty() && self.remove_parameters.is_empty() {
            return None;
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let named = |parameter: &str| {
            let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
            let set = self.set_parameters.iter().any(|(key, _)| key == name);
            set || self.remove_parameters.iter().any(|key| key == name)
        };
        let kept = query.split('&').filter(|one| !one.is_empty() && !named(one)).map(str::to_owned);
        // Envoy takes out after it has set.
        let set = self.set_parameters.iter().filter(|(key, _)| !self.remove_parameters.contains(key));
        let set = set.map(|(key, value)| format!("{key}={value}"));
        let query = kept.chain(set).collect::<Vec<_>>().join("&");
        Some(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
    }
}

/// Whether a parameter's name or value can stand in a query as it is (RFC 3986 section 3.4, without `&` and `=`).
pub(super) fn is_parameter(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$'()*+,;:@/?".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_set_and_taken_out_and_others_stay() {
        let set =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        for (path, wanted, remove, expected) in [
            ("/a?x=1&y=2", &[("x", "9")][..], &[][..], Some("/a?y=2&x=9")),
            ("/a", &[("x", "9")], &[], Some("/a?x=9")),
            ("/a?x=1&x=2&y", &[], &["x"], Some("/a?y")),
            ("/a?x=1", &[], &["x"], Some("/a")),
            ("/a?x=1", &[("x", "2")], &["x"], Some("/a")),
            ("/a?x=1", &[], &[], None),
        ] {
            let changes = Changes {
                set_parameters: set(wanted),
                remove_parameters: remove.iter().map(|key| (*key).to_owned()).collect(),
                ..Changes::default()
            };
            assert_eq!(changes.path(path).as_deref(), expected, "{path}");
        }
    }
}
