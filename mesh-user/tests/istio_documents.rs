//! The examples of Istio's reference pages, word for word (`tests/istio`), each with requests that must be allowed and
//! denied under it. A block that Istio itself would not take is refused, and the row says why.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use mesh_user::{
    config::Config,
    identity::SpiffeId,
    jwt::{KeyLocation, KeySource},
    policy::{
        CompiledPolicies, HttpVerdict, L4Request, Mode, PolicySet, WorkloadPolicy,
        http::{HttpRequest, Normalization, NormalizedPath},
    },
    world::World,
};
use serde_json::{Map, Value};

macro_rules! page {
    ($name:literal) => {
        include_str!(concat!("istio/", $name, ".yaml"))
    };
}

/// Namespace, name, labels beside `app`.
const WORKLOADS: [(&str, &str, &str); 9] = [
    ("foo", "httpbin", "version: v1"),
    ("foo", "finance", ""),
    ("foo", "reviews", ""),
    ("foo", "example-app", ""),
    ("bar", "httpbin", ""),
    ("bar", "other", "version: v1"),
    ("default", "productpage", ""),
    ("istio-system", "istio-ingressgateway", ""),
    ("ns1", "myapi", ""),
];

fn world() -> World {
    let mut text = "node: a\nworkloads:\n".to_owned();
    for (at, (namespace, name, label)) in WORKLOADS.iter().enumerate() {
        writeln!(
            text,
            "  - {{ name: {name}, namespace: {namespace}, labels: {{ app: {name}, {label} }}, addresses: [10.0.0.{at}], \
             selector: {{ netns: /run/netns/{namespace}-{name} }} }}"
        )
        .unwrap();
    }
    World::build(&Config::parse(&text, "test").unwrap()).unwrap()
}

/// The policy of `namespace/name` under a page's document.
fn under<T>(document: &str, workload: &str, ask: impl FnOnce(&WorkloadPolicy) -> T) -> T {
    let world = world();
    let set =
        PolicySet::parse([("page.yaml", document)]).unwrap_or_else(|error| panic!("{error}\n{document}"));
    let compiled = CompiledPolicies::compile(&world, &set);
    let (namespace, name) = workload.split_once('/').unwrap();
    ask(compiled.for_workload(world.by_name(namespace, name).unwrap().id))
}

/// `METHOD HOST PATH`, then what else is known: `; peer ID`, `; token CLAIMS`, `; port N`, `; from ADDRESS`.
fn asked(policy: &WorkloadPolicy, request: &str) -> HttpVerdict {
    let mut parts = request.split("; ");
    let [method, host, path] = parts.next().unwrap().split(' ').collect::<Vec<_>>().try_into().unwrap();
    let (mut peer, mut claims, mut port, mut from) = (None, None, 80, "10.1.0.1");
    for part in parts {
        match part.split_once(' ').unwrap() {
            ("peer", id) => peer = Some(format!("spiffe://{id}").parse::<SpiffeId>().unwrap()),
            ("token", text) => claims = Some(serde_json::from_str::<Map<String, Value>>(text).unwrap()),
            ("port", number) => port = number.parse().unwrap(),
            ("from", address) => from = address,
            (other, _) => panic!("{other}"),
        }
    }
    let remote_ip: IpAddr = from.parse().unwrap();
    let connection = L4Request {
        peer: peer.as_ref(),
        src: SocketAddr::new(remote_ip, 40_000),
        dst: SocketAddr::from(([10, 0, 0, 1], port)),
        sni: None,
    };
    let path = NormalizedPath::new(path, Normalization::default()).unwrap();
    let headers: Vec<(&str, &str)> = Vec::new();
    let request = HttpRequest {
        method,
        path: Some(&path),
        authority: Some(host),
        headers: &headers,
        claims: claims.as_ref(),
        remote_ip,
    };
    policy.decide_http(&connection, &request)
}

