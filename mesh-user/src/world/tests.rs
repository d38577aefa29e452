//! Lookups that capture and the proxy rely on.

use std::net::SocketAddr;

use super::{CaptureDestination, Destination, InboundPorts, World, WorldError, WorldHost};
use crate::config::Config;

const CONFIG: &str = "
node: a
trustDomainAliases: [old.local]
workloads:
  - { name: web, namespace: shop, serviceAccount: web, labels: {app: web}, selector: {netns: /run/netns/web}, addresses: [10.0.1.2, 'fd00::2'], excludeInboundPorts: [9100] }
  - { name: pg, namespace: shop, labels: {app: db}, selector: {user: postgres}, addresses: ['::ffff:10.0.1.3'], ports: [5432, 9100], excludeInboundPorts: [9100] }
  - { name: job, namespace: shop, selector: {cgroup: /x} }
  - { name: cache, namespace: shop, selector: {cgroup: /cache}, addresses: [10.0.1.3], ports: [6379] }
  - { name: cron, namespace: shop, selector: {cgroup: /cron}, addresses: [10.0.1.3] }
remoteWorkloads:
  - { name: far-pg, namespace: far, addresses: [10.0.3.3], ports: [5432], node: c }
  - { name: far-cache, namespace: far, addresses: [10.0.3.3], ports: [6379, 6380], excludeInboundPorts: [6380], node: c }
  - { name: db, namespace: shop, serviceAccount: db, labels: {app: db}, addresses: [10.0.2.2], node: b }
  - { name: db, namespace: other, labels: {app: db}, addresses: [10.0.2.3], node: b }
services:
  - { name: db, namespace: shop, addresses: [10.96.0.10], ports: [{port: 5432}, {port: 80, targetPort: 8080}], selector: {app: db} }
  - { name: web, namespace: shop, addresses: ['fd00::96'], ports: [{port: 80}], selector: {app: web} }
  - { name: empty, namespace: shop, addresses: [10.96.0.11], ports: [{port: 80}], selector: {app: none} }
  - { name: headless, namespace: shop, addresses: [], ports: [{port: 81, targetPort: 7000}], selector: {app: web} }
externalServices:
  - { host: api.example.com, addresses: ['::ffff:192.0.2.7'], ports: [{port: 443}, {port: 80, targetPort: 443}] }
";

fn config() -> Config {
    Config::parse(CONFIG, "test").unwrap()
}

/// Endpoints as text, or none when the destination is not meshed.
fn resolve(world: &World, destination: &str) -> Option<Vec<String>> {
    match world.resolve(destination.parse::<SocketAddr>().unwrap()) {
        Destination::Meshed { endpoints, .. } => {
            Some(endpoints.iter().map(|e| format!("{} {}", e.addr, e.workload.unwrap().name)).collect())
        }
        Destination::External { addr, service } => Some(vec![format!("{addr} outside: {}", service.host)]),
        Destination::NotMeshed => None,
    }
}

