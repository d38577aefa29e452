//! The cgroups that a kubelet makes of pods: `kubepods-burstable-pod<UID>.slice` below `kubepods.slice` with systemd as
//! driver (dashes of the UID as underscores), `pod<UID>` below `kubepods` with cgroupfs. Those of less than guaranteed
//! quality of service lie one deeper (k8s.io/kubernetes, `pkg/kubelet/cm/pod_container_manager_linux.go`).

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use super::PodUid;
use crate::sys::{cgroup, proc_dir::ProcDir};

/// Cgroups of one node that are looked at.
const MAX_CGROUPS: usize = 8192;
/// Containers' cgroups lie in their pod's, an engine's or an init system's own in theirs.
const MAX_DEPTH: usize = 4;
/// Processes of a pod that are looked at.
const MAX_PROCESSES: usize = 256;
/// UIDs are of 36 characters, a static pod's of 32.
const MAX_UID_BYTES: usize = 64;

/// One pod's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCgroup {
    /// Whose, as its name says.
    pub uid: PodUid,
    /// The kernel's id, which it never uses again.
    pub id: u64,
    /// Where.
    pub path: PathBuf,
}

/// What the kubelet has made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodTree {
    /// The cgroup below which pods are; none: there is none.
    pub root: Option<PathBuf>,
    /// Ids of the cgroups that have pods of one quality of service.
    pub groups: Vec<(u64, PathBuf)>,
    /// The pods' own.
    pub pods: Vec<PodCgroup>,
}

/// The pod that a cgroup's name speaks of.
pub(super) fn uid_of(name: &str) -> Option<PodUid> {
    let uid = if let Some(slice) = name.strip_suffix(".slice") {
        let (_, uid) = of_kubepods(slice)?.rsplit_once("-pod")?;
        uid.replace('_', "-")
    } else {
        name.strip_prefix("pod")?.to_owned()
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let good = !uid.is_empty() && uid.len() <= MAX_UID_BYTES && uid.bytes().all(plain);
    good.then(|| PodUid(uid.into()))
}

/// kind's kubelet puts its own slice before the name.
fn of_kubepods(slice: &str) -> Option<&str> {
    slice.strip_prefix("kubelet-").unwrap_or(slice).strip_prefix("kubepods")
}

/// Whether a cgroup's path leads through this pod's.
fn is_in(cgroup: &Path, pod: &PodUid) -> bool {
    cgroup.components().any(|part| match part {
        Component::Normal(name) => name.to_str().and_then(uid_of).is_some_and(|uid| uid == *pod),
        _ => false,
    })
}

/// Whether a process is the pod's.
pub(super) fn is_of(process: &ProcDir, pod: &PodUid) -> bool {
    process.cgroup().ok().flatten().is_some_and(|cgroup| is_in(&cgroup, pod))
}

/// Where the kubelet's tree is: the configured one, else by the names that kubelets use.
fn find_root(configured: Option<&Path>) -> io::Result<Option<PathBuf>> {
    if let Some(path) = configured {
        return Ok(path.is_dir().then(|| path.to_path_buf()));
    }
    let Some(mount) = cgroup::cgroup2_mount()? else { return Ok(None) };
    // kind's kubelet has a tree of its own below the node's.
    let names = ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];
    Ok(names.iter().map(|name| mount.join(name)).find(|path| path.is_dir()))
}

/// Looks at what is there now.
///
/// # Errors
/// When the tree cannot be read, or has more cgroups than a node can have.
pub(super) fn look(configured: Option<&Path>) -> io::Result<PodTree> {
    let Some(root) = find_root(configured)? else { return Ok(PodTree::default()) };
    let mut tree = PodTree { root: Some(root.clone()), ..PodTree::default() };
    let mut groups = vec![root.clone()];
    while let Some(group) = groups.pop() {
        let at_root = group == root;
        for (name, path) in folders(&group)? {
            // Gone already: the next look will not see it either.
            let Ok(meta) = fs::metadata(&path) else { continue };
            if let Some(uid) = uid_of(&name) {
                tree.pods.push(PodCgroup { uid, id: meta.ino(), path });
            } else if at_root {
                tree.groups.push((meta.ino(), path.clone()));
                groups.push(path);
            }
            if tree.pods.len() + tree.groups.len() > MAX_CGROUPS {
                return Err(io::Error::other(format!(
                    "more than {MAX_CGROUPS} cgroups below {}",
                    root.display()
                )));
            }
        }
    }
    Ok(tree)
}

