//! Follows the kubelet's tree of cgroups by inotify, and by a look now and then where that says nothing.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::tree::{self, PodTree};

/// A look without an event: the tree itself may have come, or events may have been lost.
const UNASKED: Duration = Duration::from_secs(5);
/// Between two looks, however much happens.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks at the tree, tells, and goes on until stopped. Receivers are told of every look that an event caused: processes
/// may have come to a pod that was there before.
pub(super) fn follow(configured: Option<PathBuf>, stop: CancellationToken) -> watch::Receiver<Arc<PodTree>> {
    let mut eyes = Eyes::open(configured);
    let (tell, told) = watch::channel(Arc::new(eyes.look()));
    tokio::spawn(async move {
        loop {
            let happened = Arc::clone(&eyes.happened);
            tokio::select! {
                () = stop.cancelled() => return,
                _ = timeout(UNASKED, happened.notified()) => {}
            }
            tell.send_replace(Arc::new(eyes.look()));
            sleep(PAUSE).await;
        }
    });
    told
}

struct Eyes {
    configured: Option<PathBuf>,
    happened: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    watched: HashSet<PathBuf>,
    complained: bool,
}

impl Eyes {
    fn open(configured: Option<PathBuf>) -> Self {
        let happened = Arc::new(Notify::new());
        let wake = Arc::clone(&happened);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own looks are events too, of another kind.
            let is_change = |event: notify::Event| !matches!(event.kind, EventKind::Access(_));
            if event.map_or(true, is_change) {
                wake.notify_one();
            }
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "pods' cgroups cannot be watched; they are looked at every few seconds"))
            .ok();
        Self { configured, happened, watcher, watched: HashSet::new(), complained: false }
    }

    /// What is there, everything of it watched before it was last looked at.
    fn look(&mut self) -> PodTree {
        loop {
            let tree = match tree::look(self.configured.as_deref()) {
                Ok(tree) => tree,
                Err(error) => {
                    if !std::mem::replace(&mut self.complained, true) {
                        tracing::warn!(%error, "pods' cgroups cannot be read; pods wait");
                    }
                    return PodTree::default();
                }
            };
            self.complained = false;
            if !self.watch(&tree) {
                return tree;
            }
        }
    }

    /// Watches what is in the tree and nothing else; whether any of it is new.
    fn watch(&mut self, tree: &PodTree) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let groups = tree.groups.iter().map(|(_, path)| path.as_path());
        let pods = tree.pods.iter().map(|pod| pod.path.as_path());
        let wanted: HashSet<&Path> = tree.root.as_deref().into_iter().chain(groups).chain(pods).collect();
        self.watched.retain(|path| {
            let stays = wanted.contains(path.as_path());
            if !stays {
                // Gone with its cgroup, as a rule.
                let _ = watcher.unwatch(path);
            }
            stays
        });
        let mut is_new = false;
        for path in wanted {
            if !self.watched.contains(path) && watcher.watch(path, RecursiveMode::NonRecursive).is_ok() {
                self.watched.insert(path.to_path_buf());
                is_new = true;
            }
        }
        is_new
    }
}
