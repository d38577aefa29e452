//! Which rule counts and what it asks for: tables written from Istio's reference of `DestinationRule` and its `host`,
//! `exportTo`, `workloadSelector` and `portLevelSettings`.

mod documents;
mod hosts;
mod select;
mod way;

use crate::{config::Config, world::World};

const CONFIG: &str = "
node: a
trustDomain: td1
rootNamespace: istio-system
workloads:
  - { name: client, namespace: shop, labels: {app: client, tier: front}, selector: {netns: /run/netns/client}, addresses: [10.0.0.1] }
  - { name: other, namespace: lab, labels: {app: other}, selector: {netns: /run/netns/other}, addresses: [10.0.0.2] }
  - { name: gate, namespace: istio-system, labels: {app: gate}, selector: {netns: /run/netns/gate}, addresses: [10.0.0.3] }
  - { name: db, namespace: data, labels: {app: db}, selector: {netns: /run/netns/db}, addresses: [10.0.0.4] }
services:
  - { name: db, namespace: data, addresses: [10.9.0.1], ports: [{port: 5432}, {port: 80, targetPort: 8080}], selector: {app: db} }
  - { name: dbs, namespace: data, addresses: [], ports: [{port: 7000, targetPort: 7001}], selector: {app: db} }
externalServices:
  - { host: api.example.com, namespace: data, addresses: [192.0.2.1], ports: [{port: 443}] }
";

fn world() -> World {
    World::build(&Config::parse(CONFIG, "test").unwrap()).unwrap()
}

/// A rule with a mode by which the tables know it.
fn rule(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-0{}T00:00:00Z'}}\nspec: {{{spec}}}\n",
        name.bytes().next_back().filter(u8::is_ascii_digit).map_or('1', char::from)
    )
}