fn folders(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect())
}

/// The pod's first process that still lives: its sandbox's, which is older than any of its containers.
pub(super) fn oldest_process(pod: &PodCgroup) -> Option<ProcDir> {
    let mut oldest: Option<(u64, ProcDir)> = None;
    let mut seen = 0;
    let mut cgroups = vec![(pod.path.clone(), 0)];
    while let Some((cgroup, depth)) = cgroups.pop() {
        let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1) {
            seen += 1;
            if seen > MAX_PROCESSES {
                return oldest.map(|(_, process)| process);
            }
            let Ok(process) = ProcDir::open(pid) else { continue };
            // The number may have been another process's by the time it was opened.
            if !is_of(&process, &pod.uid) {
                continue;
            }
            let Ok(started) = process.started() else { continue };
            if oldest.as_ref().is_none_or(|(first, _)| started < *first) {
                oldest = Some((started, process));
            }
        }
        if depth < MAX_DEPTH {
            let below = folders(&cgroup).unwrap_or_default();
            cgroups.extend(below.into_iter().map(|(_, path)| (path, depth + 1)));
        }
    }
    oldest.map(|(_, process)| process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_drivers_are_read() {
        let uid = |name| uid_of(name).map(|uid| uid.to_string());
        let dashed = Some("0f6e7a52-22a9-4d2e-9a3f-6c1d1b2a3c4d".to_owned());
        for name in [
            "kubepods-burstable-pod0f6e7a52_22a9_4d2e_9a3f_6c1d1b2a3c4d.slice",
            "kubepods-pod0f6e7a52_22a9_4d2e_9a3f_6c1d1b2a3c4d.slice",
            "kubelet-kubepods-pod0f6e7a52_22a9_4d2e_9a3f_6c1d1b2a3c4d.slice",
            "pod0f6e7a52-22a9-4d2e-9a3f-6c1d1b2a3c4d",
        ] {
            assert_eq!(uid(name), dashed, "{name}");
        }
        assert_eq!(
            uid("pod4b1c5ac2e7d3a3bb51d4f0c6d5c8c9a1"),
            Some("4b1c5ac2e7d3a3bb51d4f0c6d5c8c9a1".into())
        );
        for name in [
            "kubepods-burstable.slice",
            "burstable",
            "pod",
            "pod..",
            "pod/x",
            "podx y",
            "cri-containerd-1.scope",
        ] {
            assert_eq!(uid(name), None, "{name}");
        }
    }

    #[test]
    fn pods_of_every_quality_of_service_are_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(dir.path().join(path)).unwrap();
        make("kubepods-podaa.slice/cri-1.scope/podzz");
        make("kubepods-burstable.slice/kubepods-burstable-podbb_1.slice");
        make("kubepods-besteffort.slice/other/podcc");
        let tree = look(Some(dir.path())).unwrap();
        let mut uids: Vec<_> = tree.pods.iter().map(|pod| pod.uid.to_string()).collect();
        uids.sort();
        assert_eq!(uids, ["aa", "bb-1"]);
        assert_eq!(tree.groups.len(), 2);
        assert_eq!(look(Some(&dir.path().join("absent"))).unwrap(), PodTree::default());
    }

    #[test]
    fn a_path_is_a_pods_by_a_whole_name_of_it() {
        let pod = PodUid("ab".into());
        assert!(is_in(Path::new("/../../kubepods/burstable/podab/x"), &pod));
        assert!(is_in(Path::new("/kubepods.slice/kubepods-podab.slice/cri-1.scope"), &pod));
        assert!(!is_in(Path::new("/kubepods/podabc"), &pod) && !is_in(Path::new("/kubepods/ab"), &pod));
    }
}
