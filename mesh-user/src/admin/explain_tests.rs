//! Requests that nobody made, against documents: what decided, what meshd would answer, and that no token comes out again.

use serde_json::{Value, json};

use super::{ExplainBody, ExplainError, Explanation, Knowledge, NoKeys, RequestQuery, explain};
use crate::{
    config::{Config, PathNormalization},
    jwt::test_tokens::{ED, jwks},
    policy::{CompiledPolicies, PolicySet},
    world::World,
};

const NODE: &str = "
node: a
workloads:
- { name: web, namespace: shop, serviceAccount: web, selector: { netns: /run/netns/web }, addresses: [10.0.0.1] }
- { name: db, namespace: shop, serviceAccount: db, labels: { app: db }, selector: { netns: /run/netns/db }, addresses: [10.0.0.2] }
";

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {spec}\n"
    )
}

fn asked(
    documents: &str,
    normalization: PathNormalization,
    request: &Value,
) -> Result<Explanation, ExplainError> {
    let world = World::build(&Config::parse(NODE, "node.yaml").unwrap()).unwrap();
    let set = PolicySet::parse([("p.yaml", documents)]).unwrap();
    let known = Knowledge {
        world: &world,
        policies: &CompiledPolicies::compile(&world, &set),
        normalization: normalization.into(),
        keys: &NoKeys,
        now_seconds: 1_700_000_000,
    };
    let request: RequestQuery = serde_json::from_value(request.clone()).unwrap();
    let body = ExplainBody { from: "shop/web".into(), to: "shop/db:80".into(), request: Some(request) };
    explain(&known, &body.parse()?)
}

fn ask(documents: &str, request: &Value) -> Explanation {
    asked(documents, PathNormalization::Default, request).unwrap()
}

fn status(explanation: &Explanation) -> Option<u16> {
    explanation.request.as_ref().unwrap().status
}

#[test]
fn a_request_is_decided_by_its_method_path_host_and_headers() {
    let policy = document(
        "AuthorizationPolicy",
        "p",
        "{ rules: [ { to: [ { operation: { methods: [ GET ], paths: [ '/a/*' ], hosts: [ db.example ] } } ], \
         when: [ { key: 'request.headers[x-team]', values: [ blue ] } ] } ] }",
    );
    let right = json!({ "path": "/a/b", "host": "db.example", "headers": [["X-Team", "blue"]] });
    let explanation = ask(&policy, &right);
    assert_eq!((explanation.allowed, explanation.decided_by.as_str()), (true, "shop/p rule[0]"));
    assert_eq!(status(&explanation), None);
    for (part, value) in
        [("method", json!("POST")), ("path", json!("/b")), ("host", json!("db")), ("headers", json!([]))]
    {
        let mut wrong = right.clone();
        wrong[part] = value;
        let explanation = ask(&policy, &wrong);
        assert_eq!((explanation.allowed, status(&explanation)), (false, Some(403)), "{part}");
        assert!(explanation.steps.iter().any(|s| s.contains("shop/p rule[0] does not match")), "{part}");
    }
}

#[test]
fn the_path_is_what_the_nodes_file_makes_of_it() {
    let policy = document(
        "AuthorizationPolicy",
        "p",
        "{ action: DENY, rules: [ { to: [ { operation: { paths: [ '/admin*' ] } } ] } ] }",
    );
    for (normalization, path, allowed) in [
        (PathNormalization::None, "/x/../admin", true),
        (PathNormalization::Default, "/x/../admin", false),
        (PathNormalization::Base, "//admin", true),
        (PathNormalization::MergeSlashes, "//admin", false),
        (PathNormalization::MergeSlashes, "/x%2F..%2Fadmin", true),
        (PathNormalization::DecodeAndMergeSlashes, "/x%2F..%2Fadmin", false),
    ] {
        let explanation = asked(&policy, normalization, &json!({ "path": path })).unwrap();
        assert_eq!(explanation.allowed, allowed, "{normalization:?} {path}");
    }
    let bad = ask(&policy, &json!({ "path": "/%00" }));
    assert_eq!((bad.allowed, status(&bad)), (false, Some(400)));
}

fn with_tokens(from: &str) -> String {
    let keys = jwks(&[ED.jwk(&json!({ "kid": "k" }))]);
    let authentication = document(
        "RequestAuthentication",
        "tokens",
        &format!("{{ jwtRules: [ {{ issuer: issuer.example, jwks: '{keys}'{from} }} ] }}"),
    );
    let policy = document(
        "AuthorizationPolicy",
        "alice",
        "{ rules: [ { from: [ { source: { requestPrincipals: [ issuer.example/alice ] } } ] } ] }",
    );
    authentication + &policy
}

#[test]
fn a_header_that_a_tokens_claim_is_written_to_is_what_the_claim_says() {
    let tokens = with_tokens(", outputClaimToHeaders: [ { header: x-team, claim: team } ]");
    let tokens = tokens.split("---").nth(1).unwrap();
    let blue = document(
        "AuthorizationPolicy",
        "blue",
        "{ rules: [ { when: [ { key: 'request.headers[x-team]', values: [ blue ] } ] } ] }",
    );
    let token = |team: &str| {
        let claims = json!({ "iss": "issuer.example", "sub": "a", "exp": 1_800_000_000, "team": team });
        ED.token("EdDSA", Some("k"), &claims)
    };
    let sent = json!([["X_Team", "blue"]]);
    for (request, allowed) in [
        (json!({ "headers": [["x-team", "blue"]] }), false),
        (json!({ "headers": sent, "token": token("red") }), false),
        (json!({ "token": token("blue") }), true),
    ] {
        let explanation = ask(&format!("---{tokens}{blue}"), &request);
        assert_eq!(explanation.allowed, allowed, "{request} {explanation:?}");
    }
}

