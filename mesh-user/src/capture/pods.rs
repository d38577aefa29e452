//! Pods, enrolled or not, as the programs know them: by cgroup. What is wanted and not captured yet waits.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use mesh_common::{CgroupKey, PodEntry, pod_state};

use super::{CaptureError, MapUse, maps::Synced, objects::NodeObject};
use crate::sys::cgroup::Cgroup;

/// Pods of one node at one time, ended ones that nobody has tidied up yet among them.
pub(super) const PODS: u32 = 8192;

/// What is known of one of the cgroups below the pods'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodGate {
    /// A pod that is wanted in the mesh, and the path of its network namespace as the plan names it, once known.
    Wanted(Option<PathBuf>),
    /// A pod that is none of the mesh's business.
    Free,
    /// No pod: a cgroup that has pods below it.
    Group,
}

/// What is known of this node's pods. A cgroup below `root` that is not among them waits like a wanted one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodGates {
    /// The cgroup below which the kubelet makes those of pods, and its id; none: there is none yet, nothing waits.
    pub root: Option<PathBuf>,
    /// `connect` fails where it would wait.
    pub refuse: bool,
    /// By the cgroup's id.
    pub gates: HashMap<u64, PodGate>,
}

/// The map that holds them.
#[derive(Debug)]
pub(super) struct PodTable {
    gates: PodGates,
    /// Paths of the namespaces that are captured.
    captured: HashSet<PathBuf>,
    map: Synced<CgroupKey, PodEntry>,
}

/// What the programs must know beside the map.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PodsRoot {
    pub(super) id: u64,
    pub(super) levels: u32,
    pub(super) refuse: bool,
}

impl PodTable {
    pub(super) fn new(node: &NodeObject) -> Result<Self, CaptureError> {
        let map = Synced::new("PODS", PODS as usize, node.map("PODS")?);
        Ok(Self { gates: PodGates::default(), captured: HashSet::new(), map })
    }

    pub(super) fn map_use(&self) -> MapUse {
        self.map.map_use()
    }

    /// Takes over what is known now.
    pub(super) fn set(&mut self, gates: PodGates) -> Result<PodsRoot, CaptureError> {
        let root = match &gates.root {
            Some(path) => {
                let cgroup = Cgroup::open(path)
                    .map_err(|source| CaptureError::Cgroup { path: path.clone(), source })?;
                PodsRoot { id: cgroup.id, levels: cgroup.levels, refuse: gates.refuse }
            }
            None => PodsRoot::default(),
        };
        let entries = entries(&gates, &self.captured);
        if entries.len() > PODS as usize {
            return Err(CaptureError::OverCapacity {
                what: "pods on this node",
                count: entries.len(),
                limit: PODS as usize,
                setting: "nothing (it is fixed)",
            });
        }
        self.map.sync(&entries)?;
        self.gates = gates;
        Ok(root)
    }

    /// Takes over which namespaces are captured now.
    pub(super) fn set_captured(&mut self, captured: HashSet<PathBuf>) -> Result<(), CaptureError> {
        self.map.sync(&entries(&self.gates, &captured))?;
        self.captured = captured;
        Ok(())
    }
}

fn entries(gates: &PodGates, captured: &HashSet<PathBuf>) -> HashMap<CgroupKey, PodEntry> {
    let is_captured = |path: Option<&Path>| path.is_some_and(|path| captured.contains(path));
    let entry = |gate: &PodGate| match gate {
        PodGate::Wanted(path) => {
            PodEntry { state: pod_state::WANTED, captured: u32::from(is_captured(path.as_deref())) }
        }
        PodGate::Free => PodEntry { state: pod_state::FREE, captured: 0 },
        PodGate::Group => PodEntry { state: pod_state::GROUP, captured: 0 },
    };
    gates.gates.iter().map(|(id, gate)| (CgroupKey { id: *id }, entry(gate))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wanted_pod_is_captured_once_the_namespace_it_has_now_is() {
        let at = |path: &str| PodGate::Wanted(Some(path.into()));
        let gates =
            HashMap::from([(1, at("/a")), (2, at("/b")), (3, PodGate::Wanted(None)), (4, PodGate::Free)]);
        let gates = PodGates { gates, ..PodGates::default() };
        let entries = entries(&gates, &HashSet::from(["/a".into()]));
        let seen = |id| (entries[&CgroupKey { id }].state, entries[&CgroupKey { id }].captured);
        assert_eq!([1, 2, 3].map(seen), [(1, 1), (1, 0), (1, 0)]);
        assert_eq!(seen(4), (pod_state::FREE, 0));
    }
}
