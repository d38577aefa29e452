//! Requests: a table of cases for each field and key of Istio's reference, and what is said beside a verdict.

use std::net::SocketAddr;

use serde_json::{Map, Value};

use crate::{
    config::Config,
    policy::{
        CompiledPolicies, HttpVerdict, L4Request, PolicySet, WorkloadPolicy,
        http::{HttpRequest, Normalization, NormalizedPath},
    },
    world::World,
};

/// `method host path`, then after `; ` headers as `name: value`, `token {claims}`, `remote <ip>`, `plaintext`, or
/// `port <port>`. The host `-` is none, the path `-` too.
struct Request<'a> {
    method: &'a str,
    authority: Option<&'a str>,
    path: Option<NormalizedPath<'a>>,
    headers: Vec<(&'a str, &'a str)>,
    claims: Option<Map<String, Value>>,
    remote: &'a str,
    plaintext: bool,
    port: u16,
}

impl<'a> Request<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split("; ");
        let line: Vec<_> = parts.next().unwrap().split(' ').collect();
        let given = |text: &'a str| (text != "-").then_some(text);
        let path = given(line[2]).map(|path| NormalizedPath::new(path, Normalization::Base).unwrap());
        let mut request = Self {
            method: line[0],
            authority: given(line[1]),
            path,
            headers: Vec::new(),
            claims: None,
            remote: "10.0.0.9",
            plaintext: false,
            port: 80,
        };
        for part in parts {
            match part.split_once(' ') {
                Some(("token", claims)) => request.claims = Some(serde_json::from_str(claims).unwrap()),
                Some(("remote", ip)) => request.remote = ip,
                Some(("port", port)) => request.port = port.parse().unwrap(),
                None if part == "plaintext" => request.plaintext = true,
                _ => request.headers.push(part.split_once(": ").unwrap()),
            }
        }
        request
    }

    fn with<T>(&self, ask: impl FnOnce(&L4Request<'_>, &HttpRequest<'_>) -> T) -> T {
        let id = "spiffe://td1/ns/shop/sa/client".parse().unwrap();
        let l4 = L4Request {
            peer: (!self.plaintext).then_some(&id),
            src: "10.0.0.9:40000".parse().unwrap(),
            dst: SocketAddr::from(([10, 0, 0, 1], self.port)),
            sni: None,
        };
        let http = HttpRequest {
            method: self.method,
            path: self.path.as_ref(),
            authority: self.authority,
            headers: &self.headers,
            claims: self.claims.as_ref(),
            remote_ip: self.remote.parse().unwrap(),
        };
        ask(&l4, &http)
    }
}

const SERVICES: &str = "services:
  - {name: web, namespace: shop, addresses: [10.96.0.1], ports: [{port: 80}], selector: {app: web}}
  - {name: other, namespace: shop, addresses: [10.96.0.2], ports: [{port: 80}], selector: {app: other}}
  - {name: db, namespace: data, addresses: [10.96.0.3], ports: [{port: 80}], selector: {app: db}}
";

fn world() -> World {
    World::build(&Config::parse(&format!("{}{SERVICES}", super::CONFIG), "test").unwrap()).unwrap()
}

/// Asks the policy of a workload.
fn of<T>(documents: &str, (namespace, name): (&str, &str), ask: impl FnOnce(&WorkloadPolicy) -> T) -> T {
    let (world, set) = (world(), PolicySet::parse([("test.yaml", documents)]).unwrap());
    let compiled = CompiledPolicies::compile(&world, &set);
    ask(compiled.for_workload(world.by_name(namespace, name).unwrap().id))
}

const WEB: (&str, &str) = ("shop", "web");

fn document(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop{metadata}}}\nspec: {spec}\n"
    )
}

fn policy(name: &str, action: &str, rules: &str) -> String {
    document(name, "", &format!("{{action: {action}, rules: {rules}}}"))
}

