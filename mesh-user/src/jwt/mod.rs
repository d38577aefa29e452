//! JSON Web Tokens of requests: where they are looked for, whether they are believed, and what of them the application
//! sees. Semantics are those of Envoy's `jwt_authn` filter as Istio configures it, stricter where RFC 7515, 7519 and 8725
//! ask for it. Pure: no I/O and no clock; keys come through [`Keys`], time is a parameter.
//!
//! Sources: istio/istio `pilot/pkg/security/authn/policy_applier.go`; envoyproxy/envoy
//! `source/extensions/filters/http/jwt_authn/{authenticator,extractor,verifier,filter}.cc`.

mod authenticate;
mod claims;
mod edits;
pub(crate) mod json;
mod keys;
mod locate;
mod refusal;
mod rule;
mod svid;
#[cfg(test)]
pub(crate) mod test_tokens;
#[cfg(test)]
mod tests;
mod token;
mod verified;

use std::{borrow::Cow, fmt, sync::Arc};

use hyper::HeaderMap;
use serde_json::{Map, Value};

pub use authenticate::{CLOCK_SKEW_SECONDS, Keys, authenticate};
pub use edits::Edits;
pub use keys::{KeySet, KeySetError, MAX_JWKS_BYTES};
pub use refusal::{Refusal, Refused};
pub use rule::{HeaderLocation, JwksSource, JwtRule, KeyLocation, KeySource};
pub(crate) use rule::{comparable_audience, fetchable};
pub use svid::{JwtSvidRefusal, VerifiedJwtSvid, verify_jwt_svid};
pub use token::MAX_TOKEN_BYTES;
pub use verified::VerifiedSignatures;

/// The headers of a request, however its parser keeps them.
pub trait Headers: Sync {
    /// Gives every value of a header to `each`, in the order they came. `name` is lower-case; the case of what was sent
    /// does not matter. Pseudo-headers are not asked for.
    fn each_value<'h>(&'h self, name: &str, each: &mut dyn FnMut(&'h [u8]));
}

impl Headers for HeaderMap {
    fn each_value<'h>(&'h self, name: &str, each: &mut dyn FnMut(&'h [u8])) {
        for value in self.get_all(name) {
            each(value.as_bytes());
        }
    }
}

/// Names and values; for tests and explanations.
impl<N: AsRef<str> + Sync, V: AsRef<[u8]> + Sync> Headers for Vec<(N, V)> {
    fn each_value<'h>(&'h self, name: &str, each: &mut dyn FnMut(&'h [u8])) {
        let named = self.iter().filter(|(given, _)| given.as_ref().eq_ignore_ascii_case(name));
        named.for_each(|(_, value)| each(value.as_ref()));
    }
}

/// What is no text is no token: its letters do not matter.
fn values<'h>(headers: &'h dyn Headers, name: &str) -> Vec<Cow<'h, str>> {
    let mut values = Vec::new();
    headers.each_value(name, &mut |value| values.push(String::from_utf8_lossy(value)));
    values
}

/// A request's head, as it arrived and before anything was changed.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// Tells a CORS preflight, which carries no credentials; case matters.
    pub method: &'a str,
    /// `http` or `https`, for the challenge only.
    pub scheme: &'a str,
    /// Host and port, for the challenge only.
    pub authority: &'a str,
    /// Without scheme and authority; may hold a query.
    pub path_and_query: &'a str,
    /// All headers.
    pub headers: &'a dyn Headers,
}

impl fmt::Debug for RequestHead<'_> {
    /// Without what may hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &self.method)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// What is known about a request's sender, and how the request must be changed before it goes on.
#[derive(Debug)]
pub struct Decision {
    /// Whether it may go on.
    pub outcome: Outcome,
    /// For a request that goes on. Made also without a token: then it only takes away what the client may not say.
    pub edits: Edits,
}

/// Whether a request may go on, and as whom.
#[derive(Debug)]
pub enum Outcome {
    /// It has no token: rules on `requestPrincipals` and `request.auth` do not match it.
    Anonymous,
    /// It has a token that one of the rules believes.
    Authenticated(Box<Authenticated>),
    /// It has a token that no rule believes, and must be answered with this.
    Refused(Refused),
}

/// What a believed token says.
#[derive(Clone, PartialEq)]
pub struct Authenticated {
    /// `iss`; none only under a rule that names no issuer.
    pub issuer: Option<String>,
    /// `sub`.
    pub subject: Option<String>,
    /// `aud`, always a list: `request.auth.audiences`.
    pub audiences: Vec<String>,
    /// `azp`: `request.auth.presenter`.
    pub presenter: Option<String>,
    /// All claims, for `request.auth.claims`; those that the rule calls space-delimited (always `scope` and `permission`)
    /// are lists here.
    pub claims: Map<String, Value>,
    /// The document whose rule believed it, as `namespace/name`.
    pub policy: Arc<str>,
}

impl fmt::Debug for Authenticated {
    /// Without the claims, which are about people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticated")
            .field("issuer", &self.issuer)
            .field("subject", &self.subject)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Authenticated {
    /// `request.auth.principal`, `<iss>/<sub>`: only where the token has both.
    pub fn principal(&self) -> Option<String> {
        match (self.issuer.as_deref(), self.subject.as_deref()) {
            (Some(issuer), Some(subject)) if !issuer.is_empty() && !subject.is_empty() => {
                Some(format!("{issuer}/{subject}"))
            }
            _ => None,
        }
    }
}
