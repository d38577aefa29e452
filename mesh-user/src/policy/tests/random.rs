//! Random documents and connections from a small universe, so that matches are frequent: `decide` must say what
//! the naive reference says, down to the rule.

use std::{collections::BTreeMap, sync::LazyLock};

use proptest::{option, prelude::*, sample::select};

use super::world;
use crate::policy::{
    AuthorizationPolicy, CompiledPolicies, L4Request, Mode, PeerAuthentication, PolicySet,
    api::{
        Action, ApiMode, AuthorizationPolicySpec, Condition, From, MutualTls, Operation,
        PeerAuthenticationSpec, Provider, Rule, Source, To, WorkloadSelector,
    },
    reference::{self, Mesh},
};
use crate::world::World;

const NAMESPACES: [&str; 3] = ["shop", "data", "istio-system"];
const PRINCIPALS: [&str; 13] = [
    "*",
    "td1/ns/shop/sa/a",
    "td2/ns/shop/sa/a",
    "td3/ns/shop/sa/a",
    "cluster.local/ns/data/sa/b",
    "td1/ns/data/*",
    "td1/*",
    "td2*",
    "*/sa/a",
    "*/ns/shop/sa/a",
    "*a",
    "td1/ns/shop/sa/*",
    "spiffe://td1/ns/shop/sa/a",
];
const PATTERNS: [&str; 6] = ["*", "shop", "data", "s*", "*a", "other"];
const ACCOUNTS: [&str; 4] = ["a", "b", "shop/a", "data/b"];
const IPS: [&str; 7] =
    ["10.0.0.5", "10.0.0.0/24", "10.0.0.0/30", "0.0.0.0/0", "fd00::5", "fd00::/16", "::/0"];
pub(super) const PORTS: [&str; 3] = ["80", "443", "8080"];

static WORLD: LazyLock<World> = LazyLock::new(world);

pub(super) type List = Option<Vec<String>>;

pub(super) fn list(values: &'static [&'static str]) -> impl Strategy<Value = List> {
    let values = prop::collection::vec(select(values).prop_map(str::to_owned), 1..3);
    option::weighted(0.3, values)
}

fn http() -> impl Strategy<Value = List> {
    option::weighted(0.03, Just(vec!["x".to_owned()]))
}

