//! Which service accounts run on which node, as the API server tells it: whose certificates a node's agent may have. Nothing
//! is known, and nobody gets anything, before the first list is complete; while the API server is away the last word stays.
//! Of a pod its UID, namespace, service account and node are kept.

use std::{
    collections::HashMap,
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, Object},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    ca::callers::Placement,
    identity::{SpiffeId, TrustDomain},
};

/// Twice what Kubernetes itself supports (150 000); those above are not placed.
const MOST_PODS: usize = 300_000;
/// Pods in one answer.
const PAGE: u32 = 500;
/// A pod that was bound a moment ago is waited for: its node's agent may be quicker than the watch.
const LATE: Duration = Duration::from_millis(1500);

/// Who asks while that many wait is answered at once.
const MOST_WAITING: usize = 64;

/// What is read of a pod; the rest is passed over.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    service_account_name: Option<String>,
    node_name: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    phase: Option<String>,
}

/// A pod as the watch reads it.
pub(super) type SlimPod = Object<Spec, Status>;

/// A pod that can hold an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    node: String,
    account: Account,
}

/// Namespace and name.
type Account = (String, String);

/// The pods of a cluster, counted. Pure.
#[derive(Debug, Default)]
struct Census {
    pods: HashMap<String, Placed>,
    accounts: HashMap<String, HashMap<Account, usize>>,
}

impl Census {
    /// Notes what a pod is now. False: there are too many.
    fn put(&mut self, pod: SlimPod) -> bool {
        let Some(uid) = pod.metadata.uid.clone() else { return true };
        self.remove(&uid);
        let Some(placed) = placed(pod) else { return true };
        if self.pods.len() >= MOST_PODS {
            return false;
        }
        let on_node = self.accounts.entry(placed.node.clone()).or_default();
        *on_node.entry(placed.account.clone()).or_default() += 1;
        self.pods.insert(uid, placed);
        true
    }

    fn remove(&mut self, uid: &str) {
        let Some(placed) = self.pods.remove(uid) else { return };
        let Some(on_node) = self.accounts.get_mut(&placed.node) else { return };
        if let Some(count) = on_node.get_mut(&placed.account) {
            *count -= 1;
            if *count == 0 {
                on_node.remove(&placed.account);
            }
        }
        if on_node.is_empty() {
            self.accounts.remove(&placed.node);
        }
    }

    fn has(&self, node: &str, namespace: &str, account: &str) -> bool {
        let key = (namespace.to_owned(), account.to_owned());
        self.accounts.get(node).is_some_and(|on_node| on_node.contains_key(&key))
    }
}

