//! A certificate authority in the daemon, its key in a file of the state folder. Signs leafs of 24 hours, never
//! longer than its own certificate lives.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::BasicConstraints;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{
    CaError, Issuer, files,
    keys::{SecretKey, check},
    leaf,
    material::{
        INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, Material, PLUGGED_IN, ROOT_CERTIFICATE, ROOT_KEY,
    },
    plan::ends_soon,
};
use crate::identity::{SpiffeId, Svid, TrustBundles, TrustDomain};

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// Certificates are valid a little before now, so that a peer with a slow clock accepts them.
const BACKDATE: Duration = Duration::from_secs(60);

/// The embedded certificate authority.
pub struct EmbeddedCa {
    directory: PathBuf,
    trust_domain: TrustDomain,
    lifetime: Duration,
    issuer: rcgen::Issuer<'static, SecretKey>,
    /// Sent behind each leaf: the issuing certificate and those between it and the root. Empty: a root issues.
    chain: Vec<CertificateDer<'static>>,
    not_after: OffsetDateTime,
    roots: Vec<CertificateDer<'static>>,
    /// `ca.crt` as it was read, for [`EmbeddedCa::issue_intermediate`].
    roots_pem: String,
}

impl std::fmt::Debug for EmbeddedCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedCa").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl EmbeddedCa {
    /// Loads the CA of `directory`, or creates a root there when the folder holds none.
    ///
    /// # Errors
    /// When a file is missing its pair, is readable by others, does not belong together, cannot be written, or what it
    /// would sign is nothing that meshd believes.
    pub fn open(
        directory: &Path,
        trust_domain: TrustDomain,
        svid_lifetime: Duration,
    ) -> Result<Self, CaError> {
        files::open_directory(directory)?;
        let Some(material) = Material::read(directory)? else {
            create_root(directory, &trust_domain, ROOT_LIFETIME)?;
            return Self::open(directory, trust_domain, svid_lifetime);
        };
        let Material { roots, roots_pem, chain, issuing, issuing_path, key, key_path } = material;
        let invalid = |path: &Path, what: String| CaError::Invalid { path: path.to_owned(), what };
        let key =
            SecretKey::from_pem(&key).map_err(|e| invalid(&key_path, format!("is no private key: {e}")))?;
        let not_after = check(&issuing, &key).map_err(|what| invalid(&issuing_path, what))?;
        let issuer = rcgen::Issuer::from_ca_cert_der(&issuing, key)
            .map_err(|e| invalid(&issuing_path, format!("cannot issue with it: {e}")))?;
        let ca = Self {
            directory: directory.to_owned(),
            trust_domain,
            lifetime: svid_lifetime,
            issuer,
            chain,
            not_after,
            roots,
            roots_pem,
        };
        leaf::prove((&ca.issuer, ca.not_after), &ca.chain, &ca.roots, &ca.trust_domain)
            .map_err(|what| invalid(&issuing_path, what))?;
        if let Some(days) = ends_soon(not_after.into(), SystemTime::now()) {
            let file = issuing_path.display();
            tracing::warn!(%file, days, "the CA's own certificate ends soon; replace the files in its folder");
        }
        Ok(ca)
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the files that let another node sign under the same roots: `ca.crt`, `intermediate.crt` and
    /// `intermediate.key`, into `out`, a folder that does not hold a CA yet.
    ///
    /// # Errors
    /// When this CA is itself an intermediate, or `out` cannot be used.
    pub fn issue_intermediate(&self, out: &Path) -> Result<(), CaError> {
        if !self.chain.is_empty() {
            let what = "an intermediate cannot issue another one; run this on the node that holds ca.key";
            return Err(CaError::Incomplete { path: self.directory.clone(), what: what.to_owned() });
        }
        // peers tell the revocation lists of authorities apart by name
        let subject = format!("meshd intermediate {} {:08x}", self.trust_domain, rand::random::<u32>());
        let sign = |e: rcgen::Error| CaError::Sign { subject: subject.clone(), what: e.to_string() };
        let key = SecretKey::generate().map_err(sign)?;
        let mut params =
            leaf::authority(&subject, BasicConstraints::Constrained(0), INTERMEDIATE_LIFETIME, BACKDATE)?;
        params.not_after = params.not_after.min(self.not_after);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(sign)?;
        write_intermediate(out, &certificate.pem(), &key, &self.roots_pem)
    }

    fn sign_leaf(&self, id: &SpiffeId) -> Result<Svid, CaError> {
        let key = SecretKey::generate()
            .map_err(|e| CaError::Sign { subject: id.to_string(), what: e.to_string() })?;
        let terms = leaf::Terms { id, dns_names: &[], lifetime: self.lifetime, backdate: BACKDATE };
        let leaf = leaf::sign((&self.issuer, self.not_after), &key, &terms)?;
        leaf::svid(id, leaf, &self.chain, &key)
    }
}

