//! Istio's semantics: a table of documented cases, and random documents against the naive reference.

mod documents;
mod http;
mod http_policies;
mod impact;
mod normalization;
mod random;
mod random_http;
mod request_authentication;
mod semantics;

use std::net::SocketAddr;

use super::{CompiledPolicies, L4Request, Mode, PolicySet, Verdict};
use crate::{config::Config, identity::SpiffeId, world::World};

const CONFIG: &str = "
node: a
trustDomain: td1
trustDomainAliases: [td2]
workloads:
  - { name: web, namespace: shop, serviceAccount: web, labels: {app: web, tier: front}, selector: {netns: /run/netns/web}, addresses: [10.0.0.1] }
  - { name: db, namespace: data, serviceAccount: db, labels: {app: db}, selector: {netns: /run/netns/db}, addresses: [10.0.0.2] }
";

fn world() -> World {
    World::build(&Config::parse(CONFIG, "test").unwrap()).unwrap()
}

fn compile(documents: &str) -> (World, CompiledPolicies) {
    let world = world();
    let set = PolicySet::parse([("test.yaml", documents)]).unwrap();
    let policies = CompiledPolicies::compile(&world, &set);
    (world, policies)
}

/// `peer` is an identity without scheme, or empty for plaintext; the workload is shop/web.
fn decide(documents: &str, peer: &str, src: &str, port: u16) -> Verdict {
    let (world, policies) = compile(documents);
    let id: Option<SpiffeId> = (!peer.is_empty()).then(|| format!("spiffe://{peer}").parse().unwrap());
    let web = world.by_name("shop", "web").unwrap();
    let src: SocketAddr = format!("{src}:40000").parse().unwrap();
    let request =
        L4Request { peer: id.as_ref(), src, dst: SocketAddr::new(web.addresses[0], port), sni: None };
    let policy = policies.for_workload(web.id);
    let explanation = policy.explain(&request);
    let verdict = policy.decide(&request);
    assert_eq!(explanation.verdict, verdict);
    verdict
}

fn mode(documents: &str, namespace: &str, name: &str, port: u16) -> Mode {
    let (world, policies) = compile(documents);
    policies.for_workload(world.by_name(namespace, name).unwrap().id).mode(port)
}
