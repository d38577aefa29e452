//! Writes back what became of policy documents: one condition in `status.conditions`, and an event for those that are
//! rejected. One agent of the cluster does it, who holds the Lease `meshd-status`; conditions of others are not touched.
//!
//! Sources: the Kubernetes API conventions ("typical status properties"), and client-go's `leaderelection`: a lease has
//! ended when it was seen unchanged for as long as it lasts, whatever the clocks say.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::ObjectReference},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    client::Watches,
    documents::{CONDITION, INVALID, Judgement, Said},
};

const LEASE: &str = "meshd-status";
const LEASE_SECONDS: i32 = 60;
/// How often the holder says that it still is.
const RENEW: Duration = Duration::from_secs(20);
/// The same verdict is not written again before: somebody else may be taking it away.
const PATIENCE: Duration = Duration::from_secs(300);
/// A request that takes longer is given up.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONTROLLER: &str = "meshd.io/agent";

/// Writes on behalf of one agent.
pub(super) struct Report {
    client: Client,
    watches: Watches,
    node: String,
    leases: Api<Lease>,
    recorder: Recorder,
    /// As the lease was last seen, and when it was first seen so.
    seen: Option<(String, Instant)>,
    written: HashMap<Arc<str>, (Said, Instant)>,
}

impl Report {
    pub(super) fn new(client: &Client, watches: &Watches, namespace: &str, node: &str) -> Self {
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_owned()) };
        Self {
            client: client.clone(),
            watches: watches.clone(),
            node: node.to_owned(),
            leases: Api::namespaced(client.clone(), namespace),
            recorder: Recorder::new(client.clone(), reporter),
            seen: None,
            written: HashMap::new(),
        }
    }

    /// Until `shutdown`. What cannot be written is tried again; nothing else waits for it.
    pub(super) async fn run(
        mut self,
        mut judgements: watch::Receiver<Arc<Vec<Judgement>>>,
        shutdown: CancellationToken,
    ) {
        let mut complained = false;
        let mut renew_at = Instant::now();
        let mut leads = false;
        loop {
            if renew_at <= Instant::now() {
                leads = match timeout(TIMEOUT, self.lead()).await {
                    Ok(Ok(leads)) => leads,
                    Ok(Err(error)) => {
                        if !std::mem::replace(&mut complained, true) {
                            tracing::warn!(%error, lease = LEASE, "the status of policies cannot be written");
                        }
                        false
                    }
                    Err(_) => false,
                };
                // A thousand agents that wait for one lease do not ask at once.
                let wait =
                    if leads { RENEW } else { RENEW + RENEW.mul_f64(rand::rng().random_range(0.0..1.0)) };
                renew_at = Instant::now() + wait;
            }
            if leads {
                let all = Arc::clone(&judgements.borrow_and_update());
                self.write_all(&all, renew_at).await;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = judgements.changed(), if leads => if changed.is_err() { return },
                () = tokio::time::sleep(renew_at.saturating_duration_since(Instant::now())) => {}
            }
        }
    }

    /// Takes the lease, or keeps it; whether this agent has it.
    async fn lead(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.leases.get_opt(LEASE).await? else {
            let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
            let lease = self.held(Lease { metadata, spec: None });
            return is_mine(self.leases.create(&PostParams::default(), &lease).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        if holder.as_ref() != Some(&self.node) && holder.is_some_and(|holder| !holder.is_empty()) {
            let lasts =
                lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(LEASE_SECONDS);
            let lasts = Duration::from_secs(u64::try_from(lasts).unwrap_or(0));
            match &self.seen {
                Some((seen, since)) if *seen == version && since.elapsed() >= lasts => {}
                Some((seen, _)) if *seen == version => return Ok(false),
                _ => {
                    self.seen = Some((version, Instant::now()));
                    return Ok(false);
                }
            }
        }
        lease = self.held(lease);
        is_mine(self.leases.replace(LEASE, &PostParams::default(), &lease).await)
    }

    /// The lease as this agent holds it from now on.
    fn held(&self, mut lease: Lease) -> Lease {
        let spec = lease.spec.get_or_insert_default();
        let now = MicroTime(Timestamp::now());
        if spec.holder_identity.as_ref() != Some(&self.node) {
            spec.holder_identity = Some(self.node.clone());
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.renew_time = Some(now);
        spec.lease_duration_seconds = Some(LEASE_SECONDS);
        lease
    }

    /// Writes what differs, as long as the lease is surely held.
    async fn write_all(&mut self, judgements: &[Judgement], until: Instant) {
        self.written.retain(|uid, _| judgements.iter().any(|judgement| judgement.uid == *uid));
        for judgement in judgements.iter().filter(|j| j.said.as_ref() != Some(&j.verdict)) {
            if Instant::now() >= until {
                return;
            }
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

/// Whether the lease is this agent's after a write; somebody else may have been quicker.
fn is_mine(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
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
