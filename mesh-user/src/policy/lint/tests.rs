//! For each check a document that it is about, and one that differs in what matters and passes.

use std::sync::Arc;

use super::{Facts, Finding, lint};
use crate::{
    config::Config,
    policy::{
        Mode, PolicySet,
        http::Normalization,
        traffic::{Content, Seen, SeenRequest, Traffic},
    },
    world::{WorkloadName, World},
};

const NODE: &str = "
node: a
workloads:
- { name: web, namespace: shop, serviceAccount: web, labels: { app: web }, selector: { netns: /run/netns/web }, addresses: [10.0.0.1] }
- { name: db, namespace: shop, serviceAccount: db, labels: { app: db }, selector: { netns: /run/netns/db }, addresses: [10.0.0.2] }
services:
- { name: db, namespace: shop, addresses: [10.96.0.1], selector: { app: db }, ports: [ { port: 3306, name: mysql-main }, { port: 80, name: http } ] }
";

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "# a comment\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: p, namespace: {namespace} }}\n\
         spec:\n{spec}\n"
    )
}

fn seen(peer: Option<&str>, port: u16, content: Content) -> Seen {
    let name = |name: &str| WorkloadName { namespace: "shop".into(), name: name.into() };
    let traffic = Traffic {
        client: Some(name("web")),
        source_ip: "10.0.0.1".parse().unwrap(),
        peer: peer.map(|id| id.parse().unwrap()),
        server: name("db"),
        destination: format!("10.0.0.2:{port}").parse().unwrap(),
        mode: Mode::Permissive,
        sni: None,
        content,
    };
    Seen { traffic: Arc::new(traffic), count: 1, last_seconds: 0 }
}

fn found_with(text: &str, normalization: Normalization, seen: &[Seen]) -> Vec<Finding> {
    let world = World::build(&Config::parse(NODE, "node.yaml").unwrap()).unwrap();
    let set = PolicySet::parse([("p.yaml", text)]).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let text =
        "node: n\nextensionProviders: [{name: known, envoyExtAuthzHttp: {service: a.example, port: 80}}]\n";
    let providers = Config::parse(text, "n.yaml").unwrap().extension_providers;
    lint(&set, Facts { world: &world, normalization, seen, providers: &providers })
}

fn checks(text: &str) -> Vec<&'static str> {
    found_with(text, Normalization::Base, &[]).into_iter().map(|finding| finding.check).collect()
}

#[test]
fn each_check_tells_a_document_that_bites_from_one_that_does_not() {
    let deny = |operation: &str| {
        policy(
            "shop",
            &format!(
                "  action: DENY\n  rules: [ {{ to: [ {{ operation: {{ ports: ['80'], {operation} }} }} ] }} ]"
            ),
        )
    };
    let from =
        |source: &str| policy("shop", &format!("  rules: [ {{ from: [ {{ source: {{ {source} }} }} ] }} ]"));
    let allow_db = policy(
        "shop",
        "  selector: { matchLabels: { app: db } }\n  rules: [ { to: [ { operation: { ports: ['80'] } } ] } ]",
    )
    .replace("name: p,", "name: allow,");
    let jwt = "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: { name: r, namespace: shop }\n\
               spec: { selector: { matchLabels: { app: db } }, jwtRules: [ { issuer: i, jwks: '{\"keys\":[]}' } ] }\n";
    let demand = policy(
        "shop",
        "  action: DENY\n  rules: [ { from: [ { source: { notRequestPrincipals: ['*'] } } ], to: [ { operation: { ports: ['80'] } } ] } ]",
    );
    let dry_run = |value: &str| {
        from("principals: ['cluster.local/ns/shop/sa/web']")
            .replace("name: p,", &format!("annotations: {{ istio.io/dry-run: '{value}' }}, name: p,"))
    };
    let not = |list: &str| {
        format!(
            "{allow_db}{}",
            deny(list).replace("spec:\n", "spec:\n  selector: { matchLabels: { app: db } }\n")
        )
    };
    let custom = |name: &str| {
        policy(
            "shop",
            &format!(
                "  action: CUSTOM\n  provider: {{ name: {name} }}\n  rules: [ {{ to: [ {{ operation: {{ ports: ['80'] }} }} ] }} ]"
            ),
        )
    };
    for (check, bites, passes) in [
        ("allows-all", policy("shop", "  rules: [ {} ]"), from("namespaces: [ shop ]")),
        ("denies-the-mesh", policy("istio-system", "  {}"), policy("shop", "  {}")),
        (
            "selects-nothing",
            policy("shop", "  selector: { matchLabels: { app: cache } }"),
            policy("shop", "  selector: { matchLabels: { app: web } }"),
        ),
        (
            "missing-service",
            policy("shop", "  targetRefs: [ { kind: Service, name: cache } ]"),
            policy("shop", "  targetRefs: [ { kind: Service, name: db } ]"),
        ),
        ("unknown-provider", custom("other"), custom("known")),
        (
            "unknown-client",
            from("principals: [ cluster.local/ns/shop/sa/wbe ]"),
            from("principals: [ cluster.local/ns/shop/sa/web ]"),
        ),
        (
            "unknown-client",
            from("principals: [ 'spiffe://cluster.local/ns/shop/sa/web' ]"),
            from("principals: [ other.example/ns/a/sa/b ]"),
        ),
        ("unknown-client", from("namespaces: [ shopp ]"), from("namespaces: [ 'sho*' ]")),
        ("unknown-client", from("serviceAccounts: [ cache ]"), from("serviceAccounts: [ shop/web ]")),
        ("dry-run", dry_run("true"), dry_run("false")),
        ("exact-path-denied", deny("paths: [ /admin ]"), deny("paths: [ /admin, /admin/* ]")),
        ("not-paths-too-wide", not("notPaths: [ '/health*' ]"), not("notPaths: [ /health, '/health/*' ]")),
        ("not-paths-too-wide", not("notPaths: [ '*.css' ]"), not("notPaths: [ /style.css ]")),
        ("not-list-open-to-all", deny("notMethods: [ GET ]"), not("notMethods: [ GET ]")),
        ("host-without-port", deny("hosts: [ a.example ]"), deny("hosts: [ a.example, 'a.example:*' ]")),
        ("http-fields-on-tcp", deny("methods: [ GET ]").replace("'80'", "'3306'"), deny("methods: [ GET ]")),
        (
            "http-deny-on-every-port",
            deny("methods: [ GET ]")
                .replace("ports: ['80'], ", "")
                .replace("spec:\n", "spec:\n  selector: { matchLabels: { app: web } }\n"),
            deny("methods: [ GET ]"),
        ),
        ("token-not-demanded", jwt.to_owned(), format!("{jwt}{demand}")),
    ] {
        assert_eq!(checks(&bites), [check], "{bites}");
        assert!(!checks(&passes).contains(&check), "{check}:\n{passes}");
    }
}

