//! How the Kubernetes API server is reached. Asks it nothing.

use std::{fmt::Display, path::Path};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// Why no API server can be asked.
#[derive(Debug, thiserror::Error)]
#[error("the Kubernetes API server cannot be used: {0}; see kubernetes.kubeconfig")]
pub struct KubernetesError(String);

impl KubernetesError {
    fn of(cause: &impl Display) -> Self {
        Self(cause.to_string())
    }
}

/// What a kubeconfig's current context says.
///
/// # Errors
/// When there is no such file, or it makes no sense.
pub async fn kubeconfig(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}

/// The API server of `file`, or that of the pod that this runs in.
///
/// # Errors
/// When there is no such file, or it makes no sense, or this is no pod.
pub async fn api_server(file: Option<&Path>) -> Result<Config, KubernetesError> {
    match file {
        Some(path) => kubeconfig(path).await.map_err(|error| KubernetesError::of(&error)),
        None => Config::incluster().map_err(|error| KubernetesError::of(&error)),
    }
}

/// A client that asks as `config` says.
///
/// # Errors
/// When its certificates or keys cannot be used.
pub fn client(config: Config) -> Result<Client, KubernetesError> {
    Client::try_from(config).map_err(|error| KubernetesError::of(&error))
}
