//! What the CA's service wants of whoever holds the keys, so that both can be tried without the other.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{CaError, csr::Csr};
use crate::identity::{SpiffeId, Svid, TrustBundles, TrustDomain};

/// A certificate that somebody may have: who it is for was decided from who asked, never from the CSR.
#[derive(Debug, Clone)]
pub struct SigningRequest {
    /// The identity to certify.
    pub id: SpiffeId,
    /// Whose possession of the key is proven.
    pub csr: Csr,
    /// As asked for; the CA's ceiling holds. None: the CA's default.
    pub lifetime: Option<Duration>,
    /// Who asked, for the register and the audit.
    pub caller: Arc<str>,
    /// The node that the caller is on, where it is known.
    pub node: Option<Arc<str>>,
}

/// What was signed.
#[derive(Debug, Clone)]
pub struct SignedSvid {
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// What the chain leads to, and what else is to be believed.
    pub roots: Vec<CertificateDer<'static>>,
    /// Lower-case hex.
    pub serial: String,
    /// Start of validity.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
}

/// Whom to believe, and how new that is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// Grows with each change, over restarts and replicas.
    pub version: u64,
    /// The CA's own trust domain, and those that it is federated with.
    pub bundles: TrustBundles,
}

/// Holds the CA's keys: signs, tells whom to believe, and keeps a register of what it signed.
pub trait CertificateAuthority: Send + Sync {
    /// Whose authority it is.
    fn trust_domain(&self) -> &TrustDomain;

    /// Signs. What is returned is in the register for good: a crash right after it loses nothing.
    ///
    /// # Errors
    /// When the identity is of another trust domain or may not be issued any more, the key is of a kind that is not
    /// accepted, or signing or the register fails.
    fn sign(&self, request: SigningRequest) -> BoxFuture<'_, Result<SignedSvid, CaError>>;

    /// An SVID with a key of its own for the service itself, with the DNS names that its clients look for.
    ///
    /// # Errors
    /// As [`Self::sign`].
    fn own_svid<'a>(
        &'a self,
        id: &'a SpiffeId,
        dns_names: &'a [String],
    ) -> BoxFuture<'a, Result<Svid, CaError>>;

    /// What agents are to believe, now and after each change.
    fn trust(&self) -> watch::Receiver<Arc<Trust>>;

    /// How far the wall clock is ahead of the time that has passed; zero: not, or not so that it matters. Meanwhile nothing is
    /// withdrawn or forgotten by itself.
    fn clock_ahead(&self) -> Duration {
        Duration::ZERO
    }

    /// A node's agent has this version in force.
    fn acknowledge(&self, node: &str, version: u64);
}
