//! Policies on requests: the order of actions, external authorizers, what is reported beside a verdict, which
//! ports need HTTP, `targetRefs`, explanations and statuses.

use std::sync::Arc;

use super::{
    CONFIG,
    http::{Request, WEB, custom, document, of, policy, verdict, world},
};
use crate::{
    config::Config,
    policy::{
        AuthorizerKind, CompiledPolicies, HttpVerdict, L4Request, PolicySet, RuleRef, WorkloadPolicy,
        http::HttpRequest,
    },
    world::World,
};

/// Every answer, as if each external authorizer allowed the request.
pub(super) fn answers(
    policy: &WorkloadPolicy,
    l4: &L4Request<'_>,
    http: &HttpRequest<'_>,
) -> Vec<HttpVerdict> {
    let mut answers = Vec::new();
    let mut asked = None;
    while let Some((provider, rule)) = policy.authorizer_after(asked.as_deref(), l4, Some(http)) {
        answers.push(HttpVerdict::Custom { provider: Arc::clone(&provider), rule });
        asked = Some(provider);
    }
    answers.push(policy.decide_authorized(l4, Some(http)).into());
    answers
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
                let answers = answers(policy, l4, http);
                assert_eq!(policy.decide_http(l4, http), answers[0]);
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
        let shown = |rules: &[RuleRef]| rules.iter().map(ToString::to_string).collect::<Vec<_>>();
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
fn requests_are_read_for_their_original_client_where_somebody_is_believed() {
    let documents = policy("p", "DENY", "[{from: [{source: {remoteIpBlocks: [1.2.3.4]}}]}]");
    let set = PolicySet::parse([("test.yaml", documents.as_str())]).unwrap();
    for (believed, expected) in
        [("", false), ("forwardedFor: { trustedPrincipals: [ td1/ns/in/sa/gw ] }\n", true)]
    {
        let config = Config::parse(&format!("{CONFIG}{believed}"), "test").unwrap();
        let world = World::build(&config).unwrap();
        let policies = CompiledPolicies::compile(&world, &set);
        let web = world.by_name("shop", "web").unwrap();
        assert_eq!(policies.for_workload(web.id).inspects_requests(80), expected, "{believed}");
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
fn a_status_names_only_what_is_not_enforced() {
    let documents = policy("a", "ALLOW", "[{to: [{operation: {methods: [GET]}}]}]")
        + &policy("b", "DENY", "[{when: [{key: 'experimental.envoy.filters.a[b]', values: [c]}]}]")
        + &policy("c", "AUDIT", "[{}]")
        + &custom("d", "opa", "[{}]");
    let set = PolicySet::parse([("p.yaml", documents.as_str())]).unwrap();
    let status = set.status_in(&world());
    let with: Vec<_> = status.iter().map(|s| s.not_enforced.join("; ")).collect();
    assert_eq!((with[0].as_str(), with[2].as_str()), ("", ""));
    assert!(with[1].contains("experimental.envoy.filters.a[b]"), "{}", with[1]);
    assert_eq!(with[3], "");
}

#[test]
fn a_status_says_what_an_authorizer_cannot_be_asked() {
    let documents = custom("a", "over-grpc", "[{}]")
        + &custom("b", "over-http", "[{}]")
        + &custom("c", "missing", "[{}]")
        + &custom("d", "over-grpc", "[{}, {from: [{source: {requestPrincipals: ['*']}}]}]")
        + &policy("e", "DENY", "[{from: [{source: {requestPrincipals: ['*']}}]}]");
    let set = PolicySet::parse([("p.yaml", documents.as_str())]).unwrap();
    let mut status = set.status_in(&world());
    set.note_authorizers(&mut status, |name| match name {
        "over-grpc" => Some(AuthorizerKind::Grpc),
        "over-http" => Some(AuthorizerKind::Http),
        _ => None,
    });
    let notes: Vec<_> = status.iter().map(|s| s.not_enforced.join("; ")).collect();
    assert_eq!((notes[0].as_str(), notes[4].as_str()), ("", ""));
    for (note, what) in
        notes[1..4].iter().zip(["connections that are not HTTP", "no \"missing\"", "rules[1]"])
    {
        assert!(note.contains(what), "{note}");
    }
}
