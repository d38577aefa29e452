//! One token against one rule.

use super::*;
use crate::jwt::test_tokens::{ED, OTHER_RSA, P256, P384, P521, Signer, encode};

#[test]
fn every_family_of_signatures_is_verified() {
    let signers: [(&str, &Signer); 10] = [
        ("RS256", &RSA),
        ("RS384", &RSA),
        ("RS512", &RSA),
        ("PS256", &RSA),
        ("PS384", &RSA),
        ("PS512", &RSA),
        ("ES256", &P256),
        ("ES384", &P384),
        ("ES512", &P521),
        ("EdDSA", &ED),
    ];
    for (alg, signer) in signers {
        let token = signer.token(alg, Some("k"), &claims());
        for more in [
            json!({"kid": "k"}),
            json!({"alg": alg}),
            json!({"kid": "k", "use": "sig", "key_ops": ["verify"]}),
        ] {
            let decision = with_bearer(rule_with(&[signer.jwk(&more)]), &token);
            assert_eq!(short(&decision), format!("{ISSUER}/alice"), "{alg} {more}");
        }
        let changed = token.rsplit_once('.').unwrap().0.to_owned() + "." + &encode(signer.sign(alg, b"else"));
        let decision = with_bearer(rule_with(&[signer.jwk(&json!({"kid": "k"}))]), &changed);
        assert_eq!(refusal(&decision), Some(Refusal::Signature), "{alg}");
    }
}

#[test]
fn the_key_is_chosen_by_kid_and_alg_and_fits_the_algorithm() {
    let (k, other) = (RSA.jwk(&json!({"kid": "k"})), OTHER_RSA.jwk(&json!({"kid": "o"})));
    let good = format!("{ISSUER}/alice");
    let [no_match, wrong, none] =
        [Refusal::NoMatchingKey, Refusal::Signature, Refusal::NoValidKeys].map(|refusal| refusal.to_string());
    let cases: [(&str, Option<&str>, Vec<Value>, &String); 10] = [
        ("RS256", Some("k"), vec![other.clone(), k.clone()], &good),
        ("RS256", None, vec![other.clone(), k.clone()], &good),
        ("RS256", Some(""), vec![other.clone(), k.clone()], &good),
        ("RS256", Some("k"), vec![RSA.jwk(&json!({}))], &good),
        ("RS256", Some("k"), vec![other.clone()], &no_match),
        ("RS256", Some("o"), vec![other.clone(), k.clone()], &wrong),
        ("RS256", None, vec![other.clone()], &wrong),
        ("PS256", Some("k"), vec![RSA.jwk(&json!({"kid": "k", "alg": "RS256"}))], &no_match),
        ("RS256", Some("k"), vec![P256.jwk(&json!({"kid": "k"}))], &wrong),
        ("RS256", Some("k"), vec![], &none),
    ];
    for (alg, kid, keys, expected) in cases {
        let decision = with_bearer(rule_with(&keys), &RSA.token(alg, kid, &claims()));
        assert_eq!(&short(&decision), expected, "{alg} {kid:?} {keys:?}");
    }
}

