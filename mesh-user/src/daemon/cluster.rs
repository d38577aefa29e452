//! Kubernetes beside the node's file: begins to watch the API server, and waits for the first whole state of it. Until then
//! nothing is put into force, so that hooks which an earlier run left behind go on refusing what they refused.

use std::sync::Arc;

use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use crate::{
    admin::api::{KubernetesRow, WatchRow},
    config::Config,
    discovery::{FileSource, Snapshot, kubernetes::Kubernetes},
    runtime::{NodePod, PodPlaces},
    telemetry::Metrics,
};

/// The API server as a source, and where this node's pods live.
pub(super) struct Cluster {
    kubernetes: Arc<Kubernetes>,
    places: watch::Sender<Arc<PodPlaces>>,
}

impl Cluster {
    /// None: the node's file is all there is. Asks nothing yet.
    pub(super) async fn open(config: &Config) -> Result<Option<Self>, DaemonError> {
        if !config.kubernetes.enabled {
            return Ok(None);
        }
        let kubernetes = Arc::new(Kubernetes::open(config).await?);
        Ok(Some(Self { kubernetes, places: watch::Sender::default() }))
    }

    /// Pods of this node, for whoever looks where they live.
    pub(super) fn node_pods(&self) -> watch::Receiver<Arc<Vec<NodePod>>> {
        self.kubernetes.node_pods()
    }

    /// Where whoever looks puts what it finds.
    pub(super) fn places(&self) -> watch::Sender<Arc<PodPlaces>> {
        self.places.clone()
    }

    /// Begins to watch, until `stop`. What is returned ends soon after that.
    pub(super) fn begin(&self, files: &Arc<FileSource>, stop: &CancellationToken) -> JoinHandle<()> {
        let (kubernetes, files) = (Arc::clone(&self.kubernetes), Arc::clone(files));
        tokio::spawn(kubernetes.run(files, self.places.subscribe(), stop.clone()))
    }

    /// Puts into the metrics how the watches are doing.
    pub(super) fn count(&self, metrics: &Metrics) {
        let status = self.kubernetes.status();
        for (kind, objects) in &status.objects {
            let stale_since = status.watches.get(kind).and_then(|watch| watch.stale_since_seconds);
            metrics.set_kubernetes_watch(kind, *objects as u64, stale_since);
        }
    }

    pub(super) fn row(&self) -> KubernetesRow {
        let status = self.kubernetes.status();
        let named = |names: &[crate::world::WorkloadName]| names.iter().map(ToString::to_string).collect();
        KubernetesRow {
            missing: status.missing.iter().map(ToString::to_string).collect(),
            watches: status
                .objects
                .iter()
                .map(|(kind, objects)| {
                    let watch = status.watches.get(kind).cloned().unwrap_or_default();
                    WatchRow {
                        kind: (*kind).to_owned(),
                        objects: *objects as u64,
                        stale_since_unix_s: watch.stale_since_seconds,
                        trouble: watch.trouble.unwrap_or_default(),
                        failures: watch.failures,
                    }
                })
                .collect(),
            waiting: status.waiting.iter().map(|(name, why)| format!("{name}: {why}")).collect(),
            host_network: named(&status.host_network),
            rejected: status.rejected,
            rebuilds: status.rebuilds,
            last_rebuild_ms: status.last_rebuild_ms,
        }
    }
}

/// What an operator must act on.
pub(super) fn problems(row: &KubernetesRow) -> Vec<String> {
    let mut problems = Vec::new();
    if !row.missing.is_empty() {
        problems.push(format!(
            "the API server has not told yet of {}: nothing is put into force before it has",
            row.missing.join(", ")
        ));
    }
    let no_node = |watch: &WatchRow| watch.kind == "nodes" && watch.objects == 0;
    if row.missing.is_empty() && row.watches.iter().any(no_node) {
        problems.push(
            "the cluster has no node of this node's name, so none of its pods is enrolled: mend `node`"
                .to_owned(),
        );
    }
    for watch in row.watches.iter().filter(|watch| watch.stale_since_unix_s.is_some()) {
        problems.push(format!("{} of the API server may be old: {}", watch.kind, watch.trouble));
    }
    problems.extend(row.waiting.iter().map(|waiting| format!("a pod waits to be enrolled: {waiting}")));
    problems.extend(row.rejected.iter().map(|rejected| format!("a policy is rejected: {rejected}")));
    problems
}

/// The first snapshot in which every source is heard.
pub(super) async fn whole(files: &FileSource) -> Arc<Snapshot> {
    let mut told = files.subscribe();
    loop {
        let snapshot = files.snapshot();
        if snapshot.complete || told.changed().await.is_err() {
            return snapshot;
        }
    }
}
