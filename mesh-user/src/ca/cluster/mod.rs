//! What the CA asks of a Kubernetes API server: pods and where they run, one writer among replicas, their common state, and
//! the roots told to whoever starts. Objects are read as a stranger's: bounded in number and size, and only what is needed.

mod lease;
mod placement;
mod pods;
mod roots;
mod secrets;
#[cfg(test)]
mod tests;

use std::{path::Path, time::Duration};

use kube::Client;

pub use lease::{Lease, LeaseSettings, Lost};
pub use placement::WatchedPods;
pub(in crate::ca) use pods::{PodNode, Pods};
pub use roots::{RootsMap, publish_roots};
pub use secrets::{SharedState, SharedStateError};

pub use crate::runtime::KubernetesError;
use crate::runtime::{api_server, client};

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
