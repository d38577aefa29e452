//! Every node's agent at a glance: each keeps a Lease in meshd's namespace with a summary of its status, and `meshctl nodes`
//! reads them. Whoever may write Leases there can write a summary: it is for people, and decides nothing. It holds no
//! key, no token and no address of a workload.

use std::{collections::BTreeMap, path::Path, time::Duration};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams},
};
use serde::{Deserialize, Serialize};

use super::api::Status;
use crate::runtime::{self, Access};

/// Where agents run unless somebody installed them elsewhere.
pub const DEFAULT_NAMESPACE: &str = "meshd-system";

/// What keeping a summary asks of the API server, in meshd's own namespace. Server-side apply creates what is not there.
pub const ACCESS: &[Access] = &[Access::new("coordination.k8s.io", "leases", &["create", "patch"])];

/// A summary is written anew so often.
pub const PERIOD: Duration = Duration::from_secs(30);
/// One that is older than this many seconds is of an agent that is gone, or cannot reach the API server.
const STALE_SECONDS: i64 = 120;
const TIMEOUT: Duration = Duration::from_secs(10);
const ANNOTATION: &str = "meshd.io/status";
const LABEL: &str = "meshd.io/lease";
const KIND: &str = "node";
const MANAGER: &str = "meshd";
const MOST_PROBLEMS: usize = 4;
const MOST_PROBLEM_CHARS: usize = 200;
/// Of an annotation that is read; ours are under 4 KiB.
const MOST_ANNOTATION_BYTES: usize = 16 * 1024;
/// Leases and nodes at a time, and pages at most: 25 000.
const PAGE: u32 = 500;
const MOST_PAGES: usize = 50;

/// Why summaries cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// No usable kubeconfig, and no pod's service account.
    #[error("there is no way to a Kubernetes API server: {0}; name one with --kubeconfig")]
    Kubeconfig(String),
    /// It answered with an error, or not at all.
    #[error("the Kubernetes API server refused or failed ({doing}): {source}")]
    Api {
        /// What was asked.
        doing: &'static str,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// Nothing came in time.
    #[error("the Kubernetes API server did not answer within {limit} s ({0})", limit = TIMEOUT.as_secs())]
    TimedOut(&'static str),
    /// Longer than any cluster's list.
    #[error("the list of {0} does not end")]
    TooMany(&'static str),
}

/// What an agent says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSummary {
    /// meshd's version.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Whether connections are captured and served.
    pub ready: bool,
    /// The first of what keeps it from being ready, or degrades it.
    pub problems: Vec<String>,
    /// Enrolled workloads.
    pub workloads: u64,
    /// Live connections.
    pub connections: u64,
    /// The capture form in use.
    pub capture_form: String,
    /// The relay kind that new connections take.
    pub relay: String,
}

impl From<&Status> for NodeSummary {
    fn from(status: &Status) -> Self {
        let short = |problem: &String| problem.chars().take(MOST_PROBLEM_CHARS).collect();
        Self {
            version: status.version.clone(),
            kernel: status.kernel.clone(),
            ready: status.ready,
            problems: status.problems.iter().take(MOST_PROBLEMS).map(short).collect(),
            workloads: status.workloads,
            connections: status.connections,
            capture_form: status.capture_form.clone(),
            relay: status.relay.clone(),
        }
    }
}

/// A node, as `meshctl nodes` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRow {
    /// The node's name.
    pub node: String,
    /// `ready`, `not ready`, `stale`, `no agent`, `not understood`.
    pub state: String,
    /// Seconds since its summary was written; none: there is none.
    pub age_s: Option<u64>,
    /// The agent's pod, as it said.
    pub pod: String,
    /// What it said of itself last.
    pub summary: NodeSummary,
}

impl NodeRow {
    /// Whether an agent serves there now.
    pub fn is_ready(&self) -> bool {
        self.state == "ready"
    }
}

/// Whose summary it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The node's name.
    pub node: String,
    /// meshd's namespace.
    pub namespace: String,
    /// The agent's pod, with its uid where known: the Lease goes when the pod does.
    pub pod: Option<(String, Option<String>)>,
}