#[test]
fn modes_of_the_peer_authentication_page_are_as_it_says() {
    use Mode::{Disable, Permissive, Strict};
    let both = |first: &str, second: &str| format!("{first}---\n{second}");
    for (document, modes) in [
        (
            page!("peer-authentication-1").to_owned(),
            &[("foo/finance", 80, Strict), ("foo/httpbin", 1, Strict), ("bar/httpbin", 80, Permissive)][..],
        ),
        (
            page!("peer-authentication-2").to_owned(),
            &[("foo/finance", 80, Strict), ("foo/httpbin", 80, Permissive), ("bar/other", 80, Permissive)],
        ),
        (
            page!("peer-authentication-3").to_owned(),
            &[("foo/finance", 80, Strict), ("foo/finance", 8080, Disable), ("foo/httpbin", 8080, Permissive)],
        ),
        (
            page!("peer-authentication-4").to_owned(),
            &[
                ("foo/finance", 80, Permissive),
                ("foo/finance", 8080, Disable),
                ("foo/httpbin", 80, Permissive),
            ],
        ),
        // The same, where the namespace has a mode to inherit.
        (
            both(
                &page!("peer-authentication-4").replace("name: default", "name: finance"),
                page!("example-policy"),
            ),
            &[("foo/finance", 80, Strict), ("foo/finance", 8080, Disable), ("foo/httpbin", 8080, Strict)],
        ),
        (
            page!("example-peer-policy").to_owned(),
            &[("foo/reviews", 80, Strict), ("foo/httpbin", 80, Permissive)],
        ),
        (
            both(page!("example-policy"), page!("example-workload-policy")),
            &[
                ("foo/example-app", 80, Disable),
                ("foo/example-app", 8000, Strict),
                ("foo/reviews", 80, Strict),
            ],
        ),
        (
            both(page!("example-workload-policy"), page!("example-service")),
            &[("foo/example-app", 80, Disable), ("foo/example-app", 8000, Permissive)],
        ),
    ] {
        for (workload, port, mode) in modes {
            assert_eq!(
                under(&document, workload, |policy| policy.mode(*port)),
                *mode,
                "{workload} {port}\n{document}"
            );
        }
    }
}

const SLEEP: &str = "peer cluster.local/ns/default/sa/sleep";
const GOOGLE: &str = r#"token {"iss": "https://accounts.google.com", "sub": "1"}"#;

/// A document, a workload, and requests to it that it allows or denies.
type Case = (String, &'static str, Vec<(String, bool)>);

/// A policy in `foo` of one source or operation that the page shows alone: `from/source` or `to/operation`.
fn wrapped(action: &str, place: &str, fields: &str) -> String {
    let fields: String = fields.lines().flat_map(|line| ["        ", line, "\n"]).collect();
    let (list, entry) = place.split_once('/').unwrap();
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: foo}}\nspec:\n  \
         action: {action}\n  rules:\n  - {list}:\n    - {entry}:\n{fields}"
    )
}

