//! Certificate revocation lists: which serials an authority has taken back. Pure; whether its signature is right is asked
//! with each path that it says something about.

use std::{fmt, sync::Arc};

use rustls_pki_types::CertificateRevocationListDer;
use webpki::{CertRevocationList, OwnedCertRevocationList};

/// One authority's list (RFC 5280 section 5), read once.
#[derive(Clone)]
pub struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    list: Arc<CertRevocationList<'static>>,
}

impl RevocationList {
    /// Reads a list.
    ///
    /// # Errors
    /// When it is none, or has a critical extension that nobody here understands.
    pub fn new(der: CertificateRevocationListDer<'static>) -> Result<Self, webpki::Error> {
        let list = Arc::new(OwnedCertRevocationList::from_der(&der)?.into());
        Ok(Self { der, list })
    }

    /// As it was written.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// As the verifier asks it.
    pub fn list(&self) -> &CertRevocationList<'static> {
        &self.list
    }
}

impl PartialEq for RevocationList {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for RevocationList {}

impl fmt::Debug for RevocationList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RevocationList({} bytes)", self.der.len())
    }
}