fn custom(name: &str, provider: &str, rules: &str) -> String {
    document(name, "", &format!("{{action: CUSTOM, provider: {{name: {provider}}}, rules: {rules}}}"))
}

fn verdict(documents: &str, request: &str) -> HttpVerdict {
    of(documents, WEB, |policy| {
        Request::parse(request).with(|l4, http| {
            let verdict = policy.decide_http(l4, http);
            assert_eq!(policy.explain_http(l4, http).verdict, verdict);
            verdict
        })
    })
}

/// Each rule is tried in an ALLOW policy and in a DENY policy; both must agree on what it matches.
fn assert_matches(rule: &str, matching: &[&str], others: &[&str]) {
    let (allow, deny) =
        (policy("p", "ALLOW", &format!("[{rule}]")), policy("p", "DENY", &format!("[{rule}]")));
    for (request, matches) in matching.iter().map(|r| (r, true)).chain(others.iter().map(|r| (r, false))) {
        assert_eq!(verdict(&allow, request).is_allowed(), matches, "ALLOW {rule}: {request}");
        assert_eq!(verdict(&deny, request).is_allowed(), !matches, "DENY {rule}: {request}");
    }
}

fn operation(fields: &str) -> String {
    format!("{{to: [{{operation: {{{fields}}}}}]}}")
}

#[test]
fn operations_match_as_documented() {
    for (fields, matching, others) in [
        ("methods: [GET, HEAD]", &["GET h /", "HEAD h /"][..], &["POST h /", "get h /"][..]),
        ("methods: ['P*']", &["POST h /", "PUT h /"], &["GET h /"]),
        ("methods: ['*']", &["GET h /", "X - -"], &[]),
        ("notMethods: [GET]", &["POST h /"], &["GET h /"]),
        // hosts: whatever the case; a port is part of what is compared, so policies name both forms
        (
            "hosts: [a.example]",
            &["GET a.example /", "GET A.Example /"],
            &["GET a.example:80 /", "GET - /", "GET xa.example /"],
        ),
        (
            "hosts: [a.example, 'A.example:*']",
            &["GET a.example /", "GET A.EXAMPLE:8080 /"],
            &["GET a.examples /"],
        ),
        (
            "hosts: ['*.Example']",
            &["GET a.example /", "GET a.b.EXAMPLE /"],
            &["GET example /", "GET a.example:80 /"],
        ),
        ("hosts: ['*']", &["GET a /"], &["GET - /"]),
        ("notHosts: [a.example]", &["GET b /", "GET - /", "GET a.example:80 /"], &["GET A.example /"]),
        // paths: without the query, normalized
        (
            "paths: [/a]",
            &["GET h /a", "GET h /a?b=/c", "GET h /x/../a", "GET h /%61", "GET h /./a"],
            &["GET h /a/", "GET h /A", "GET h /a/b", "CONNECT h:1 -"],
        ),
        ("paths: ['/a*']", &["GET h /a", "GET h /ab/c"], &["GET h /b?/a", "GET h /"]),
        ("paths: ['*/info']", &["GET h /x/info", "GET h /info?x"], &["GET h /info/", "GET h /x?/info"]),
        ("paths: ['*']", &["GET h /"], &["CONNECT h:1 -"]),
        (
            "notPaths: [/a, '/b/*']",
            &["GET h /c", "CONNECT h:1 -"],
            &["GET h /a", "GET h /b/c", "GET h /c/../b/d"],
        ),
        ("paths: ['/a/{*}/c']", &["GET h /a/b/c", "GET h /a/b/c?d"], &["GET h /a/c", "GET h /a/b/b/c"]),
        ("paths: ['/a/{**}']", &["GET h /a/", "GET h /a/b/c"], &["GET h /a", "GET h /b/a/"]),
        ("notPaths: ['/a/{*}']", &["GET h /a", "GET h /a/b/c"], &["GET h /a/b"]),
        // ports beside HTTP, all of one entry must match
        ("ports: ['80'], methods: [GET]", &["GET h /"], &["GET h /; port 81", "PUT h /"]),
        ("notPorts: ['80']", &["GET h /; port 81"], &["GET h /"]),
        ("methods: [GET], notPaths: ['/admin*']", &["GET h /"], &["GET h /admin", "PUT h /"]),
    ] {
        assert_matches(&operation(fields), matching, others);
    }
    let either = "{to: [{operation: {methods: [GET]}}, {operation: {paths: [/a]}}]}";
    assert_matches(either, &["GET h /b", "PUT h /a"], &["PUT h /b"]);
}

