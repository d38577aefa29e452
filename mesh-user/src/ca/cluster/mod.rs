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

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

pub use lease::{Lease, LeaseSettings, Lost};
pub use placement::WatchedPods;
pub(in crate::ca) use pods::{PodNode, Pods};
pub use roots::{RootsMap, publish_roots};
pub use secrets::{SharedState, SharedStateError};

/// Until the API server has answered a call.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Why no API server can be asked.
#[derive(Debug, thiserror::Error)]
#[error("the Kubernetes API server cannot be used: {0}; see kubernetes.kubeconfig")]
pub struct KubernetesError(String);

/// A client of the API server of `kubeconfig`, or of the pod that this runs in. Nothing is asked yet.
///
/// # Errors
/// When there is no such file, or it makes no sense.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, KubernetesError> {
    let failed = |error: &dyn std::fmt::Display| KubernetesError(error.to_string());
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|e| failed(&e))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|e| failed(&e))?
        }
        None => Config::incluster().map_err(|e| failed(&e))?,
    };
    config.connect_timeout = Some(TIMEOUT);
    config.write_timeout = Some(TIMEOUT);
    // A watch is silent for longer than a call may be: calls are bounded one by one.
    config.read_timeout = Some(Duration::from_secs(330));
    Client::try_from(config).map_err(|e| failed(&e))
}
