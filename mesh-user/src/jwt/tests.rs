//! What Envoy's `jwt_authn` under Istio's configuration does with a request, as tables of cases.

mod hostile;
mod key_sets;
mod places;
mod remembered;
mod results;
mod several_rules;
mod tokens;

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
};

use hyper::{HeaderMap, header::HeaderName};
use serde_json::{Value, json};

use super::{
    Authenticated, Decision, HeaderLocation, JwtRule, KeyLocation, KeySet, KeySource, Keys, Outcome, Refusal,
    RequestHead, VerifiedSignatures, authenticate,
    test_tokens::{RSA, jwks},
};

const ISSUER: &str = "https://issuer.example";
const NOW: u64 = 1_700_000_000;

/// Of all cases: none may be decided by what another one left behind.
static VERIFIED: LazyLock<VerifiedSignatures> = LazyLock::new(VerifiedSignatures::default);

/// Keys of a store that fetched them.
#[derive(Default)]
struct Fetched {
    sets: HashMap<KeyLocation, Arc<KeySet>>,
    asked_again: Mutex<Vec<KeyLocation>>,
}

impl Keys for Fetched {
    fn keys(&self, location: &KeyLocation) -> Option<Arc<KeySet>> {
        self.sets.get(location).cloned()
    }

    fn unknown_key(&self, location: &KeyLocation) {
        self.asked_again.lock().unwrap().push(location.clone());
    }

    fn verified(&self) -> Option<&VerifiedSignatures> {
        Some(&VERIFIED)
    }
}

/// For `ISSUER`, with one RSA key called `k`, in the default places.
fn rule() -> JwtRule {
    rule_with(&[RSA.jwk(&json!({"kid": "k"}))])
}

fn rule_with(keys: &[Value]) -> JwtRule {
    JwtRule {
        policy: "shop/jwt".into(),
        index: 0,
        issuer: Some(ISSUER.to_owned()),
        audiences: Vec::new(),
        keys: KeySource::Inline(Arc::new(KeySet::parse(jwks(keys).as_bytes()).unwrap())),
        from_headers: vec![HeaderLocation {
            name: HeaderName::from_static("authorization"),
            prefix: "Bearer ".to_owned(),
        }],
        from_params: vec!["access_token".to_owned()],
        from_cookies: Vec::new(),
        output_payload_to_header: None,
        output_claim_to_headers: Vec::new(),
        forward_original_token: false,
        space_delimited_claims: vec!["scope".to_owned(), "permission".to_owned()],
    }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "alice", "exp": NOW + 600})
}

/// The usual claims with some replaced.
fn claims_with(more: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn good_token() -> String {
    RSA.token("RS256", Some("k"), &claims())
}

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    let each = list.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
    each.fold(HeaderMap::new(), |mut map, (name, value)| {
        map.append(name, value);
        map
    })
}

fn decide_head(rules: &[JwtRule], path: &str, headers: &HeaderMap, keys: &dyn Keys) -> Decision {
    let rules: Vec<_> = rules.iter().cloned().map(Arc::new).collect();
    let head = RequestHead {
        method: "GET",
        scheme: "https",
        authority: "web.shop:8080",
        path_and_query: path,
        headers,
    };
    authenticate(&rules, &head, keys, NOW)
}

fn decide(rules: &[JwtRule], path: &str, list: &[(&'static str, &str)]) -> Decision {
    decide_head(rules, path, &headers(list), &Fetched::default())
}

/// `anonymous`, the principal, or the refusal's text.
fn short(decision: &Decision) -> String {
    match &decision.outcome {
        Outcome::Anonymous => "anonymous".to_owned(),
        Outcome::Authenticated(who) => who.principal().unwrap_or_else(|| "no principal".to_owned()),
        Outcome::Refused(refused) => refused.reason.to_string(),
    }
}

fn with_bearer(rule: JwtRule, token: &str) -> Decision {
    decide(&[rule], "/", &[("authorization", &format!("Bearer {token}"))])
}

fn refusal(decision: &Decision) -> Option<Refusal> {
    match &decision.outcome {
        Outcome::Refused(refused) => Some(refused.reason),
        _ => None,
    }
}

fn authenticated(decision: &Decision) -> &Authenticated {
    match &decision.outcome {
        Outcome::Authenticated(who) => who,
        other => panic!("{other:?}"),
    }
}
