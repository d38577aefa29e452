//! The embedded certificate authority and SVID renewal. A private key leaves this module only inside an
//! [`crate::identity::Svid`]; the CA's own key never leaves it except through [`EmbeddedCa::issue_intermediate`].

mod bundle;
pub mod csr;
mod embedded;
pub mod federation;
mod files;
mod material;
mod plan;
pub mod proto;
mod revocation;
pub mod signing;
mod source;
mod spiffe_bundle;
pub mod state;
mod store;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::SystemTime};

pub use bundle::OwnBundle;
pub use embedded::EmbeddedCa;
pub use files::{parse_bundle, read_bundle};
pub use revocation::add_revocation_lists;
pub use source::SvidSource;
pub use state::StateError;
pub use store::{CertificateStatus, SvidStore, SvidStoreStatus};

use crate::identity::{SpiffeId, Svid, TrustBundles};

/// Whoever signs SVIDs: the embedded CA now.
pub trait Issuer: Send + Sync {
    /// A fresh key and a certificate for `id`.
    ///
    /// # Errors
    /// When signing fails, or the issuer itself is about to expire.
    fn issue(&self, id: &SpiffeId) -> Result<Svid, CaError>;

    /// The roots that SVIDs of this issuer chain to.
    fn bundles(&self) -> TrustBundles;

    /// When the issuing certificate ends; none: not known here.
    fn not_after(&self) -> Option<SystemTime> {
        None
    }
}

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
    /// The issuing certificate's own validity has ended.
    #[error("the issuing certificate expired; replace the files in the CA's folder and restart")]
    IssuerExpired,
    /// Building or signing a certificate failed.
    #[error("cannot issue a certificate for {subject}: {what}")]
    Sign {
        /// For whom.
        subject: String,
        /// The cause.
        what: String,
    },
}
