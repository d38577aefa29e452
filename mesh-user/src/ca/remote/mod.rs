//! SVIDs from a CA elsewhere, over gRPC: `meshd ca`, or istiod. Keys are made here and never leave this process; what a CA
//! answers is held against what was asked and against the trust in force before anything uses it.

mod answer;
mod channel;
mod client;
mod error;
#[cfg(test)]
mod fake;
mod istiod;
mod meshd;
mod node;
mod request;
#[cfg(test)]
mod tests;
mod token;
mod trust;
#[cfg(any(test, fuzzing))]
pub(in crate::ca) use trust::parse as parse_trust;

pub use channel::{Address, ServerIdentity};
pub use error::RemoteError;
pub use istiod::{Istiod, IstiodSettings};
pub use meshd::{MeshdCa, MeshdCaSettings};
