//! Trust bundles as SPIFFE writes them: a JWK set whose entries of use `x509-svid` each carry one root, and those of use
//! `jwt-svid` each a key that signs JWT-SVIDs. Pure.
//!
//! Sources: SPIFFE Trust Domain and Bundle section 4, X509-SVID section 6, JWT-SVID section 6, RFC 7517, RFC 7518 section 6, RFC 8037.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::{oid_registry, prelude::*, public_key::PublicKey};

use super::CaError;
use crate::{identity::JwtAuthorities, jwt::json};

/// How soon a consumer looks again (SPIFFE Trust Domain and Bundle section 6.2).
const REFRESH_HINT: Duration = Duration::from_secs(5 * 60);
/// More keys of one trust domain are a mistake.
const MAX_JWT_AUTHORITIES: usize = 256;

/// The roots in a bundle; entries of other uses and unknown types of key are passed over.
///
/// # Errors
/// What is wrong, when it is no JWK set, an entry's certificate cannot be read, or there is none.
pub(super) fn read(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let bundle = json::object(text.as_bytes()).ok_or("is no JSON object (or has a member twice)")?;
    let keys = bundle.get("keys").and_then(Value::as_array).ok_or("has no list `keys`")?;
    let mut roots = Vec::new();
    for (place, key) in keys.iter().enumerate() {
        let member = |name: &str| key.get(name).and_then(Value::as_str);
        if member("use") != Some("x509-svid") || !matches!(member("kty"), Some("EC" | "RSA" | "OKP")) {
            continue;
        }
        // Entries without a certificate and certificates behind the first are to be ignored (X509-SVID section 6.2).
        let Some(first) = key.get("x5c").and_then(Value::as_array).and_then(|all| all.first()) else {
            continue;
        };
        let der = first.as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
        roots.push(CertificateDer::from(der.ok_or_else(|| format!("keys[{place}].x5c[0] is no base64"))?));
    }
    if roots.is_empty() {
        return Err("has no key of use x509-svid with a certificate, so no SVID can be believed".to_owned());
    }
    Ok(roots)
}

/// The JWT authorities in a bundle; none is no error.
///
/// # Errors
/// What is wrong, when it is no JWK set.
pub(super) fn read_jwt(text: &str) -> Result<JwtAuthorities, String> {
    let bundle = json::object(text.as_bytes()).ok_or("is no JSON object (or has a member twice)")?;
    let keys = bundle.get("keys").and_then(Value::as_array).ok_or("has no list `keys`")?;
    Ok(jwt_authorities(keys.iter().filter(|key| key.get("use").is_some_and(|used| used == "jwt-svid"))))
}

/// Keys by their ID; without one no token can name it, so it does not count (JWT-SVID section 6.2).
pub(super) fn jwt_authorities<'a>(keys: impl Iterator<Item = &'a Value>) -> JwtAuthorities {
    let named = keys.filter_map(|key| {
        let kid = key.get("kid")?.as_str().filter(|kid| !kid.is_empty())?;
        Some((Arc::from(kid), Arc::from(key.to_string())))
    });
    named.take(MAX_JWT_AUTHORITIES).collect()
}

/// The bundle of these roots and keys, for others to read. `changed` is when they last did, which is its sequence number.
///
/// # Errors
/// When a root's key is of a type that JWK has no form for here.
pub(super) fn write(
    roots: &[CertificateDer<'_>],
    jwt_authorities: &JwtAuthorities,
    changed: SystemTime,
) -> Result<Value, CaError> {
    let mut keys: Vec<_> = roots.iter().map(entry).collect::<Result<_, _>>()?;
    keys.extend(jwt_authorities.values().filter_map(|jwk| {
        let mut jwk: Value = serde_json::from_str(jwk).ok()?;
        jwk["use"] = json!("jwt-svid");
        Some(jwk)
    }));
    Ok(json!({
        "spiffe_sequence": changed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "spiffe_refresh_hint": REFRESH_HINT.as_secs(),
        "keys": keys,
    }))
}

fn entry(root: &CertificateDer<'_>) -> Result<Value, CaError> {
    let unfit =
        |what: &str| CaError::Sign { subject: "the bundle".to_owned(), what: format!("a root's key {what}") };
    let (_, certificate) = X509Certificate::from_der(root).map_err(|_| unfit("cannot be read"))?;
    let key = certificate.public_key();
    let mut jwk = match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => json!({
            "kty": "RSA",
            "n": number(rsa.modulus),
            "e": number(rsa.exponent),
        }),
        Ok(PublicKey::EC(point)) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
            let curve = match curve {
                Some(oid) if oid == oid_registry::OID_EC_P256 => "P-256",
                Some(oid) if oid == oid_registry::OID_NIST_EC_P384 => "P-384",
                Some(oid) if oid == oid_registry::OID_NIST_EC_P521 => "P-521",
                _ => return Err(unfit("is of a curve that JWK does not name")),
            };
            // 04, then both coordinates (SEC 1 section 2.3.3)
            let Some((4, coordinates)) = point.data().split_first().map(|(form, rest)| (*form, rest)) else {
                return Err(unfit("is a compressed point"));
            };
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            json!({ "kty": "EC", "crv": curve, "x": bytes(x), "y": bytes(y) })
        }
        _ if key.algorithm.algorithm == oid_registry::OID_SIG_ED25519 => {
            json!({ "kty": "OKP", "crv": "Ed25519", "x": bytes(&key.subject_public_key.data) })
        }
        _ => return Err(unfit("is of a type that JWK does not name")),
    };
    jwk["use"] = json!("x509-svid");
    jwk["x5c"] = json!([BASE64_STANDARD.encode(root)]);
    Ok(jwk)
}

