//! Random and damaged input: nothing panics, nothing that was changed is believed.

use proptest::prelude::*;

use super::*;
use crate::jwt::{
    MAX_TOKEN_BYTES,
    test_tokens::{ED, encode},
};

fn ed_rule() -> JwtRule {
    rule_with(&[ED.jwk(&json!({"kid": "k"}))])
}

proptest! {
    #[test]
    fn any_head_is_decided(path in ".{0,80}", authorization in "(Bearer )?[ -~]{0,80}", cookie in "[ -~]{0,80}") {
        let everywhere = JwtRule { from_cookies: vec!["a".to_owned(), String::new()], ..ed_rule() };
        let decision = decide(&[everywhere], &path, &[("authorization", &authorization), ("cookie", &cookie)]);
        prop_assert!(!matches!(decision.outcome, Outcome::Authenticated(_)));
    }

    #[test]
    fn any_three_parts_are_refused(header in any::<Vec<u8>>(), payload in any::<Vec<u8>>(), rest in any::<Vec<u8>>()) {
        let token = format!("{}.{}.{}", encode(header), encode(payload), encode(rest));
        prop_assert!(refusal(&with_bearer(ed_rule(), &token)).is_some());
    }

    #[test]
    fn a_token_with_one_letter_changed_is_refused(at in any::<prop::sample::Index>(), letter in "[A-Za-z0-9_.-]") {
        let token = ED.token("EdDSA", Some("k"), &claims());
        let at = at.index(token.len());
        let changed = format!("{}{letter}{}", &token[..at], &token[at + 1..]);
        prop_assert_eq!(refusal(&with_bearer(ed_rule(), &changed)).is_none(), changed == token);
    }

    #[test]
    fn any_text_is_a_key_set_or_an_error(text in any::<Vec<u8>>(), name in "[a-z]{1,4}", value in any::<String>()) {
        let _ = KeySet::parse(&text);
        let mut jwk = ED.jwk(&json!({}));
        jwk[&name] = value.into();
        prop_assert!(KeySet::parse(jwks(&[jwk]).as_bytes()).is_ok());
    }
}

#[test]
fn forms_that_are_no_compact_jws_are_refused() {
    let token = ED.token("EdDSA", Some("k"), &claims());
    let parts: Vec<_> = token.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let in_param = JwtRule { from_params: vec!["t".to_owned()], ..ed_rule() };
    for (text, expected) in [
        (String::new(), Refusal::Form),
        ("..".to_owned(), Refusal::Form),
        (format!("{header}.{payload}"), Refusal::Form),
        (format!("{header}.{payload}."), Refusal::Form),
        (format!("{token}.{signature}.{signature}"), Refusal::Form),
        (format!("{header}..{signature}"), Refusal::Form),
        (format!("{header}%3D.{payload}.{signature}"), Refusal::HeaderEncoding),
        (format!("{header}.{payload}%0A.{signature}"), Refusal::PayloadEncoding),
        (format!("{header}.{payload}.{signature}%3D%3D"), Refusal::SignatureEncoding),
        (format!("{header}.{payload}.{signature}%20"), Refusal::SignatureEncoding),
        (format!("{header}.{payload}.%00{signature}"), Refusal::SignatureEncoding),
        (format!("{header}.{payload}.{}", &signature[..80]), Refusal::Signature),
        (format!("{header}.{payload}.AAAA"), Refusal::Signature),
        (format!("{header}.{}.{signature}", "A".repeat(MAX_TOKEN_BYTES)), Refusal::TooLarge),
    ] {
        let decision = decide(std::slice::from_ref(&in_param), &format!("/?t={text}"), &[]);
        assert_eq!(refusal(&decision), Some(expected), "{text:.80}");
    }
    assert_eq!(short(&decide(&[in_param], &format!("/?t={token}"), &[])), format!("{ISSUER}/alice"));
}
