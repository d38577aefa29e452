//! Which keys of a set are used.

use super::*;
use crate::jwt::{
    KeySetError, MAX_JWKS_BYTES,
    test_tokens::{ED, P256, P384, encode},
};

#[test]
fn a_key_that_cannot_verify_is_skipped_and_counted() {
    let short_rsa = json!({"kty": "RSA", "e": "AQAB", "n": encode([0xff_u8; 255])});
    let padded_rsa = {
        let mut jwk = RSA.jwk(&json!({}));
        let n = base64::Engine::decode(
            &base64::engine::general_purpose::URL_SAFE_NO_PAD,
            jwk["n"].as_str().unwrap(),
        );
        jwk["n"] = encode([&[0][..], &n.unwrap()].concat()).into();
        jwk
    };
    let off_curve = P256.jwk(&json!({"x": encode([1_u8; 32])}));
    for (jwk, used) in [
        (RSA.jwk(&json!({})), true),
        (padded_rsa, true),
        (RSA.jwk(&json!({"use": "sig", "alg": "PS384", "x5c": ["x"], "unknown": 1})), true),
        (RSA.jwk(&json!({"use": "enc"})), false),
        (RSA.jwk(&json!({"use": 1})), false),
        (RSA.jwk(&json!({"key_ops": ["encrypt"]})), false),
        (RSA.jwk(&json!({"alg": "RSA-OAEP"})), false),
        (RSA.jwk(&json!({"alg": "HS256"})), false),
        (RSA.jwk(&json!({"alg": "ES256"})), false),
        (RSA.jwk(&json!({"kid": 1})), false),
        (RSA.jwk(&json!({"e": "AA"})), false),
        (RSA.jwk(&json!({"n": ""})), false),
        (RSA.jwk(&json!({"n": "AQAB=="})), false),
        (short_rsa, false),
        (json!({"kty": "RSA", "e": "AQAB", "n": encode([0xff_u8; 1025])}), false),
        (P256.jwk(&json!({"alg": "ES256"})), true),
        (P256.jwk(&json!({"alg": "ES384"})), false),
        (P256.jwk(&json!({"crv": "P-384"})), false),
        (P256.jwk(&json!({"crv": "secp256k1"})), false),
        (P256.jwk(&json!({"y": encode([1_u8; 31])})), false),
        (off_curve, false),
        (ED.jwk(&json!({})), true),
        (ED.jwk(&json!({"crv": "X25519"})), false),
        (ED.jwk(&json!({"crv": "Ed448"})), false),
        (ED.jwk(&json!({"x": encode([1_u8; 31])})), false),
        (json!({"kty": "oct", "k": encode("secret")}), false),
        (json!({"kty": "XYZ"}), false),
        (json!({}), false),
        (json!("key"), false),
    ] {
        let set =
            KeySet::parse(jwks(&[P384.jwk(&json!({"kid": "always"})), jwk.clone()]).as_bytes()).unwrap();
        assert_eq!((set.len(), set.skipped()), if used { (2, 0) } else { (1, 1) }, "{jwk}");
    }
}

#[test]
fn repeated_and_too_many_keys_are_skipped() {
    let (one, two) = (P256.jwk(&json!({"kid": "a"})), P384.jwk(&json!({"kid": "a"})));
    let set = KeySet::parse(jwks(&[one.clone(), one, two]).as_bytes()).unwrap();
    assert_eq!((set.len(), set.skipped()), (2, 1));
    let many: Vec<_> = (0..100).map(|i| ED.jwk(&json!({"kid": i.to_string()}))).collect();
    let set = KeySet::parse(jwks(&many).as_bytes()).unwrap();
    assert_eq!((set.len(), set.skipped()), (64, 36));
}

#[test]
fn what_is_no_key_set_is_an_error() {
    let large = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(MAX_JWKS_BYTES));
    for (text, expected) in [
        ("", KeySetError::Json),
        ("<html>", KeySetError::Json),
        ("[]", KeySetError::Json),
        ("{\"keys\":[],\"keys\":[]}", KeySetError::Json),
        ("{\"keys\":[{\"kty\":\"EC\",\"kty\":\"RSA\"}]}", KeySetError::Json),
        ("{}", KeySetError::NoKeys),
        ("{\"keys\":{}}", KeySetError::NoKeys),
        ("{\"kty\":\"RSA\"}", KeySetError::NoKeys),
        (large.as_str(), KeySetError::TooLarge),
    ] {
        assert_eq!(KeySet::parse(text.as_bytes()), Err(expected), "{text:.60}");
    }
    assert!(KeySet::parse(b"{\"keys\":[]}").unwrap().is_empty());
}
