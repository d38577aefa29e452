//! Why the daemon does not start.

use crate::{
    admin::ServerError,
    ca::{CaError, workload_api},
    capture::CaptureError,
    discovery::{DiscoveryError, kubernetes::KubernetesError},
    telemetry::logging::LoggingError,
};

/// Why the daemon does not start, or did not stop in order.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Not root.
    #[error("meshd needs root: it loads eBPF programs and enters network namespaces")]
    NotRoot,
    /// Configuration, policies or trust bundles.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// The API server's address or credentials.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// The log filter.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// The certificate authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A field of `ca` that its provider needs.
    #[error("ca.{0} is missing or wrong: `meshctl config validate` says more")]
    CaField(&'static str),
    /// The eBPF side.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] ServerError),
    /// The Workload API's socket.
    #[error(transparent)]
    WorkloadApi(#[from] workload_api::ServerError),
    /// What token issuers' keys are fetched with.
    #[error("the keys of token issuers cannot be fetched: {0}; see jwks.extraRoots")]
    Jwks(String),
    /// The Workload API hands out keys.
    #[error(
        "workloadApi.enabled: ca.provider workload-api gives no SVIDs for keys of workloads; they can ask it themselves"
    )]
    NoWorkloadKeys,
    /// No cgroup v2 in sight.
    #[error("no cgroup v2 mount was found; mount one, or name it by capture.cgroup")]
    NoCgroup,
    /// A proof that meshd cannot do without failed.
    #[error("the canary did not prove {0}; `meshctl check` on another node shows what it should say")]
    Canary(String),
    /// Threads, signals, sockets.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: std::io::Error,
    },
}

impl DaemonError {
    pub(super) fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}
