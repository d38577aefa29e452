//! On which node a pod runs, for API servers that do not write it into tokens (before 1.29): looked up by name, believed only
//! if it is the pod that the token is bound to. What was found is remembered for a few seconds; a pod never changes its node.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use lru::LruCache;
use tokio::{sync::Semaphore, time::timeout};

use super::TIMEOUT;

const REMEMBERED: Duration = Duration::from_secs(10);
const MOST_REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Look-ups at once.
const LOOKUPS: usize = 32;

/// What the API server says of a token's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ca) enum PodNode {
    /// It runs there.
    On(String),
    /// There is no such pod any more, or it is another one, or it runs nowhere.
    Gone(&'static str),
    /// Nobody could be asked.
    CannotAsk(String),
}

/// Asks about pods.
pub(in crate::ca) struct Pods {
    client: Client,
    found: Mutex<LruCache<String, (Instant, String)>>,
    slots: Semaphore,
}

impl Pods {
    pub(in crate::ca) fn new(client: Client) -> Self {
        Self { client, found: Mutex::new(LruCache::new(MOST_REMEMBERED)), slots: Semaphore::new(LOOKUPS) }
    }

    /// The node of the pod with this name and UID.
    pub(in crate::ca) async fn node_of(&self, namespace: &str, name: &str, uid: &str) -> PodNode {
        if let Some(node) = self.remembered(uid) {
            return PodNode::On(node);
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let asked = timeout(TIMEOUT, async {
            let _slot = self.slots.acquire().await;
            pods.get_opt(name).await
        });
        let pod = match asked.await {
            Err(_elapsed) => return PodNode::CannotAsk("the API server does not answer".to_owned()),
            Ok(Err(error)) => return PodNode::CannotAsk(error.to_string()),
            Ok(Ok(pod)) => pod,
        };
        match judge(pod, uid) {
            Ok(node) => {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                found.put(uid.to_owned(), (Instant::now(), node.clone()));
                PodNode::On(node)
            }
            Err(why) => PodNode::Gone(why),
        }
    }

    fn remembered(&self, uid: &str) -> Option<String> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, node) = found.get(uid)?;
        (since.elapsed() < REMEMBERED).then(|| node.clone())
    }
}

fn judge(pod: Option<Pod>, uid: &str) -> Result<String, &'static str> {
    let Some(pod) = pod else { return Err("there is no such pod") };
    if pod.metadata.uid.as_deref() != Some(uid) {
        return Err("the pod of that name is another one");
    }
    let phase = pod.status.and_then(|status| status.phase);
    if matches!(phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Err("the pod has ended");
    }
    pod.spec.and_then(|spec| spec.node_name).filter(|node| !node.is_empty()).ok_or("the pod runs on no node")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_counts_if_it_is_the_same_one_and_runs_somewhere() {
        let pod = |uid: &str, node: Option<&str>, phase: &str| {
            let pod = json!({
                "metadata": { "name": "p", "uid": uid }, "spec": { "nodeName": node, "containers": [] },
                "status": { "phase": phase },
            });
            Some(serde_json::from_value::<Pod>(pod).unwrap())
        };
        for (asked, node) in [
            (Some(("u", Some("n1"), "Running")), Ok("n1")),
            (Some(("u", Some("n1"), "Pending")), Ok("n1")),
            (Some(("other", Some("n1"), "Running")), Err("the pod of that name is another one")),
            (Some(("u", None, "Pending")), Err("the pod runs on no node")),
            (Some(("u", Some(""), "Pending")), Err("the pod runs on no node")),
            (Some(("u", Some("n1"), "Failed")), Err("the pod has ended")),
            (None, Err("there is no such pod")),
        ] {
            let seen = asked.and_then(|(uid, node, phase)| pod(uid, node, phase));
            assert_eq!(judge(seen, "u"), node.map(str::to_owned));
        }
    }
}
