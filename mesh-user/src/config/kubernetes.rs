//! The node's file about Kubernetes: where the API server is, which pods are enrolled, and how they are found on this
//! node. Pure; `discovery::kubernetes` asks the API server, `runtime` looks for pods.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kubernetes as the source of workloads, services and policies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Whether workloads, services and policies come from a Kubernetes API server, beside what this file says.
    pub enabled: bool,
    /// How the API server is reached. None: as a pod of the cluster, by its service account.
    pub kubeconfig: Option<PathBuf>,
    /// Whether Istio's label `istio.io/dataplane-mode: ambient` enrols too, as `meshd.io/dataplane: enabled` does.
    pub ambient_label: bool,
    /// Sockets of container runtimes (CRI) that are asked where a pod lives; the first that answers. None: those of containerd, CRI-O and cri-dockerd.
    pub runtime_sockets: Vec<PathBuf>,
    /// The cgroup below which the kubelet makes those of pods, such as `/sys/fs/cgroup/kubepods.slice`. None: looked for.
    pub pods_cgroup: Option<PathBuf>,
    /// What a pod's connections meet from its first moment until it is known whether it is enrolled, and is.
    pub before_enrolment: BeforeEnrolment,
}

/// What connections of a pod meet that is not enrolled yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BeforeEnrolment {
    /// They wait: what is sent is dropped, and TCP sends it again.
    #[default]
    Wait,
    /// `connect` fails.
    Refuse,
}