#[test]
fn a_deny_rule_on_paths_as_they_are_sent_is_found() {
    let text = policy(
        "shop",
        "  action: DENY\n  rules: [ { to: [ { operation: { ports: ['80'], paths: [ '/admin*' ] } } ] } ]",
    );
    let found = found_with(&text, Normalization::None, &[]);
    assert_eq!(found.iter().map(|f| f.check).collect::<Vec<_>>(), ["paths-not-normalized"]);
    assert_eq!(found_with(&text, Normalization::Base, &[]), []);
}

#[test]
fn a_finding_says_where_it_is() {
    let fine = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: s, namespace: shop }\n";
    let bites = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: admin\n  namespace: shop\n\
                 spec:\n  action: DENY\n  rules:\n  - to:\n    - operation:\n        ports: ['80']\n        paths: [ /admin ]\n";
    let found = found_with(&format!("{fine}{bites}"), Normalization::Base, &[]);
    let [found] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((found.file.as_str(), found.line), ("p.yaml", Some(17)));
    assert_eq!(found.document, "AuthorizationPolicy shop/admin");
    assert_eq!(found.field, "spec.rules[0].to[0].operation.paths");
}

#[test]
fn strict_names_the_plaintext_clients_that_were_seen() {
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: s, namespace: shop }\n\
                  spec: { mtls: { mode: STRICT } }\n";
    let plaintext = [seen(None, 5432, Content::Unread)];
    let found = found_with(strict, Normalization::Base, &plaintext);
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.check, "strict-with-plaintext-clients");
    assert!(finding.problem.contains("shop/web spoke to shop/db:5432"), "{finding:?}");
    let tls = [seen(Some("spiffe://cluster.local/ns/shop/sa/web"), 5432, Content::Unread)];
    assert_eq!(found_with(strict, Normalization::Base, &tls), []);
    let permissive = strict.replace("STRICT", "PERMISSIVE");
    assert_eq!(found_with(&permissive, Normalization::Base, &plaintext), []);
}

#[test]
fn a_port_that_was_seen_to_speak_no_http_counts_as_such() {
    let text =
        policy("shop", "  rules: [ { to: [ { operation: { ports: ['7000'], methods: [ GET ] } } ] } ]");
    let not_http = seen(None, 7000, Content::NotHttp);
    let request = SeenRequest {
        method: "GET".into(),
        path: Some("/".into()),
        host: None,
        forwarded: false,
        claims: None,
    };
    let http = seen(None, 7000, Content::Request(request));
    let checks = |seen: &[Seen]| -> Vec<_> {
        found_with(&text, Normalization::Base, seen).into_iter().map(|f| f.check).collect()
    };
    assert_eq!(checks(std::slice::from_ref(&not_http)), ["http-fields-on-tcp"]);
    assert_eq!(checks(&[not_http, http.clone()]), [""; 0]);
    assert_eq!(checks(&[http]), [""; 0]);
}
