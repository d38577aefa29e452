//! The pods of this node: what is known of each, where it lives, and which of them wait at the hooks. What a pod is
//! comes from the files and the API server, where it lives from `runtime`; capture is told both.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{cluster::Cluster, reload::Runtime};
use crate::{
    capture::{PodGate, PodGates},
    config::{BeforeEnrolment, Config},
    runtime::{Locator, LocatorSettings, NodePod, PodPlace, PodPlaces, PodTree, PodUid},
    world::World,
};

/// A pod's cgroup that nobody speaks of for so long is none of ours: the API server knew of the pod before its kubelet.
const UNKNOWN: Duration = Duration::from_secs(2);
/// At the start capture waits so long for pods to be found; meanwhile what an earlier run left is in force.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// Whether pods are followed, for the life of the daemon.
pub(super) fn wanted(config: &Config, world: &World) -> bool {
    config.kubernetes.enabled || !of_files(world).is_empty()
}

/// The pods that the node's file names itself.
pub(super) fn of_files(world: &World) -> Vec<NodePod> {
    let pod = |workload: &crate::world::Workload| {
        let uid = workload.local.as_ref()?.selector.pod()?;
        Some(NodePod {
            uid: PodUid(uid.into()),
            namespace: Arc::from(&*workload.name.namespace),
            name: Arc::from(&*workload.name.name),
            host_network: false,
            wanted: true,
        })
    };
    world.local_workloads().filter_map(pod).collect()
}

/// What is known of each pod, by who says so; none: that source has said nothing yet.
#[derive(Debug, Default)]
struct Told {
    files: Option<Vec<NodePod>>,
    cluster: Option<Vec<NodePod>>,
}

/// The pods of this node.
#[derive(Debug)]
pub(super) struct Pods {
    told: Mutex<Told>,
    /// The API server is asked too: before it has answered nothing is known of any pod.
    asks_cluster: bool,
    known: watch::Sender<Arc<Vec<NodePod>>>,
    locator: Locator,
    refuse: bool,
    /// Since when cgroups are there of which nobody speaks.
    unknown: Mutex<HashMap<u64, Instant>>,
}

impl Pods {
    /// Begins to follow them; must be called within a tokio runtime.
    ///
    /// # Errors
    /// When meshd's own files for that cannot be made.
    pub(super) fn start(config: &Config, stop: &CancellationToken) -> io::Result<Self> {
        let cluster = &config.kubernetes;
        let settings = LocatorSettings {
            sockets: cluster.runtime_sockets.clone(),
            pods_cgroup: cluster.pods_cgroup.clone(),
            folder: config.runtime_dir.join("pods"),
        };
        let known = watch::Sender::new(Arc::new(Vec::new()));
        let locator = Locator::start(settings, known.subscribe(), stop.clone())?;
        let pods = Self {
            told: Mutex::default(),
            asks_cluster: cluster.enabled,
            known,
            locator,
            refuse: cluster.before_enrolment == BeforeEnrolment::Refuse,
            unknown: Mutex::default(),
        };
        if let Some(problem) = pods.problem() {
            tracing::warn!("{problem}");
        }
        Ok(pods)
    }

