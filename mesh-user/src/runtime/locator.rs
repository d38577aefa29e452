//! Finds the network namespace of each wanted pod of this node, and follows pods whose sandbox is made anew. The runtime
//! is asked; where none answers, a process in the pod's cgroup is looked for. Neither is believed when it names the host's
//! namespace or one that another pod has.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    NodePod, PodPlace, PodPlaces, PodUid,
    cri::{Cri, CriError, DEFAULT_SOCKETS},
    info::Whereabouts,
    links::Links,
    tree::{self, PodTree},
    watch::follow,
};
use crate::sys::{netns::NetNs, proc_dir::ProcDir};

/// Between two tries while a wanted pod is not found: doubled each time, from and to.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Between two looks whether sandboxes are still the same.
const RECHECK: Duration = Duration::from_secs(5);

/// How pods are looked for.
#[derive(Debug, Clone, Default)]
pub struct LocatorSettings {
    /// Sockets of container runtimes; none: the usual ones.
    pub sockets: Vec<PathBuf>,
    /// The cgroup below which the kubelet makes those of pods; none: looked for.
    pub pods_cgroup: Option<PathBuf>,
    /// A folder of meshd's own for files by which namespaces are opened. What is in it is removed.
    pub folder: PathBuf,
}

/// What is known of the pods of this node, followed until it is stopped.
#[derive(Debug, Clone)]
pub struct Locator {
    /// Where wanted pods live. Those that share the host's namespace are not among them.
    pub places: watch::Receiver<Arc<PodPlaces>>,
    /// Every pod's cgroup.
    pub tree: watch::Receiver<Arc<PodTree>>,
}

impl Locator {
    /// Begins to look; must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the folder cannot be made, or this process's own namespace not be opened.
    pub fn start(
        settings: LocatorSettings,
        pods: watch::Receiver<Arc<Vec<NodePod>>>,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let tree = follow(settings.pods_cgroup.clone(), stop.clone());
        let (tell, places) = watch::channel(Arc::new(PodPlaces::new()));
        let usual = || DEFAULT_SOCKETS.iter().map(PathBuf::from).collect();
        let finder = Finder {
            links: Links::make(&settings.folder)?,
            sockets: if settings.sockets.is_empty() { usual() } else { settings.sockets },
            host: NetNs::current()?.cookie(),
            cri: None,
            sandboxes: HashMap::new(),
            complaint: None,
        };
        let (mut following, mut stopped) = (tree.clone(), stop);
        tokio::spawn(async move { finder.run(pods, &mut following, &tell, &mut stopped).await });
        Ok(Self { places, tree })
    }
}

struct Finder {
    sockets: Vec<PathBuf>,
    links: Links,
    /// The host's namespace, where no pod of ours is.
    host: u64,
    cri: Option<Cri>,
    /// The sandbox whose namespace is held.
    sandboxes: HashMap<PodUid, String>,
    /// What was last said against the runtime.
    complaint: Option<String>,
}

