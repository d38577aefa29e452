//! Keeps this node's summary in the cluster, for `meshctl nodes`. Nothing waits for it and nothing depends on it: an API server
//! that is away costs a line in the log when it goes and one when it is back.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::Rng;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{AdminSource, nodes},
    config::Config,
};

/// By the downward API (`deploy/kubernetes/agent.yaml`).
const POD: &str = "MESHD_POD";
const POD_UID: &str = "MESHD_POD_UID";

/// Begins, where Kubernetes is in use.
pub(super) fn keep(config: &Config, source: Arc<dyn AdminSource>, stop: &CancellationToken) {
    if !config.kubernetes.enabled {
        return;
    }
    let said = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (node, pod) = (config.node.clone(), said(POD).map(|pod| (pod, said(POD_UID))));
    let (kubeconfig, stop) = (config.kubernetes.kubeconfig.clone(), stop.clone());
    tokio::spawn(async move {
        let client = match nodes::connect(kubeconfig.as_deref()).await {
            Ok(client) => client,
            Err(error) => return tracing::warn!(%error, "this node's summary is not kept in the cluster"),
        };
        // The pod's own, or that of the kubeconfig.
        let writer = nodes::Writer { node, namespace: client.default_namespace().to_owned(), pod };
        stop.run_until_cancelled(write(client, writer, source)).await;
    });
}

async fn write(client: kube::Client, writer: nodes::Writer, source: Arc<dyn AdminSource>) {
    let mut failing = false;
    let mut tick = interval(nodes::PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let status = source.status();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        match nodes::write(&client, &writer, &status, i64::try_from(now).unwrap_or(0)).await {
            Ok(()) if failing => {
                failing = false;
                tracing::info!("this node's summary is in the cluster again");
            }
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "this node's summary cannot be kept in the cluster");
            }
            _ => {}
        }
        // Agents that started together do not write together.
        let jitter = rand::rng().random_range(0..1000);
        tokio::time::sleep(Duration::from_millis(jitter)).await;
    }
}
