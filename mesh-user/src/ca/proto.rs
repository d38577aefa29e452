//! Messages and services of `proto/*.proto`, as `build.rs` makes them.

/// `istio.v1.auth`: certificates for those that prove who they are.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated")]
pub mod istio {
    tonic::include_proto!("istio.v1.auth");
}

/// `meshd.ca.v1`: what `meshd ca` tells its agents beside certificates.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated")]
pub mod meshd {
    tonic::include_proto!("meshd.ca.v1");
}

/// The SPIFFE Workload API.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated")]
pub mod workload {
    tonic::include_proto!("_");
}