#[test]
fn a_token_is_judged_wherever_the_rule_looks_and_never_shown() {
    let claims = |sub: &str, exp: u64| json!({ "iss": "issuer.example", "sub": sub, "exp": exp });
    let (later, before) = (1_800_000_000, 1_600_000_000);
    for place in [
        "",
        ", fromHeaders: [ { name: x-token, prefix: 'T ' } ]",
        ", fromParams: [ t ]",
        ", fromCookies: [ t ]",
    ] {
        let documents = with_tokens(place);
        for (claims, allowed, status_wanted, principal) in [
            (claims("alice", later), true, None, Some("issuer.example/alice")),
            (claims("bob", later), false, Some(403), Some("issuer.example/bob")),
            (claims("alice", before), false, Some(401), None),
        ] {
            let token = ED.token("EdDSA", Some("k"), &claims);
            let explanation = ask(&documents, &json!({ "token": token }));
            let request = explanation.request.as_ref().unwrap();
            assert_eq!(
                (explanation.allowed, request.status),
                (allowed, status_wanted),
                "{place} {explanation:?}"
            );
            assert_eq!(request.principal.as_deref(), principal, "{place}");
            let said = serde_json::to_string(&explanation).unwrap();
            assert!(!said.contains(&token), "{said}");
        }
    }
    let refused =
        ask(&with_tokens(""), &json!({ "token": ED.token("EdDSA", Some("k"), &claims("alice", before)) }));
    assert_eq!(refused.decided_by, "shop/tokens: Jwt is expired");
}

#[test]
fn credentials_that_a_rule_asks_about_are_hidden() {
    let policy = document(
        "AuthorizationPolicy",
        "p",
        "{ rules: [ { when: [ { key: 'request.headers[authorization]', values: [ other ] }, \
         { key: 'request.headers[cookie]', values: [ other ] } ] } ] }",
    );
    for request in [
        json!({ "token": "c2VjcmV0LXRva2Vu" }),
        json!({ "headers": [["Authorization", "Basic c2VjcmV0LXRva2Vu"]] }),
    ] {
        let explanation = ask(&policy, &request);
        let said = serde_json::to_string(&explanation).unwrap();
        assert!(said.contains("<hidden>") && !said.contains("c2VjcmV0"), "{said}");
    }
}

#[test]
fn without_a_token_a_request_goes_on_as_nobody_and_claims_stand_for_one() {
    let anonymous = ask(&with_tokens(""), &json!({}));
    assert_eq!((anonymous.allowed, status(&anonymous)), (false, Some(403)));
    assert!(anonymous.request.unwrap().token.contains("as nobody"));
    let claimed = ask(&with_tokens(""), &json!({ "claims": { "iss": "issuer.example", "sub": "alice" } }));
    assert!(claimed.allowed, "{claimed:?}");
}

#[test]
fn an_external_authorizer_is_named_with_what_follows_where_it_allows() {
    let documents = [
        document("AuthorizationPolicy", "ask", "{ action: CUSTOM, provider: { name: ext }, rules: [ {} ] }"),
        document(
            "AuthorizationPolicy",
            "no",
            "{ action: DENY, rules: [ { to: [ { operation: { methods: [ DELETE ] } } ] } ] }",
        ),
    ]
    .concat();
    for (method, then) in [("GET", "allowed: no ALLOW policy applies"), ("DELETE", "denied: shop/no rule[0]")]
    {
        let explanation = ask(&documents, &json!({ "method": method }));
        assert_eq!(
            (explanation.allowed, explanation.decided_by.as_str()),
            (false, "shop/ask rule[0] asks ext")
        );
        let step = format!("shop/ask rule[0] asks ext; if that allows it: {then}");
        assert!(explanation.steps.contains(&step), "{explanation:?}");
    }
}

#[test]
fn what_only_watches_is_told_beside_the_verdict() {
    let rule = "rules: [ { to: [ { operation: { paths: [ /a ] } } ] } ]";
    let documents = [
        document("AuthorizationPolicy", "watch", &format!("{{ action: AUDIT, {rule} }}")),
        document("AuthorizationPolicy", "later", &format!("{{ action: DENY, {rule} }}"))
            .replace("name: later,", "name: later, annotations: { istio.io/dry-run: 'true' },"),
    ]
    .concat();
    let explanation = ask(&documents, &json!({ "path": "/a" }));
    assert!(explanation.allowed);
    assert_eq!(explanation.audit, ["shop/watch rule[0]"]);
    let dry_run = explanation.dry_run.unwrap();
    assert_eq!(dry_run, "denied: shop/later rule[0]; matched: [shop/later rule[0]]");
}

#[test]
fn at_a_port_that_no_rule_reads_the_connection_decides() {
    let policy = document(
        "AuthorizationPolicy",
        "p",
        "{ rules: [ { from: [ { source: { namespaces: [ shop ] } } ] } ] }",
    );
    let explanation = ask(&policy, &json!({ "path": "/%00" }));
    assert!(explanation.allowed, "{explanation:?}");
    assert!(explanation.steps.iter().any(|s| s.contains("its requests are not read")));
}