/// Reaches the API server of `kubeconfig`, else as kubectl would, else as a pod does.
///
/// # Errors
/// When there is no usable file and this is no pod.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, NodesError> {
    let failed = |error: &dyn std::fmt::Display| NodesError::Kubeconfig(error.to_string());
    let mut config = match kubeconfig {
        Some(path) => runtime::kubeconfig(path).await.map_err(|e| failed(&e))?,
        None => Config::infer().await.map_err(|e| failed(&e))?,
    };
    config.connect_timeout = Some(TIMEOUT);
    config.read_timeout = Some(TIMEOUT);
    config.write_timeout = Some(TIMEOUT);
    Client::try_from(config).map_err(|e| failed(&e))
}

/// Writes an agent's summary, taken `now` (Unix seconds).
///
/// # Errors
/// When the API server cannot be reached or refuses.
pub async fn write(client: &Client, writer: &Writer, status: &Status, now: i64) -> Result<(), NodesError> {
    let lease = document(writer, &NodeSummary::from(status), now);
    let name = lease_name(&writer.node);
    let api: Api<Lease> = Api::namespaced(client.clone(), &writer.namespace);
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(&lease);
    let asked = api.patch(&name, &params, &patch);
    in_time("write this node's Lease", asked).await.map(|_| ())
}

/// All nodes: those with a summary, and those of the cluster without one.
///
/// # Errors
/// When the API server cannot be reached or refuses.
pub async fn list(client: &Client, namespace: &str, now: i64) -> Result<Vec<NodeRow>, NodesError> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let leases = all(&leases, &format!("{LABEL}={KIND}"), "leases").await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = all(&nodes, "kubernetes.io/os!=windows", "nodes").await?;
    let nodes = nodes.into_iter().filter_map(|node| node.metadata.name);
    Ok(rows(&leases, nodes, now))
}

async fn all<K>(api: &Api<K>, labels: &str, what: &'static str) -> Result<Vec<K>, NodesError>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut found = Vec::new();
    let mut params = ListParams::default().labels(labels).limit(PAGE);
    for _ in 0..MOST_PAGES {
        let page = in_time(what, api.list(&params)).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(found),
        }
    }
    Err(NodesError::TooMany(what))
}

