//! Tokens that are JWT-SVIDs: who has one is the workload that it names. Stricter than a request's token where the
//! standard asks for it, and about `kid`, which it only recommends: without one any key of the domain would have to be tried.
//! Believes only keys of the trust domain that the subject is of.
//!
//! Source: SPIFFE JWT-SVID.md, sections 2 (header), 3 (claims), 4 (form) and 6 (bundles).

use serde_json::{Map, Value, json};

use super::{
    authenticate::CLOCK_SKEW_SECONDS,
    keys::{Algorithm, KeySet},
    refusal::Refusal,
    token::Token,
};
use crate::identity::{SpiffeId, SpiffeIdError, TrustBundles};

/// Why a token is no JWT-SVID that is believed here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtSvidRefusal {
    /// As any other token could be refused.
    #[error(transparent)]
    Token(#[from] Refusal),
    /// An algorithm that is good for other tokens (section 2.1).
    #[error("its algorithm is none of RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384, PS512")]
    Algorithm,
    /// `typ` says that it is something else (section 2.3).
    #[error("its header's typ is neither JWT nor JOSE")]
    MediaType,
    /// Nothing says which key it is of.
    #[error("its header has no kid")]
    NoKeyId,
    /// Nobody is named (section 3.1).
    #[error("it has no subject")]
    NoSubject,
    /// The subject is no workload.
    #[error("its subject is no SPIFFE ID: {0}")]
    Subject(#[from] SpiffeIdError),
    /// It would be good for ever (section 3.3).
    #[error("it has no expiry")]
    NoExpiry,
    /// It is meant for somebody else (section 3.2).
    #[error("it is not for this audience")]
    Audience,
    /// Nothing is known of the trust domain.
    #[error("no JWT authority of trust domain {0} is known")]
    UnknownDomain(String),
    /// The domain has other keys.
    #[error("trust domain {0} has no such key; an authority that is new there is not known here yet")]
    UnknownKey(String),
}

/// What a believed JWT-SVID says.
#[derive(Clone, PartialEq)]
pub struct VerifiedJwtSvid {
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// All claims.
    pub claims: Map<String, Value>,
}

impl std::fmt::Debug for VerifiedJwtSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifiedJwtSvid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// Verifies a JWT-SVID for `audience`, which must be among its own letter by letter. `now` is in Unix seconds.
///
/// # Errors
/// Why it is not believed; never with anything of the token's.
pub fn verify_jwt_svid(
    text: &str,
    audience: &str,
    bundles: &TrustBundles,
    now: u64,
) -> Result<VerifiedJwtSvid, JwtSvidRefusal> {
    let token = Token::parse(text)?;
    if token.algorithm() == Algorithm::EdDsa {
        return Err(JwtSvidRefusal::Algorithm);
    }
    if token.media_type().is_some_and(|typ| !matches!(typ, "JWT" | "JOSE")) {
        return Err(JwtSvidRefusal::MediaType);
    }
    let kid = token.kid().ok_or(JwtSvidRefusal::NoKeyId)?;
    let subject: SpiffeId = token.subject.as_deref().ok_or(JwtSvidRefusal::NoSubject)?.parse()?;
    if token.expires().is_none() {
        return Err(JwtSvidRefusal::NoExpiry);
    }
    token.check_time(now, CLOCK_SKEW_SECONDS)?;
    if !token.audiences.iter().any(|own| own == audience) {
        return Err(JwtSvidRefusal::Audience);
    }
    let domain = subject.trust_domain();
    let unknown = || JwtSvidRefusal::UnknownDomain(domain.to_string());
    let keys = bundles.jwt_authorities.get(domain).ok_or_else(unknown)?;
    let jwk = keys.get(kid).ok_or_else(|| JwtSvidRefusal::UnknownKey(domain.to_string()))?;
    token.check_signature(&verifier(jwk)?, None)?;
    Ok(VerifiedJwtSvid { spiffe_id: subject, claims: token.claims })
}

/// One key. Bundles say `use: jwt-svid`, which the key sets of other issuers do not know.
fn verifier(jwk: &str) -> Result<KeySet, Refusal> {
    let mut jwk = super::json::object(jwk.as_bytes()).ok_or(Refusal::NoValidKeys)?;
    jwk.shift_remove("use");
    KeySet::parse(json!({ "keys": [jwk] }).to_string().as_bytes()).map_err(|_| Refusal::NoValidKeys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::test_tokens::{ED, OTHER_RSA, P256, RSA, Signer};

    const NOW: u64 = 1_700_000_000;
    const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn bundles() -> TrustBundles {
        let jwk = |signer: &Signer, kid: &str| -> (std::sync::Arc<str>, std::sync::Arc<str>) {
            (kid.into(), signer.jwk(&json!({ "kid": kid, "use": "jwt-svid" })).to_string().into())
        };
        let own = [jwk(&P256, "ec"), jwk(&RSA, "rsa"), jwk(&ED, "ed")].into();
        let other = [jwk(&OTHER_RSA, "other")].into();
        let jwt_authorities =
            [("cluster.local".parse().unwrap(), own), ("other.example".parse().unwrap(), other)].into();
        TrustBundles { jwt_authorities, ..TrustBundles::default() }
    }

    fn claims() -> Value {
        json!({ "sub": ID, "aud": ["shop", "till"], "exp": NOW + 300, "iat": NOW, "team": { "name": "blue" } })
    }

    fn with(change: impl FnOnce(&mut Value)) -> Value {
        let mut claims = claims();
        change(&mut claims);
        claims
    }

    #[test]
    fn one_of_a_known_authority_is_believed() {
        for (token, audience) in [
            (P256.token("ES256", Some("ec"), &claims()), "till"),
            (RSA.token("PS384", Some("rsa"), &claims()), "shop"),
            (P256.token_of("ES256", r#"{"alg":"ES256","kid":"ec"}"#, &claims().to_string()), "shop"),
            (
                P256.token_of("ES256", r#"{"alg":"ES256","kid":"ec","typ":"JOSE"}"#, &claims().to_string()),
                "shop",
            ),
            (P256.token("ES256", Some("ec"), &with(|c| c["aud"] = "shop".into())), "shop"),
        ] {
            let believed = verify_jwt_svid(&token, audience, &bundles(), NOW).unwrap();
            assert_eq!(
                (believed.spiffe_id.to_string().as_str(), &believed.claims["team"]["name"]),
                (ID, &json!("blue"))
            );
        }
    }

    #[test]
    fn everything_else_is_refused() {
        use JwtSvidRefusal as R;
        let signed = |claims: &Value| P256.token("ES256", Some("ec"), claims);
        let headed = |header: &str| P256.token_of("ES256", header, &claims().to_string());
        let domain = |name: &str| with(|c| c["sub"] = format!("spiffe://{name}/ns/shop/sa/web").into());
        let mut forged = signed(&claims());
        let last = if forged.pop() == Some('A') { 'B' } else { 'A' };
        forged.insert(forged.len() - 4, last);
        forged.pop();
        let cases = [
            (ED.token("EdDSA", Some("ed"), &claims()), R::Algorithm),
            (headed(r#"{"alg":"none","kid":"ec"}"#), R::Token(Refusal::UnsupportedAlg)),
            (headed(r#"{"alg":"HS256","kid":"ec"}"#), R::Token(Refusal::UnsupportedAlg)),
            (headed(r#"{"alg":"ES256","kid":"ec","typ":"at+jwt"}"#), R::MediaType),
            (headed(r#"{"alg":"ES256","kid":"ec","typ":7}"#), R::MediaType),
            (headed(r#"{"alg":"ES256"}"#), R::NoKeyId),
            (headed(r#"{"alg":"ES256","kid":"ec","crit":["x"]}"#), R::Token(Refusal::Crit)),
            (headed(r#"{"alg":"RS256","kid":"ec"}"#), R::Token(Refusal::Signature)),
            (headed(r#"{"alg":"ES256","kid":"rsa"}"#), R::Token(Refusal::Signature)),
            (headed(r#"{"alg":"ES256","kid":"none"}"#), R::UnknownKey("cluster.local".to_owned())),
            (signed(&with(|c| drop(c.as_object_mut().unwrap().remove("sub")))), R::NoSubject),
            (signed(&with(|c| c["sub"] = "web".into())), R::Subject(SpiffeIdError::Scheme)),
            (signed(&with(|c| drop(c.as_object_mut().unwrap().remove("exp")))), R::NoExpiry),
            (signed(&with(|c| c["exp"] = (NOW - 61).into())), R::Token(Refusal::Expired)),
            (signed(&with(|c| c["nbf"] = (NOW + 61).into())), R::Token(Refusal::NotYetValid)),
            (signed(&with(|c| c["aud"] = json!(["shops", "SHOP", "shop/"]))), R::Audience),
            (signed(&with(|c| drop(c.as_object_mut().unwrap().remove("aud")))), R::Audience),
            (signed(&domain("nowhere.example")), R::UnknownDomain("nowhere.example".to_owned())),
            // A key of one domain says nothing about another.
            (signed(&domain("other.example")), R::UnknownKey("other.example".to_owned())),
            (OTHER_RSA.token("RS256", Some("rsa"), &claims()), R::Token(Refusal::Signature)),
            ("a.b".to_owned(), R::Token(Refusal::Form)),
        ];
        for (token, refusal) in cases {
            assert_eq!(verify_jwt_svid(&token, "shop", &bundles(), NOW), Err(refusal.clone()), "{refusal}");
        }
        assert!(verify_jwt_svid(&forged, "shop", &bundles(), NOW).is_err());
    }

    #[test]
    fn nothing_of_the_token_is_shown() {
        let token = P256.token("ES256", Some("ec"), &claims());
        let shown = format!("{:?}", verify_jwt_svid(&token, "shop", &bundles(), NOW).unwrap());
        assert_eq!(shown, format!("VerifiedJwtSvid {{ spiffe_id: {ID}, .. }}"));
    }
}