fn of_the_authorization_policy_page() -> Vec<Case> {
    vec![
        (
            page!("authorization-policy-1").to_owned(),
            "foo/httpbin",
            vec![
                (format!("GET a /info; {SLEEP}; {GOOGLE}"), true),
                (format!("GET a /information/x?y; {SLEEP}; {GOOGLE}"), true),
                (format!("POST a /data; peer cluster.local/ns/test/sa/any; {GOOGLE}"), true),
                (format!("POST a /data/1; {SLEEP}; {GOOGLE}"), false),
                (format!("POST a /info; {SLEEP}; {GOOGLE}"), false),
                (format!("GET a /data; {SLEEP}; {GOOGLE}"), false),
                (format!("GET a /info; {SLEEP}"), false),
                (format!(r#"GET a /info; {SLEEP}; token {{"iss": "https://elsewhere.example"}}"#), false),
                (format!("GET a /info; peer cluster.local/ns/default/sa/awake; {GOOGLE}"), false),
                (format!("GET a /info; {GOOGLE}"), false),
            ],
        ),
        (page!("authorization-policy-1").to_owned(), "bar/httpbin", vec![("GET a /".to_owned(), true)]),
        (
            page!("authorization-policy-2").to_owned(),
            "foo/reviews",
            vec![
                ("POST a /; peer cluster.local/ns/dev/sa/a".to_owned(), false),
                ("GET a /; peer cluster.local/ns/dev/sa/a".to_owned(), true),
                ("POST a /; peer cluster.local/ns/prod/sa/a".to_owned(), true),
                ("POST a /".to_owned(), true),
            ],
        ),
        // Kind as it must have been meant.
        (
            page!("authorization-policy-3").replace("AuthorizaionPolicy", "AuthorizationPolicy"),
            "foo/httpbin",
            vec![
                ("POST a /; port 8080".to_owned(), false),
                ("POST a /; port 80".to_owned(), true),
                ("GET a /; port 8080".to_owned(), true),
            ],
        ),
        (
            page!("authorization-policy-4").to_owned(),
            "ns1/myapi",
            vec![("GET a /user/profile/1".to_owned(), true), ("GET a /".to_owned(), true)],
        ),
        (
            page!("authorization-policy-5").to_owned(),
            "foo/finance",
            vec![(format!("GET a /; {SLEEP}"), false)],
        ),
        (page!("authorization-policy-6").to_owned(), "foo/finance", vec![("GET a /".to_owned(), true)]),
        (
            page!("authorization-policy-7").to_owned(),
            "bar/httpbin",
            vec![(format!("GET a /; {SLEEP}"), false)],
        ),
        (page!("authorization-policy-7").to_owned(), "bar/other", vec![("GET a /".to_owned(), true)]),
        (page!("authorization-policy-8").to_owned(), "bar/other", vec![("GET a /".to_owned(), false)]),
        (
            wrapped("ALLOW", "to/operation", page!("authorization-policy-10")),
            "foo/httpbin",
            vec![
                ("GET a.example.com /".to_owned(), true),
                ("HEAD A.EXAMPLE.COM /user".to_owned(), true),
                ("POST a.example.com /".to_owned(), false),
                ("GET a.example.com:80 /".to_owned(), false),
                ("GET example.com /".to_owned(), false),
                ("GET a.example.com /admin".to_owned(), false),
                ("GET a.example.com /x/../administration".to_owned(), false),
            ],
        ),
    ]
}

/// The Bookinfo tasks have three policies of one name.
fn of_the_bookinfo_tasks() -> Vec<Case> {
    let viewer = "peer cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account";
    vec![
        (
            page!("productpage-viewer").to_owned(),
            "default/productpage",
            vec![
                (format!("GET productpage /productpage; {viewer}"), true),
                (format!("POST productpage /productpage; {viewer}"), false),
                (format!("GET productpage /productpage; {SLEEP}"), false),
                ("GET productpage /productpage".to_owned(), false),
            ],
        ),
        (
            page!("productpage-viewer-http").to_owned(),
            "default/productpage",
            vec![
                ("GET productpage /productpage".to_owned(), true),
                (format!("GET productpage /productpage; {SLEEP}"), true),
                ("POST productpage /productpage".to_owned(), false),
            ],
        ),
        (
            page!("productpage-viewer-ambient").to_owned(),
            "default/productpage",
            vec![
                (
                    "POST productpage /; peer cluster.local/ns/default/sa/bookinfo-gateway-istio".to_owned(),
                    true,
                ),
                (format!("GET productpage /productpage; {SLEEP}"), false),
                ("GET productpage /productpage".to_owned(), false),
            ],
        ),
    ]
}

#[test]
fn requests_of_the_authorization_policy_page_are_decided_as_it_says() {
    let (page, tasks) = (of_the_authorization_policy_page(), of_the_bookinfo_tasks());
    for (document, workload, requests) in page.iter().chain(&tasks) {
        for (request, allowed) in requests {
            let verdict = under(document, workload, |policy| asked(policy, request));
            assert_eq!(verdict.is_allowed(), *allowed, "{request} to {workload}: {verdict}\n{document}");
        }
    }
}

#[test]
fn a_source_that_the_page_shows_alone_is_read_as_it_says() {
    // Its principals are no SPIFFE IDs, and match none.
    let source = wrapped("DENY", "from/source", page!("authorization-policy-9"));
    for (request, allowed) in [
        ("GET a /; peer cluster.local/ns/prod/sa/admin", true),
        ("GET a /; peer cluster.local/ns/prod/sa/admin; from 203.0.113.4", true),
    ] {
        assert_eq!(
            under(&source, "foo/httpbin", |policy| asked(policy, request)).is_allowed(),
            allowed,
            "{request}"
        );
    }
    let meant = source.replace("\"admin\", \"dev\"", "\"*/sa/admin\", \"*/sa/dev\"");
    for (request, allowed) in [
        ("GET a /; peer cluster.local/ns/prod/sa/admin", false),
        ("GET a /; peer cluster.local/ns/test/sa/dev", false),
        ("GET a /; peer cluster.local/ns/stage/sa/dev", true),
        ("GET a /; peer cluster.local/ns/prod/sa/ops", true),
        ("GET a /; peer cluster.local/ns/prod/sa/admin; from 203.0.113.4", true),
    ] {
        assert_eq!(
            under(&meant, "foo/httpbin", |policy| asked(policy, request)).is_allowed(),
            allowed,
            "{request}"
        );
    }
}

#[test]
fn an_audited_request_of_the_page_is_reported() {
    for (path, reported) in [("/user/profile/1", 1), ("/user/profile", 0)] {
        let audit = under(page!("authorization-policy-4"), "ns1/myapi", |policy| {
            let path = NormalizedPath::new(path, Normalization::default()).unwrap();
            let headers: Vec<(&str, &str)> = Vec::new();
            let (src, dst) = ("10.1.0.1:1".parse().unwrap(), "10.0.0.8:80".parse().unwrap());
            let connection = L4Request { peer: None, src, dst, sni: None };
            let remote_ip = connection.src.ip();
            let (path, authority) = (Some(&path), Some("a"));
            let request =
                HttpRequest { method: "GET", path, authority, headers: &headers, claims: None, remote_ip };
            policy.observe(&connection, Some(&request)).audit.len()
        });
        assert_eq!(audit, reported, "{path}");
    }
}

#[test]
fn the_custom_policy_of_the_page_asks_its_provider() {
    for (path, provider) in [("/admin/x", Some("my-custom-authz")), ("/", None)] {
        let verdict =
            under(page!("authorization-policy-11"), "istio-system/istio-ingressgateway", |policy| {
                asked(policy, &format!("GET a {path}"))
            });
        match (verdict, provider) {
            (HttpVerdict::Custom { provider, .. }, Some(wanted)) => assert_eq!(&*provider, wanted),
            (HttpVerdict::Allow { .. }, None) => {}
            (verdict, _) => panic!("{path}: {verdict}"),
        }
    }
}

#[test]
fn requests_of_the_request_authentication_page_are_decided_as_it_says() {
    let foo = r#"token {"iss": "issuer-foo", "sub": "a"}"#;
    let bar = r#"token {"iss": "issuer-bar", "sub": "b"}"#;
    for (document, workload, requests) in [
        (
            page!("request-authentication-1"),
            "foo/httpbin",
            vec![(format!("GET a /; {foo}"), true), ("GET a /".to_owned(), false)],
        ),
        (page!("request-authentication-1"), "bar/httpbin", vec![("GET a /".to_owned(), true)]),
        (
            page!("request-authentication-2"),
            "bar/other",
            vec![(format!("GET a /; {foo}"), true), ("GET a /".to_owned(), false)],
        ),
        (
            page!("request-authentication-3"),
            "foo/httpbin",
            vec![
                (format!("GET example.com /; {foo}"), true),
                (format!("GET another-host.com /; {bar}"), true),
                (format!("GET example.com /; {bar}"), false),
                (format!("GET another-host.com /; {foo}"), false),
                ("GET example.com /".to_owned(), false),
            ],
        ),
        (
            page!("request-authentication-4"),
            "foo/httpbin",
            vec![
                (format!("GET a /x; {foo}"), true),
                ("GET a /healthz".to_owned(), true),
                ("GET a /healthz?verbose".to_owned(), true),
                ("GET a /healthz/x".to_owned(), false),
                ("GET a /x".to_owned(), false),
            ],
        ),
        // Its VirtualService is of another group: read over.
        (
            page!("request-authentication-5"),
            "istio-system/istio-ingressgateway",
            vec![(format!("GET a /; {foo}"), true), ("GET a /".to_owned(), false)],
        ),
    ] {
        for (request, allowed) in requests {
            let verdict = under(document, workload, |policy| asked(policy, &request));
            assert_eq!(verdict.is_allowed(), allowed, "{request} to {workload}: {verdict}\n{document}");
        }
    }
}

/// A rule that the page shows alone, in a document.
fn rule(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap();
    let rest: String = lines.flat_map(|line| ["    ", line, "\n"]).collect();
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: p, namespace: foo}}\nspec:\n  \
         jwtRules:\n  - {first}\n{rest}"
    )
}