fn source() -> impl Strategy<Value = Source> {
    let identity = (
        list(&PRINCIPALS),
        list(&PRINCIPALS),
        list(&PATTERNS),
        list(&PATTERNS),
        list(&ACCOUNTS),
        list(&ACCOUNTS),
    );
    let rest = (list(&IPS), list(&IPS), list(&IPS), list(&IPS), http(), http());
    (identity, rest).prop_map(|(i, r)| Source {
        principals: i.0,
        not_principals: i.1,
        namespaces: i.2,
        not_namespaces: i.3,
        service_accounts: i.4,
        not_service_accounts: i.5,
        ip_blocks: r.0,
        not_ip_blocks: r.1,
        remote_ip_blocks: r.2,
        not_remote_ip_blocks: r.3,
        request_principals: r.4,
        not_request_principals: r.5,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    (list(&PORTS), list(&PORTS), http(), http(), http(), http(), http(), http()).prop_map(|o| Operation {
        ports: o.0,
        not_ports: o.1,
        hosts: o.2,
        not_hosts: o.3,
        methods: o.4,
        not_methods: o.5,
        paths: o.6,
        not_paths: o.7,
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    let keys: [(&str, &'static [&'static str]); 9] = [
        ("source.ip", &IPS),
        ("remote.ip", &IPS),
        ("source.namespace", &PATTERNS),
        ("source.principal", &PRINCIPALS),
        ("source.serviceAccount", &ACCOUNTS),
        ("destination.ip", &["10.0.0.1", "10.0.0.0/8", "fd00::/8"]),
        ("destination.port", &PORTS),
        ("connection.sni", &["*", "web", "w*", "other"]),
        ("request.headers[x]", &["y"]),
    ];
    select(keys.to_vec())
        .prop_flat_map(|(key, values)| (Just(key), list(values), list(values), select(values)))
        .prop_map(|(key, values, not_values, one)| {
            // one of the two is required
            let values = values.or_else(|| not_values.is_none().then(|| vec![one.to_owned()]));
            Condition { key: key.to_owned(), values, not_values }
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    let from = option::of(prop::collection::vec(source().prop_map(|source| From { source }), 1..3));
    let to = option::of(prop::collection::vec(operation().prop_map(|operation| To { operation }), 1..3));
    let when = option::of(prop::collection::vec(condition(), 1..3));
    (from, to, when).prop_map(|(from, to, when)| Rule { from, to, when })
}

fn selector() -> impl Strategy<Value = Option<WorkloadSelector>> {
    let labels =
        prop::collection::btree_map(select(vec!["app", "tier"]), select(vec!["web", "front", "db"]), 0..3);
    let owned = |labels: BTreeMap<&str, &str>| {
        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    option::weighted(0.4, labels.prop_map(move |l| WorkloadSelector { match_labels: Some(owned(l)) }))
}

fn authorization() -> impl Strategy<Value = AuthorizationPolicy> {
    let actions =
        vec![None, Some(Action::Allow), Some(Action::Deny), Some(Action::Audit), Some(Action::Custom)];
    let rules = option::weighted(0.95, prop::collection::vec(rule(), 0..3));
    (select(NAMESPACES.to_vec()), 0..1000u32, select(actions), rules, selector()).prop_map(
        |(namespace, name, action, rules, selector)| AuthorizationPolicy {
            namespace: namespace.into(),
            name: format!("p{name}").as_str().into(),
            dry_run: false,
            spec: AuthorizationPolicySpec {
                selector,
                rules,
                action,
                provider: (action == Some(Action::Custom)).then(|| Provider { name: Some("x".to_owned()) }),
                ..AuthorizationPolicySpec::default()
            },
        },
    )
}

fn mtls() -> impl Strategy<Value = Option<MutualTls>> {
    let modes = vec![
        None,
        Some(ApiMode::Unset),
        Some(ApiMode::Disable),
        Some(ApiMode::Permissive),
        Some(ApiMode::Strict),
    ];
    option::of(select(modes).prop_map(|mode| MutualTls { mode }))
}

fn peer() -> impl Strategy<Value = PeerAuthentication> {
    let ports = option::of(prop::collection::btree_map(select(vec![80, 443, 8080]), mtls(), 1..3));
    let created = option::of((0..3i64).prop_map(|s| time::OffsetDateTime::from_unix_timestamp(s).unwrap()));
    (select(NAMESPACES.to_vec()), created, selector(), mtls(), ports).prop_map(
        |(namespace, created, selector, mtls, ports)| {
            let selects =
                selector.as_ref().is_some_and(|s| s.match_labels.as_ref().is_some_and(|l| !l.is_empty()));
            let port_level_mtls = ports.filter(|_| selects);
            let spec = PeerAuthenticationSpec { selector, mtls, port_level_mtls };
            PeerAuthentication { namespace: namespace.into(), name: "".into(), created, spec }
        },
    )
}

pub(super) fn documents() -> impl Strategy<Value = PolicySet> {
    let peers = prop::collection::vec(peer(), 0..4);
    (prop::collection::vec(authorization(), 0..4), peers).prop_map(|(policies, peers)| {
        // names are unique per namespace, as in a cluster
        let mut authorization_policies: Vec<AuthorizationPolicy> = Vec::new();
        for policy in policies {
            if !authorization_policies
                .iter()
                .any(|p| (&p.namespace, &p.name) == (&policy.namespace, &policy.name))
            {
                authorization_policies.push(policy);
            }
        }
        let named = peers.into_iter().enumerate();
        let peer_authentications =
            named.map(|(i, p)| PeerAuthentication { name: format!("p{i}").as_str().into(), ..p }).collect();
        PolicySet::of(peer_authentications, authorization_policies)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decide_says_what_the_reference_says(
        set in documents(),
        peer in option::weighted(0.8, (select(vec!["td1", "td2", "td3", "cluster.local"]), select(vec!["shop", "data"]), select(vec!["a", "b"]))),
        src in select(vec!["10.0.0.5:1", "10.0.0.2:1", "10.9.0.5:1", "[fd00::5]:1", "[fe80::1]:1", "[::ffff:10.0.0.5]:1"]),
        dst in select(vec!["10.0.0.1:80", "10.0.0.1:443", "[fd00::1]:8080", "10.0.0.1:9"]),
        sni in option::of(select(vec!["web", "x"])),
    ) {
        let world = &*WORLD;
        let id = peer.map(|(td, ns, sa)| format!("spiffe://{td}/ns/{ns}/sa/{sa}").parse().unwrap());
        let request = L4Request { peer: id.as_ref(), src: src.parse().unwrap(), dst: dst.parse().unwrap(), sni };
        let mesh = Mesh { root: "istio-system", domains: &["td1", "td2"] };
        let compiled = CompiledPolicies::compile(world, &set);
        for workload in world.workloads() {
            let policy = compiled.for_workload(workload.id);
            let expected_mode = match reference::mode(&mesh, workload, &set, request.dst.port()) {
                ApiMode::Strict => Mode::Strict,
                ApiMode::Disable => Mode::Disable,
                ApiMode::Permissive | ApiMode::Unset => Mode::Permissive,
            };
            prop_assert_eq!(policy.mode(request.dst.port()), expected_mode);
            let verdict = policy.decide(&request);
            prop_assert_eq!(&verdict, &reference::decide(&mesh, world, workload, &set, &request));
            prop_assert_eq!(verdict, policy.explain(&request).verdict);
        }
    }
}
