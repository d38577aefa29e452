//! Requests: a table of cases for each field and key of Istio's reference.

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
pub(super) struct Request<'a> {
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
    pub(super) fn parse(text: &'a str) -> Self {
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

    pub(super) fn with<T>(&self, ask: impl FnOnce(&L4Request<'_>, &HttpRequest<'_>) -> T) -> T {
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

pub(super) fn world() -> World {
    World::build(&Config::parse(&format!("{}{SERVICES}", super::CONFIG), "test").unwrap()).unwrap()
}

/// Asks the policy of a workload.
pub(super) fn of<T>(
    documents: &str,
    (namespace, name): (&str, &str),
    ask: impl FnOnce(&WorkloadPolicy) -> T,
) -> T {
    let (world, set) = (world(), PolicySet::parse([("test.yaml", documents)]).unwrap());
    let compiled = CompiledPolicies::compile(&world, &set);
    ask(compiled.for_workload(world.by_name(namespace, name).unwrap().id))
}

pub(super) const WEB: (&str, &str) = ("shop", "web");

pub(super) fn document(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop{metadata}}}\nspec: {spec}\n"
    )
}

pub(super) fn policy(name: &str, action: &str, rules: &str) -> String {
    document(name, "", &format!("{{action: {action}, rules: {rules}}}"))
}

pub(super) fn custom(name: &str, provider: &str, rules: &str) -> String {
    document(name, "", &format!("{{action: CUSTOM, provider: {{name: {provider}}}, rules: {rules}}}"))
}

pub(super) fn verdict(documents: &str, request: &str) -> HttpVerdict {
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
