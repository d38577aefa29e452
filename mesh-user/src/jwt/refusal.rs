//! Why a request is refused, in Envoy's words: operators search for these texts, and clients may read them. What Envoy
//! has no text for is said in the same manner. Never says anything that the token's sender does not know.
//!
//! Sources: envoyproxy/envoy `source/common/jwt/status.cc`,
//! `source/extensions/filters/http/jwt_authn/filter.cc`.

use std::{fmt::Write, sync::Arc};

use hyper::{StatusCode, header::HeaderValue};

use super::RequestHead;

/// What is wrong with a request's token. `Display` is the body of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Not a refusal by itself: a request without a token passes.
    #[error("Jwt is missing")]
    Missing,
    /// More tokens than a request has a use for.
    #[error("Found multiple Jwt tokens")]
    TooManyTokens,
    /// Longer than a token can be.
    #[error("Jwt is too large")]
    TooLarge,
    /// Not three parts with something in each.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Form,
    /// The header's encoding.
    #[error("Jwt header is an invalid Base64url encoded")]
    HeaderEncoding,
    /// The header's text; a member that appears twice counts.
    #[error("Jwt header is an invalid JSON")]
    HeaderJson,
    /// No `alg`, or not a string.
    #[error("Jwt header [alg] field is required and must be a string")]
    Alg,
    /// `none`, HMAC, or one that nobody knows.
    #[error("Jwt header [alg] is not supported")]
    UnsupportedAlg,
    /// `kid` of a wrong type.
    #[error("Jwt header [kid] field is not a string")]
    Kid,
    /// Any `crit`: no extension is understood here.
    #[error("Jwt header [crit] is not supported")]
    Crit,
    /// The payload's encoding.
    #[error("Jwt payload is an invalid Base64url encoded")]
    PayloadEncoding,
    /// The payload's text; a claim that appears twice counts.
    #[error("Jwt payload is an invalid JSON")]
    PayloadJson,
    /// `iss` of a wrong type.
    #[error("Jwt payload [iss] field is not a string")]
    Iss,
    /// `sub` of a wrong type.
    #[error("Jwt payload [sub] field is not a string")]
    Sub,
    /// `jti` of a wrong type.
    #[error("Jwt payload [jti] field is not a string")]
    Jti,
    /// `iat` of a wrong type.
    #[error("Jwt payload [iat] field is not an integer")]
    Iat,
    /// `iat` before 1970 or after everything.
    #[error("Jwt payload [iat] field is not a positive 64 bit integer")]
    IatRange,
    /// `nbf` of a wrong type.
    #[error("Jwt payload [nbf] field is not an integer")]
    Nbf,
    /// `nbf` before 1970 or after everything.
    #[error("Jwt payload [nbf] field is not a positive 64 bit integer")]
    NbfRange,
    /// `exp` of a wrong type.
    #[error("Jwt payload [exp] field is not an integer")]
    Exp,
    /// `exp` before 1970 or after everything.
    #[error("Jwt payload [exp] field is not a positive 64 bit integer")]
    ExpRange,
    /// `aud` of a wrong type.
    #[error("Jwt payload [aud] field is not a string or string list")]
    Aud,
    /// The signature's encoding.
    #[error("Jwt signature is an invalid Base64url encoded")]
    SignatureEncoding,
    /// No rule that looks where the token was found is for its issuer.
    #[error("Jwt issuer is not configured")]
    UnknownIssuer,
    /// `nbf` is to come.
    #[error("Jwt not yet valid")]
    NotYetValid,
    /// `exp` is past.
    #[error("Jwt is expired")]
    Expired,
    /// None of the audiences is the rule's.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// The keys of the issuer could not be had so far.
    #[error("Jwks remote fetch is failed")]
    KeysUnavailable,
    /// The key set holds nothing that can verify.
    #[error("Jwks doesn't have any valid public key")]
    NoValidKeys,
    /// No key has the token's `kid` and `alg`.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoMatchingKey,
    /// The signature is not of any key that matches.
    #[error("Jwt verification fails")]
    Signature,
}

impl Refusal {
    /// What another rule may do better: Envoy prefers every other refusal to these two.
    pub(super) fn is_soft(self) -> bool {
        matches!(self, Self::Missing | Self::UnknownIssuer)
    }
}

/// A request that must not go on, and the answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// For logs, and as the response's body (`text/plain`).
    pub reason: Refusal,
    /// The document whose rule refused, as `namespace/name`.
    pub policy: Arc<str>,
    /// For the header `WWW-Authenticate`.
    pub challenge: HeaderValue,
}

impl Refused {
    pub(super) fn new(reason: Refusal, policy: &Arc<str>, head: &RequestHead<'_>) -> Self {
        Self { reason, policy: Arc::clone(policy), challenge: challenge(reason, head) }
    }

    /// 403 for a token that is meant for somebody else, 401 for all others.
    pub fn status(&self) -> StatusCode {
        match self.reason {
            Refusal::Audience => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        }
    }
}

/// RFC 6750 section 3, with the URI as realm as Envoy has it: at most 256 bytes of path and query.
fn challenge(reason: Refusal, head: &RequestHead<'_>) -> HeaderValue {
    const MAX_PATH_BYTES: usize = 256;
    let path = head.path_and_query.as_bytes();
    let mut value = String::from("Bearer realm=\"");
    let uri =
        [head.scheme.as_bytes(), b"://", head.authority.as_bytes(), &path[..path.len().min(MAX_PATH_BYTES)]];
    for byte in uri.concat() {
        // What would end the quoted string, or is no header text, is written as a URI would write it.
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\') {
            value.push(char::from(byte));
        } else {
            let _ = write!(value, "%{byte:02X}");
        }
    }
    value.push('"');
    if reason != Refusal::Missing {
        value.push_str(", error=\"invalid_token\"");
    }
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("Bearer"))
}
