//! SVIDs whose key is handed to a workload: each has a key of its own, made for it, kept in memory as long as somebody is
//! there to get it, and wiped then.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    ca::{
        CaError,
        csr::Csr,
        signing::{CertificateAuthority, SigningRequest},
    },
    identity::{SpiffeId, Svid},
};

/// An SVID with its key.
pub struct ExportableSvid {
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS #8, DER.
    pub key: Zeroizing<Vec<u8>>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number of the leaf, lower-case hex.
    pub serial: String,
}

impl fmt::Debug for ExportableSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportableSvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

/// Issues SVIDs that workloads hold themselves.
pub trait IssueExportable: Send + Sync {
    /// A fresh key and a certificate for `id`. Takes as long as the authority does; the caller bounds it.
    ///
    /// # Errors
    /// As [`crate::ca::SvidSource::issue`].
    fn issue_exportable<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<ExportableSvid, CaError>>;

    /// Counts up when other SVIDs than before would be issued; none: that is not known here.
    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

impl ExportableSvid {
    /// `key` is the leaf's, PKCS #8.
    pub fn new(svid: Svid, key: Zeroizing<Vec<u8>>) -> Self {
        let Svid { spiffe_id, chain, not_before, not_after, serial, .. } = svid;
        Self { spiffe_id, chain, key, not_before, not_after, serial }
    }
}

/// Has the certificates signed by an authority that knows how to answer a CSR.
pub struct IssueThrough {
    authority: Arc<dyn CertificateAuthority>,
    node: Arc<str>,
}

impl fmt::Debug for IssueThrough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssueThrough").field("node", &self.node).finish_non_exhaustive()
    }
}

impl IssueThrough {
    /// For workloads of `node`.
    pub fn new(authority: Arc<dyn CertificateAuthority>, node: Arc<str>) -> Self {
        Self { authority, node }
    }
}

impl IssueExportable for IssueThrough {
    fn issue_exportable<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<ExportableSvid, CaError>> {
        Box::pin(async move {
            let (key, csr) = request(id)?;
            let signed = self.authority.sign(SigningRequest {
                id: id.clone(),
                csr,
                lifetime: None::<Duration>,
                caller: "workload API".into(),
                node: Some(Arc::clone(&self.node)),
            });
            let signed = signed.await?;
            Ok(ExportableSvid {
                spiffe_id: id.clone(),
                chain: signed.chain,
                key,
                not_before: signed.not_before.into(),
                not_after: signed.not_after.into(),
                serial: signed.serial,
            })
        })
    }
}

/// A key and the proof that we have it. Who the CSR is for is not in it.
fn request(id: &SpiffeId) -> Result<(Zeroizing<Vec<u8>>, Csr), CaError> {
    let failed = |what: String| CaError::Sign { subject: id.to_string(), what };
    let mut pair = KeyPair::generate().map_err(|e| failed(e.to_string()))?;
    let key = Zeroizing::new(pair.serialize_der());
    let csr = CertificateParams::default().serialize_request(&pair).map_err(|e| failed(e.to_string()));
    pair.zeroize();
    let csr = Csr::from_der(csr?.der()).map_err(|e| failed(e.to_string()))?;
    Ok((key, csr))
}