    /// What an operator must act on.
    pub(super) fn problem(&self) -> Option<&'static str> {
        self.locator.tree.borrow().root.is_none().then_some(
            "the kubelet's cgroups are not found, so a pod that starts is open until it is enrolled: set \
             kubernetes.podsCgroup",
        )
    }

    /// Takes over what the node's file says.
    pub(super) fn tell_files(&self, pods: Vec<NodePod>) {
        self.tell(|told| told.files = Some(pods));
    }

    /// Takes over what the API server says.
    fn tell_cluster(&self, pods: &[NodePod]) {
        self.tell(|told| told.cluster = Some(pods.to_vec()));
    }

    fn tell(&self, tell: impl FnOnce(&mut Told)) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        tell(&mut told);
        let all: Vec<NodePod> =
            [&told.files, &told.cluster].into_iter().flatten().flatten().cloned().collect();
        self.known.send_if_modified(|known| {
            let is_news = **known != all;
            *known = Arc::new(all);
            is_news
        });
    }

    /// Where pods live, as far as is known.
    pub(super) fn places(&self) -> Arc<PodPlaces> {
        Arc::clone(&self.locator.places.borrow())
    }

    /// Takes over what the files say, and waits a little until it is known where those pods live.
    pub(super) async fn first(&self, pods: Vec<NodePod>) {
        self.tell_files(pods);
        let is_wanted = |pod: &&NodePod| pod.wanted && !pod.host_network;
        let wanted = self.known.borrow().iter().filter(is_wanted).count();
        let mut places = self.locator.places.clone();
        let located = |places: &Arc<PodPlaces>| {
            places.values().filter(|place| matches!(place, PodPlace::Netns(_))).count() == wanted
        };
        // Those that are not found by then wait.
        let _ = timeout(FIRST_LOOK, places.wait_for(located)).await;
    }

    /// What capture must know of every pod now.
    pub(super) fn gates(&self) -> PodGates {
        let is_synced = {
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.files.is_some() && (told.cluster.is_some() || !self.asks_cluster)
        };
        let tree = Arc::clone(&self.locator.tree.borrow());
        let known = Arc::clone(&self.known.borrow());
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let gates = gates(&tree, &known, &self.places(), is_synced.then_some((&mut *unknown, now)));
        PodGates { root: tree.root.clone(), refuse: self.refuse, gates }
    }

    /// Until when nothing changes by itself.
    fn next(&self) -> Duration {
        let unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let ages = unknown.values().map(Instant::elapsed).filter(|age| *age < UNKNOWN);
        ages.map(|age| UNKNOWN.saturating_sub(age) + Duration::from_millis(1)).min().unwrap_or(UNKNOWN * 30)
    }
}

/// Takes over which pods the API server has bound to this node, and says where they live, until stopped. What it says at
/// this moment must be whole.
pub(super) fn follow_cluster(runtime: &Arc<Runtime>, cluster: &Cluster, stop: &CancellationToken) {
    let (Some(pods), stop) = (&runtime.pods, stop.clone()) else { return };
    let (mut node_pods, tell_places) = (cluster.node_pods(), cluster.places());
    let mut places = pods.locator.places.clone();
    pods.tell_cluster(&node_pods.borrow_and_update());
    let runtime = Arc::clone(runtime);
    tokio::spawn(async move {
        let Some(pods) = &runtime.pods else { return };
        loop {
            let found = Arc::clone(&places.borrow_and_update());
            tell_places.send_if_modified(|told| {
                let is_news = *told != found;
                *told = found;
                is_news
            });
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = node_pods.changed() => pods.tell_cluster(&node_pods.borrow_and_update()),
                Ok(()) = places.changed() => {}
                else => return,
            }
        }
    });
}

/// Keeps capture told, until stopped.
pub(super) async fn follow(runtime: Arc<Runtime>, stop: CancellationToken) {
    let Some(pods) = &runtime.pods else { return };
    let (mut places, mut tree) = (pods.locator.places.clone(), pods.locator.tree.clone());
    let mut known = pods.known.subscribe();
    places.mark_changed();
    loop {
        runtime.gate_pods();
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = places.changed() => {
                places.borrow_and_update();
                runtime.gate_pods();
                runtime.follow_places();
            }
            Ok(()) = tree.changed() => {}
            Ok(()) = known.changed() => {}
            () = sleep(pods.next()) => {}
        }
        tree.borrow_and_update();
        known.borrow_and_update();
    }
}

