//! The admin API: HTTP/1 on a Unix socket that only root and the daemon's own user may use, and, where the
//! configuration names one, a TCP listener that serves nothing but metrics. It never changes
//! policy, never shows a key, and a slow or hostile client costs it a bounded amount of memory and time.

pub mod api;
pub mod ca_api;
pub mod ca_keys;
pub mod ca_server;
pub mod client;
pub mod explain;
mod explain_request;
#[cfg(test)]
mod explain_tests;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
pub mod nodes;
pub mod peer;
pub mod question;
pub mod review;
mod routes;
pub mod server;
pub mod source;
#[cfg(test)]
mod tests;

pub use api::{
    API_VERSION, CertRow, CheckRow, ConnectionList, ConnectionRow, ExplainedRequest, Explanation, JwksRow,
    KubernetesRow, Mode, PolicyRow, ReloadReport, Status, WatchRow, WorkloadRow,
};
pub use ca_api::{CaStatus, JoinTokenRow, NewJoinToken, NewJoinTokenAnswer, RevokedAnswer};
pub use ca_keys::{
    CA_KEYS, RevokeBody, RevokeWhat, RotateBody, RotateKind, RotateStep, UnblockBody, Unblocked,
};
pub use ca_server::{CaAdmin, CaAdminServer};
pub use client::{AdminClient, ClientError};
pub use explain::{Knowledge, NoKeys, explain};
pub use question::{ExplainBody, RequestQuery};
pub use review::{ImpactReport, ImpactRow, LintRow, PolicyFile, PolicyFiles};
pub use server::{AdminLimits, AdminServer, MetricsServer, ServerError};
pub use source::{AdminSource, ExplainError, ExplainQuery, ExplainSource, ExplainTarget};
