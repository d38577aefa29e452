//! Kubernetes as a source beside the node's file: watches the API server and tells of each whole state of it. What was
//! heard last stays in use for as long as the server is away; before everything was heard once, nothing is told.

mod client;
mod documents;
mod objects;
mod pods;
mod report;
mod services;
mod tables;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::Client;
use tokio::{
    sync::{mpsc, watch as channel},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub use client::{KubernetesError, WatchStatus};
pub use report::LEASE_ACCESS;

use self::{
    client::Watches,
    documents::{Judge, Judgement},
    pods::Pods,
    report::Report,
    tables::{Change, Moment, Tables},
};
use super::FileSource;
use crate::{
    config::Config,
    policy::{PolicySet, PolicyStatus},
    runtime::{Access, NodePod, PodPlaces},
    world::{Additions, WorkloadName},
};

/// A burst of changes is one.
const QUIET: Duration = Duration::from_millis(100);
/// So long at most a burst is waited for.
const AT_MOST: Duration = Duration::from_secs(1);
/// How long an end waits for the API server.
const FAREWELL: Duration = Duration::from_secs(2);

const READ: &[&str] = &["list", "watch"];
/// A policy is read again before its status is written.
const POLICIES: &[&str] = &["get", "list", "watch"];
const STATUS: &[&str] = &["patch"];
const SECURITY: &str = "security.istio.io";
const NETWORKING: &str = "networking.istio.io";

/// What an agent asks of the API server, in all namespaces.
pub const ACCESS: &[Access] = &[
    Access::new("", "namespaces", READ),
    Access::new("", "nodes", READ),
    Access::new("", "pods", READ),
    Access::new("", "services", READ),
    Access::new("", "endpoints", READ),
    Access::new("discovery.k8s.io", "endpointslices", READ),
    Access::new(SECURITY, "authorizationpolicies", POLICIES),
    Access::new(SECURITY, "peerauthentications", POLICIES),
    Access::new(SECURITY, "requestauthentications", POLICIES),
    Access::new(NETWORKING, "destinationrules", POLICIES),
    Access::new(SECURITY, "authorizationpolicies/status", STATUS),
    Access::new(SECURITY, "peerauthentications/status", STATUS),
    Access::new(SECURITY, "requestauthentications/status", STATUS),
    Access::new(NETWORKING, "destinationrules/status", STATUS),
    Access::new("events.k8s.io", "events", &["create", "patch"]),
];

/// What the API server knows, of one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// Workloads and services.
    pub additions: Additions,
    /// Policy documents in force.
    pub documents: PolicySet,
    /// Those that are not, in their newest version.
    pub rejected: Vec<PolicyStatus>,
}

/// How Kubernetes as a source is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubernetesStatus {
    /// Kinds of which nothing whole was heard yet: until there are none, nothing of Kubernetes is in force.
    pub missing: Vec<&'static str>,
    /// Watches by kind.
    pub watches: BTreeMap<&'static str, WatchStatus>,
    /// Objects that are kept, by kind.
    pub objects: Vec<(&'static str, usize)>,
    /// Pods of this node that are to be enrolled and cannot be yet, and why.
    pub waiting: Vec<(WorkloadName, String)>,
    /// Pods of this node that labels would enrol and that are left alone: they share the host's network namespace.
    pub host_network: Vec<WorkloadName>,
    /// Documents whose newest version is not in force.
    pub rejected: Vec<String>,
    /// Times that a new state was made, and how long the last one took.
    pub rebuilds: u64,
    /// Milliseconds.
    pub last_rebuild_ms: u64,
}

/// The API server as a source.
pub struct Kubernetes {
    client: Client,
    /// Where the agents' Lease is: the pod's own, or the kubeconfig's.
    namespace: String,
    watches: Watches,
    node: String,
    with_ambient: bool,
    root_namespace: String,
    pods: channel::Sender<Arc<Vec<NodePod>>>,
    judgements: channel::Sender<Arc<Vec<Judgement>>>,
    status: Mutex<KubernetesStatus>,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// Makes a client; asks nothing yet.
    ///
    /// # Errors
    /// When the kubeconfig, or the pod's service account, is missing or wrong.
    pub async fn open(config: &Config) -> Result<Self, KubernetesError> {
        let watches = Watches::default();
        let (client, namespace) = client::connect(config.kubernetes.kubeconfig.as_deref(), &watches).await?;
        Ok(Self {
            client,
            namespace,
            watches,
            node: config.node.clone(),
            with_ambient: config.kubernetes.ambient_label,
            root_namespace: config.root_namespace.clone(),
            pods: channel::Sender::default(),
            judgements: channel::Sender::default(),
            status: Mutex::default(),
        })
    }

