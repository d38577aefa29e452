//! Several rules: each issuer has one, or one issuer has many.

use super::*;
use crate::jwt::test_tokens::{OTHER_RSA, P256};

/// Rules, headers, and what comes of them.
type Case<'a> = (&'a [JwtRule], Vec<(&'static str, &'a str)>, String);

const OTHER: &str = "https://other.example";

fn other_rule() -> JwtRule {
    let keys = rule_with(&[OTHER_RSA.jwk(&json!({}))]).keys;
    JwtRule { issuer: Some(OTHER.to_owned()), policy: "shop/other".into(), keys, ..rule() }
}

fn header_rule(rule: JwtRule) -> JwtRule {
    let name = HeaderName::from_static("x-other");
    JwtRule {
        from_headers: vec![HeaderLocation { name, prefix: String::new() }],
        from_params: Vec::new(),
        ..rule
    }
}

#[test]
fn one_rule_that_believes_is_enough_and_a_bad_token_is_refused_by_all() {
    let of_other = |signer: &crate::jwt::test_tokens::Signer, more: &Value| {
        let mut claims = claims_with(more);
        claims["iss"] = OTHER.into();
        signer.token("RS256", None, &claims)
    };
    let alice = good_token();
    let bob = of_other(&OTHER_RSA, &json!({"sub": "bob"}));
    let stranger = RSA.token("RS256", None, &claims_with(&json!({"iss": "https://stranger.example"})));
    let forged = of_other(&RSA, &json!({}));
    let old = of_other(&OTHER_RSA, &json!({"exp": 1}));
    let both = [rule(), other_rule()];
    let apart = [rule(), header_rule(other_rule())];
    let of = |issuer: &str, who: &str| format!("{issuer}/{who}");
    let cases: Vec<Case<'_>> = vec![
        (&both, vec![], "anonymous".to_owned()),
        (&both, vec![("authorization", &alice)], of(ISSUER, "alice")),
        (&both, vec![("authorization", &bob)], of(OTHER, "bob")),
        (&both, vec![("authorization", &stranger)], Refusal::UnknownIssuer.to_string()),
        (&both, vec![("authorization", &forged)], Refusal::Signature.to_string()),
        (&both, vec![("authorization", &old)], Refusal::Expired.to_string()),
        (&both, vec![("authorization", "x")], Refusal::Form.to_string()),
        (&apart, vec![("x-other", &bob)], of(OTHER, "bob")),
        (&apart, vec![("x-other", &alice)], Refusal::UnknownIssuer.to_string()),
        (&apart, vec![("authorization", &bob)], Refusal::UnknownIssuer.to_string()),
        (&apart, vec![("authorization", &stranger), ("x-other", &old)], Refusal::Expired.to_string()),
        (&apart, vec![("authorization", "x"), ("x-other", &old)], Refusal::Form.to_string()),
        // As in Envoy: the first that believes decides, whatever is in the places of the others.
        (&apart, vec![("authorization", &alice), ("x-other", "x")], of(ISSUER, "alice")),
        (&apart, vec![("authorization", "x"), ("x-other", &bob)], of(OTHER, "bob")),
    ];
    for (rules, list, expected) in cases {
        let list: Vec<_> = list
            .iter()
            .map(|(name, value)| {
                (*name, if *name == "x-other" { (*value).to_owned() } else { format!("Bearer {value}") })
            })
            .collect();
        let list: Vec<_> = list.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(short(&decide(rules, "/", &list)), expected, "{list:?}");
    }
}

#[test]
fn rules_of_one_issuer_are_tried_one_after_the_other() {
    let first = JwtRule { audiences: vec!["a".to_owned()], policy: "shop/first".into(), ..rule() };
    let second = JwtRule { policy: "shop/second".into(), audiences: vec!["b".to_owned()], ..rule() };
    let third = JwtRule { policy: "shop/third".into(), ..rule_with(&[P256.jwk(&json!({}))]) };
    let rules = [first, second, third];
    for (aud, expected) in [("a", Some("shop/first")), ("b", Some("shop/second")), ("c", None)] {
        let token = RSA.token("RS256", Some("k"), &claims_with(&json!({"aud": aud})));
        let decision = decide(&rules, "/", &[("authorization", &format!("Bearer {token}"))]);
        match expected {
            Some(policy) => assert_eq!(&*authenticated(&decision).policy, policy),
            // What the first rule said.
            None => assert_eq!(refusal(&decision), Some(Refusal::Audience)),
        }
    }
    assert_eq!(short(&decide(&[], "/", &[("authorization", "Bearer x")])), "anonymous");
}
