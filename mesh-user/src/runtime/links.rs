//! The files by which others open pods' network namespaces: links in a folder of meshd's own, each named after the
//! namespace's cookie, a number that the kernel never uses again, and leading to a descriptor that is held meanwhile. A
//! path that somebody still has from a pod that is gone leads nowhere, never to another pod.

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::PodUid;
use crate::sys::netns::NetNs;

/// Who has begun to open a link ends within this time: until then the descriptor's number is nobody else's.
const GRACE: Duration = Duration::from_secs(10);

/// The namespaces that are held.
#[derive(Debug)]
pub(super) struct Links {
    folder: PathBuf,
    held: HashMap<PodUid, NetNs>,
    leaving: VecDeque<(Instant, NetNs)>,
}

impl Links {
    /// Begins with an empty folder: what an earlier run left leads nowhere.
    pub(super) fn make(folder: &Path) -> io::Result<Self> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Self { folder: folder.to_path_buf(), held: HashMap::new(), leaving: VecDeque::new() })
    }

    fn path(&self, netns: &NetNs) -> PathBuf {
        self.folder.join(netns.cookie().to_string())
    }

    /// The path of the namespace that a pod has.
    pub(super) fn of(&self, pod: &PodUid) -> Option<PathBuf> {
        self.held.get(pod).map(|netns| self.path(netns))
    }

    /// Which pod has the namespace with this cookie.
    pub(super) fn owner(&self, cookie: u64) -> Option<&PodUid> {
        self.held.iter().find(|(_, netns)| netns.cookie() == cookie).map(|(pod, _)| pod)
    }

    /// Gives a pod this namespace, in place of the one it had.
    pub(super) fn hold(&mut self, pod: &PodUid, netns: NetNs) -> io::Result<()> {
        if self.held.get(pod).is_some_and(|held| held.cookie() == netns.cookie()) {
            return Ok(());
        }
        self.release(pod);
        symlink(netns.path_for_others(), self.path(&netns))?;
        self.held.insert(pod.clone(), netns);
        Ok(())
    }

    /// Keeps those of these pods only.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(&PodUid) -> bool) {
        let gone: Vec<_> = self.held.keys().filter(|pod| !is_wanted(pod)).cloned().collect();
        for pod in &gone {
            self.release(pod);
        }
        while self.leaving.front().is_some_and(|(since, _)| since.elapsed() > GRACE) {
            self.leaving.pop_front();
        }
    }

    fn release(&mut self, pod: &PodUid) {
        if let Some(netns) = self.held.remove(pod) {
            // Without its link it is unreachable; one that stays leads to a descriptor that is closed.
            let _ = fs::remove_file(self.path(&netns));
            self.leaving.push_back((Instant::now(), netns));
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_its_own_namespace_or_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pods");
        let mut links = Links::make(&folder).unwrap();
        let (a, b) = (PodUid("a".into()), PodUid("b".into()));
        let Ok(first) = NetNs::create() else { panic!("making a network namespace needs root") };
        let cookie = first.cookie();
        links.hold(&a, first).unwrap();
        let path = links.of(&a).unwrap();
        assert_eq!(NetNs::open(&path).unwrap().cookie(), cookie);
        assert_eq!(links.owner(cookie), Some(&a));
        // A restarted sandbox.
        links.hold(&a, NetNs::create().unwrap()).unwrap();
        assert!(NetNs::open(&path).is_err());
        assert_ne!(links.of(&a).unwrap(), path);
        links.hold(&b, NetNs::create().unwrap()).unwrap();
        links.retain(|pod| *pod == b);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        drop(links);
        assert!(!folder.exists());
    }
}
