//! Sources that build the next [`crate::world::World`]: files, and Kubernetes beside them. A snapshot is whole: configuration, world and
//! policies of one moment. A bad input never replaces a good snapshot.

mod files;
mod inputs;
pub mod jwks;
pub mod kubernetes;
mod origins;
mod restart;
mod system_roots;
#[cfg(test)]
mod tests;
pub(crate) mod web;

use std::{path::PathBuf, sync::Arc};

use serde::Serialize;

pub use files::FileSource;
pub use origins::Origins;
pub use web::WebError;

use crate::{
    ca::CaError,
    config::{Config, ConfigError},
    identity::TrustBundles,
    policy::{CompiledPolicies, PolicyError, PolicySet, PolicyStatus},
    world::{World, WorldError},
};

/// Everything that was discovered, of one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up from 1.
    pub generation: u64,
    /// What runs: fields that need a restart keep the values the daemon started with. Without workloads and services:
    /// those are in `world`.
    pub config: Arc<Config>,
    /// Workloads, services, addresses.
    pub world: Arc<World>,
    /// Policy of each workload of `world`.
    pub policies: Arc<CompiledPolicies>,
    /// The policy documents.
    pub documents: Arc<PolicySet>,
    /// What became of each policy document.
    pub policy_status: Vec<PolicyStatus>,
    /// TLS to servers outside the mesh's identities, from the files that rules name.
    pub origins: Origins,
    /// Roots of other trust domains, from files.
    pub bundles: TrustBundles,
    /// Whether all sources have been heard. Until then nothing of it may be put into force: what capture keeps of an earlier
    /// run would be undone.
    pub complete: bool,
    /// For the log: documents that were passed over, a missing folder.
    pub warnings: Vec<String>,
}

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reload {
    /// Whether there is a new snapshot.
    pub changed: bool,
    /// The snapshot in use.
    pub generation: u64,
    /// Fields whose change takes effect at the next start.
    pub needs_restart: Vec<&'static str>,
}

/// What the source last told its subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// The snapshot in use.
    pub generation: u64,
    /// Reloads that failed, since the start.
    pub failures: u64,
}

/// How the source is doing, for status and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The snapshot in use.
    pub generation: u64,
    /// Unix time it was loaded.
    pub loaded_at_seconds: u64,
    /// Reloads that made a new snapshot.
    pub reloads: u64,
    /// Reloads that failed, since the start.
    pub failures: u64,
    /// Why the last reload failed; none: the files are in use as they are.
    pub last_error: Option<String>,
    /// Unix time since when the files are not in use.
    pub failing_since_seconds: Option<u64>,
    /// Fields whose change takes effect at the next start.
    pub needs_restart: Vec<&'static str>,
}

/// Why the files make no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The node's file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The world it describes.
    #[error(transparent)]
    World(#[from] WorldError),
    /// A policy document.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A trust bundle.
    #[error(transparent)]
    Bundle(#[from] CaError),
    /// A file or folder could not be read.
    #[error("{}: cannot read it: {source}; check the path and its permissions", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file names a folder of policies and there is none: a mount that is late would leave all open.
    #[error("{}: no such folder; make it, empty for no policies, or mend policiesDir", .0.display())]
    NoPolicies(PathBuf),
    /// Policies were there and their folder is gone: dropping them all would open what they close.
    #[error("{}: the policies folder has gone; an empty one means no policies", .0.display())]
    PoliciesGone(PathBuf),
}
