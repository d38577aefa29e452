//! The daemon: puts the parts together, runs them, takes them down in order. It holds no logic of its own
//! about identity, policy or bytes.

mod authority;
mod check;
mod cluster;
mod endpoint;
mod error;
mod lifecycle;
mod node_lease;
mod plan;
mod pods;
mod preflight;
mod reload;
mod review;
mod source;
mod svid_source;
mod workload_api;

pub use authority::{AuthorityError, run_authority};
pub use error::DaemonError;
pub use lifecycle::run;
pub use preflight::preflight;
