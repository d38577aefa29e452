//! Cases from Istio's documentation, one row each.

use super::{decide, mode};
use crate::policy::Mode;

const CLIENT: &str = "td1/ns/shop/sa/client";

fn policy(action: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  action: {action}\n  {rules}\n"
    )
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn rules_match_as_documented() {
    // action, rules, peer, source, port, verdict
    let table = [
        ("ALLOW", "", CLIENT, "10.0.0.9", 80, "denied: no ALLOW policy matched"),
        ("ALLOW", "rules: []", CLIENT, "10.0.0.9", 80, "denied: no ALLOW policy matched"),
        ("ALLOW", "rules: [{}]", CLIENT, "10.0.0.9", 80, "allowed by shop/p rule[0]"),
        ("ALLOW", "rules: [{}]", "", "10.0.0.9", 80, "allowed by shop/p rule[0]"),
        ("DENY", "rules: [{}]", CLIENT, "10.0.0.9", 80, "denied: shop/p rule[0]"),
        // principals
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['td1/ns/shop/sa/client']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['spiffe://td1/ns/shop/sa/client']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['*']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['*']}}]}]",
            "",
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['td1/ns/shop/*']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['*/sa/client']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['*/sa/other']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "DENY",
            "rules: [{from: [{source: {notPrincipals: ['*']}}]}]",
            "",
            "10.0.0.9",
            80,
            "denied: shop/p rule[0]",
        ),
        (
            "DENY",
            "rules: [{from: [{source: {notPrincipals: ['*']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed: no ALLOW policy applies",
        ),
        // trust-domain aliases: cluster.local and each own domain stand for all own domains
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['cluster.local/ns/shop/sa/client']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['td1/ns/shop/sa/client']}}]}]",
            "td2/ns/shop/sa/client",
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['td2/ns/shop/sa/client']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['td3/ns/shop/sa/client']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {principals: ['td1/ns/shop/sa/client']}}]}]",
            "td3/ns/shop/sa/client",
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "ALLOW",
            "rules: [{when: [{key: source.principal, values: ['cluster.local/ns/shop/sa/client']}]}]",
            "td2/ns/shop/sa/client",
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        // namespaces, service accounts
        (
            "ALLOW",
            "rules: [{from: [{source: {namespaces: [shop]}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {namespaces: ['sh*']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {notNamespaces: [shop]}}]}]",
            "",
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {serviceAccounts: [client]}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {serviceAccounts: [data/client]}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        // addresses
        (
            "ALLOW",
            "rules: [{from: [{source: {ipBlocks: ['10.0.0.0/24']}}]}]",
            "",
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {ipBlocks: ['10.0.0.9']}}]}]",
            "",
            "[::ffff:10.0.0.9]",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {remoteIpBlocks: ['10.0.1.0/24']}}]}]",
            "",
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {ipBlocks: ['fd00::/8'], notIpBlocks: ['fd00::9']}}]}]",
            "",
            "[fd00::9]",
            80,
            "denied: no ALLOW policy matched",
        ),
        // ports; a rule needs all of its fields
        (
            "ALLOW",
            "rules: [{to: [{operation: {ports: ['80']}}]}]",
            "",
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{to: [{operation: {notPorts: ['80']}}]}]",
            "",
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "ALLOW",
            "rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['81']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "ALLOW",
            "rules: [{when: [{key: destination.port, notValues: ['81']}, {key: destination.ip, values: ['10.0.0.1']}]}]",
            "",
            "10.0.0.9",
            80,
            "allowed by shop/p rule[0]",
        ),
        (
            "ALLOW",
            "rules: [{when: [{key: connection.sni, values: ['*']}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        // HTTP-only: an ALLOW rule never matches, not even by another `to`; DENY and CUSTOM ignore the field
        (
            "ALLOW",
            "rules: [{to: [{operation: {methods: [GET]}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "ALLOW",
            "rules: [{to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "ALLOW",
            "rules: [{to: [{operation: {methods: [GET]}}]}, {}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed by shop/p rule[1]",
        ),
        (
            "ALLOW",
            "rules: [{when: [{key: 'request.headers[x]', values: [a]}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: no ALLOW policy matched",
        ),
        (
            "DENY",
            "rules: [{to: [{operation: {methods: [GET]}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: shop/p rule[0]",
        ),
        (
            "DENY",
            "rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: shop/p rule[0]",
        ),
        (
            "DENY",
            "rules: [{to: [{operation: {methods: [GET], ports: ['81']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed: no ALLOW policy applies",
        ),
        (
            "DENY",
            "rules: [{from: [{source: {requestPrincipals: ['*'], namespaces: [data]}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed: no ALLOW policy applies",
        ),
        ("AUDIT", "rules: [{}]", CLIENT, "10.0.0.9", 80, "allowed: no ALLOW policy applies"),
        (
            "CUSTOM",
            "provider: {name: opa}\n  rules: [{to: [{operation: {ports: ['80']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "denied: shop/p rule[0]: its external authorizer was not asked",
        ),
        (
            "CUSTOM",
            "provider: {name: opa}\n  rules: [{to: [{operation: {ports: ['81']}}]}]",
            CLIENT,
            "10.0.0.9",
            80,
            "allowed: no ALLOW policy applies",
        ),
    ];
    for (action, rules, peer, src, port, expected) in table {
        let verdict = decide(&policy(action, rules), peer, src, port).to_string();
        assert_eq!(verdict, expected, "{action} {rules} for {peer:?} from {src} to {port}");
    }
}

