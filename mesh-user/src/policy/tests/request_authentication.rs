//! `RequestAuthentication`: what is read, what is refused, and whom it applies to.

use std::time::Duration;

use crate::{
    config::Config,
    jwt::{
        JwtRule, KeyLocation, KeySource,
        test_tokens::{ED, jwks},
    },
    policy::{CompiledPolicies, PolicySet},
    world::World,
};

const GATEWAY: &str = "group: gateway.networking.k8s.io, kind: Gateway, name: g";
const HEAD: &str =
    "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt, namespace: shop}\n";

fn document(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1beta1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// The service `w` in front of the workload shop/web.
fn world_with_service() -> World {
    let service = "services: [{name: w, namespace: shop, addresses: [10.9.0.1], ports: [{port: 80}], selector: {app: web}}]";
    World::build(&Config::parse(&format!("{}{service}\n", super::CONFIG), "test").unwrap()).unwrap()
}

fn rules(spec: &str) -> Vec<JwtRule> {
    let set = PolicySet::parse([("p.yaml", format!("{HEAD}{spec}").as_str())]).unwrap();
    set.request_authentications[0].rules.iter().map(|rule| JwtRule::clone(rule)).collect()
}

#[test]
fn every_field_of_a_rule_is_read() {
    let rule = &rules(
        "spec:
  selector: {matchLabels: {app: web}}
  jwtRules:
    - issuer: https://issuer.example/
      audiences: [https://a/, b]
      jwksUri: http://keys.example:8080/k?x=y
      fromHeaders: [{name: X-Token, prefix: 'JWT '}, {name: x-other}]
      fromParams: [t]
      fromCookies: [s]
      outputPayloadToHeader: X-Payload
      forwardOriginalToken: true
      outputClaimToHeaders: [{header: x-group, claim: a.b}]
      timeout: 1.500s
      spaceDelimitedClaims: [roles, scope]
",
    )[0];
    assert_eq!(rule.issuer.as_deref(), Some("https://issuer.example/"));
    assert_eq!(rule.audiences, ["a", "b"]);
    let KeySource::Remote(source) = &rule.keys else { panic!("{:?}", rule.keys) };
    assert_eq!(source.location, KeyLocation::Jwks("http://keys.example:8080/k?x=y".into()));
    assert_eq!(source.timeout, Duration::from_millis(1500));
    let headers: Vec<_> = rule.from_headers.iter().map(|h| (h.name.as_str(), h.prefix.as_str())).collect();
    assert_eq!(headers, [("x-token", "JWT "), ("x-other", "")]);
    assert_eq!(
        (&rule.from_params[..], &rule.from_cookies[..]),
        (&["t".to_owned()][..], &["s".to_owned()][..])
    );
    assert_eq!(rule.output_payload_to_header.as_ref().unwrap(), "x-payload");
    assert!(rule.forward_original_token);
    assert_eq!(rule.output_claim_to_headers[0].1, ["a", "b"]);
    assert_eq!(rule.space_delimited_claims, ["roles", "scope", "permission"]);
    assert_eq!((&*rule.policy, rule.index), ("shop/jwt", 0));
}

#[test]
fn what_a_rule_leaves_out_is_istios_default() {
    let rule = &rules("spec: {jwtRules: [{issuer: 'https://issuer.example/tenant/'}]}\n")[0];
    let KeySource::Remote(source) = &rule.keys else { panic!("{:?}", rule.keys) };
    let discovery = "https://issuer.example/tenant/.well-known/openid-configuration";
    assert_eq!(source.location, KeyLocation::Discovery(discovery.into()));
    assert_eq!(source.timeout, Duration::from_secs(5));
    assert_eq!(
        (rule.from_headers[0].name.as_str(), rule.from_headers[0].prefix.as_str()),
        ("authorization", "Bearer ")
    );
    assert_eq!((&rule.from_params[..], rule.from_cookies.len()), (&["access_token".to_owned()][..], 0));
    assert!(!rule.forward_original_token);
    // One place that is named takes the others away.
    let rule = &rules("spec: {jwtRules: [{issuer: 'https://i', fromCookies: [s]}]}\n")[0];
    assert!(rule.from_headers.is_empty() && rule.from_params.is_empty());
    // Without an issuer any is taken, as long as there are keys.
    assert_eq!(rules("spec: {jwtRules: [{jwksUri: 'https://i/k'}]}\n")[0].issuer, None);
    assert!(rules("spec: {}\n").is_empty());
}

#[test]
fn what_istio_refuses_is_refused_with_its_place() {
    let rule = |rest: &str| format!("spec: {{jwtRules: [{{issuer: 'https://i', {rest}}}]}}\n");
    for (spec, what) in [
        ("spec: {jwtRule: []}\n".to_owned(), "did you mean \"jwtRules\"?"),
        (rule("jwks_uri: x"), "did you mean \"jwksUri\"?"),
        (rule("fromHeaders: [{name: a, value: b}]"), "unknown field \"value\""),
        (
            "spec: {jwtRules: [{audiences: [a]}]}\n".to_owned(),
            "spec.jwtRules[0]: needs an issuer or a jwksUri",
        ),
        ("spec: {jwtRules: [{jwks: '{\"keys\":[]}'}]}\n".to_owned(), "needs an issuer or a jwksUri"),
        (rule("jwksUri: 'ftp://i/k'"), "http:// or https://"),
        (rule("jwksUri: '/k'"), "http:// or https://"),
        (rule("jwksUri: 'https://u:p@i/k'"), "a user in the URL"),
        (rule("jwksUri: 'https://i:0/k'"), "port"),
        (rule("jwksUri: 'https://i:99999/k'"), "port"),
        (rule("jwksUri: 'https://i/k', jwks: '{\"keys\":[]}'"), "only one of jwks and jwksUri"),
        (rule("jwks: 'no json'"), "spec.jwtRules[0].jwks: the key set is not"),
        (rule("jwks: '{}'"), "\"keys\" array"),
        (rule("audiences: ['']"), "spec.jwtRules[0].audiences[0]: is an empty string"),
        (rule("fromParams: [a, '']"), "fromParams[1]"),
        (rule("fromCookies: ['']"), "fromCookies[0]"),
        (rule("fromHeaders: [{prefix: a}]"), "missing field \"name\""),
        (rule("fromHeaders: [{name: ''}]"), "fromHeaders[0].name"),
        (rule("fromHeaders: [{name: 'a b'}]"), "fromHeaders[0].name"),
        (rule("fromHeaders: [{name: a, prefix: \"\\r\\n\"}]"), "fromHeaders[0].prefix"),
        (rule("outputPayloadToHeader: 'a:b'"), "outputPayloadToHeader"),
        (rule("outputPayloadToHeader: Content-Length"), "says how a message is read"),
        (rule("outputClaimToHeaders: [{header: a_b, claim: c}]"), "outputClaimToHeaders[0].header"),
        (rule("outputClaimToHeaders: [{header: host, claim: c}]"), "says how a message is read"),
        (rule("outputClaimToHeaders: [{header: a, claim: ''}]"), "outputClaimToHeaders[0].claim"),
        (rule("outputClaimToHeaders: [{header: a}]"), "missing field \"claim\""),
        (rule("timeout: 5"), "timeout"),
        (rule("timeout: 5m"), "no duration"),
        (rule("timeout: -5s"), "no duration"),
        (rule("timeout: 0s"), "1 ms or more"),
        (rule("timeout: 0.0001s"), "whole milliseconds"),
        (rule("forwardOriginalToken: 'yes'"), ""),
        ("spec: {selector: {matchLabels: {app: 'w*'}}}\n".to_owned(), "wildcards"),
        (
            "spec: {selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: x}]}\n".to_owned(),
            "only one of",
        ),
        ("spec: {targetRefs: [{kind: Pod, name: x}]}\n".to_owned(), "spec.targetRefs[0]: must be a Service"),
        (
            "spec: {targetRef: {kind: Service, name: x, namespace: y}}\n".to_owned(),
            "namespace must not be set",
        ),
    ] {
        let error = PolicySet::parse([("p.yaml", format!("{HEAD}{spec}").as_str())]).unwrap_err().to_string();
        assert!(error.starts_with("p.yaml:4:") && error.contains(what), "{spec} gave {error}");
    }
}

#[test]
fn all_documents_that_select_a_workload_add_up_by_issuer() {
    let issuer = |host: &str| format!("jwtRules: [{{issuer: 'https://{host}'}}]");
    let text = [
        document("shop", "later", &format!("{{{}}}", issuer("b"))),
        document("shop", "own", &format!("{{selector: {{matchLabels: {{app: web}}}}, {}}}", issuer("c"))),
        document("shop", "not", &format!("{{selector: {{matchLabels: {{app: db}}}}, {}}}", issuer("x"))),
        document("istio-system", "mesh", &format!("{{{}}}", issuer("b"))),
        document(
            "istio-system",
            "front",
            &format!("{{selector: {{matchLabels: {{tier: front}}}}, {}}}", issuer("a")),
        ),
        document("data", "other", &format!("{{{}}}", issuer("d"))),
        document("shop", "waypoint", &format!("{{targetRefs: [{{{GATEWAY}}}], {}}}", issuer("y"))),
        document(
            "shop",
            "service",
            &format!("{{targetRefs: [{{{GATEWAY}}}, {{kind: Service, name: w}}], {}}}", issuer("e")),
        ),
        document("shop", "none", &format!("{{targetRef: {{kind: Service, name: n}}, {}}}", issuer("z"))),
        document(
            "data",
            "elsewhere",
            &format!("{{targetRefs: [{{kind: Service, name: w}}], {}}}", issuer("z")),
        ),
    ]
    .concat();
    let world = world_with_service();
    let set = PolicySet::parse([("p.yaml", text.as_str())]).unwrap();
    let policies = CompiledPolicies::compile(&world, &set);
    let of = |namespace: &str, name: &str| {
        let policy = policies.for_workload(world.by_name(namespace, name).unwrap().id);
        let each = policy.request_authentication().iter();
        each.map(|r| format!("{} {}", r.issuer.as_deref().unwrap(), r.policy)).collect::<Vec<_>>()
    };
    assert_eq!(
        of("shop", "web"),
        [
            "https://a istio-system/front",
            "https://b istio-system/mesh",
            "https://b shop/later",
            "https://c shop/own",
            "https://e shop/service"
        ]
    );
    assert_eq!(of("data", "db"), ["https://b istio-system/mesh", "https://d data/other"]);
    // A place that two documents name is fetched once, and one that no local workload needs is not.
    let sources: Vec<_> = policies.jwks_sources(&world).iter().map(|s| s.location.url().to_owned()).collect();
    let wanted =
        ["a", "b", "c", "e", "d"].map(|host| format!("https://{host}/.well-known/openid-configuration"));
    assert_eq!(sources, wanted);
}

#[test]
fn a_status_counts_workloads_and_says_what_is_not_enforced() {
    let key = jwks(&[ED.jwk(&serde_json::json!({}))]);
    let text = [
        document("istio-system", "mesh", "{}"),
        document(
            "shop",
            "own",
            &format!("{{selector: {{matchLabels: {{app: web}}}}, jwtRules: [{{issuer: i, jwks: '{key}'}}]}}"),
        ),
        document(
            "shop",
            "empty",
            "{jwtRules: [{issuer: i, jwks: '{\"keys\":[{\"kty\":\"oct\",\"k\":\"eA\"}]}'}]}",
        ),
        document("shop", "no-url", "{jwtRules: [{issuer: me@issuer.example}]}"),
        document("shop", "waypoint", &format!("{{targetRefs: [{{{GATEWAY}}}]}}")),
        document("shop", "service", &format!("{{targetRefs: [{{{GATEWAY}}}, {{kind: Service, name: w}}]}}")),
    ]
    .concat();
    let set = PolicySet::parse([("p.yaml", text.as_str())]).unwrap();
    let seen: Vec<_> = set
        .status_in(&world_with_service())
        .iter()
        .map(|s| format!("{} {} {} {} {}", s.name, s.scope, s.accepted, s.workloads, s.not_enforced.len()))
        .collect();
    assert_eq!(
        seen,
        [
            "mesh mesh true 2 0",
            "own workload true 1 0",
            "empty namespace true 1 1",
            "no-url namespace true 1 1",
            "waypoint workload false 0 1",
            "service workload true 1 1"
        ]
    );
}