    /// Pods that the API server has bound to this node.
    pub fn node_pods(&self) -> channel::Receiver<Arc<Vec<NodePod>>> {
        self.pods.subscribe()
    }

    /// How it is doing.
    pub fn status(&self) -> KubernetesStatus {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.watches = self.watches.status();
        status
    }

    /// Watches until `shutdown`, and hands each new state to `files`. `places` says where this node's pods live.
    pub async fn run(
        self: Arc<Self>,
        files: Arc<FileSource>,
        mut places: channel::Receiver<Arc<PodPlaces>>,
        shutdown: CancellationToken,
    ) {
        let report = Report::new(&self.client, &self.watches, &self.namespace, &self.node);
        let report = tokio::spawn(report.run(self.judgements.subscribe(), shutdown.clone()));
        self.follow(&files, &mut places, &shutdown).await;
        // Its Lease ends by itself where the API server does not answer.
        let _ = timeout(FAREWELL, report).await;
    }

    async fn follow(
        self: &Arc<Self>,
        files: &Arc<FileSource>,
        places: &mut channel::Receiver<Arc<PodPlaces>>,
        shutdown: &CancellationToken,
    ) {
        let mut tasks = JoinSet::new();
        let mut heard = watch::begin(&self.client, &self.watches, &self.node, &mut tasks);
        let mut tables = Tables::default();
        let mut builder = Builder::default();
        loop {
            let changed = tokio::select! {
                () = shutdown.cancelled() => return,
                change = heard.recv() => match change {
                    Some(change) => tables.apply(change),
                    None => return,
                },
                Ok(()) = places.changed() => true,
            };
            self.note(&tables);
            if !changed {
                continue;
            }
            gather(&mut heard, &mut tables).await;
            self.note(&tables);
            if !tables.missing().is_empty() {
                continue;
            }
            let (moment, known) = (tables.moment(), Arc::clone(&places.borrow_and_update()));
            let (source, files) = (Arc::clone(self), Arc::clone(files));
            let built = tokio::task::spawn_blocking(move || {
                source.rebuild(&mut builder, &moment, &known, &files);
                builder
            });
            builder = match built.await {
                Ok(builder) => builder,
                Err(error) => {
                    tracing::error!(%error, "what the API server says could not be used; what was in force stays");
                    Builder::default()
                }
            };
        }
    }

    fn note(&self, tables: &Tables) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.missing = tables.missing();
        status.objects = tables.counts();
    }

    fn rebuild(&self, builder: &mut Builder, moment: &Moment, places: &PodPlaces, files: &FileSource) {
        let began = Instant::now();
        let (state, pods, judgements) =
            builder.build(moment, (&self.node, self.with_ambient), &self.root_namespace, places);
        let Pods { of_node, waiting, host_network, .. } = pods;
        self.pods.send_if_modified(|known| {
            let differs = **known != of_node;
            if differs {
                *known = Arc::new(of_node);
            }
            differs
        });
        let rejected = judgements.iter().filter(|j| !j.verdict.accepted).map(Judgement::told).collect();
        self.judgements.send_replace(Arc::new(judgements));
        files.put_cluster(Arc::new(state));
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.waiting = waiting;
        status.host_network = host_network;
        status.rejected = rejected;
        status.rebuilds += 1;
        status.last_rebuild_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    }
}

/// Takes up what comes until it is quiet for a moment.
async fn gather(heard: &mut mpsc::Receiver<Change>, tables: &mut Tables) {
    let quiet = async {
        while let Ok(Some(change)) = timeout(QUIET, heard.recv()).await {
            tables.apply(change);
        }
    };
    let _ = timeout(AT_MOST, quiet).await;
}

/// Makes states of moments; remembers what was read of documents.
#[derive(Debug, Default)]
struct Builder {
    judge: Judge,
}

impl Builder {
    fn build(
        &mut self,
        moment: &Moment,
        whose: (&str, bool),
        root_namespace: &str,
        places: &PodPlaces,
    ) -> (ClusterState, Pods, Vec<Judgement>) {
        let mut pods = pods::pods(&moment.namespaces, &moment.pods, whose, places);
        let services = services::services(&moment.services, &moment.slices, whose.0, moment.node.as_deref());
        let (documents, judgements) = self.judge.judge(&moment.documents, &pods.namespaces, root_namespace);
        let workloads = std::mem::take(&mut pods.workloads);
        let rejected = judgements.iter().filter_map(Judgement::row).collect();
        (ClusterState { additions: Additions { workloads, services }, documents, rejected }, pods, judgements)
    }
}