async fn in_time<T>(
    doing: &'static str,
    asked: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, NodesError> {
    let answer =
        tokio::time::timeout(TIMEOUT, asked).await.map_err(|_elapsed| NodesError::TimedOut(doing))?;
    answer.map_err(|source| NodesError::Api { doing, source: Box::new(source) })
}

fn lease_name(node: &str) -> String {
    format!("meshd-node-{node}")
}

fn document(writer: &Writer, summary: &NodeSummary, now: i64) -> serde_json::Value {
    let time = time::OffsetDateTime::from_unix_timestamp(now).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    // A MicroTime is refused without its six digits.
    let time = time.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    let time = time.replace('Z', ".000000Z");
    let holder = writer.pod.as_ref().map_or(writer.node.as_str(), |(name, _)| name);
    let mut lease = serde_json::json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": lease_name(&writer.node),
            "namespace": writer.namespace,
            "labels": { LABEL: KIND, "app.kubernetes.io/part-of": "meshd" },
            "annotations": {
                "meshd.io/node": writer.node,
                ANNOTATION: serde_json::to_string(summary).unwrap_or_default(),
            },
        },
        "spec": { "holderIdentity": holder, "leaseDurationSeconds": STALE_SECONDS, "renewTime": time },
    });
    if let Some((name, Some(uid))) = &writer.pod {
        lease["metadata"]["ownerReferences"] =
            serde_json::json!([{ "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid }]);
    }
    lease
}

fn rows(leases: &[Lease], nodes: impl Iterator<Item = String>, now: i64) -> Vec<NodeRow> {
    let none = |node: String| {
        let row = NodeRow { node: node.clone(), state: "no agent".to_owned(), ..NodeRow::default() };
        (node, row)
    };
    let mut rows: BTreeMap<String, NodeRow> = nodes.map(none).collect();
    for lease in leases {
        let Some(row) = row(lease, now) else { continue };
        rows.insert(row.node.clone(), row);
    }
    rows.into_values().collect()
}

/// A Lease whose name is not that of the node it speaks of is somebody else's.
fn row(lease: &Lease, now: i64) -> Option<NodeRow> {
    let annotations = lease.metadata.annotations.as_ref()?;
    let node = annotations.get("meshd.io/node")?;
    if lease.metadata.name.as_deref() != Some(&lease_name(node)) {
        return None;
    }
    let spec = lease.spec.clone().unwrap_or_default();
    let written = spec.renew_time.and_then(|time| {
        // k8s-openapi's own time type differs between its versions; its JSON does not.
        let text = serde_json::to_value(time).ok()?;
        let form = &time::format_description::well_known::Rfc3339;
        Some(time::OffsetDateTime::parse(text.as_str()?, form).ok()?.unix_timestamp())
    });
    let age = written.map(|at| now.saturating_sub(at));
    let text = annotations.get(ANNOTATION).filter(|text| text.len() <= MOST_ANNOTATION_BYTES);
    let summary = text.and_then(|text| serde_json::from_str::<NodeSummary>(text).ok());
    let state = match (&summary, age) {
        (None, _) | (_, None) => "not understood",
        (_, Some(age)) if age > STALE_SECONDS => "stale",
        (Some(summary), _) if summary.ready => "ready",
        _ => "not ready",
    };
    Some(NodeRow {
        node: node.clone(),
        state: state.to_owned(),
        // A clock that is ahead of ours is no age.
        age_s: age.map(|age| u64::try_from(age).unwrap_or(0)),
        pod: spec.holder_identity.unwrap_or_default(),
        summary: summary.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn lease(node: &str, ready: bool, written: i64) -> Lease {
        let pod = Some(("meshd-x".to_owned(), Some("uid-1".to_owned())));
        let writer = Writer { node: node.to_owned(), namespace: DEFAULT_NAMESPACE.to_owned(), pod };
        let status = Status { ready, workloads: 3, ..Status::default() };
        serde_json::from_value(document(&writer, &NodeSummary::from(&status), written)).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back_with_its_age_and_its_pod() {
        let rows = rows(&[lease("a", true, NOW - 5)], std::iter::empty(), NOW);
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.node.as_str(), row.state.as_str(), row.age_s), ("a", "ready", Some(5)));
        assert_eq!((row.pod.as_str(), row.summary.workloads), ("meshd-x", 3));
    }

    #[test]
    fn nodes_without_an_agent_and_agents_that_fell_silent_are_told_apart() {
        let mut garbled = lease("e", true, NOW);
        garbled.metadata.annotations.as_mut().unwrap().insert(ANNOTATION.to_owned(), "{".to_owned());
        let mut long = lease("f", true, NOW);
        let text = format!("{{\"version\":\"{}\"}}", "x".repeat(MOST_ANNOTATION_BYTES));
        long.metadata.annotations.as_mut().unwrap().insert(ANNOTATION.to_owned(), text);
        let mut foreign = lease("g", true, NOW);
        foreign.metadata.name = Some("meshd-node-a".to_owned());
        let leases = [
            lease("a", true, NOW + 30),
            lease("b", false, NOW),
            lease("c", true, NOW - STALE_SECONDS - 1),
            garbled,
            long,
            foreign,
        ];
        let rows = rows(&leases, ["a", "d"].map(str::to_owned).into_iter(), NOW);
        let states: Vec<_> = rows.iter().map(|row| (row.node.as_str(), row.state.as_str())).collect();
        let wanted = [
            ("a", "ready"),
            ("b", "not ready"),
            ("c", "stale"),
            ("d", "no agent"),
            ("e", "not understood"),
            ("f", "not understood"),
        ];
        assert_eq!(states, wanted);
        assert!(rows[0].is_ready() && rows[1..].iter().all(|row| !row.is_ready()));
    }

    #[test]
    fn a_summary_is_short_whatever_the_problems_are() {
        let status = Status { problems: vec!["é".repeat(5000); 90], ..Status::default() };
        let text = serde_json::to_string(&NodeSummary::from(&status)).unwrap();
        assert!(text.len() < 4096, "{}", text.len());
    }
}
