//! The rest of a large mesh, for meshd's files: workloads of other nodes, services in front of them, policies about
//! them. None of them talks; all of them must be known. Pure.

use std::{fmt::Write as _, net::Ipv4Addr};

use serde_json::{Value, json};

/// Replicas of one service.
const REPLICAS: usize = 10;
const SERVICES_IN_A_NAMESPACE: usize = 20;
const WORKLOADS_ON_A_NODE: usize = 50;
/// RFC 6598: no address of the stage's own.
const WORKLOADS_FROM: u32 = u32::from_be_bytes([100, 64, 0, 0]);
/// RFC 2544's range for benchmarks.
const SERVICES_FROM: u32 = u32::from_be_bytes([198, 18, 0, 0]);

/// What the node's file says of them.
pub(super) struct World {
    pub(super) remote_workloads: Vec<Value>,
    pub(super) services: Vec<Value>,
    /// One `AuthorizationPolicy` per service, as YAML documents.
    pub(super) policies: String,
}

impl World {
    /// With so many workloads.
    pub(super) fn of(workloads: u32) -> Self {
        let workloads = workloads as usize;
        let services = workloads.div_ceil(REPLICAS);
        Self {
            remote_workloads: (0..workloads).map(workload).collect(),
            services: (0..services).map(service).collect(),
            policies: (0..services).fold(String::new(), |mut all, index| {
                let (namespace, app) = (namespace(index), app(index));
                let _ = write!(
                    all,
                    "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                     metadata: {{ name: {app}, namespace: {namespace} }}\n\
                     spec: {{ selector: {{ matchLabels: {{ app: {app} }} }}, action: ALLOW, rules: [ {{ from: [ \
                     {{ source: {{ principals: [ cluster.local/ns/{namespace}/sa/caller ] }} }} ] }} ] }}\n"
                );
                all
            }),
        }
    }
}

fn namespace(service: usize) -> String {
    format!("crowd-{}", service / SERVICES_IN_A_NAMESPACE)
}

fn app(service: usize) -> String {
    format!("app-{service}")
}

fn address(from: u32, index: usize) -> String {
    let offset = u32::try_from(index).unwrap_or(u32::MAX);
    Ipv4Addr::from(from.saturating_add(offset)).to_string()
}

fn workload(index: usize) -> Value {
    let service = index / REPLICAS;
    json!({
        "name": format!("app-{service}-{}", index % REPLICAS), "namespace": namespace(service),
        "serviceAccount": app(service), "labels": { "app": app(service) },
        "addresses": [address(WORKLOADS_FROM, index)], "node": format!("crowd-node-{}", index / WORKLOADS_ON_A_NODE),
    })
}

fn service(index: usize) -> Value {
    json!({
        "name": app(index), "namespace": namespace(index), "addresses": [address(SERVICES_FROM, index)],
        "ports": [{ "port": 80, "targetPort": 8080 }], "selector": { "app": app(index) },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn everybody_has_a_name_and_an_address_of_their_own() {
        let world = World::of(20_000);
        let of = |field: &str| -> BTreeSet<String> {
            let text = |value: &Value| format!("{}{}", value["namespace"], value[field]);
            world.remote_workloads.iter().map(text).collect()
        };
        assert_eq!(of("name").len(), 20_000);
        assert_eq!(of("addresses").len(), 20_000);
        assert_eq!(world.services.len(), 2_000);
        assert_eq!(world.policies.matches("kind: AuthorizationPolicy").count(), 2_000);
    }
}
