//! One `jwtRules` entry of a `RequestAuthentication`, ready to be asked about requests: names parsed, audiences made
//! comparable, an inline key set read. Made by `policy`; never knows which workloads it applies to.

use std::{sync::Arc, time::Duration};

use hyper::{Uri, header::HeaderName};

use super::keys::KeySet;

/// Where one header carries a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderLocation {
    /// The header.
    pub name: HeaderName,
    /// What stands before the token; empty: the token is the whole value.
    pub prefix: String,
}

/// What one rule believes and does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtRule {
    /// The document, as `namespace/name`.
    pub policy: Arc<str>,
    /// Index in `spec.jwtRules`.
    pub index: usize,
    /// Exactly this `iss`; none: any.
    pub issuer: Option<String>,
    /// One of these must be in `aud`, as [`comparable_audience`] makes them; empty: none is asked for.
    pub audiences: Vec<String>,
    /// What its tokens are signed with.
    pub keys: KeySource,
    /// Where its tokens are looked for.
    pub from_headers: Vec<HeaderLocation>,
    /// Query parameters that carry its tokens.
    pub from_params: Vec<String>,
    /// Cookies that carry its tokens.
    pub from_cookies: Vec<String>,
    /// Gets the payload as it was sent, base64url.
    pub output_payload_to_header: Option<HeaderName>,
    /// Headers that get a claim, with the claim's path.
    pub output_claim_to_headers: Vec<(HeaderName, Vec<String>)>,
    /// Whether the application sees the token.
    pub forward_original_token: bool,
    /// Claims that are lists written as one string.
    pub space_delimited_claims: Vec<String>,
}

/// Where a rule's keys are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In the document.
    Inline(Arc<KeySet>),
    /// At the issuer's.
    Remote(JwksSource),
}

/// A place of keys and how long to wait for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JwksSource {
    /// Where.
    pub location: KeyLocation,
    /// For each request that is made for them.
    pub timeout: Duration,
}

/// A place of keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyLocation {
    /// A JWK Set.
    Jwks(Arc<str>),
    /// A document of `OpenID` Connect Discovery whose `jwks_uri` is the place.
    Discovery(Arc<str>),
}

impl KeyLocation {
    /// The issuer's discovery document, where Istio looks for it.
    pub fn of_issuer(issuer: &str) -> Self {
        let base = issuer.strip_suffix('/').unwrap_or(issuer);
        Self::Discovery(format!("{base}/.well-known/openid-configuration").into())
    }

    /// What is asked for first.
    pub fn url(&self) -> &str {
        match self {
            Self::Jwks(url) | Self::Discovery(url) => url,
        }
    }
}

/// Takes a text that keys can be fetched from: `http` or `https`, a host, no user.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn fetchable(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|_| format!("{text:?} is no URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(format!("{text:?} does not start with http:// or https://"));
    }
    let authority = uri.authority().filter(|a| !a.host().is_empty());
    let Some(authority) = authority else { return Err(format!("{text:?} names no host")) };
    if authority.as_str().contains('@') {
        return Err(format!("{text:?}: a user in the URL is not supported"));
    }
    // `Authority` keeps a port that is no number as text.
    if authority.as_str().len() != authority.host().len() && authority.port_u16().is_none_or(|port| port == 0)
    {
        return Err(format!("{text:?} has no port that exists (1 to 65535)"));
    }
    Ok(uri)
}

/// Audiences are compared without `http://`, `https://` and one slash at the end, as Envoy compares them
/// (`source/common/jwt/check_audience.cc`).
pub(crate) fn comparable_audience(audience: &str) -> &str {
    let rest =
        audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://")).unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}