fn bytes(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Without the zeros in front that DER needs for the sign (RFC 7518 section 2, `Base64urlUInt`).
fn number(big_endian: &[u8]) -> String {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    bytes(&big_endian[zeros.min(big_endian.len().saturating_sub(1))..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(algorithm: &'static rcgen::SignatureAlgorithm) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate_for(algorithm).unwrap()).unwrap().der().clone()
    }

    #[test]
    fn what_is_written_reads_back() {
        let roots: Vec<_> = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, "EC", 43),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "EC", 64),
            (&rcgen::PKCS_ED25519, "OKP", 43),
            (&rcgen::PKCS_RSA_SHA256, "RSA", 342),
        ]
        .into();
        let certificates: Vec<_> = roots.iter().map(|(algorithm, ..)| root(algorithm)).collect();
        let changed = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let bundle = write(&certificates, &JwtAuthorities::new(), changed).unwrap();
        assert_eq!(bundle["spiffe_sequence"], 1_700_000_000);
        for (key, (_, kty, length)) in bundle["keys"].as_array().unwrap().iter().zip(&roots) {
            let number = key["x"].as_str().or(key["n"].as_str()).unwrap();
            assert_eq!((key["kty"].as_str(), number.len()), (Some(*kty), *length), "{key}");
            assert!(key.get("kid").is_none() && key["use"] == "x509-svid");
        }
        assert_eq!(read(&bundle.to_string()).unwrap(), certificates);
    }

    #[test]
    fn keys_of_jwt_svids_read_back_and_those_without_an_id_do_not_count() {
        let keys: JwtAuthorities =
            [(Arc::from("a"), Arc::from(r#"{"kty":"EC","kid":"a","use":"jwt-svid"}"#))].into();
        let mut bundle = write(&[root(&rcgen::PKCS_ED25519)], &keys, UNIX_EPOCH).unwrap();
        let listed = bundle["keys"].as_array_mut().unwrap();
        for other in [
            json!({ "use": "jwt-svid", "kty": "EC" }),
            json!({ "use": "jwt-svid", "kty": "EC", "kid": "" }),
            json!({ "use": "sig", "kty": "EC", "kid": "b" }),
            json!({ "kty": "EC", "kid": "c" }),
            json!(7),
        ] {
            listed.push(other);
        }
        assert_eq!(read_jwt(&bundle.to_string()).unwrap(), keys);
        assert_eq!(read(&bundle.to_string()).unwrap().len(), 1);
        assert!(read_jwt("[]").is_err() && read_jwt("{}").is_err());
    }

    #[test]
    fn only_x509_entries_count_and_what_cannot_be_read_is_an_error() {
        let (one, two) = (root(&rcgen::PKCS_ECDSA_P256_SHA256), root(&rcgen::PKCS_ECDSA_P256_SHA256));
        let x5c = |root: &CertificateDer<'_>| BASE64_STANDARD.encode(root);
        let bundle = |keys: Value| json!({ "keys": keys, "spiffe_sequence": 1 }).to_string();
        let several = bundle(json!([
            { "use": "x509-svid", "kty": "EC", "x5c": [x5c(&one), x5c(&two)] },
            { "use": "jwt-svid", "kty": "EC", "kid": "a", "x5c": [x5c(&two)] },
            { "use": "X509-SVID", "kty": "EC", "x5c": [x5c(&two)] },
            { "use": "x509-svid", "kty": "future", "x5c": [x5c(&two)] },
            { "use": "x509-svid", "kty": "EC", "x5c": [] },
            { "use": "x509-svid", "kty": "EC" },
            { "kty": "EC", "x5c": [x5c(&two)] },
            7,
        ]));
        assert_eq!(read(&several).unwrap(), [one]);
        for (text, what) in [
            ("[]".to_owned(), "JSON object"),
            ("{}".to_owned(), "`keys`"),
            (r#"{"keys":[],"keys":[]}"#.to_owned(), "member twice"),
            (bundle(json!([])), "no key of use x509-svid"),
            (bundle(json!([{ "use": "jwt-svid", "kty": "EC" }])), "no key of use x509-svid"),
            (bundle(json!([{ "use": "x509-svid", "kty": "EC", "x5c": ["%"] }])), "keys[0].x5c[0]"),
            (bundle(json!([{ "use": "x509-svid", "kty": "EC", "x5c": [7] }])), "keys[0].x5c[0]"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
