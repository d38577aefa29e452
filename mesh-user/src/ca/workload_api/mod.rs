//! The SPIFFE Workload API, both sides. [`WorkloadApiServer`] hands X.509 and JWT-SVIDs to local workloads, whom the
//! kernel identifies; nothing that a caller says is believed. [`WorkloadApiSource`] takes a node's SVIDs from such a server,
//! SPIRE's for one.
//!
//! Keys that are handed out are made for that: the daemon's own never leave it.
//!
//! Sources: SPIFFE Workload API, SPIFFE Workload Endpoint.

mod authority;
mod caller;
mod client;
mod exportable;
mod keeper;
mod messages;
mod server;
mod service;
#[cfg(test)]
mod tests;

pub use client::{ClientError, WorkloadApiSource};
#[cfg(any(test, fuzzing))]
pub(in crate::ca) use client::{read as read_svids, read_jwt as read_jwt_bundles};
pub use exportable::{ExportableSvid, IssueExportable, IssueThrough};
pub use server::{ServerError, WorkloadApiLimits, WorkloadApiServer, WorkloadApiSettings};
pub use service::WorkloadApiParts;

/// Every request carries it with the value `true`, which keeps out requests that a workload was talked into sending
/// (SPIFFE Workload Endpoint section 5.1).
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// What no answer of a Workload API exceeds: SVIDs, bundles and revocation lists.
const MAX_ANSWER_BYTES: usize = 4 << 20;
