//! What the application and the client get to see.

use hyper::{StatusCode, header::HeaderValue};

use super::*;

fn name(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

fn writing_rule() -> JwtRule {
    let path = |path: &str| path.split('.').map(str::to_owned).collect();
    JwtRule {
        output_payload_to_header: Some(name("x-payload")),
        output_claim_to_headers: vec![
            (name("x-sub"), path("sub")),
            (name("x-deep"), path("a.b")),
            (name("x-value"), path("value")),
        ],
        ..rule()
    }
}

#[test]
fn claims_become_headers_as_envoy_writes_them() {
    for (value, expected) in [
        (json!("text"), Some("text")),
        (json!("ümlaut"), Some("ümlaut")),
        (json!(""), None),
        (json!(null), None),
        (json!("a\r\nx-admin: 1"), None),
        (json!("a\u{0}"), None),
        (json!(true), Some("true")),
        (json!(0), Some("0")),
        (json!(18_446_744_073_709_551_615_u64), Some("18446744073709551615")),
        (json!(3.0), Some("3")),
        (json!(1.5), Some("1.500000")),
        (json!(-5), Some("-5.000000")),
        (json!([1, "a"]), Some("WzEsImEiXQ==")),
        (json!({"a": 1}), Some("eyJhIjoxfQ==")),
    ] {
        let token = RSA.token("RS256", Some("k"), &claims_with(&json!({"value": value, "a": {"b": "deep"}})));
        let decision = with_bearer(writing_rule(), &token);
        let mut seen = headers(&[("x-value", "forged"), ("x-payload", "forged")]);
        decision.edits.apply(&mut seen);
        let got = seen.get("x-value").map(|v| String::from_utf8(v.as_bytes().to_vec()).unwrap());
        assert_eq!(got.as_deref(), expected, "{value}");
        assert_eq!(seen["x-payload"], *token.split('.').nth(1).unwrap());
        assert_eq!(
            (&seen["x-deep"], &seen["x-sub"]),
            (&HeaderValue::from_static("deep"), &"alice".parse().unwrap())
        );
    }
}

#[test]
fn headers_that_rules_write_never_come_from_the_client() {
    let forged =
        [("x-sub", "root"), ("x-sub", "admin"), ("x-deep", "1"), ("x-payload", "e30"), ("x-other", "kept")];
    let second = JwtRule { issuer: Some("other".to_owned()), ..writing_rule() };
    let first = JwtRule { output_claim_to_headers: Vec::new(), output_payload_to_header: None, ..rule() };
    for with_token in [false, true] {
        let bearer = format!("Bearer {}", good_token());
        let mut list = forged.to_vec();
        if with_token {
            list.push(("authorization", &bearer));
        }
        let decision = decide(&[first.clone(), second.clone()], "/", &list);
        let mut seen = headers(&list);
        decision.edits.apply(&mut seen);
        assert_eq!(seen, headers(&[("x-other", "kept")]));
    }
}

#[test]
fn a_preflight_passes_and_is_still_cleaned() {
    let rules = [Arc::new(writing_rule())];
    let preflight = [("origin", "https://a"), ("access-control-request-method", "PUT")];
    let bad = [("authorization", "Bearer x"), ("x-sub", "root")];
    for (method, list, passes) in [
        ("OPTIONS", [&preflight[..], &bad].concat(), true),
        ("OPTIONS", [&preflight[..1], &bad].concat(), false),
        ("OPTIONS", [&preflight[1..], &bad].concat(), false),
        ("GET", [&preflight[..], &bad].concat(), false),
    ] {
        let headers = headers(&list);
        let head =
            RequestHead { method, scheme: "http", authority: "a", path_and_query: "/", headers: &headers };
        let decision = authenticate(&rules, &head, &Fetched::default(), NOW);
        assert_eq!(short(&decision) == "anonymous", passes, "{method} {list:?}");
        assert!(decision.edits.remove.contains(&name("x-sub")));
    }
}

#[test]
fn claims_for_rules_are_normalized() {
    let more =
        json!({"scope": "read  write", "permission": " ", "groups": "a b", "aud": "x", "azp": "client"});
    let token = RSA.token("RS256", Some("k"), &claims_with(&more));
    let decision = with_bearer(rule(), &token);
    let who = authenticated(&decision);
    assert_eq!(who.claims["scope"], json!(["read", "write"]));
    assert_eq!((&who.claims["permission"], &who.claims["groups"]), (&json!(" "), &json!("a b")));
    assert_eq!((who.audiences.as_slice(), who.presenter.as_deref()), (&["x".to_owned()][..], Some("client")));
    assert_eq!(
        (who.principal().as_deref(), &*who.policy),
        (Some("https://issuer.example/alice"), "shop/jwt")
    );
}

#[test]
fn a_principal_needs_issuer_and_subject() {
    for (claims, expected) in [
        (json!({"iss": ISSUER}), None),
        (json!({"sub": "alice"}), None),
        (json!({"iss": ISSUER, "sub": ""}), None),
        (json!({"iss": ISSUER, "sub": "a/b"}), Some("https://issuer.example/a/b")),
    ] {
        let any = JwtRule { issuer: None, ..rule() };
        let decision = with_bearer(any, &RSA.token("RS256", Some("k"), &claims));
        assert_eq!(authenticated(&decision).principal().as_deref(), expected, "{claims}");
    }
}

#[test]
fn the_answer_to_a_bad_token_is_envoys() {
    let long = format!("/{}", "p".repeat(400));
    let other = RSA.token("RS256", Some("k"), &claims_with(&json!({"aud": "x"})));
    let only_a = JwtRule { audiences: vec!["a".to_owned()], ..rule() };
    for (token, path, status, body, realm) in [
        (
            "x",
            "/a?b=c",
            401,
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            "/a?b=c",
        ),
        (&other, "/", 403, "Audiences in Jwt are not allowed", "/"),
        ("x", "/\"\\\u{7f}", 401, "", "/%22%5C%7F"),
        ("x", &long, 401, "", &long[..256]),
    ] {
        let decision =
            decide(std::slice::from_ref(&only_a), path, &[("authorization", &format!("Bearer {token}"))]);
        let Outcome::Refused(refused) = decision.outcome else { panic!("{path}") };
        assert_eq!(refused.status(), StatusCode::from_u16(status).unwrap());
        assert!(refused.reason.to_string().contains(body), "{}", refused.reason);
        let expected = format!("Bearer realm=\"https://web.shop:8080{realm}\", error=\"invalid_token\"");
        assert_eq!(refused.challenge, expected);
        assert_eq!(&*refused.policy, "shop/jwt");
    }
}