/// What each cgroup is. `since`: since when nobody speaks of some of them, and now; none: not everybody has spoken yet.
fn gates(
    tree: &PodTree,
    pods: &[NodePod],
    places: &PodPlaces,
    since: Option<(&mut HashMap<u64, Instant>, Instant)>,
) -> HashMap<u64, PodGate> {
    let known: HashMap<&PodUid, &NodePod> = pods.iter().map(|pod| (&pod.uid, pod)).collect();
    let mut gates: HashMap<u64, PodGate> = tree.groups.iter().map(|(id, _)| (*id, PodGate::Group)).collect();
    let mut unknown = Vec::new();
    for cgroup in &tree.pods {
        let gate = match known.get(&cgroup.uid) {
            Some(pod) if pod.wanted && !pod.host_network => match places.get(&cgroup.uid) {
                Some(PodPlace::Netns(path)) => PodGate::Wanted(Some(path.clone())),
                Some(PodPlace::Unknown(_)) | None => PodGate::Wanted(None),
            },
            Some(_) => PodGate::Free,
            None => {
                unknown.push(cgroup.id);
                continue;
            }
        };
        gates.insert(cgroup.id, gate);
    }
    if let Some((since, now)) = since {
        since.retain(|id, _| unknown.contains(id));
        for id in unknown {
            let seen = *since.entry(id).or_insert(now);
            if now.duration_since(seen) >= UNKNOWN {
                gates.insert(id, PodGate::Free);
            }
        }
    }
    gates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::PodCgroup;

    fn pod(uid: &str, wanted: bool, host_network: bool) -> NodePod {
        NodePod { uid: PodUid(uid.into()), namespace: "shop".into(), name: uid.into(), host_network, wanted }
    }

    fn tree(uids: &[&str]) -> PodTree {
        let cgroup = |(at, uid): (usize, &&str)| PodCgroup {
            uid: PodUid((*uid).into()),
            id: at as u64,
            path: format!("/k/pod{uid}").into(),
        };
        let pods = uids.iter().enumerate().map(cgroup).collect();
        PodTree { root: Some("/k".into()), groups: vec![(99, "/k/burstable".into())], pods }
    }

    #[test]
    fn only_pods_that_are_none_of_ours_go_free() {
        let tree = tree(&["here", "lost", "plain", "host"]);
        let pods = [
            pod("here", true, false),
            pod("lost", true, false),
            pod("plain", false, false),
            pod("host", true, true),
        ];
        let places = PodPlaces::from([
            (PodUid("here".into()), PodPlace::Netns("/n".into())),
            (PodUid("lost".into()), PodPlace::Unknown("no".into())),
        ]);
        let gates = gates(&tree, &pods, &places, None);
        let seen: Vec<_> = [0, 1, 2, 3, 99].iter().map(|id| gates[id].clone()).collect();
        let (free, wanted) = (PodGate::Free, |path: Option<&str>| PodGate::Wanted(path.map(Into::into)));
        assert_eq!(seen, [wanted(Some("/n")), wanted(None), free.clone(), free, PodGate::Group]);
    }

    #[test]
    fn a_pod_that_nobody_speaks_of_goes_free_after_a_while_and_only_once_all_have_spoken() {
        let tree = tree(&["strange"]);
        let none = PodPlaces::new();
        let (mut since, begin) = (HashMap::new(), Instant::now());
        let mut gate = |after: Option<Duration>, pods: &[NodePod]| {
            let since = after.map(|after| (&mut since, begin + after));
            gates(&tree, pods, &none, since).get(&0).cloned()
        };
        assert_eq!(gate(None, &[]), None);
        assert_eq!(gate(Some(Duration::ZERO), &[]), None);
        assert_eq!(gate(Some(UNKNOWN / 2), &[]), None);
        assert_eq!(gate(Some(UNKNOWN), &[]), Some(PodGate::Free));
        // It was wanted after all.
        assert_eq!(gate(Some(UNKNOWN), &[pod("strange", true, false)]), Some(PodGate::Wanted(None)));
        assert_eq!(gate(Some(UNKNOWN * 2), &[]), None);
    }
}
