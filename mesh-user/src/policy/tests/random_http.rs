//! Random policies and requests: the compiled form must say what the naive reference says of a request, of what
//! is asked after each external authorizer, and of what is only watched.

use std::sync::LazyLock;

use proptest::{option, prelude::*, sample::select};
use serde_json::{Map, Value, json};

use super::{
    http_policies::answers,
    random::{self, List, list},
};
use crate::{
    config::Config,
    policy::{
        AuthorizationPolicy, CompiledPolicies, HttpVerdict, L4Request, PolicySet,
        api::{Action, Condition, Operation, Provider, Source, TargetRef},
        http::{HttpRequest, Normalization, NormalizedPath},
        reference::{self, Asked, HttpSeen, Mesh},
    },
    world::World,
};

const METHODS: [&str; 5] = ["GET", "POST", "P*", "*T", "*"];
const HOSTS: [&str; 6] = ["a.example", "A.Example:*", "*.EXAMPLE", "a.*", "*", "a.example:80"];
const PATHS: [&str; 14] = [
    "*",
    "/",
    "/a",
    "/a*",
    "*b",
    "/a/b",
    "/{*}",
    "/a/{*}",
    "/{**}",
    "/{*}/b",
    "/{**}/b",
    "/a/{**}",
    "/{*}/",
    "/a/{*}/{**}",
];
const REQUEST_PRINCIPALS: [&str; 12] = [
    "*",
    "https://i/s",
    "https://i/*",
    "https://i/s*",
    "*/s",
    "*i/s",
    "*s",
    "https*",
    "https://i/a/s",
    "i",
    "*/*",
    "s/t",
];
const WORDS: [&str; 8] = ["*", "read", "wr*", "*te", "read write", "x", "y,z", "*z"];
const KEYS: [&str; 13] = [
    "request.headers[X-One]",
    "request.headers[x-two]",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[scope]",
    "request.auth.claims[permission]",
    "request.auth.claims[groups]",
    "request.auth.claims[realm][roles]",
    "request.auth.claims[realm][scope]",
    "request.auth.claims[realm]",
    "request.auth.claims[number]",
    "request.auth.claims[none][none]",
];

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let services = "services:\n  - {name: web, namespace: shop, addresses: [10.96.0.1], ports: [{port: 80}], selector: {app: web}}\n  - {name: empty, namespace: shop, addresses: [10.96.0.2], ports: [{port: 80}], selector: {app: none}}\n";
    World::build(&Config::parse(&format!("{}{services}", super::CONFIG), "test").unwrap()).unwrap()
});

