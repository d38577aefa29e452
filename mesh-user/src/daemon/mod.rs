//! The daemon: puts the parts together, runs them, takes them down in order. It holds no logic of its own
//! about identity, policy or bytes.

mod check;
mod endpoint;
mod error;
mod lifecycle;
mod plan;
mod reload;
mod review;
mod source;

pub use error::DaemonError;
pub use lifecycle::run;