const TOKEN: &str = r#"GET h /; token {"iss": "https://i", "sub": "s", "aud": ["a", "b"], "azp": "p"}"#;
const SLASHED: &str = r#"GET h /; token {"iss": "https://i", "sub": "a/s"}"#;

#[test]
fn sources_match_as_documented() {
    let none = "GET h /";
    for (fields, matching, others) in [
        ("requestPrincipals: ['https://i/s']", &[TOKEN][..], &[none, SLASHED][..]),
        ("requestPrincipals: ['*']", &[TOKEN, SLASHED], &[none, r#"GET h /; token {"iss": "i"}"#]),
        ("requestPrincipals: ['https://i/*']", &[TOKEN, SLASHED], &[none]),
        ("requestPrincipals: ['*/s']", &[TOKEN], &[none, SLASHED]),
        ("requestPrincipals: ['*s']", &[TOKEN, SLASHED], &[none]),
        ("requestPrincipals: ['https://i/t']", &[], &[TOKEN, SLASHED]),
        // a subject with a slash is not a longer issuer
        (
            "requestPrincipals: ['https://i/a/s']",
            &[r#"GET h /; token {"iss": "https://i/a", "sub": "s"}"#],
            &[SLASHED],
        ),
        // "deny requests without a valid token"
        ("notRequestPrincipals: ['*']", &[none], &[TOKEN]),
        ("notRequestPrincipals: ['https://i/s']", &[none, SLASHED], &[TOKEN]),
        (
            "remoteIpBlocks: ['192.0.2.0/24']",
            &["GET h /; remote 192.0.2.7", "GET h /; remote ::ffff:192.0.2.7"],
            &[none],
        ),
        ("notRemoteIpBlocks: ['192.0.2.0/24']", &[none], &["GET h /; remote 192.0.2.7"]),
        ("ipBlocks: ['10.0.0.9']", &[none, "GET h /; remote 192.0.2.7"], &[]),
        ("principals: ['td1/ns/shop/sa/client']", &[none], &["GET h /; plaintext"]),
        ("notPrincipals: ['*']", &["GET h /; plaintext"], &[none]),
        ("namespaces: [shop], requestPrincipals: ['*']", &[TOKEN], &[none]),
    ] {
        assert_matches(&format!("{{from: [{{source: {{{fields}}}}}]}}"), matching, others);
    }
}

const CLAIMS: &str = r#"GET h /; token {"iss": "i", "sub": "s", "scope": "read write", "permission": ["x", "y z"], "group": "a b", "groups": ["a", "b", 1], "realm": {"roles": ["admin"], "scope": "read write", "name": "n"}, "number": 1, "flag": true, "a]b": "c", "empty": ""}"#;

#[test]
fn conditions_match_as_documented() {
    let none = "GET h /";
    for (key, values, matching, others) in [
        (
            "request.headers[X-A]",
            "v",
            &["GET h /; x-a: v", "GET h /; X-A: v"][..],
            &[none, "GET h /; x-a: V", "GET h /; x-b: v"][..],
        ),
        ("request.headers[x-a]", "'*'", &["GET h /; x-a: v", "GET h /; x-a: "], &[none]),
        ("request.headers[x-a]", "'v*'", &["GET h /; x-a: v1"], &["GET h /; x-a: 1v"]),
        ("request.headers[x-a]", "'*v'", &["GET h /; x-a: 1v"], &["GET h /; x-a: v1"]),
        // each value is compared on its own
        (
            "request.headers[x-a]",
            "v",
            &["GET h /; x-a: v; x-a: w", "GET h /; x-a: w; x-a: v", "GET h /; x-a: ; x-a: v"],
            &["GET h /; x-a: v,w", "GET h /; x-a: w; x-a: w"],
        ),
        ("request.headers[x-a]", "'v,w'", &["GET h /; x-a: v,w"], &["GET h /; x-a: v; x-a: w"]),
        ("request.headers[host]", "H", &["GET H /"], &[none]),
        ("request.headers[:authority]", "h", &[none], &["GET i /"]),
        ("request.headers[:method]", "GET", &[none], &["PUT h /"]),
        ("request.headers[:path]", "'/a?b'", &["GET h /x/../a?b"], &["GET h /a"]),
        ("request.auth.principal", "'https://i/s'", &[TOKEN], &[none, SLASHED]),
        (
            "request.auth.audiences",
            "b",
            &[TOKEN, r#"GET h /; token {"aud": "b"}"#],
            &[none, SLASHED, r#"GET h /; token {"aud": ["c"]}"#],
        ),
        ("request.auth.presenter", "p", &[TOKEN], &[none, SLASHED]),
        ("request.auth.claims[iss]", "'https://*'", &[TOKEN], &[none, CLAIMS]),
        ("request.auth.claims[scope]", "write", &[CLAIMS], &[none, TOKEN]),
        ("request.auth.claims[scope]", "'read write'", &[], &[CLAIMS]),
        ("request.auth.claims[permission]", "'y z'", &[CLAIMS], &[none]),
        ("request.auth.claims[permission]", "y", &[], &[CLAIMS]),
        ("request.auth.claims[group]", "'a b'", &[CLAIMS], &[none]),
        ("request.auth.claims[group]", "b", &[], &[CLAIMS]),
        ("request.auth.claims[groups]", "b", &[CLAIMS], &[none, TOKEN]),
        ("request.auth.claims[realm][roles]", "admin", &[CLAIMS], &[none, TOKEN]),
        ("request.auth.claims[realm][scope]", "'read write'", &[CLAIMS], &[none]),
        ("request.auth.claims[realm][scope]", "read", &[], &[CLAIMS]),
        ("request.auth.claims[realm][name]", "'*'", &[CLAIMS], &[TOKEN]),
        ("request.auth.claims[realm]", "'*'", &[], &[CLAIMS]),
        ("request.auth.claims[groups][a]", "'*'", &[], &[CLAIMS]),
        ("request.auth.claims[number]", "'1'", &[], &[CLAIMS]),
        ("request.auth.claims[flag]", "'true'", &[], &[CLAIMS]),
        ("request.auth.claims[empty]", "'*'", &[], &[CLAIMS]),
        ("request.auth.claims[a]b]", "c", &[CLAIMS], &[TOKEN]),
        ("remote.ip", "192.0.2.0/24", &["GET h /; remote 192.0.2.7"], &[none]),
        ("source.ip", "10.0.0.9", &["GET h /; remote 192.0.2.7"], &[]),
        ("source.principal", "'*'", &[none], &["GET h /; plaintext"]),
        ("source.namespace", "shop", &[none], &["GET h /; plaintext"]),
        ("destination.port", "'80'", &[none], &["GET h /; port 81"]),
        ("destination.ip", "10.0.0.1", &[none], &[]),
        ("connection.sni", "'*'", &[], &[none]),
    ] {
        assert_matches(&format!("{{when: [{{key: \"{key}\", values: [{values}]}}]}}"), matching, others);
        // The opposite list matches exactly the other requests, those without the attribute too.
        assert_matches(&format!("{{when: [{{key: \"{key}\", notValues: [{values}]}}]}}"), others, matching);
    }
    let both = "{when: [{key: 'request.headers[x]', values: ['a*'], notValues: [ab]}]}";
    assert_matches(both, &["GET h /; x: ac"], &["GET h /; x: ab", none]);
}

#[test]
fn keys_of_envoys_filters_fail_closed() {
    for key in
        ["experimental.envoy.filters.network.mysql_proxy[db.t]", "request.experimental.inline.headers[x]"]
    {
        for list in ["values", "notValues"] {
            let rules = format!("[{{when: [{{key: '{key}', {list}: [a]}}]}}]");
            assert!(!verdict(&policy("p", "ALLOW", &rules), "GET h /; x: a").is_allowed(), "{key}");
            assert!(!verdict(&policy("p", "DENY", &rules), "GET h /").is_allowed(), "{key}");
        }
    }
}

#[test]
fn custom_comes_before_deny_and_each_provider_is_asked_once() {
    let documents = custom("c", "opa", "[{to: [{operation: {paths: ['/a*']}}]}]")
        + &custom("b", "opa", "[{to: [{operation: {methods: [PUT]}}]}]")
        + &custom("a", "zz", "[{to: [{operation: {methods: [PUT]}}]}]")
        + &policy("d", "DENY", "[{to: [{operation: {paths: [/a/x]}}]}]")
        + &policy("e", "ALLOW", "[{to: [{operation: {paths: ['/*']}}]}]");
    for (request, expected) in [
        ("GET h /b", &["allowed by shop/e rule[0]"][..]),
        ("GET h /a", &["shop/c rule[0] asks opa", "allowed by shop/e rule[0]"]),
        ("GET h /a/x", &["shop/c rule[0] asks opa", "denied: shop/d rule[0]"]),
        ("PUT h /a", &["shop/b rule[0] asks opa", "shop/a rule[0] asks zz", "allowed by shop/e rule[0]"]),
        (
            "PUT h -",
            &["shop/b rule[0] asks opa", "shop/a rule[0] asks zz", "denied: no ALLOW policy matched"],
        ),
    ] {
        let answers = of(&documents, WEB, |policy| {
            Request::parse(request).with(|l4, http| {
                let mut answers = vec![policy.decide_http(l4, http)];
                while let Some(HttpVerdict::Custom { provider, .. }) = answers.last() {
                    answers.push(policy.decide_http_after(provider, l4, http));
                }
                answers.iter().map(ToString::to_string).collect::<Vec<_>>()
            })
        });
        assert_eq!(answers, expected, "{request}");
    }
}

#[test]
fn strict_refuses_a_plaintext_request() {
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    let documents = format!("{strict}{}", policy("p", "ALLOW", "[{}]"));
    assert_eq!(verdict(&documents, "GET h /; plaintext").to_string(), "denied: STRICT: plaintext");
    assert!(verdict(&documents, "GET h /").is_allowed());
}

#[test]
fn audit_and_dry_runs_are_reported_and_never_decide() {
    let dry = |name: &str, spec: &str| document(name, ", annotations: {istio.io/dry-run: 'true'}", spec);
    let get = "rules: [{to: [{operation: {methods: [GET]}}]}]";
    let documents = policy("audit", "AUDIT", "[{}, {to: [{operation: {paths: [/a]}}]}]")
        + &dry("deny", &format!("{{action: DENY, {get}}}"))
        + &dry("allow", &format!("{{action: ALLOW, {get}}}"));
    for (request, audit, matched, would_be) in [
        (
            "GET h /a",
            &["shop/audit rule[0]", "shop/audit rule[1]"][..],
            &["shop/deny rule[0]", "shop/allow rule[0]"][..],
            "denied: shop/deny rule[0]",
        ),
        ("PUT h /", &["shop/audit rule[0]"], &[], "denied: no ALLOW policy matched"),
    ] {
        assert_eq!(verdict(&documents, request), HttpVerdict::Allow { rule: None });
        let observed = of(&documents, WEB, |policy| {
            assert!(policy.observes());
            Request::parse(request).with(|l4, http| policy.observe(l4, Some(http)))
        });
        let shown =
            |rules: &[crate::policy::RuleRef]| rules.iter().map(ToString::to_string).collect::<Vec<_>>();
        let dry_run = observed.dry_run.unwrap();
        assert_eq!(
            (shown(&observed.audit), shown(&dry_run.matched)),
            (
                audit.iter().map(ToString::to_string).collect(),
                matched.iter().map(ToString::to_string).collect()
            )
        );
        assert_eq!(dry_run.verdict.to_string(), would_be, "{request}");
    }
    // On TCP the fields are ignored in DENY, and take the ALLOW rule away.
    let (decided, observed) = of(&documents, WEB, |policy| {
        Request::parse("GET h /").with(|l4, _| (policy.decide(l4), policy.observe(l4, None)))
    });
    assert!(decided.is_allowed());
    let dry_run = observed.dry_run.unwrap();
    assert_eq!(dry_run.verdict.to_string(), "denied: shop/deny rule[0]");
    assert_eq!((observed.audit.len(), dry_run.matched.len()), (2, 1));
    assert!(!of("", WEB, WorkloadPolicy::observes));
}

#[test]
fn the_annotation_is_read_as_go_reads_booleans() {
    for (value, dry_run, warnings) in
        [("'true'", true, 0), ("'T'", true, 0), ("'1'", true, 0), ("'false'", false, 0), ("'yes'", false, 1)]
    {
        let text = document("p", &format!(", annotations: {{istio.io/dry-run: {value}}}"), "{}");
        let set = PolicySet::parse([("p.yaml", text.as_str())]).unwrap();
        assert_eq!(
            (set.authorization_policies[0].dry_run, set.warnings.len()),
            (dry_run, warnings),
            "{value}"
        );
        assert_eq!(set.status[0].not_enforced.len(), usize::from(dry_run), "{value}");
    }
}

#[test]
fn only_ports_where_the_answer_depends_on_the_request_need_http() {
    let to = |fields: &str| format!("[{{to: [{{operation: {{{fields}}}}}]}}]");
    for (documents, needed, others) in [
        (String::new(), &[][..], &[80, 81][..]),
        (policy("p", "ALLOW", "[{}]"), &[], &[80]),
        (policy("p", "DENY", &to("ports: ['80']")), &[], &[80, 81]),
        (policy("p", "DENY", &to("methods: [GET]")), &[80, 81], &[]),
        (policy("p", "DENY", &to("methods: [GET], ports: ['80']")), &[80], &[81]),
        (policy("p", "DENY", &to("methods: [GET], notPorts: ['80']")), &[81], &[80]),
        (policy("p", "AUDIT", &to("notPaths: [/]")), &[80], &[]),
        (
            document(
                "p",
                ", annotations: {istio.io/dry-run: 'true'}",
                &format!("{{action: DENY, rules: {}}}", to("hosts: [a]")),
            ),
            &[80],
            &[],
        ),
        (custom("p", "opa", &to("ports: ['80']")), &[80], &[81]),
        (custom("p", "opa", "[{}]"), &[80, 81], &[]),
        (document("p", "", "{action: CUSTOM, provider: {name: opa}, rules: []}"), &[], &[80]),
        (
            policy(
                "p",
                "DENY",
                "[{when: [{key: 'request.headers[x]', values: [a]}, {key: destination.port, notValues: ['80']}]}]",
            ),
            &[81],
            &[80],
        ),
        (
            policy(
                "p",
                "DENY",
                "[{from: [{source: {requestPrincipals: ['*']}}], to: [{operation: {ports: ['80']}}]}]",
            ),
            &[80],
            &[81],
        ),
        // DENY of 5432 whatever is said there: TCP is enough. ALLOW loses the whole rule on TCP.
        (
            policy(
                "p",
                "DENY",
                "[{to: [{operation: {ports: ['80'], methods: [GET]}}, {operation: {ports: ['5432']}}]}]",
            ),
            &[80],
            &[5432, 81],
        ),
        (
            policy(
                "p",
                "ALLOW",
                "[{to: [{operation: {ports: ['80'], methods: [GET]}}, {operation: {ports: ['5432']}}]}]",
            ),
            &[80, 5432],
            &[81],
        ),
        // remote.ip is known of every connection, a key that is never evaluated needs nothing
        (policy("p", "DENY", "[{from: [{source: {remoteIpBlocks: [10.0.0.1]}}]}]"), &[], &[80]),
        (
            policy("p", "ALLOW", "[{when: [{key: 'experimental.envoy.filters.a[b]', values: [c]}]}]"),
            &[],
            &[80],
        ),
    ] {
        of(&documents, WEB, |policy| {
            assert!(needed.iter().all(|port| policy.needs_http(*port)), "{documents}");
            assert!(!others.iter().any(|port| policy.needs_http(*port)), "{documents}");
        });
        assert!(!of(&documents, ("data", "db"), |policy| policy.needs_http(80)), "{documents}");
    }
}

#[test]
fn target_refs_reach_the_endpoints_of_services_in_the_policys_namespace() {
    let service = |name: &str| format!("{{kind: Service, name: {name}}}");
    for (refs, reached, accepted, notes) in [
        (format!("targetRef: {}", service("web")), 1, true, 0),
        (format!("targetRefs: [{}]", service("web")), 1, true, 0),
        ("targetRefs: [{group: core, kind: Service, name: web}]".to_owned(), 1, true, 0),
        ("targetRefs: [{group: '', kind: Service, name: web}]".to_owned(), 1, true, 0),
        (format!("targetRefs: [{}, {}]", service("other"), service("web")), 1, true, 0),
        (format!("targetRefs: [{}]", service("other")), 0, true, 0),
        (format!("targetRefs: [{}]", service("db")), 0, true, 0),
        ("targetRefs: [{group: x, kind: Service, name: web}]".to_owned(), 0, false, 1),
        (
            "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: web}]".to_owned(),
            0,
            false,
            1,
        ),
        (format!("targetRefs: [{}, {{kind: Gateway, name: g}}]", service("web")), 1, true, 1),
    ] {
        let text = document("p", "", &format!("{{action: DENY, rules: [{{}}], {refs}}}"));
        assert_eq!(!verdict(&text, "GET h /").is_allowed(), reached == 1, "{refs}");
        let denies_db = of(&text, ("data", "db"), |policy| {
            Request::parse("GET h /").with(|l4, _| !policy.decide(l4).is_allowed())
        });
        assert!(!denies_db, "{refs}");
        let set = PolicySet::parse([("p.yaml", text.as_str())]).unwrap();
        let status = &set.status_in(&world())[0];
        assert_eq!(
            (status.workloads, status.accepted, status.not_enforced.len()),
            (reached, accepted, notes),
            "{refs}"
        );
    }
}

#[test]
fn target_refs_and_keys_that_istio_refuses_are_refused() {
    for (spec, what) in [
        ("{targetRefs: [{kind: Service, name: ''}]}", "name is empty"),
        ("{targetRefs: [{kind: Service, name: a, namespace: b}]}", "leave it out"),
        (
            "{targetRef: {kind: Service, name: a}, targetRefs: [{kind: Service, name: b}]}",
            "cannot both be set",
        ),
        ("{selector: {matchLabels: {a: b}}, targetRef: {kind: Service, name: a}}", "cannot both be set"),
        ("{rules: [{to: [{operation: {paths: ['/{a}']}}]}]}", "holds a brace"),
        ("{rules: [{to: [{operation: {notPaths: ['/{**}/{*}']}}]}]}", "last operator"),
        ("{rules: [{when: [{key: 'request.headers', values: [a]}]}]}", "in brackets"),
        ("{rules: [{when: [{key: 'request.headers[]', values: [a]}]}]}", "in brackets"),
        ("{rules: [{when: [{key: 'request.headers[a b]', values: [a]}]}]}", "in brackets"),
        ("{rules: [{when: [{key: 'request.auth.claims[a', values: [a]}]}]}", "in brackets"),
        ("{rules: [{when: [{key: 'request.auth.claims[a][]', values: [a]}]}]}", "empty claim"),
        ("{rules: [{when: [{key: 'experimental.envoy.filters.a', values: [a]}]}]}", "in brackets"),
        ("{rules: [{when: [{key: 'request.header[a]', values: [a]}]}]}", "unknown key"),
        (
            "{rules: [{when: [{key: 'request.auth.audience', values: [a]}]}]}",
            "did you mean \"request.auth.audiences\"?",
        ),
    ] {
        let error = PolicySet::parse([("p.yaml", document("p", "", spec).as_str())]).unwrap_err().to_string();
        assert!(error.contains(what), "{spec} gave {error}");
    }
}

#[test]
fn an_explanation_of_a_request_says_why_each_rule_did_not_match() {
    let documents = policy(
        "a",
        "ALLOW",
        "[{to: [{operation: {methods: [GET], paths: ['/a*']}}]}, {when: [{key: 'request.headers[x]', values: [y]}]}, {from: [{source: {requestPrincipals: ['*']}}]}, {when: [{key: 'experimental.envoy.filters.a[b]', values: [c]}]}, {to: [{operation: {notHosts: ['h*']}}]}, {when: [{key: 'request.auth.claims[a][b]', values: [c]}]}]",
    ) + &policy("z", "AUDIT", "[{}]");
    let why = |request: &str| {
        of(&documents, WEB, |policy| {
            let explained = Request::parse(request).with(|l4, http| policy.explain_http(l4, http));
            assert_eq!(explained.observed.audit.len(), 1);
            assert_eq!(explained.policies[1].name, "z");
            explained.policies[0].rules.iter().map(|rule| rule.why.clone()).collect::<Vec<_>>()
        })
    };
    assert_eq!(
        why("PUT h /a"),
        [
            "to[0]: methods [GET] do not include PUT",
            "when: request.headers[x] [y] do not include a request without header x",
            "from[0]: requestPrincipals [*] do not include a request without a token",
            "experimental.envoy.filters.a[b]: meshd cannot evaluate it, so the rule never matches",
            "to[0]: notHosts [h*] exclude h",
            "when: request.auth.claims[a][b] [c] do not include a request without a token",
        ]
    );
    let token = why("GET g /b; x: z; token {\"iss\": \"i\", \"a\": {\"b\": [\"d\"]}}");
    assert_eq!(token[0], "to[0]: paths [/a*] do not include /b");
    assert_eq!(token[1], "when: request.headers[x] [y] do not include z");
    assert_eq!(token[2], "from[0]: requestPrincipals [*] do not include i/");
    assert_eq!(token[4], "every part of it matches");
    assert_eq!(token[5], "when: request.auth.claims[a][b] [c] do not include [\"d\"]");
}

#[test]
fn with_the_http_path_a_status_names_only_what_is_still_not_enforced() {
    let documents = policy("a", "ALLOW", "[{to: [{operation: {methods: [GET]}}]}]")
        + &policy("b", "DENY", "[{when: [{key: 'experimental.envoy.filters.a[b]', values: [c]}]}]")
        + &policy("c", "AUDIT", "[{}]")
        + &custom("d", "opa", "[{}]");
    let set = PolicySet::parse([("p.yaml", documents.as_str())]).unwrap();
    let notes = |http_path| {
        let status = set.status_with(&world(), http_path);
        status.iter().map(|s| s.not_enforced.join("; ")).collect::<Vec<_>>()
    };
    assert_eq!(set.status.iter().map(|s| s.not_enforced.join("; ")).collect::<Vec<_>>(), notes(false));
    assert!(notes(false).iter().all(|note| !note.is_empty()));
    let with = notes(true);
    assert_eq!((with[0].as_str(), with[2].as_str()), ("", ""));
    assert!(with[1].contains("experimental.envoy.filters.a[b]"), "{}", with[1]);
    assert!(with[3].contains("not HTTP"), "{}", with[3]);
}
