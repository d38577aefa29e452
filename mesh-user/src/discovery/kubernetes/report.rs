//! Writes back what became of policy documents: one condition in `status.conditions`, and an event for those that are
//! rejected. One agent of the cluster does it, who holds the Lease `meshd-status`; conditions of others are not touched.
//!
//! Source: the Kubernetes API conventions ("typical status properties").

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    client::Watches,
    documents::{CONDITION, INVALID, Judgement, Said},
};
use crate::runtime::{Access, Lease, LeaseSettings, lease};

const LEASE: &str = "meshd-status";
const LEASE_TIME: Duration = Duration::from_secs(60);
/// A thousand agents that stand by ask as often as one of them would every 30 ms.
const LOOK: Duration = Duration::from_secs(30);
/// What choosing who writes asks of the API server, in meshd's own namespace.
pub const LEASE_ACCESS: [Access; 2] = lease::access(LEASE);
/// How often it is looked whether something is to be written that did not change.
const AGAIN: Duration = Duration::from_secs(20);
/// The same verdict is not written again before: somebody else may be taking it away.
const PATIENCE: Duration = Duration::from_secs(300);
/// A request that takes longer is given up.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONTROLLER: &str = "meshd.io/agent";

/// Writes on behalf of one agent, while it leads.
pub(super) struct Report {
    lease: Lease,
    writer: Writer,
}

/// The agent that leads.
struct Writer {
    client: Client,
    watches: Watches,
    recorder: Recorder,
    written: HashMap<Arc<str>, (Said, Instant)>,
}

impl Report {
    pub(super) fn new(client: &Client, watches: &Watches, namespace: &str, node: &str) -> Self {
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_owned()) };
        let settings = LeaseSettings {
            namespace: namespace.to_owned(),
            name: LEASE.to_owned(),
            identity: node.to_owned(),
            duration: LEASE_TIME,
            look: LOOK,
        };
        let writer = Writer {
            client: client.clone(),
            watches: watches.clone(),
            recorder: Recorder::new(client.clone(), reporter),
            written: HashMap::new(),
        };
        Self { lease: Lease::new(client.clone(), settings), writer }
    }

    /// Until `shutdown`, and lets another agent lead at once then. What cannot be written is tried again; nothing else waits
    /// for it.
    pub(super) async fn run(
        mut self,
        mut judgements: watch::Receiver<Arc<Vec<Judgement>>>,
        shutdown: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.lease.acquire() => {}
            }
            tracing::info!(lease = LEASE, "this agent writes the status of policies");
            tokio::select! {
                () = shutdown.cancelled() => return self.lease.release().await,
                () = self.writer.follow(&mut judgements) => return,
                lost = self.lease.hold() => tracing::warn!(%lost, "this agent writes no status any more"),
            }
        }
    }
}

impl Writer {
    /// Writes what changes, until nobody says any more what that is.
    async fn follow(&mut self, judgements: &mut watch::Receiver<Arc<Vec<Judgement>>>) {
        loop {
            let all = Arc::clone(&judgements.borrow_and_update());
            self.write_all(&all).await;
            tokio::select! {
                changed = judgements.changed() => if changed.is_err() { return },
                // What failed, and what somebody took away.
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    /// Writes what differs.
    async fn write_all(&mut self, judgements: &[Judgement]) {
        self.written.retain(|uid, _| judgements.iter().any(|judgement| judgement.uid == *uid));
        for judgement in judgements.iter().filter(|j| j.said.as_ref() != Some(&j.verdict)) {
            let known = self.written.get(&judgement.uid);
            if known.is_some_and(|(said, when)| *said == judgement.verdict && when.elapsed() < PATIENCE) {
                continue;
            }
            let Some(resource) = self.watches.served(judgement.kind.plural()) else { continue };
            match timeout(TIMEOUT, self.write(judgement, &resource)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, policy = %judgement.told(), "its status is not written");
                }
                Err(_) => tracing::debug!(policy = %judgement.told(), "its status takes too long to write"),
            }
            self.written.insert(Arc::clone(&judgement.uid), (judgement.verdict.clone(), Instant::now()));
        }
    }

    async fn write(&self, judgement: &Judgement, resource: &ApiResource) -> Result<(), kube::Error> {
        let (namespace, name) = (&*judgement.key.namespace, &*judgement.key.name);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
        let Some(object) = api.get_opt(name).await? else { return Ok(()) };
        let is_it = object.metadata.uid.as_deref() == Some(&*judgement.uid)
            && object.metadata.generation.unwrap_or_default() == judgement.verdict.generation;
        if !is_it {
            return Ok(());
        }
        let conditions = with_own(&object.data["status"]["conditions"], &judgement.verdict);
        let patch = json!({
            // Whoever else wrote meanwhile is not undone.
            "metadata": { "resourceVersion": object.metadata.resource_version },
            "status": { "conditions": conditions },
        });
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        if judgement.verdict.reason == INVALID {
            self.tell(judgement, resource).await?;
        }
        Ok(())
    }

    async fn tell(&self, judgement: &Judgement, resource: &ApiResource) -> Result<(), kube::Error> {
        let event = Event {
            type_: EventType::Warning,
            reason: "Rejected".to_owned(),
            note: Some(judgement.verdict.message.clone()),
            action: "Enforce".to_owned(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some(resource.api_version.clone()),
            kind: Some(resource.kind.clone()),
            namespace: Some(judgement.key.namespace.to_string()),
            name: Some(judgement.key.name.to_string()),
            uid: Some(judgement.uid.to_string()),
            ..ObjectReference::default()
        };
        self.recorder.publish(&event, &about).await
    }
}

/// The conditions of others as they are, and meshd's own. Its time is that of the last change of its status.
pub(super) fn with_own(conditions: &Value, verdict: &Said) -> Vec<Value> {
    let mut conditions = conditions.as_array().cloned().unwrap_or_default();
    let status = if verdict.accepted { "True" } else { "False" };
    let own = conditions.iter().position(|condition| condition["type"] == CONDITION);
    let before = own.map(|own| conditions.remove(own));
    let since =
        before.filter(|before| before["status"] == status).map(|before| before["lastTransitionTime"].clone());
    let since = since.filter(Value::is_string).unwrap_or_else(|| {
        // Whole seconds, as Kubernetes writes times.
        let now = Timestamp::now();
        json!(Timestamp::from_second(now.as_second()).unwrap_or(now).to_string())
    });
    conditions.push(json!({
        "type": CONDITION, "status": status, "reason": verdict.reason, "message": verdict.message,
        "observedGeneration": verdict.generation, "lastTransitionTime": since,
    }));
    conditions
}
