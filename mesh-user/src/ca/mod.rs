//! The certificate authority, embedded or elsewhere, and SVID renewal. A private key leaves this module only inside an
//! [`crate::identity::Svid`], or for the workload whose it is, by the Workload API; the CA's own key never leaves it except
//! for an intermediate of its own.

pub mod audit;
pub mod authority;
mod bundle;
pub mod callers;
pub mod cluster;
pub mod csr;
pub mod federation;
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod jwt_svid;
mod keys;
mod leaf;
mod material;
mod merge;
mod own_files;
mod plan;
pub mod proto;
pub mod remote;
mod revocation;
pub mod service;
pub mod signing;
mod source;
mod spiffe_bundle;
pub mod state;
mod store;
#[cfg(test)]
mod tests;
pub mod workload_api;

use std::{path::PathBuf, time::Duration};

pub use bundle::OwnBundle;
pub use files::{parse_bundle, parse_jwt_authorities, read_bundle};
pub use merge::merged;
pub use remote::RemoteError;
pub use revocation::add_revocation_lists;
pub use source::SvidSource;
pub use state::{Keeper, Kept, State, StateError};
pub use store::{CertificateStatus, NoSvid, SvidStore, SvidStoreStatus};

use crate::identity::SpiffeId;

/// Why the certificate authority cannot start or sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file or folder could not be used.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// Someone else could read, or could have written, a secret.
    #[error("{}: {what}; refusing to use it. {hint}", path.display())]
    Unsafe {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// How to mend it.
        hint: String,
    },
    /// Some of the CA's files are there and others are not.
    #[error("{}: {what}", path.display())]
    Incomplete {
        /// The CA's folder.
        path: PathBuf,
        /// What is missing and what to do.
        what: String,
    },
    /// A file does not hold what it should.
    #[error("{}: {what}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The CA's state could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A CA elsewhere could not be asked, refused, or gave what is not to be used.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Whoever issues took too long.
    #[error("no SVID was issued within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The issuing certificate's own validity has ended.
    #[error("the issuing certificate expired; replace the files in the CA's folder and restart")]
    IssuerExpired,
    /// The key of a CSR is one that this CA certifies none of.
    #[error("this CA certifies no {0} (setting keyKinds)")]
    KeyKind(String),
    /// Somebody took the identity out of use.
    #[error("{0} is blocked: `meshctl ca unblock` lets it have certificates again")]
    Blocked(SpiffeId),
    /// A step of the CA itself that is not possible, or not safe.
    #[error("{0}")]
    Refused(String),
    /// The Workload API that SVIDs come from gives none.
    #[error(transparent)]
    WorkloadApi(#[from] workload_api::ClientError),
    /// Building or signing a certificate failed.
    #[error("cannot issue a certificate for {subject}: {what}")]
    Sign {
        /// For whom.
        subject: String,
        /// The cause.
        what: String,
    },
}