#[test]
fn destinations_resolve_to_who_may_answer() {
    let world = World::build(&config()).unwrap();
    for (destination, expected) in [
        ("10.0.1.2:80", Some(vec!["10.0.1.2:80 shop/web"])),
        ("[::ffff:10.0.1.2]:80", Some(vec!["10.0.1.2:80 shop/web"])),
        ("10.0.1.2:9100", None),
        ("10.0.1.3:5432", Some(vec!["10.0.1.3:5432 shop/pg"])),
        ("10.0.1.3:9100", None),
        ("10.0.1.3:22", None),
        ("10.0.1.3:6379", Some(vec!["10.0.1.3:6379 shop/cache"])),
        ("[::ffff:10.0.3.3]:5432", Some(vec!["10.0.3.3:5432 far/far-pg"])),
        ("10.0.3.3:6379", Some(vec!["10.0.3.3:6379 far/far-cache"])),
        ("10.0.3.3:6380", None),
        ("10.0.3.3:80", None),
        ("10.0.2.2:1", Some(vec!["10.0.2.2:1 shop/db"])),
        ("10.96.0.10:5432", Some(vec!["10.0.1.3:5432 shop/pg", "10.0.2.2:5432 shop/db"])),
        ("10.96.0.10:80", Some(vec!["10.0.2.2:8080 shop/db"])),
        ("10.96.0.10:81", None),
        ("[fd00::96]:80", Some(vec!["[fd00::2]:80 shop/web"])),
        ("10.96.0.11:80", Some(vec![])),
        ("192.0.2.1:80", None),
        ("192.0.2.7:443", Some(vec!["192.0.2.7:443 outside: api.example.com"])),
        ("192.0.2.7:80", Some(vec!["192.0.2.7:443 outside: api.example.com"])),
        ("192.0.2.7:81", None),
    ] {
        let expected = expected.map(|e| e.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(resolve(&world, destination), expected, "{destination}");
    }
}

#[test]
fn a_destination_has_a_name_where_a_service_or_the_file_gives_one() {
    let world = World::build(&config()).unwrap();
    for (destination, expected) in [
        ("10.96.0.10:80", Some("service shop/db 80")),
        ("10.96.0.10:81", None),
        // An endpoint of a service with a virtual address.
        ("10.0.2.2:8080", None),
        ("10.0.1.2:7000", Some("service shop/headless 81")),
        ("[fd00::2]:7000", Some("service shop/headless 81")),
        ("10.0.1.2:81", None),
        ("192.0.2.7:80", Some("outside api.example.com 80")),
        ("192.0.2.1:80", None),
    ] {
        let found = world.host(destination.parse::<SocketAddr>().unwrap()).map(|(host, port)| match host {
            WorldHost::Service(service) => format!("service {} {port}", service.name),
            WorldHost::Outside(outside) => format!("outside {} {port}", outside.host),
        });
        assert_eq!(found.as_deref(), expected, "{destination}");
    }
}

#[test]
fn capture_takes_what_resolves_as_meshed() {
    let world = World::build(&config()).unwrap();
    let destinations = world.capture_destinations();
    let entry = |address: &str, port| CaptureDestination { address: address.parse().unwrap(), port };
    for expected in [
        entry("10.0.1.2", None),
        entry("fd00::2", None),
        entry("10.0.1.3", Some(5432)),
        entry("10.0.1.3", Some(6379)),
        entry("10.0.3.3", Some(5432)),
        entry("10.0.2.2", None),
        entry("10.96.0.10", Some(80)),
        entry("10.96.0.11", Some(80)),
        entry("192.0.2.7", Some(443)),
    ] {
        assert!(destinations.contains(&expected), "{expected:?} is missing");
    }
    assert!(!destinations.contains(&entry("10.0.1.3", Some(9100))));
    assert_eq!(destinations.len(), 14);
}

#[test]
fn workloads_are_found_by_name_and_address() {
    let world = World::build(&config()).unwrap();
    let web = world.by_name("shop", "web").unwrap();
    assert_eq!(web.spiffe_id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(world.by_address("::ffff:10.0.1.2".parse().unwrap()), Some(web));
    assert_eq!(world.workload(web.id), Some(web));
    assert!(world.by_name("other", "web").is_none());
    assert_eq!(world.local_workloads().count(), 5);
    let ids: Vec<_> = world.identities(web).iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["spiffe://cluster.local/ns/shop/sa/web", "spiffe://old.local/ns/shop/sa/web"]);
    assert_eq!(world.by_name("shop", "job").unwrap().ports, InboundPorts::Only(vec![]));
}

#[test]
fn a_shared_address_names_its_workload_only_with_a_port() {
    let world = World::build(&config()).unwrap();
    let by_socket = |server: &str| world.by_socket(server.parse().unwrap()).map(|w| w.name.to_string());
    assert_eq!(world.by_address("10.0.1.3".parse().unwrap()), None);
    assert_eq!(world.sharing("::ffff:10.0.1.3".parse().unwrap()).count(), 3);
    assert_eq!(by_socket("10.0.1.3:5432").as_deref(), Some("shop/pg"));
    assert_eq!(by_socket("[::ffff:10.0.1.3]:6379").as_deref(), Some("shop/cache"));
    assert_eq!(by_socket("10.0.1.3:22"), None);
    assert_eq!(by_socket("10.0.1.2:9100").as_deref(), Some("shop/web"), "excluded, and still its own");
}

#[test]
fn services_select_by_every_label_within_their_namespace() {
    use std::fmt::Write as _;
    let pairs = [("app", "db"), ("app", "web"), ("tier", "back"), ("tier", "front")];
    let labels = |bits: u32| {
        let chosen = pairs.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
        chosen.map(|(_, (key, value))| format!("{key}: {value}")).collect::<Vec<_>>().join(", ")
    };
    // Sets with two values for one key are no labels.
    let sets: Vec<u32> = (0..16).filter(|bits| bits & 0b0011 != 0b0011 && bits & 0b1100 != 0b1100).collect();
    let mut yaml = "node: a\nremoteWorkloads:\n".to_owned();
    for (number, (namespace, bits)) in
        ["shop", "other"].into_iter().flat_map(|n| sets.iter().map(move |b| (n, *b))).enumerate()
    {
        let labels = labels(bits);
        writeln!(yaml, "  - {{ name: w{number}, namespace: {namespace}, labels: {{{labels}}}, addresses: [10.0.0.{number}], node: b }}").unwrap();
    }
    yaml.push_str("services:\n");
    for bits in sets.iter().filter(|bits| **bits != 0) {
        let selector = labels(*bits);
        writeln!(yaml, "  - {{ name: s{bits}, namespace: shop, addresses: [10.96.0.{bits}], ports: [{{port: 80}}], selector: {{{selector}}} }}").unwrap();
    }
    let config = Config::parse(&yaml, "test").unwrap();
    let world = World::build(&config).unwrap();
    for (service, asked) in world.services().iter().zip(&config.services) {
        let expected: Vec<_> = world
            .workloads()
            .iter()
            .filter(|w| w.namespace() == "shop" && w.has_labels(&asked.selector))
            .map(|w| w.id)
            .collect();
        assert_eq!(service.workloads, expected, "{}", service.name);
        assert!(!expected.is_empty(), "{}", service.name);
    }
}

#[test]
fn ambiguity_is_refused_even_without_validation() {
    let mut shared = config();
    shared.remote_workloads[2].addresses.push("10.0.1.2".parse().unwrap());
    assert!(matches!(World::build(&shared), Err(WorldError::DuplicateAddress { .. })));
    let mut netns = config();
    netns.workloads[0].addresses.push("10.0.1.3".parse().unwrap());
    assert!(matches!(World::build(&netns), Err(WorldError::DuplicateAddress { .. })));
    let mut port = config();
    port.remote_workloads[1].ports = vec![5432];
    assert!(matches!(World::build(&port), Err(WorldError::DuplicatePort { .. })));
    let mut twice = config();
    twice.workloads[1].addresses.push("10.0.1.3".parse().unwrap());
    assert!(matches!(World::build(&twice), Err(WorldError::DuplicateAddress { .. })));
    let mut virtual_address = config();
    virtual_address.services[0].addresses.push("10.0.1.2".parse().unwrap());
    assert!(matches!(World::build(&virtual_address), Err(WorldError::DuplicateAddress { .. })));
    for taken in ["10.0.1.2", "10.96.0.11", "192.0.2.7"] {
        let mut outside = config();
        let mut second = outside.external_services[0].clone();
        second.addresses = vec![taken.parse().unwrap()];
        outside.external_services.push(second);
        assert!(matches!(World::build(&outside), Err(WorldError::DuplicatePort { .. })), "{taken}");
    }
    let mut named = config();
    named.remote_workloads[3].namespace = "shop".to_owned();
    assert!(matches!(World::build(&named), Err(WorldError::DuplicateName(_))));
    let mut account = config();
    account.workloads[0].service_account = "a b".to_owned();
    assert!(matches!(World::build(&account), Err(WorldError::Identity { .. })));
}

#[test]
fn identities_are_made_as_the_file_says() {
    let config = |template: &str, workloads: &str| {
        let text =
            format!("node: a\ntrustDomain: own.example\nidentity: {{ template: '{template}' }}\n{workloads}");
        Config::parse(&text, "test")
    };
    let workloads = "
workloads:
  - { name: pg, namespace: shop, selector: {user: postgres} }
  - { name: old, namespace: shop, selector: {netns: /x}, spiffeId: 'spiffe://{{trustDomain}}/legacy/{{name}}' }
remoteWorkloads:
  - { name: pg2, namespace: shop, user: postgres, addresses: [10.0.2.2] }
";
    let world = World::build(&config("spiffe://{{trustDomain}}/user/{{user}}", workloads).unwrap()).unwrap();
    let ids: Vec<_> = world.workloads().iter().map(|w| w.spiffe_id.to_string()).collect();
    // Two workloads share an identity where both say so; a client of pg2 expects what its own node issues.
    let user = "spiffe://own.example/user/postgres";
    assert_eq!(ids, [user, "spiffe://own.example/legacy/old", user]);
    assert_eq!(world.identities(&world.workloads()[2])[0].to_string(), user);

    let unit = "workloads: [ { name: w, namespace: shop, selector: {unit: nginx.service} } ]";
    let world = World::build(&config("spiffe://{{trustDomain}}/unit/{{unit}}", unit).unwrap()).unwrap();
    assert_eq!(world.workloads()[0].spiffe_id.to_string(), "spiffe://own.example/unit/nginx.service");
}

#[test]
fn a_workload_of_another_mesh_has_its_own_identity_alone() {
    let text = |domain: &str| {
        format!(
            "node: a\ntrustDomain: own.example\ntrustDomainAliases: [old.example]\n\
             trustBundles: [ {{ trustDomain: partner.example, file: /p }} ]\nremoteWorkloads:\n  \
             - {{ name: w, namespace: n, addresses: [10.0.0.1], spiffeId: 'spiffe://{domain}/ns/n/sa/w' }}\n"
        )
    };
    let world = World::build(&Config::parse(&text("partner.example"), "test").unwrap()).unwrap();
    let ids = world.identities(&world.workloads()[0]);
    assert_eq!(
        ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["spiffe://partner.example/ns/n/sa/w"]
    );
    let error = Config::parse(&text("unknown.example"), "test").unwrap_err().to_string();
    assert!(error.contains("not of the mesh's trust domain"), "{error}");
    let local = text("partner.example").replace("remoteWorkloads", "workloads");
    let local = local.replace("addresses: [10.0.0.1]", "selector: {user: x}");
    assert!(
        Config::parse(&local, "test").unwrap_err().to_string().contains("not of the mesh's trust domain")
    );
}

#[test]
fn one_identity_by_accident_is_refused() {
    let mut config = Config::parse(
        "node: a\nworkloads:\n  - { name: c, namespace: a-b, selector: {user: x} }\n  - { name: b-c, namespace: a, selector: {user: y} }\n",
        "test",
    )
    .unwrap();
    config.identity.template = "spiffe://{{trustDomain}}/{{namespace}}-{{name}}".parse().unwrap();
    let error = World::build(&config).unwrap_err();
    assert!(matches!(error, WorldError::DuplicateIdentity { .. }), "{error}");
    for workload in &mut config.workloads {
        workload.spiffe_id = Some("spiffe://cluster.local/both".parse().unwrap());
    }
    World::build(&config).unwrap();
}