fn with_http(source: Source) -> impl Strategy<Value = Source> {
    (list(&REQUEST_PRINCIPALS), list(&REQUEST_PRINCIPALS), any::<bool>()).prop_map(
        move |(request_principals, not_request_principals, keep)| {
            let other = if keep { source.clone() } else { Source::default() };
            Source { request_principals, not_request_principals, ..other }
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let ports = (list(&random::PORTS), list(&random::PORTS));
    let rest = (list(&METHODS), list(&METHODS), list(&HOSTS), list(&HOSTS), list(&PATHS), list(&PATHS));
    (ports, rest).prop_map(|(p, o)| Operation {
        ports: p.0,
        not_ports: p.1,
        methods: o.0,
        not_methods: o.1,
        hosts: o.2,
        not_hosts: o.3,
        paths: o.4,
        not_paths: o.5,
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    let one = |values: &'static [&'static str]| (list(values), list(values), select(values));
    select(KEYS.to_vec()).prop_flat_map(move |key| {
        let values: &'static [&'static str] =
            if key.ends_with("principal") { &REQUEST_PRINCIPALS } else { &WORDS };
        one(values).prop_map(move |(values, not_values, one): (List, List, &str)| {
            let values = values.or_else(|| not_values.is_none().then(|| vec![one.to_owned()]));
            Condition { key: key.to_owned(), values, not_values }
        })
    })
}

/// Puts HTTP into a policy's rules, and sometimes attaches it to services, or watches it only.
fn policy(policy: AuthorizationPolicy) -> impl Strategy<Value = AuthorizationPolicy> {
    let target = || {
        (select(vec!["web", "empty", "none"]), select(vec!["Service", "Service", "Gateway"])).prop_map(
            |(name, kind)| TargetRef {
                group: None,
                kind: kind.to_owned(),
                name: name.to_owned(),
                namespace: None,
            },
        )
    };
    let parts = (
        prop::collection::vec(operation(), 4),
        prop::collection::vec(condition(), 2),
        with_http(Source::default()),
        select(vec!["opa", "acl"]),
    );
    let targets = option::weighted(0.2, prop::collection::vec(target(), 1..3));
    (parts, targets, prop::bool::weighted(0.2), prop::bool::weighted(0.2), any::<u8>()).prop_map(
        move |((to, when, from, provider), targets, dry_run, custom, mask)| {
            let mut policy = policy.clone();
            policy.dry_run = dry_run;
            if let Some(targets) = targets {
                policy.spec.selector = None;
                policy.spec.target_refs = Some(targets);
            }
            if custom {
                policy.spec.action = Some(Action::Custom);
                policy.spec.provider = Some(Provider { name: None });
            }
            if let Some(given) = &mut policy.spec.provider {
                given.name = Some(provider.to_owned());
            }
            let mut operations = to.into_iter();
            for (i, rule) in policy.spec.rules.iter_mut().flatten().enumerate() {
                for entry in rule.to.iter_mut().flatten() {
                    entry.operation = operations.next().unwrap_or_default();
                }
                if mask >> i & 1 == 1 {
                    rule.when = Some(when.clone());
                }
                if mask >> (i + 4) & 1 == 1
                    && let Some(first) = rule.from.as_mut().and_then(|from| from.first_mut())
                {
                    first.source = from.clone();
                }
            }
            policy
        },
    )
}

fn documents() -> impl Strategy<Value = PolicySet> {
    random::documents().prop_flat_map(|set| {
        let policies: Vec<_> = set.authorization_policies.iter().cloned().map(policy).collect();
        policies.prop_map(move |policies| PolicySet::of(set.peer_authentications.clone(), policies))
    })
}

fn claims() -> impl Strategy<Value = Option<Map<String, Value>>> {
    let issuer = select(vec![json!("https://i"), json!("https://i/a"), json!("i"), json!(1), Value::Null]);
    let subject = select(vec![json!("s"), json!("a/s"), json!("t"), json!(""), json!(["s"])]);
    let words = || {
        select(vec![
            json!("read"),
            json!("read write"),
            json!(["write", "x", 1]),
            json!([]),
            json!({"a": "x"}),
            json!(true),
        ])
    };
    let token = (issuer, subject, words(), words(), words(), words(), words());
    let token = token.prop_map(|(iss, sub, aud, azp, scope, groups, roles)| {
        let claims = json!({
            "iss": iss, "sub": sub, "aud": aud, "azp": azp, "scope": scope, "permission": groups, "groups": groups,
            "realm": {"roles": roles, "scope": scope}, "number": 7,
        });
        claims.as_object().cloned().unwrap()
    });
    option::weighted(0.8, token)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decide_http_says_what_the_reference_says(
        set in documents(),
        peer in option::weighted(0.8, (select(vec!["td1", "td2"]), select(vec!["shop", "data"]), select(vec!["a", "b"]))),
        (src, remote) in (select(vec!["10.0.0.5:1", "[fd00::5]:1"]), select(vec!["10.0.0.5", "10.9.0.1", "::ffff:10.0.0.1"])),
        dst in select(vec!["10.0.0.1:80", "10.0.0.1:443"]),
        method in select(vec!["GET", "POST", "PUT", "get"]),
        path in option::weighted(0.9, select(vec!["/", "/a", "/a/b", "/a/../a/b?c=/b", "/b/", "/a/%2e/x/b", "/a/[", "//b"])),
        authority in option::weighted(0.9, select(vec!["a.example", "A.EXAMPLE:80", "b.example", ""])),
        headers in prop::collection::vec((select(vec!["x-one", "x-two"]), select(vec!["read", "write", "y", "z", "", "read write"])), 0..4),
        claims in claims(),
    ) {
        let world = &*WORLD;
        let id = peer.map(|(td, ns, sa)| format!("spiffe://{td}/ns/{ns}/sa/{sa}").parse().unwrap());
        let l4 = L4Request { peer: id.as_ref(), src: src.parse().unwrap(), dst: dst.parse().unwrap(), sni: None };
        let path = path.map(|path| NormalizedPath::new(path, Normalization::Base).unwrap());
        let remote_ip = remote.parse().unwrap();
        let claims = claims.as_ref();
        let http = HttpRequest { method, path: path.as_ref(), authority, headers: &headers, claims, remote_ip };
        let path = path.as_ref().map(NormalizedPath::path);
        let seen = HttpSeen { method, path, authority, headers: &headers, claims, remote_ip };
        let asked = Asked { connection: &l4, http: Some(&seen) };
        let mesh = Mesh { root: "istio-system", domains: &["td1", "td2"] };
        let compiled = CompiledPolicies::compile(world, &set);
        for workload in world.workloads() {
            let policy = compiled.for_workload(workload.id);
            let (first, later) = reference::decide_any(&mesh, world, workload, &set, asked, false);
            let mut expected = vec![first];
            expected.extend(later);
            prop_assert_eq!(answers(policy, &l4, &http), expected.clone());
            prop_assert_eq!(policy.decide_http(&l4, &http), expected[0].clone());
            prop_assert_eq!(&policy.explain_http(&l4, &http).verdict, &expected[0]);

            let on_tcp = policy.decide(&l4);
            prop_assert_eq!(&on_tcp, &reference::decide(&mesh, world, workload, &set, &l4));
            // What a port that needs no HTTP says does not depend on the request.
            if !policy.needs_http(l4.dst.port()) && l4.src.ip() == remote_ip {
                prop_assert_eq!(HttpVerdict::from(on_tcp), expected[0].clone());
            }

            for (asked, http) in [(asked, Some(&http)), (Asked { connection: &l4, http: None }, None)] {
                let observed = policy.observe(&l4, http);
                let (audit, watched) = reference::observe(&mesh, world, workload, &set, asked);
                prop_assert_eq!(&observed.audit, &audit);
                let would_do = observed.dry_run;
                prop_assert_eq!(would_do.as_ref().map(|d| d.matched.clone()).unwrap_or_default(), watched);
                let would_be = reference::decide_any(&mesh, world, workload, &set, asked, true).0;
                if let Some(would_do) = would_do.filter(|_| http.is_some()) {
                    prop_assert_eq!(would_do.verdict, would_be);
                }
            }
        }
    }
}
