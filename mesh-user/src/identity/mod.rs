//! SPIFFE identities, SVIDs and trust bundles. Pure data: parsed once at the boundary, never I/O.
//!
//! Sources: the SPIFFE ID and X.509-SVID standards (<https://github.com/spiffe/spiffe/tree/main/standards>).

mod revocation_list;
mod spiffe_id;
mod template;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use rustls_pki_types::CertificateDer;

pub use revocation_list::RevocationList;
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
pub use template::{IdentityTemplate, MadeOf, TemplateError, WorkloadFacts};

/// An X.509 SVID held in memory: the certificate chain and a signer for its key.
///
/// The private key exists only behind [`rustls::sign::SigningKey`]; it has no accessor, `Debug` never shows it.
#[derive(Clone)]
pub struct Svid {
    /// The identity that the leaf's only URI SAN carries.
    pub spiffe_id: SpiffeId,
    /// Leaf first, then intermediates; the root is not included.
    pub chain: Vec<CertificateDer<'static>>,
    /// Signs TLS handshakes with the leaf's key.
    pub key: Arc<dyn rustls::sign::SigningKey>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number of the leaf, lower-case hex.
    pub serial: String,
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Root certificates per trust domain: whose SVIDs are believed. A peer of trust domain `d` must chain to a
/// root listed under `d`, never to another domain's root (SPIFFE federation, section 4).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustBundles {
    /// DER roots per trust domain.
    pub roots: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// What authorities of a trust domain have taken back. Of several lists of one authority all count.
    pub revoked: BTreeMap<TrustDomain, Vec<RevocationList>>,
    /// Who signs JWT-SVIDs of a trust domain.
    pub jwt_authorities: BTreeMap<TrustDomain, JwtAuthorities>,
}

/// Public keys by key ID, each as a JWK (RFC 7517), JSON.
pub type JwtAuthorities = BTreeMap<Arc<str>, Arc<str>>;