/// None: it runs nowhere, or has ended.
fn placed(pod: SlimPod) -> Option<Placed> {
    if matches!(pod.status.and_then(|status| status.phase).as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let node = pod.spec.node_name.filter(|node| !node.is_empty())?;
    // A mirror of a static pod has no account, and no identity.
    let account = pod.spec.service_account_name.filter(|account| !account.is_empty())?;
    Some(Placed { node, account: (pod.metadata.namespace?, account) })
}

/// The watched pods; to be shared by `Arc`.
#[derive(Debug)]
pub struct WatchedPods {
    trust_domain: TrustDomain,
    census: RwLock<Census>,
    synced: AtomicBool,
    changes: watch::Sender<u64>,
    /// Those who wait hold a request's place.
    waiting: Semaphore,
}

impl WatchedPods {
    /// Knows nothing until [`Self::follow`] has told it.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            census: RwLock::default(),
            synced: AtomicBool::new(false),
            changes: watch::Sender::new(0),
            waiting: Semaphore::new(MOST_WAITING),
        }
    }

    /// Follows the API server's pods until told to stop.
    pub async fn follow(&self, client: Client, stop: CancellationToken) {
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let pods: Api<SlimPod> = Api::all_with(client, &resource);
        // Those that have ended leave the selection, and the watch says so.
        let config =
            watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed").page_size(PAGE);
        let mut events = watcher(pods, config).default_backoff().boxed();
        let mut coming = Census::default();
        let mut failed = false;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    if failed {
                        tracing::info!("pods are followed again");
                    }
                    failed = false;
                    self.take(event, &mut coming);
                }
                Some(Err(error)) if !failed => {
                    failed = true;
                    tracing::warn!(%error, "pods are not followed now; what was known of them last stays");
                }
                Some(Err(_)) => {}
                None => return,
            }
        }
    }

    fn take(&self, event: Event<SlimPod>, coming: &mut Census) {
        let mut fits = true;
        {
            let mut census = self.census.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            match event {
                Event::Init => *coming = Census::default(),
                Event::InitApply(pod) => fits = coming.put(pod),
                Event::InitDone => {
                    *census = std::mem::take(coming);
                    tracing::info!(pods = census.pods.len(), nodes = census.accounts.len(), "pods are known");
                    self.synced.store(true, Relaxed);
                }
                Event::Apply(pod) => fits = census.put(pod),
                Event::Delete(pod) => census.remove(pod.metadata.uid.as_deref().unwrap_or_default()),
            }
        }
        if !fits {
            tracing::error!(most = MOST_PODS, "there are more pods than are kept: some get no certificate");
        }
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Placement for WatchedPods {
    fn runs_on(&self, node: &str, id: &SpiffeId) -> bool {
        let Some((namespace, account)) = id.service_account() else { return false };
        if *id.trust_domain() != self.trust_domain || !self.synced.load(Relaxed) {
            return false;
        }
        let census = self.census.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        census.has(node, namespace, account)
    }

    fn settle<'a>(&'a self, node: &'a str, id: &'a SpiffeId) -> futures_util::future::BoxFuture<'a, ()> {
        Box::pin(async move {
            let Ok(_place) = self.waiting.try_acquire() else { return };
            let mut changes = self.changes.subscribe();
            // Elapsed: it is as it is.
            let _ = timeout(LATE, changes.wait_for(|_| self.runs_on(node, id))).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, node: &str, account: &str, phase: &str) -> SlimPod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": uid, "namespace": "shop", "uid": uid },
            "spec": { "nodeName": node, "serviceAccountName": account, "containers": [ { "name": "x" } ] },
            "status": { "phase": phase, "podIP": "10.0.0.1" },
        }))
        .unwrap()
    }

    fn runs(pods: &WatchedPods, node: &str, id: &str) -> bool {
        pods.runs_on(node, &id.parse().unwrap())
    }

    #[test]
    fn nobody_is_anywhere_before_the_first_list_is_complete_and_the_last_word_stays_until_the_next_is() {
        let pods = WatchedPods::new("a.b".parse().unwrap());
        let mut coming = Census::default();
        let web = "spiffe://a.b/ns/shop/sa/web";
        for event in [Event::Init, Event::InitApply(pod("1", "n1", "web", "Running"))] {
            pods.take(event, &mut coming);
            assert!(!runs(&pods, "n1", web));
        }
        pods.take(Event::InitDone, &mut coming);
        assert!(runs(&pods, "n1", web));
        for other in [
            "spiffe://a.b/ns/shop/sa/db",
            "spiffe://a.c/ns/shop/sa/web",
            "spiffe://a.b/ns/bank/sa/web",
            "spiffe://a.b/x",
        ] {
            assert!(!runs(&pods, "n1", other), "{other}");
        }
        assert!(!runs(&pods, "n2", web));
        // A watch that starts anew says nothing before it has said all.
        pods.take(Event::Init, &mut coming);
        assert!(runs(&pods, "n1", web));
        pods.take(Event::InitDone, &mut coming);
        assert!(!runs(&pods, "n1", web));
    }

    #[test]
    fn an_account_is_on_a_node_as_long_as_one_of_its_pods_is() {
        let pods = WatchedPods::new("a.b".parse().unwrap());
        let mut coming = Census::default();
        let web = "spiffe://a.b/ns/shop/sa/web";
        pods.take(Event::InitDone, &mut coming);
        let steps = [
            (Event::Apply(pod("1", "", "web", "Pending")), false),
            (Event::Apply(pod("1", "n1", "web", "Pending")), true),
            (Event::Apply(pod("2", "n1", "web", "Running")), true),
            (Event::Apply(pod("1", "n1", "web", "Succeeded")), true),
            (Event::Delete(pod("2", "n1", "web", "Running")), false),
            (Event::Delete(pod("2", "n1", "web", "Running")), false),
            (Event::Apply(pod("3", "n1", "", "Running")), false),
            (Event::Apply(pod("4", "n1", "web", "Failed")), false),
        ];
        for (nth, (event, is_there)) in steps.into_iter().enumerate() {
            pods.take(event, &mut coming);
            assert_eq!(runs(&pods, "n1", web), is_there, "after step {nth}");
        }
        let census = pods.census.read().unwrap();
        assert!(census.pods.is_empty() && census.accounts.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_the_watch_has_not_shown_yet_is_waited_for_and_no_longer_than_that() {
        let pods = WatchedPods::new("a.b".parse().unwrap());
        let id: SpiffeId = "spiffe://a.b/ns/shop/sa/web".parse().unwrap();
        let mut coming = Census::default();
        pods.take(Event::InitDone, &mut coming);
        pods.settle("n1", &id).await;
        assert!(!pods.runs_on("n1", &id));
        let ((), ()) = tokio::join!(pods.settle("n1", &id), async {
            tokio::task::yield_now().await;
            pods.take(Event::Apply(pod("1", "n1", "web", "Pending")), &mut coming);
        });
        assert!(pods.runs_on("n1", &id));
    }
}
