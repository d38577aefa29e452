//! What a signature that was verified before spares, and what it does not.

use super::*;
use crate::jwt::{
    JwksSource,
    test_tokens::{OTHER_RSA, P256},
    verified::Digest,
};

/// A store with a memory of its own.
#[derive(Default)]
struct Store {
    keys: Option<Arc<KeySet>>,
    verified: VerifiedSignatures,
}

impl Keys for Store {
    fn keys(&self, _: &KeyLocation) -> Option<Arc<KeySet>> {
        self.keys.clone()
    }

    fn unknown_key(&self, _: &KeyLocation) {}

    fn verified(&self) -> Option<&VerifiedSignatures> {
        Some(&self.verified)
    }
}

fn key_set(keys: &[Value]) -> Arc<KeySet> {
    Arc::new(KeySet::parse(jwks(keys).as_bytes()).unwrap())
}

fn fetched_rule() -> JwtRule {
    let source = JwksSource {
        location: KeyLocation::Jwks("https://issuer.example/keys".into()),
        timeout: std::time::Duration::from_secs(1),
    };
    JwtRule { keys: KeySource::Remote(source), ..rule() }
}

fn at(now: u64, rule: &JwtRule, token: &str, keys: &dyn Keys) -> String {
    let headers = headers(&[("authorization", &format!("Bearer {token}"))]);
    let head = RequestHead {
        method: "GET",
        scheme: "https",
        authority: "web",
        path_and_query: "/",
        headers: &headers,
    };
    short(&authenticate(&[Arc::new(rule.clone())], &head, keys, now))
}

#[test]
fn only_a_good_signature_is_remembered() {
    let keys = key_set(&[RSA.jwk(&json!({"kid": "k"}))]);
    let store = Store { keys: Some(Arc::clone(&keys)), ..Store::default() };
    let good = good_token();
    let forged = OTHER_RSA.token("RS256", Some("k"), &claims());
    let cut = &good[..good.len() - 4];
    for (token, remembered) in [(good.as_str(), true), (&forged, false), (cut, false)] {
        let first = at(NOW, &fetched_rule(), token, &store);
        assert_eq!(store.verified.knows(&Digest::of(&keys, token)), remembered, "{first}");
        assert_eq!(at(NOW, &fetched_rule(), token, &store), first);
    }
}

#[test]
fn a_remembered_signature_spares_the_signature_only() {
    let mut store = Store { keys: Some(key_set(&[RSA.jwk(&json!({"kid": "k"}))])), ..Store::default() };
    let (rule, token) = (fetched_rule(), good_token());
    let ask = |now, rule: &JwtRule, store: &Store| at(now, rule, &token, store);
    let believed = format!("{ISSUER}/alice");
    assert_eq!(ask(NOW, &rule, &store), believed);
    assert_eq!(ask(NOW + 661, &rule, &store), Refusal::Expired.to_string(), "its time is over");
    let other_issuer = JwtRule { issuer: Some("https://other.example".to_owned()), ..rule.clone() };
    assert_eq!(ask(NOW, &other_issuer, &store), Refusal::UnknownIssuer.to_string());
    let other_audience = JwtRule { audiences: vec!["other".to_owned()], ..rule.clone() };
    assert_eq!(ask(NOW, &other_audience, &store), Refusal::Audience.to_string());
    store.keys = Some(key_set(&[P256.jwk(&json!({"kid": "l"}))]));
    assert_eq!(ask(NOW, &rule, &store), Refusal::NoMatchingKey.to_string(), "its key is withdrawn");
    store.keys = Some(key_set(&[OTHER_RSA.jwk(&json!({"kid": "k"}))]));
    assert_eq!(ask(NOW, &rule, &store), Refusal::Signature.to_string(), "its key is another one");
    store.keys = None;
    assert_eq!(ask(NOW, &rule, &store), Refusal::KeysUnavailable.to_string());
    store.keys = Some(key_set(&[RSA.jwk(&json!({"kid": "k"})), P256.jwk(&json!({"kid": "l"}))]));
    assert_eq!(ask(NOW, &rule, &store), believed, "its key is back");
}