impl Finder {
    async fn run(
        mut self,
        mut pods: watch::Receiver<Arc<Vec<NodePod>>>,
        tree: &mut watch::Receiver<Arc<PodTree>>,
        tell: &watch::Sender<Arc<PodPlaces>>,
        stop: &mut CancellationToken,
    ) {
        let mut pause = RETRY.0;
        loop {
            let (known, cgroups) =
                (Arc::clone(&pods.borrow_and_update()), Arc::clone(&tree.borrow_and_update()));
            let places = tokio::select! {
                () = stop.cancelled() => return,
                places = self.look(&known, &cgroups) => places,
            };
            let is_missing = places.values().any(|place| matches!(place, PodPlace::Unknown(_)));
            let places = Arc::new(places);
            tell.send_if_modified(|told| {
                let is_news = **told != *places;
                *told = places;
                is_news
            });
            let rest = if is_missing { pause } else { RECHECK };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = pods.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    pause = RETRY.0;
                }
                Ok(()) = tree.changed() => pause = RETRY.0,
                () = sleep(rest) => pause = (pause * 2).min(RETRY.1),
            }
        }
    }

    async fn look(&mut self, pods: &[NodePod], tree: &PodTree) -> PodPlaces {
        let wanted: Vec<&NodePod> = pods.iter().filter(|pod| pod.wanted && !pod.host_network).collect();
        let uids: HashSet<&PodUid> = wanted.iter().map(|pod| &pod.uid).collect();
        self.links.retain(|pod| uids.contains(pod));
        self.sandboxes.retain(|pod, _| uids.contains(pod));
        if wanted.is_empty() {
            return PodPlaces::new();
        }
        let whys = match self.ask(&wanted).await {
            Ok(whys) => {
                self.complaint = None;
                whys
            }
            Err(error) => {
                self.cri = None;
                let error = error.to_string();
                if self.complaint.as_ref() != Some(&error) {
                    tracing::warn!(%error, "pods are looked for in the cgroup tree");
                    self.complaint = Some(error);
                }
                self.search(&wanted, tree)
            }
        };
        let place = |pod: &NodePod| match self.links.of(&pod.uid) {
            Some(path) => PodPlace::Netns(path),
            None => PodPlace::Unknown(whys.get(&pod.uid).cloned().unwrap_or_default()),
        };
        wanted.iter().map(|pod| (pod.uid.clone(), place(pod))).collect()
    }

    /// Asks the runtime; why pods were not found.
    async fn ask(&mut self, wanted: &[&NodePod]) -> Result<HashMap<PodUid, String>, CriError> {
        let mut cri = match self.cri.take() {
            Some(cri) => cri,
            None => Cri::connect(&self.sockets).await?,
        };
        let mut whys = HashMap::new();
        let sandboxes = cri.sandboxes().await?;
        for pod in wanted {
            let Some(sandbox) = sandboxes.get(&pod.uid) else {
                whys.insert(
                    pod.uid.clone(),
                    "the container runtime has no sandbox of it that runs".to_owned(),
                );
                continue;
            };
            if !sandbox.is_of(pod) {
                whys.insert(
                    pod.uid.clone(),
                    "the container runtime knows its UID by another name".to_owned(),
                );
                continue;
            }
            if self.sandboxes.get(&pod.uid) == Some(&sandbox.id) {
                continue;
            }
            let found = cri.whereabouts(&sandbox.id).await?;
            match found.and_then(|found| open(&pod.uid, &found)) {
                Ok(netns) => match self.take(&pod.uid, netns) {
                    Ok(()) => drop(self.sandboxes.insert(pod.uid.clone(), sandbox.id.clone())),
                    Err(why) => drop(whys.insert(pod.uid.clone(), why)),
                },
                Err(why) => drop(whys.insert(pod.uid.clone(), why)),
            }
        }
        self.cri = Some(cri);
        Ok(whys)
    }

    /// Looks in the cgroup tree; why pods were not found.
    fn search(&mut self, wanted: &[&NodePod], tree: &PodTree) -> HashMap<PodUid, String> {
        let cgroups: HashMap<&PodUid, _> = tree.pods.iter().map(|cgroup| (&cgroup.uid, cgroup)).collect();
        let mut whys = HashMap::new();
        for pod in wanted {
            let found = match cgroups.get(&pod.uid) {
                None => Err("no container runtime answers, and it has no cgroup".to_owned()),
                Some(cgroup) => match tree::oldest_process(cgroup) {
                    None => Err("no container runtime answers, and no process is in its cgroup".to_owned()),
                    Some(process) => netns_of(&process),
                },
            };
            if let Err(why) = found.and_then(|netns| self.take(&pod.uid, netns)) {
                whys.insert(pod.uid.clone(), why);
            }
        }
        whys
    }

    fn take(&mut self, pod: &PodUid, netns: NetNs) -> Result<(), String> {
        if netns.cookie() == self.host {
            return Err("it is in the host's network namespace".to_owned());
        }
        if let Some(other) = self.links.owner(netns.cookie()).filter(|other| *other != pod) {
            return Err(format!("pod {other} has the same network namespace"));
        }
        self.links.hold(pod, netns).map_err(|error| format!("its namespace cannot be handed on: {error}"))
    }
}

/// By the file, by the process, and by both only where they agree.
fn open(pod: &PodUid, found: &Whereabouts) -> Result<NetNs, String> {
    let by_file = found.netns.as_deref().map(open_file);
    let by_process = found.pid.map(|pid| open_process(pid, pod));
    match (by_file, by_process) {
        (Some(Ok(file)), Some(Ok(process))) if file.cookie() != process.cookie() => {
            Err("the container runtime's process and file of it are of two network namespaces".to_owned())
        }
        (Some(Ok(netns)), _) | (_, Some(Ok(netns))) => Ok(netns),
        (Some(Err(why)), Some(Err(other))) => Err(format!("{why}; {other}")),
        (Some(Err(why)), None) | (None, Some(Err(why))) => Err(why),
        (None, None) => Err("the container runtime names no network namespace".to_owned()),
    }
}

fn open_file(path: &Path) -> Result<NetNs, String> {
    NetNs::open_untrusted(path).map_err(|error| format!("the runtime's file {}: {error}", path.display()))
}

fn open_process(pid: i32, pod: &PodUid) -> Result<NetNs, String> {
    let process = ProcDir::open(pid).map_err(|error| format!("the runtime's process {pid}: {error}"))?;
    // In another process namespace the number is another process's.
    if !tree::is_of(&process, pod) {
        return Err(format!(
            "process {pid} is not in the pod's cgroup (meshd needs the host's process namespace)"
        ));
    }
    netns_of(&process)
}

fn netns_of(process: &ProcDir) -> Result<NetNs, String> {
    let netns = process.netns().and_then(NetNs::from_file);
    netns.map_err(|error| format!("a process's network namespace cannot be opened: {error}"))
}

#[cfg(test)]
mod tests;
