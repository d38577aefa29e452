//! Which rule counts for a client and a host.

use std::net::SocketAddr;

use super::{rule, world};
use crate::{
    policy::{PolicySet, destination_rule::DestinationRules},
    world::World,
};

const DB: &str = "10.9.0.1:5432";
const API: &str = "192.0.2.1:443";

const SIMPLE: &str = "trafficPolicy: {tls: {mode: SIMPLE}}";
const DISABLE: &str = "trafficPolicy: {tls: {mode: DISABLE}}";

fn found(world: &World, documents: &str, client: &str, to: &str) -> Option<String> {
    let set = PolicySet::parse([("test.yaml", documents)]).unwrap();
    let rules = DestinationRules::new(world, &set.destination_rules);
    let (namespace, name) = client.split_once('/').unwrap();
    let (host, port) = world.host(to.parse::<SocketAddr>().unwrap())?;
    let applied = rules.find(world.by_name(namespace, name).unwrap(), &host, port)?;
    Some(format!("{} {}", applied.rule, applied.tls.mode()))
}

/// What is shown, documents, client, where it connects to, and the rule with its mode.
type Case<'a> = (&'a str, &'a [String], &'a str, &'a str, Option<&'a str>);

fn check(cases: &[Case<'_>]) {
    let world = world();
    for (what, documents, client, to, expected) in cases {
        let found = found(&world, &documents.concat(), client, to);
        assert_eq!(found.as_deref(), *expected, "{what}");
    }
}

#[test]
fn rules_are_looked_for_in_the_clients_the_services_and_the_root_namespace() {
    let db = "host: db.data.svc.cluster.local";
    let at = |namespace: &str, spec: &str| rule("r", namespace, &format!("{db}, {spec}"));
    check(&[
        ("no rule", &[], "shop/client", DB, None),
        (
            "the client's",
            &[at("shop", SIMPLE), at("data", DISABLE), at("istio-system", DISABLE)],
            "shop/client",
            DB,
            Some("shop/r SIMPLE"),
        ),
        (
            "the service's",
            &[at("data", SIMPLE), at("istio-system", DISABLE)],
            "shop/client",
            DB,
            Some("data/r SIMPLE"),
        ),
        (
            "the root's",
            &[at("lab", DISABLE), at("istio-system", SIMPLE)],
            "shop/client",
            DB,
            Some("istio-system/r SIMPLE"),
        ),
        ("nobody else's", &[at("lab", SIMPLE)], "shop/client", DB, None),
        (
            "a client in the root namespace asks the service's first",
            &[at("istio-system", DISABLE), at("data", SIMPLE)],
            "istio-system/gate",
            DB,
            Some("data/r SIMPLE"),
        ),
        (
            "but has what is only its own",
            &[at("istio-system", "exportTo: [.], trafficPolicy: {tls: {mode: SIMPLE}}"), at("data", DISABLE)],
            "istio-system/gate",
            DB,
            Some("istio-system/r SIMPLE"),
        ),
        (
            "a short name is of the rule's namespace",
            &[rule("r", "data", &format!("host: db, {SIMPLE}"))],
            "shop/client",
            DB,
            Some("data/r SIMPLE"),
        ),
        ("and of no other", &[rule("r", "shop", &format!("host: db, {SIMPLE}"))], "shop/client", DB, None),
    ]);
}

#[test]
fn a_rule_reaches_those_it_is_exported_to() {
    let at = |to: &str| rule("r", "data", &format!("host: db, exportTo: [{to}], {SIMPLE}"));
    let all = Some("data/r SIMPLE");
    check(&[
        ("none is all", &[rule("r", "data", &format!("host: db, {SIMPLE}"))], "shop/client", DB, all),
        ("all", &[at("'*'")], "shop/client", DB, all),
        ("its own", &[at(".")], "shop/client", DB, None),
        ("its own, from there", &[at(".")], "data/db", DB, all),
        ("its own by name, from there", &[at("data")], "data/db", DB, all),
        ("the client's", &[at("shop, lab")], "shop/client", DB, all),
        ("another's", &[at("lab")], "shop/client", DB, None),
        ("another's, seen from its own", &[at("lab")], "data/db", DB, None),
    ]);
}

#[test]
fn the_closest_host_counts_then_the_oldest_policy() {
    let at = |name: &str, host: &str, spec: &str| rule(name, "shop", &format!("host: '{host}', {spec}"));
    let db = "db.data.svc.cluster.local";
    check(&[
        (
            "exact before wildcard",
            &[at("a1", "*", DISABLE), at("b2", db, SIMPLE)],
            "shop/client",
            DB,
            Some("shop/b2 SIMPLE"),
        ),
        (
            "the longer wildcard",
            &[at("a1", "*.local", DISABLE), at("b2", "*.data.svc.cluster.local", SIMPLE)],
            "shop/client",
            DB,
            Some("shop/b2 SIMPLE"),
        ),
        (
            "a wildcard for the outside",
            &[at("a1", "*.com", DISABLE), at("b2", "*.example.com", SIMPLE)],
            "shop/client",
            API,
            Some("shop/b2 SIMPLE"),
        ),
        (
            "the oldest of one host",
            &[at("b2", db, DISABLE), at("a1", db, SIMPLE)],
            "shop/client",
            DB,
            Some("shop/a1 SIMPLE"),
        ),
        (
            "that has a trafficPolicy",
            &[at("a1", db, "subsets: []"), at("b2", db, SIMPLE)],
            "shop/client",
            DB,
            Some("shop/b2 SIMPLE"),
        ),
        (
            "even one without TLS",
            &[at("a1", db, "trafficPolicy: {connectionPool: {}}"), at("b2", db, SIMPLE)],
            "shop/client",
            DB,
            None,
        ),
        (
            "the closest, even without TLS",
            &[at("a1", db, "trafficPolicy: {connectionPool: {}}"), at("b2", "*", SIMPLE)],
            "shop/client",
            DB,
            None,
        ),
        (
            "exported differently: the youngest",
            &[at("a1", db, &format!("exportTo: ['*'], {DISABLE}")), at("b2", db, SIMPLE)],
            "shop/client",
            DB,
            Some("shop/b2 SIMPLE"),
        ),
        (
            "one with a trust domain's name",
            &[at("a1", "db.data.svc.td1", SIMPLE)],
            "shop/client",
            DB,
            Some("shop/a1 SIMPLE"),
        ),
    ]);
}

#[test]
fn a_selector_picks_workloads_of_the_rules_namespace() {
    let selecting = |namespace: &str, label: &str| {
        let spec = format!(
            "host: db.data.svc.cluster.local, workloadSelector: {{matchLabels: {{{label}}}}}, {SIMPLE}"
        );
        rule("s2", namespace, &spec)
    };
    let general =
        |namespace: &str| rule("g1", namespace, &format!("host: db.data.svc.cluster.local, {DISABLE}"));
    check(&[
        (
            "selected",
            &[general("shop"), selecting("shop", "tier: front")],
            "shop/client",
            DB,
            Some("shop/s2 SIMPLE"),
        ),
        (
            "not selected",
            &[general("shop"), selecting("shop", "tier: back")],
            "shop/client",
            DB,
            Some("shop/g1 DISABLE"),
        ),
        (
            "not selected: further out",
            &[general("data"), selecting("shop", "tier: back")],
            "shop/client",
            DB,
            Some("data/g1 DISABLE"),
        ),
        ("in another namespace", &[selecting("data", "tier: front")], "shop/client", DB, None),
        ("in the root namespace", &[selecting("istio-system", "tier: front")], "shop/client", DB, None),
        (
            "in the root namespace, for its own",
            &[selecting("istio-system", "app: gate")],
            "istio-system/gate",
            DB,
            Some("istio-system/s2 SIMPLE"),
        ),
        (
            "the same export beside it",
            &[
                selecting("shop", "tier: back"),
                rule("g1", "shop", &format!("host: db.data.svc.cluster.local, exportTo: [.], {DISABLE}")),
            ],
            "shop/client",
            DB,
            Some("shop/g1 DISABLE"),
        ),
    ]);
}

#[test]
fn a_ports_own_settings_replace_the_hosts() {
    let ports = "host: db, trafficPolicy: {tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}, {port: {number: 7000}, connectionPool: {}}]}";
    let documents = [rule("r", "data", ports), rule("h", "data", &ports.replace("db", "dbs"))];
    check(&[
        ("another port", &documents, "shop/client", DB, Some("data/r SIMPLE")),
        (
            "the service's port, not the workload's",
            &documents,
            "shop/client",
            "10.9.0.1:80",
            Some("data/r DISABLE"),
        ),
        ("listed without TLS: the default", &documents, "shop/client", "10.0.0.4:7001", None),
        (
            "an endpoint of a service with a virtual address has no name",
            &documents,
            "shop/client",
            "10.0.0.4:5432",
            None,
        ),
        (
            "subsets do not count",
            &[rule("r", "data", "host: db, subsets: [{name: v1, trafficPolicy: {tls: {mode: SIMPLE}}}]")],
            "shop/client",
            DB,
            None,
        ),
    ]);
}

#[test]
fn an_endpoint_of_a_headless_service_has_its_name() {
    let documents = [rule("r", "data", &format!("host: dbs, {SIMPLE}"))];
    check(&[("headless", &documents, "shop/client", "10.0.0.4:7001", Some("data/r SIMPLE"))]);
}

#[test]
fn a_client_that_a_rule_may_have_speak_plaintext_is_known() {
    let world = world();
    for (documents, client, expected) in [
        (rule("r", "data", &format!("host: db, {DISABLE}")), "shop/client", true),
        (rule("r", "data", &format!("host: db, exportTo: [.], {DISABLE}")), "shop/client", false),
        (rule("r", "data", &format!("host: db, {SIMPLE}")), "shop/client", false),
        (
            rule("r", "data", "host: db, trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {}}]}"),
            "shop/client",
            true,
        ),
    ] {
        let set = PolicySet::parse([("test.yaml", documents.as_str())]).unwrap();
        let rules = DestinationRules::new(&world, &set.destination_rules);
        let (namespace, name) = client.split_once('/').unwrap();
        let client = world.by_name(namespace, name).unwrap();
        assert_eq!(rules.may_say_plaintext(client), expected, "{documents}");
    }
}
