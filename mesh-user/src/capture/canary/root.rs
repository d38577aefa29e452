//! The trap of an ineffective root: programs attached to a cgroup that no workload is below look healthy and
//! capture nothing. The canary makes its own cgroup below the attached one, so it cannot see that; this does.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::Capability;
use crate::sys::cgroup;

const NAME: &str = "capture root";
const MEANING: &str =
    "hooks are at the root of the cgroup v2 tree; else processes elsewhere in the tree are not captured";

/// Whether the configured cgroup is the root of the whole tree.
pub(super) fn capability(attached: &Path) -> Capability {
    let (proven, detail) = match cgroup::is_true_root(attached) {
        Ok(true) => (true, format!("{} is the root", attached.display())),
        Ok(false) => (
            false,
            format!("{} is not the root: only sockets made below it are captured", attached.display()),
        ),
        Err(error) => (false, format!("{}: {error}", attached.display())),
    };
    Capability { name: NAME, proven, required: false, meaning: MEANING, detail }
}

/// Whether a cgroup lies in another, both as `/proc/PID/cgroup` shows them. From a cgroup namespace what is not below its root
/// begins with `/..` for each level up to where the ways part (`cgroup_namespaces(7)`); levels whose names are then not shown
/// count as being in the other one, since nothing says that they are not.
fn is_below(own: &Path, other: &Path) -> bool {
    let split = |path: &Path| {
        let names: Vec<_> = path.iter().skip(1).map(std::ffi::OsStr::to_owned).collect();
        let up = names.iter().take_while(|name| *name == "..").count();
        (up, names)
    };
    let ((own_up, own), (other_up, other)) = (split(own), split(other));
    match own_up.cmp(&other_up) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal => own.starts_with(&other),
        std::cmp::Ordering::Greater => false,
    }
}

/// Processes that live in one of these namespaces (by inode number) but whose cgroup is not below the attached
/// one: what they connect to is not captured. Reads `/proc`; processes that end meanwhile are left out.
pub fn sockets_outside(attached: &Path, netns_inodes: &BTreeSet<u64>) -> Vec<(u64, u32, PathBuf)> {
    let Ok(Some(below)) = cgroup::path_in_tree(attached) else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut outside = Vec::new();
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(netns) = fs::metadata(entry.path().join("ns/net")).map(|netns| netns.ino()) else { continue };
        if !netns_inodes.contains(&netns) {
            continue;
        }
        let Ok(cgroups) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
        let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
        if let Some(own) = own.filter(|own| !is_below(Path::new(own), &below)) {
            outside.push((netns, pid, PathBuf::from(own)));
        }
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_is_told_from_a_cgroup_namespace_too() {
        for (own, other, wanted) in [
            ("/a/b", "/", true),
            ("/a/b", "/a", true),
            ("/ab", "/a", false),
            ("/b", "/a", false),
            // The root of the tree, four levels above the namespace's.
            ("/../../kubepods/x", "/../../../..", true),
            ("/../../../../system.slice/y", "/../../../..", true),
            ("/", "/../../../..", true),
            ("/../../a/x", "/../../a", true),
            ("/../../b/x", "/../../a", false),
            ("/../../../b/x", "/../../a", false),
        ] {
            assert_eq!(is_below(Path::new(own), Path::new(other)), wanted, "{own} in {other}");
        }
    }
}
