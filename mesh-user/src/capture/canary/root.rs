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
        if let Some(own) = own.filter(|own| !Path::new(own).starts_with(&below)) {
            outside.push((netns, pid, PathBuf::from(own)));
        }
    }
    outside
}