impl Issuer for EmbeddedCa {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, CaError> {
        if *id.trust_domain() != self.trust_domain {
            let what = format!("this CA signs for trust domain {} only", self.trust_domain);
            return Err(CaError::Sign { subject: id.to_string(), what });
        }
        self.sign_leaf(id)
    }

    fn bundles(&self) -> TrustBundles {
        TrustBundles {
            roots: [(self.trust_domain.clone(), self.roots.clone())].into(),
            ..TrustBundles::default()
        }
    }

    fn not_after(&self) -> Option<SystemTime> {
        Some(self.not_after.into())
    }
}

/// Writes what another node needs to sign, into a folder that holds no CA yet; PEM.
pub(super) fn write_intermediate(
    out: &Path,
    certificate: &str,
    key: &SecretKey,
    roots: &str,
) -> Result<(), CaError> {
    files::open_directory(out)?;
    let own = [ROOT_CERTIFICATE, ROOT_KEY, INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY];
    for name in own.iter().chain(&PLUGGED_IN) {
        if std::fs::symlink_metadata(out.join(name)).is_ok() {
            let what = "is already there; give an empty folder".to_owned();
            return Err(CaError::Invalid { path: out.join(name), what });
        }
    }
    files::write(out, INTERMEDIATE_KEY, key.to_pem().as_bytes(), 0o600)?;
    files::write(out, INTERMEDIATE_CERTIFICATE, certificate.as_bytes(), 0o644)?;
    files::write(out, ROOT_CERTIFICATE, roots.as_bytes(), 0o644)
}

/// Both files are on disk before either has its name, and the key gets its own last: a crash leaves nothing
/// that counts, or a certificate whose key [`finish_first_start`] puts in place.
pub(super) fn create_root(
    directory: &Path,
    trust_domain: &TrustDomain,
    life: Duration,
) -> Result<(), CaError> {
    let subject = format!("meshd root {trust_domain}");
    let key =
        SecretKey::generate().map_err(|e| CaError::Sign { subject: subject.clone(), what: e.to_string() })?;
    let certificate = leaf::self_signed(&subject, trust_domain, &key, life, BACKDATE)?;
    let key_pem = key.to_pem();
    files::stage(directory, ROOT_KEY, key_pem.as_bytes(), 0o600)?;
    files::stage(directory, ROOT_CERTIFICATE, certificate.pem().as_bytes(), 0o644)?;
    files::put_in_place(directory, ROOT_CERTIFICATE)?;
    files::put_in_place(directory, ROOT_KEY)
}

/// Ends a first start that a crash cut off before its last rename. False: there is no such key, or it is of
/// another certificate.
pub(super) fn finish_first_start(directory: &Path, roots: &[CertificateDer<'_>]) -> Result<bool, CaError> {
    let Some(pem) = files::read_secret(&files::staged(directory, ROOT_KEY))? else { return Ok(false) };
    let (Ok(key), Some(root)) = (SecretKey::from_pem(&pem), roots.first()) else { return Ok(false) };
    if check(root, &key).is_err() {
        return Ok(false);
    }
    files::put_in_place(directory, ROOT_KEY).map(|()| true)
}

/// For [`super::SvidStore`] and tests: an issuer behind a pointer.
impl<I: Issuer + ?Sized> Issuer for Arc<I> {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, CaError> {
        (**self).issue(id)
    }

    fn bundles(&self) -> TrustBundles {
        (**self).bundles()
    }

    fn not_after(&self) -> Option<SystemTime> {
        (**self).not_after()
    }
}
