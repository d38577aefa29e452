//! Lookups that capture and the proxy rely on.

use std::net::SocketAddr;

use super::{CaptureDestination, Destination, InboundPorts, World, WorldError};
use crate::config::Config;

const CONFIG: &str = "
node: a
trustDomainAliases: [old.local]
workloads:
  - { name: web, namespace: shop, serviceAccount: web, labels: {app: web}, selector: {netns: /run/netns/web}, addresses: [10.0.1.2, 'fd00::2'], excludeInboundPorts: [9100] }
  - { name: pg, namespace: shop, labels: {app: db}, selector: {user: postgres}, addresses: ['::ffff:10.0.1.3'], ports: [5432, 9100], excludeInboundPorts: [9100] }
  - { name: job, namespace: shop, selector: {cgroup: /x} }
remoteWorkloads:
  - { name: db, namespace: shop, serviceAccount: db, labels: {app: db}, addresses: [10.0.2.2], node: b }
  - { name: db, namespace: other, labels: {app: db}, addresses: [10.0.2.3], node: b }
services:
  - { name: db, namespace: shop, addresses: [10.96.0.10], ports: [{port: 5432}, {port: 80, targetPort: 8080}], selector: {app: db} }
  - { name: web, namespace: shop, addresses: ['fd00::96'], ports: [{port: 80}], selector: {app: web} }
  - { name: empty, namespace: shop, addresses: [10.96.0.11], ports: [{port: 80}], selector: {app: none} }
";

fn config() -> Config {
    Config::parse(CONFIG, "test").unwrap()
}

/// Endpoints as text, or none when the destination is not meshed.
fn resolve(world: &World, destination: &str) -> Option<Vec<String>> {
    match world.resolve(destination.parse::<SocketAddr>().unwrap()) {
        Destination::Meshed { endpoints, .. } => {
            Some(endpoints.iter().map(|e| format!("{} {}", e.addr, e.workload.name)).collect())
        }
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
        ("10.0.2.2:1", Some(vec!["10.0.2.2:1 shop/db"])),
        ("10.96.0.10:5432", Some(vec!["10.0.1.3:5432 shop/pg", "10.0.2.2:5432 shop/db"])),
        ("10.96.0.10:80", Some(vec!["10.0.2.2:8080 shop/db"])),
        ("10.96.0.10:81", None),
        ("[fd00::96]:80", Some(vec!["[fd00::2]:80 shop/web"])),
        ("10.96.0.11:80", Some(vec![])),
        ("192.0.2.1:80", None),
    ] {
        let expected = expected.map(|e| e.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(resolve(&world, destination), expected, "{destination}");
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
        entry("10.0.2.2", None),
        entry("10.96.0.10", Some(80)),
        entry("10.96.0.11", Some(80)),
    ] {
        assert!(destinations.contains(&expected), "{expected:?} is missing");
    }
    assert!(!destinations.contains(&entry("10.0.1.3", Some(9100))));
    assert_eq!(destinations.len(), 9);
}

#[test]
fn workloads_are_found_by_name_and_address() {
    let world = World::build(&config()).unwrap();
    let web = world.by_name("shop", "web").unwrap();
    assert_eq!(web.spiffe_id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(world.by_address("::ffff:10.0.1.2".parse().unwrap()), Some(web));
    assert_eq!(world.workload(web.id), Some(web));
    assert!(world.by_name("other", "web").is_none());
    assert_eq!(world.local_workloads().count(), 3);
    let ids: Vec<_> = world.identities(web).iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["spiffe://cluster.local/ns/shop/sa/web", "spiffe://old.local/ns/shop/sa/web"]);
    assert_eq!(world.by_name("shop", "job").unwrap().ports, InboundPorts::Only(vec![]));
}

#[test]
fn ambiguity_is_refused_even_without_validation() {
    let mut shared = config();
    shared.remote_workloads[0].addresses.push("10.0.1.2".parse().unwrap());
    assert!(matches!(World::build(&shared), Err(WorldError::DuplicateAddress { .. })));
    let mut virtual_address = config();
    virtual_address.services[0].addresses.push("10.0.1.2".parse().unwrap());
    assert!(matches!(World::build(&virtual_address), Err(WorldError::DuplicateAddress { .. })));
    let mut named = config();
    named.remote_workloads[1].namespace = "shop".to_owned();
    assert!(matches!(World::build(&named), Err(WorldError::DuplicateName(_))));
    let mut account = config();
    account.workloads[0].service_account = "a b".to_owned();
    assert!(matches!(World::build(&account), Err(WorldError::Identity { .. })));
}