#[test]
fn a_header_that_asks_for_anything_else_is_refused() {
    let payload = claims().to_string();
    for (header, expected) in [
        (r#"{"alg":"none"}"#, Refusal::UnsupportedAlg),
        (r#"{"alg":"None"}"#, Refusal::UnsupportedAlg),
        (r#"{"alg":"HS256","kid":"k"}"#, Refusal::UnsupportedAlg),
        (r#"{"alg":"HS512"}"#, Refusal::UnsupportedAlg),
        (r#"{"alg":"rs256"}"#, Refusal::UnsupportedAlg),
        (r#"{"alg":"ES256K"}"#, Refusal::UnsupportedAlg),
        (r#"{"alg":"RSA-OAEP"}"#, Refusal::UnsupportedAlg),
        (r#"{"alg":""}"#, Refusal::UnsupportedAlg),
        (r#"{"typ":"JWT"}"#, Refusal::Alg),
        (r#"{"alg":256}"#, Refusal::Alg),
        (r#"{"alg":["RS256"]}"#, Refusal::Alg),
        (r#"{"alg":null}"#, Refusal::Alg),
        (r#"{"alg":"RS256","kid":1}"#, Refusal::Kid),
        (r#"{"alg":"RS256","kid":null}"#, Refusal::Kid),
        (r#"{"alg":"RS256","crit":["b64"],"b64":false}"#, Refusal::Crit),
        (r#"{"alg":"RS256","crit":["exp"],"exp":1}"#, Refusal::Crit),
        (r#"{"alg":"RS256","crit":[]}"#, Refusal::Crit),
        (r#"{"alg":"RS256","alg":"RS256"}"#, Refusal::HeaderJson),
        (r#"{"alg":"none","alg":"RS256"}"#, Refusal::HeaderJson),
        (r#"["RS256"]"#, Refusal::HeaderJson),
        ("RS256", Refusal::HeaderJson),
        ("", Refusal::Form),
    ] {
        let decision = with_bearer(rule(), &RSA.token_of("RS256", header, &payload));
        assert_eq!(refusal(&decision), Some(expected), "{header}");
    }
}

#[test]
fn keys_that_a_token_brings_are_not_used() {
    let own = OTHER_RSA.jwk(&json!({}));
    for extra in [
        json!({"jwk": own}),
        json!({"jku": "https://evil.example/jwks"}),
        json!({"x5u": "https://evil.example/cert"}),
        json!({"x5c": ["MIIB"]}),
    ] {
        let mut header = json!({"alg": "RS256"});
        header.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let forged = OTHER_RSA.token_of("RS256", &header.to_string(), &claims().to_string());
        assert_eq!(refusal(&with_bearer(rule(), &forged)), Some(Refusal::Signature), "{header}");
        let honest = RSA.token_of("RS256", &header.to_string(), &claims().to_string());
        assert_eq!(short(&with_bearer(rule(), &honest)), format!("{ISSUER}/alice"), "{header}");
    }
}

#[test]
fn claims_have_their_types_and_appear_once() {
    let payload = |members: &str| format!(r#"{{"iss":"{ISSUER}","sub":"alice"{members}}}"#);
    for (payload, expected) in [
        (payload(""), None),
        (payload(r#","aud":[],"jti":"x","iat":1.5,"extra":{"a":[1]}"#), None),
        (payload(r#","sub":"bob""#), Some(Refusal::PayloadJson)),
        (payload(r#","x":{"a":1,"a":2}"#), Some(Refusal::PayloadJson)),
        (format!(r#"{{"iss":"{ISSUER}","is\u0073":"x"}}"#), Some(Refusal::PayloadJson)),
        ("[]".to_owned(), Some(Refusal::PayloadJson)),
        (r#"{"iss":1}"#.to_owned(), Some(Refusal::Iss)),
        (r#"{"iss":["https://issuer.example"]}"#.to_owned(), Some(Refusal::Iss)),
        (format!(r#"{{"iss":"{ISSUER}","sub":1}}"#), Some(Refusal::Sub)),
        (payload(r#","jti":1"#), Some(Refusal::Jti)),
        (payload(r#","iat":"1""#), Some(Refusal::Iat)),
        (payload(r#","iat":-1"#), Some(Refusal::IatRange)),
        (payload(r#","nbf":"0""#), Some(Refusal::Nbf)),
        (payload(r#","nbf":null"#), Some(Refusal::Nbf)),
        (payload(r#","exp":"9999999999""#), Some(Refusal::Exp)),
        (payload(r#","exp":true"#), Some(Refusal::Exp)),
        (payload(r#","nbf":-0.5"#), Some(Refusal::NbfRange)),
        (payload(r#","exp":1.8446744073709552e19"#), Some(Refusal::ExpRange)),
        (payload(r#","exp":18446744073709551615"#), Some(Refusal::ExpRange)),
        (payload(r#","exp":18446744073709549568"#), None),
        (payload(r#","aud":1"#), Some(Refusal::Aud)),
        (payload(r#","aud":["a",1]"#), Some(Refusal::Aud)),
    ] {
        let decision = with_bearer(rule(), &RSA.token_of("RS256", r#"{"alg":"RS256"}"#, &payload));
        assert_eq!(refusal(&decision), expected, "{payload}");
    }
}

#[test]
fn time_is_checked_with_a_minute_of_skew() {
    for (more, expected) in [
        (json!({"exp": NOW}), None),
        (json!({"exp": NOW - 60}), None),
        (json!({"exp": NOW - 61}), Some(Refusal::Expired)),
        (json!({"exp": 0}), Some(Refusal::Expired)),
        (json!({"exp": 1e19}), None),
        (json!({"nbf": NOW + 60}), None),
        (json!({"nbf": NOW + 61}), Some(Refusal::NotYetValid)),
        (json!({"nbf": 1e19}), Some(Refusal::NotYetValid)),
        (json!({"nbf": NOW + 61, "exp": 1}), Some(Refusal::NotYetValid)),
        (json!({"iat": NOW + 1_000_000}), None),
    ] {
        let decision = with_bearer(rule(), &RSA.token("RS256", Some("k"), &claims_with(&more)));
        assert_eq!(refusal(&decision), expected, "{more}");
    }
}

#[test]
fn issuer_is_exact_and_audiences_are_compared_as_envoy_does() {
    let to = |audiences: &[&str]| JwtRule {
        audiences: audiences.iter().map(|&a| a.to_owned()).collect(),
        ..rule()
    };
    for (rule, more, expected) in [
        (rule(), json!({"iss": "https://issuer.example/"}), Some(Refusal::UnknownIssuer)),
        (rule(), json!({"iss": "HTTPS://issuer.example"}), Some(Refusal::UnknownIssuer)),
        (rule(), json!({"iss": ""}), Some(Refusal::UnknownIssuer)),
        (JwtRule { issuer: None, ..rule() }, json!({"iss": "whoever"}), None),
        (rule(), json!({"aud": "any"}), None),
        (to(&["a", "b"]), json!({"aud": "b"}), None),
        (to(&["a", "b"]), json!({"aud": ["x", "a"]}), None),
        (to(&["a"]), json!({"aud": ["https://a/"]}), None),
        (to(&["a"]), json!({"aud": ["http://a"]}), None),
        (to(&["a"]), json!({"aud": "A"}), Some(Refusal::Audience)),
        (to(&["a"]), json!({"aud": []}), Some(Refusal::Audience)),
        (to(&["a"]), json!({}), Some(Refusal::Audience)),
        (to(&["a"]), json!({"aud": "ab"}), Some(Refusal::Audience)),
        // The order in which Envoy looks.
        (to(&["a"]), json!({"exp": 1}), Some(Refusal::Expired)),
        (to(&["a"]), json!({"iss": "x", "exp": 1}), Some(Refusal::UnknownIssuer)),
    ] {
        let decision = with_bearer(rule, &RSA.token("RS256", Some("k"), &claims_with(&more)));
        assert_eq!(refusal(&decision), expected, "{more}");
    }
}

#[test]
fn keys_that_are_not_there_yet_refuse_and_an_unknown_kid_asks_again() {
    let location = KeyLocation::Jwks("https://issuer.example/jwks".into());
    let source =
        crate::jwt::JwksSource { location: location.clone(), timeout: std::time::Duration::from_secs(5) };
    let remote = JwtRule { keys: KeySource::Remote(source), ..rule() };
    let mut store = Fetched::default();
    let bearer =
        |kid: &str, signer: &Signer| format!("Bearer {}", signer.token("RS256", Some(kid), &claims()));
    let decide = |store: &Fetched, value: &str| {
        short(&decide_head(std::slice::from_ref(&remote), "/", &headers(&[("authorization", value)]), store))
    };
    assert_eq!(decide(&store, &bearer("k", &RSA)), Refusal::KeysUnavailable.to_string());
    let set = KeySet::parse(jwks(&[RSA.jwk(&json!({"kid": "k"}))]).as_bytes()).unwrap();
    store.sets.insert(location.clone(), Arc::new(set));
    assert_eq!(decide(&store, &bearer("k", &RSA)), format!("{ISSUER}/alice"));
    assert_eq!(decide(&store, &bearer("k", &OTHER_RSA)), Refusal::Signature.to_string());
    assert!(store.asked_again.lock().unwrap().is_empty());
    assert_eq!(decide(&store, &bearer("new", &RSA)), Refusal::NoMatchingKey.to_string());
    assert_eq!(*store.asked_again.lock().unwrap(), [location]);
}