#[test]
fn rules_of_the_request_authentication_page_are_read_as_it_says() {
    let keys = |document: &str, workload: &str| {
        under(document, workload, |policy| {
            let rules = policy.request_authentication().iter();
            rules
                .map(|rule| match &rule.keys {
                    KeySource::Remote(source) => source.location.clone(),
                    KeySource::Inline(_) => panic!("keys in the document"),
                })
                .collect::<Vec<_>>()
        })
    };
    let published = KeyLocation::Jwks("https://example.com/.well-known/jwks.json".into());
    assert_eq!(keys(page!("request-authentication-1"), "foo/httpbin"), std::slice::from_ref(&published));
    assert_eq!(keys(page!("request-authentication-2"), "bar/other"), std::slice::from_ref(&published));
    assert_eq!(keys(page!("request-authentication-5"), "istio-system/istio-ingressgateway"), [published]);
    let found = ["issuer-bar", "issuer-foo"].map(KeyLocation::of_issuer);
    assert_eq!(keys(page!("request-authentication-3"), "foo/httpbin"), found);
    // YAML joins the two lines: it is one audience, with a space.
    under(&rule(page!("request-authentication-6")), "foo/httpbin", |policy| {
        let rule = &policy.request_authentication()[0];
        assert_eq!(rule.audiences, ["bookstore_android.apps.example.com bookstore_web.apps.example.com"]);
        assert!(matches!(&rule.keys, KeySource::Remote(source)
            if source.location.url() == "https://example.com/.well-known/openid-configuration"));
    });
    for (fields, headers, params) in [
        (page!("request-authentication-8"), &[("x-jwt-assertion", "Bearer ")][..], &[][..]),
        (page!("request-authentication-9"), &[], &["my_token"]),
    ] {
        let fields: String = fields
            .lines()
            .flat_map(|line| {
                [
                    line.trim_start_matches("  "),
                    "
",
                ]
            })
            .collect();
        let fields = fields.replace("prefix", "  prefix");
        under(&rule(&format!("issuer: https://example.com\n{fields}")), "foo/httpbin", |policy| {
            let rule = &policy.request_authentication()[0];
            let places: Vec<_> =
                rule.from_headers.iter().map(|h| (h.name.as_str(), h.prefix.as_str())).collect();
            assert_eq!(
                (places.as_slice(), rule.from_params.iter().map(String::as_str).collect::<Vec<_>>()),
                (headers, params.to_vec())
            );
        });
    }
}

#[test]
fn blocks_that_are_wrong_are_refused_in_words() {
    let in_rule = |fields: &str| rule(&format!("issuer: https://example.com\n{}", fields.replace("  ", "")));
    for (document, what) in [
        (page!("authorization-policy-3").to_owned(), "unknown kind \"AuthorizaionPolicy\""),
        // A place is an object with a name.
        (rule(page!("request-authentication-7")), "page.yaml:9:7: expected mapping"),
        // The field's name in protobuf, not in JSON.
        (in_rule(page!("request-authentication-10")), "from_cookies"),
    ] {
        let error = PolicySet::parse([("page.yaml", document.as_str())]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}\n{document}");
    }
    let cookies = in_rule(page!("request-authentication-10")).replace("from_cookies", "fromCookies");
    under(&cookies, "foo/httpbin", |policy| {
        assert_eq!(policy.request_authentication()[0].from_cookies, ["auth-token"]);
    });
}
