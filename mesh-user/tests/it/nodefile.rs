//! Writes a node's configuration. The file is JSON, which is YAML, so that nothing is lost in quoting.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::netns::Place;

/// How a node finds out whose socket it sees.
#[derive(Clone)]
pub(crate) enum Selector {
    Netns(PathBuf),
    Cgroup(PathBuf),
    Unit(String),
    Pod(String),
    User(String),
}

/// A workload of the story, wherever it runs.
#[derive(Clone)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) selector: Selector,
    pub(crate) ports: Vec<u16>,
    pub(crate) exclude_inbound_ports: Vec<u16>,
    /// Its `spiffeId`, where it has its own.
    pub(crate) spiffe_id: Option<String>,
    /// Its `sameNode`, where it has its own.
    pub(crate) same_node: Option<&'static str>,
    /// Name of the node that enrols it.
    pub(crate) node: String,
}

impl Workload {
    /// A pod in namespace `shop` whose service account is its own name.
    pub(crate) fn pod(place: &Place, node: &str) -> Self {
        Self {
            name: place.name.clone(),
            namespace: "shop".into(),
            service_account: place.name.clone(),
            addresses: place.addresses().to_vec(),
            selector: Selector::Netns(place.netns_path()),
            ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            spiffe_id: None,
            same_node: None,
            node: node.into(),
        }
    }

    /// Its identity in the default trust domain.
    pub(crate) fn spiffe_id(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.service_account)
    }

    fn common(&self) -> Map<String, Value> {
        let Value::Object(mut map) = json!({
            "name": self.name, "namespace": self.namespace, "serviceAccount": self.service_account,
            "labels": { "app": self.name }, "addresses": self.addresses,
            "excludeInboundPorts": self.exclude_inbound_ports,
        }) else {
            unreachable!("a map was written")
        };
        if let Some(id) = &self.spiffe_id {
            map.insert("spiffeId".into(), json!(id));
        }
        map
    }

    /// As its own node's file lists it.
    pub(crate) fn local(&self) -> Value {
        let mut map = self.common();
        let selector = match &self.selector {
            Selector::Netns(path) => json!({ "netns": path }),
            Selector::Cgroup(path) => json!({ "cgroup": path }),
            Selector::Unit(unit) => json!({ "unit": unit }),
            Selector::Pod(uid) => json!({ "pod": uid }),
            Selector::User(user) => json!({ "user": user }),
        };
        map.insert("selector".into(), selector);
        if !self.ports.is_empty() {
            map.insert("ports".into(), json!(self.ports));
        }
        if let Some(same_node) = self.same_node {
            map.insert("sameNode".into(), json!(same_node));
        }
        Value::Object(map)
    }

    /// As other nodes' files list it.
    pub(crate) fn remote(&self) -> Value {
        let mut map = self.common();
        map.insert("node".into(), json!(self.node));
        if let Selector::Unit(unit) = &self.selector {
            map.insert("unit".into(), json!(unit));
        }
        Value::Object(map)
    }
}

/// The file of the node called `node`, among all the story's workloads.
pub(crate) fn node_file(node: &super::daemon::Node, workloads: &[Workload], services: &[Value]) -> Value {
    let local: Vec<Value> = workloads.iter().filter(|w| w.node == node.name).map(Workload::local).collect();
    let remote: Vec<Value> = workloads.iter().filter(|w| w.node != node.name).map(Workload::remote).collect();
    let mut capture = Map::from_iter([
        ("cgroup".to_owned(), json!(node.capture_cgroup())),
        ("canary".to_owned(), json!(node.canary)),
    ]);
    capture.extend(node.capture.clone());
    let mut file = json!({
        "node": node.name,
        "stateDir": node.state_dir(),
        "runtimeDir": node.runtime_dir(),
        "policiesDir": node.policies_dir(),
        "capture": capture,
        "relay": node.relay().as_str(),
        "workloads": local,
        "remoteWorkloads": remote,
        "services": services,
        "accessLog": { "format": "json", "perSecond": 100_000 },
        "log": "info",
    });
    for (name, value) in &node.settings {
        file[name.as_str()] = value.clone();
    }
    file
}
