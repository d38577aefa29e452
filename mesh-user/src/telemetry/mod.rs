//! Metrics, access log, tracing set-up and systemd's notify protocol: what the daemon tells the outside.
//! The lowest layer: it knows no other module, so identities and workloads arrive here as plain strings.
//! It never logs a secret and never blocks the thread that carries bytes.

pub mod access_log;
mod authorizers;
pub mod escape;
pub mod istio;
pub mod istio_requests;
pub mod jwks;
pub mod labels;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod record;
pub mod request;
pub mod systemd;
#[cfg(test)]
mod tests;

pub use access_log::{AccessLog, AccessLogFormat, AccessLogSettings};
pub use authorizers::AuthorizerResult;
pub use istio::{ConnectionBytes, TcpConnections};
pub use istio_requests::{HttpRequests, RequestMetrics, RequestOutcome, RequestSizes};
pub use jwks::KeyPlace;
pub use labels::{
    ConnectionLabels, ConnectionSecurityPolicy, Direction, HandshakeSide, RelayKind, Reporter, ResponseFlags,
    ServiceLabels, WorkloadLabels,
};
pub use metrics::{ConnectionMetrics, Metrics, MetricsLimits};
pub use record::{ConnectionRecord, Party};
pub use request::{RequestEvent, RequestRecord};
