//! Where the pods of this node live: asked of the container runtime (CRI), else looked for in the cgroup tree.

mod access;
mod api_server;
mod cri;
mod info;
pub mod lease;
mod links;
mod locator;
mod proto;
mod tree;
mod watch;

use std::{collections::HashMap, fmt, path::PathBuf, sync::Arc};

pub use access::Access;
pub use api_server::{KubernetesError, api_server, client, kubeconfig};
pub use cri::{CriError, DEFAULT_SOCKETS};
pub use lease::{Lease, LeaseSettings, Lost};
pub use locator::{Locator, LocatorSettings};
pub use tree::{PodCgroup, PodTree};

/// A pod's UID, as the API server gave it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(pub Arc<str>);

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pod that the API server has bound to this node and that has not ended, enrolled or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePod {
    /// Which.
    pub uid: PodUid,
    /// Kubernetes' namespace.
    pub namespace: Arc<str>,
    /// Unique in its namespace at one time.
    pub name: Arc<str>,
    /// It shares the host's network namespace: nothing of it can be captured.
    pub host_network: bool,
    /// Whether labels want it in the mesh.
    pub wanted: bool,
}

/// Where a pod lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodPlace {
    /// Its network namespace, by a file that stays its own while the pod lives.
    Netns(PathBuf),
    /// Not known yet, and why.
    Unknown(String),
}

/// Where each wanted pod lives.
pub type PodPlaces = HashMap<PodUid, PodPlace>;
