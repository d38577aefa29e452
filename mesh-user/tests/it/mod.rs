//! The rooms of the integration tests: `harness` runs trials, `ground` to `daemon` build and remove what a story
//! needs, `judge` reads captured packets, `peer` and `scripts` are the far ends of
//! sockets, `scenarios` are the stories.

pub(crate) mod authority;
pub(crate) mod capture;
pub(crate) mod cgroup;
pub(crate) mod daemon;
pub(crate) mod envoy;
mod faketime;
pub(crate) mod foreign;
pub(crate) mod ground;
pub(crate) mod harness;
pub(crate) mod judge;
pub(crate) mod kube;
pub(crate) mod kube_api;
pub(crate) mod kube_audit;
pub(crate) mod kube_front;
pub(crate) mod kubelet;
pub(crate) mod kubelets;
pub(crate) mod mesh;
pub(crate) mod netns;
pub(crate) mod nodefile;
pub(crate) mod peer;
pub(crate) mod pki;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod relay;
pub(crate) mod roles;
pub(crate) mod scenarios;
pub(crate) mod scripts;