#[test]
fn deny_wins_over_allow() {
    let documents = policy("ALLOW", "rules: [{}]")
        + "---\n"
        + &policy("DENY", "rules: [{}]").replace("name: p", "name: q");
    assert_eq!(decide(&documents, CLIENT, "10.0.0.9", 80).to_string(), "denied: shop/q rule[0]");
}

#[test]
fn a_policy_applies_in_its_namespace_to_what_it_selects() {
    let deny = |namespace: &str, selector: &str| {
        policy("DENY", &format!("selector: {{matchLabels: {{{selector}}}}}\n  rules: [{{}}]"))
            .replace("namespace: shop", &format!("namespace: {namespace}"))
    };
    for (namespace, selector, applies) in [
        ("shop", "", true),
        ("shop", "app: web", true),
        ("shop", "app: web, tier: front", true),
        ("shop", "app: web, tier: back", false),
        ("data", "", false),
        ("istio-system", "", true),
        ("istio-system", "app: web", true),
        ("istio-system", "app: db", false),
    ] {
        let verdict = decide(&deny(namespace, selector), CLIENT, "10.0.0.9", 80);
        assert_eq!(verdict.is_allowed(), !applies, "{namespace} {selector}");
    }
}

#[test]
fn strict_refuses_plaintext_before_any_rule() {
    let documents = peer("shop", "p", "", "mtls: {mode: STRICT}") + "---\n" + &policy("ALLOW", "rules: [{}]");
    assert_eq!(decide(&documents, "", "10.0.0.9", 80).to_string(), "denied: STRICT: plaintext");
    assert!(decide(&documents, CLIENT, "10.0.0.9", 80).is_allowed());
}

fn peer(namespace: &str, name: &str, created: &str, spec: &str) -> String {
    let created =
        if created.is_empty() { String::new() } else { format!(", creationTimestamp: '{created}'") };
    format!(
        "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}{created}}}\nspec:\n  {spec}\n"
    )
}

#[test]
fn the_narrowest_peer_authentication_wins_and_unset_inherits() {
    let mesh = peer("istio-system", "mesh", "", "mtls: {mode: STRICT}");
    let namespace = peer("shop", "ns", "", "mtls: {mode: DISABLE}");
    let unset = peer("shop", "ns", "", "mtls: {mode: UNSET}");
    let web = "selector: {matchLabels: {app: web}}\n  ";
    let workload = peer("shop", "web", "", &format!("{web}mtls: {{mode: PERMISSIVE}}"));
    let ports = peer(
        "shop",
        "web",
        "",
        &format!(
            "{web}mtls: {{mode: UNSET}}\n  portLevelMtls: {{8080: {{mode: DISABLE}}, 9090: {{mode: UNSET}}}}"
        ),
    );
    let join = |docs: &[&String]| docs.iter().map(|d| d.as_str()).collect::<Vec<_>>().join("---\n");
    for (documents, port, expected) in [
        (String::new(), 80, Mode::Permissive),
        (join(&[&mesh]), 80, Mode::Strict),
        (join(&[&mesh, &namespace]), 80, Mode::Disable),
        (join(&[&mesh, &unset]), 80, Mode::Strict),
        (join(&[&unset]), 80, Mode::Permissive),
        (join(&[&mesh, &namespace, &workload]), 80, Mode::Permissive),
        (join(&[&mesh, &ports]), 80, Mode::Strict),
        (join(&[&mesh, &ports]), 8080, Mode::Disable),
        (join(&[&mesh, &ports]), 9090, Mode::Strict),
    ] {
        assert_eq!(mode(&documents, "shop", "web", port), expected, "{documents}");
    }
    assert_eq!(mode(&join(&[&mesh, &namespace, &workload]), "data", "db", 80), Mode::Strict);
}

#[test]
fn the_oldest_peer_authentication_wins_then_the_first_name() {
    let strict = |name, created| peer("shop", name, created, "mtls: {mode: STRICT}");
    let disable = |name, created| peer("shop", name, created, "mtls: {mode: DISABLE}");
    for (a, b, expected) in [
        (strict("b", "2024-01-01T00:00:00Z"), disable("a", "2024-01-02T00:00:00Z"), Mode::Strict),
        (strict("b", "2024-01-03T00:00:00Z"), disable("a", "2024-01-02T00:00:00Z"), Mode::Disable),
        (strict("a", "2024-01-01T00:00:00Z"), disable("b", "2024-01-01T00:00:00Z"), Mode::Strict),
        (strict("b", ""), disable("a", ""), Mode::Disable),
    ] {
        assert_eq!(mode(&format!("{a}---\n{b}"), "shop", "web", 80), expected);
    }
}

#[test]
fn a_selector_in_the_root_namespace_sets_no_mode() {
    let documents =
        peer("istio-system", "x", "", "selector: {matchLabels: {app: web}}\n  mtls: {mode: STRICT}");
    assert_eq!(mode(&documents, "shop", "web", 80), Mode::Permissive);
}
