//! What the CA asks of a Kubernetes API server: pods and where they run, one writer among replicas, their common state, and
//! the roots told to whoever starts. Objects are read as a stranger's: bounded in number and size, and only what is needed.

mod placement;
mod pods;
mod roots;
mod secrets;
#[cfg(test)]
mod tests;

use std::{path::Path, time::Duration};

use kube::Client;

pub use placement::WatchedPods;
pub(in crate::ca) use pods::{PodNode, Pods};
pub use roots::{RootsMap, publish_roots};
pub use secrets::{SharedState, SharedStateError};

pub use crate::runtime::KubernetesError;
use crate::runtime::{Access, api_server, client};

/// What reviewing tokens and knowing what runs where asks of the API server, in all namespaces.
pub const ACCESS: &[Access] = &[
    Access::new("authentication.k8s.io", "tokenreviews", &["create"]),
    Access::new("", "pods", &["get", "list", "watch"]),
];
/// What keeping the state and telling the roots asks, beside the Lease, in meshd's own namespace.
pub const STATE_ACCESS: &[Access] = &[
    Access::new("", "secrets", &["create", "delete", "get", "list", "update"]),
    Access::new("", "configmaps", &["create"]),
    Access::new("", "configmaps", &["patch"]).named("meshd-ca-root"),
];

/// Until the API server has answered a call.
const TIMEOUT: Duration = Duration::from_secs(8);

/// A client of the API server of `kubeconfig`, or of the pod that this runs in. Nothing is asked yet.
///
/// # Errors
/// When there is no such file, or it makes no sense.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, KubernetesError> {
    let mut config = api_server(kubeconfig).await?;
    config.connect_timeout = Some(TIMEOUT);
    config.write_timeout = Some(TIMEOUT);
    // A watch is silent for longer than a call may be: calls are bounded one by one.
    config.read_timeout = Some(Duration::from_secs(330));
    client(config)
}
