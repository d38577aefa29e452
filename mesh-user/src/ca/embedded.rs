//! A certificate authority in the daemon, its key in a file of the state folder. Signs leafs of 24 hours, never
//! longer than its own certificate lives.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::{Zeroize, Zeroizing};

use super::{
    CaError, Issuer, files,
    material::{
        INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, Material, PLUGGED_IN, ROOT_CERTIFICATE, ROOT_KEY,
    },
    plan::ends_soon,
};
use crate::{
    identity::{SpiffeId, Svid, TrustBundles, TrustDomain},
    tls::{PeerRole, PeerVerifier, provider},
};

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

/// A signing key whose serialized form is wiped when it is dropped.
struct SecretKey(KeyPair);

impl SecretKey {
    fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate().map(Self)
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl rcgen::SigningKey for SecretKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        rcgen::SigningKey::sign(&self.0, message)
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
            create_root(directory, &trust_domain)?;
            return Self::open(directory, trust_domain, svid_lifetime);
        };
        let Material { roots, roots_pem, chain, issuing, issuing_path, key, key_path } = material;
        let invalid = |path: &Path, what: String| CaError::Invalid { path: path.to_owned(), what };
        let key =
            KeyPair::from_pem(&key).map_err(|e| invalid(&key_path, format!("is no private key: {e}")))?;
        let key = SecretKey(key);
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
        ca.prove().map_err(|what| invalid(&issuing_path, what))?;
        if let Some(days) = ends_soon(not_after.into(), SystemTime::now()) {
            let file = issuing_path.display();
            tracing::warn!(%file, days, "the CA's own certificate ends soon; replace the files in its folder");
        }
        Ok(ca)
    }

    /// Signs for nobody and asks meshd's own verifier: chain, path length, name constraints, usages and times are as a
    /// peer will judge them.
    fn prove(&self) -> Result<(), String> {
        let domain = &self.trust_domain;
        let trial =
            format!("spiffe://{domain}/ns/meshd/sa/trial").parse::<SpiffeId>().map_err(|e| e.to_string())?;
        let svid = self.sign_leaf(&trial).map_err(|e| e.to_string())?;
        let bundles = Arc::new(ArcSwap::from_pointee(self.bundles()));
        let algorithms = provider().signature_verification_algorithms;
        let verifier = PeerVerifier::new(domain.clone(), Vec::new(), Duration::ZERO, bundles, algorithms);
        for role in [PeerRole::Client, PeerRole::Server] {
            let believed = verifier.verify(&svid.chain, role, None, SystemTime::now());
            believed.map_err(|e| format!("no peer would believe what it signs for {domain}: {e}"))?;
        }
        Ok(())
    }

    /// Whom it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
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
        files::open_directory(out)?;
        let own = [ROOT_CERTIFICATE, ROOT_KEY, INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY];
        for name in own.iter().chain(&PLUGGED_IN) {
            if std::fs::symlink_metadata(out.join(name)).is_ok() {
                let what = "is already there; give an empty folder".to_owned();
                return Err(CaError::Invalid { path: out.join(name), what });
            }
        }
        let subject = format!("meshd intermediate {}", self.trust_domain);
        let sign = |e: rcgen::Error| CaError::Sign { subject: subject.clone(), what: e.to_string() };
        let key = SecretKey::generate().map_err(sign)?;
        let mut params = authority(&subject, BasicConstraints::Constrained(0), INTERMEDIATE_LIFETIME)?;
        params.not_after = params.not_after.min(self.not_after);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(sign)?;
        let key_pem = Zeroizing::new(key.0.serialize_pem());
        files::write(out, INTERMEDIATE_KEY, key_pem.as_bytes(), 0o600)?;
        files::write(out, INTERMEDIATE_CERTIFICATE, certificate.pem().as_bytes(), 0o644)?;
        files::write(out, ROOT_CERTIFICATE, self.roots_pem.as_bytes(), 0o644)
    }

    fn sign_leaf(&self, id: &SpiffeId) -> Result<Svid, CaError> {
        self.sign_leaf_with_key(id).map(|(svid, _)| svid)
    }

    /// With the key, PKCS #8, for a workload that holds it itself.
    pub(super) fn sign_leaf_with_key(&self, id: &SpiffeId) -> Result<(Svid, Zeroizing<Vec<u8>>), CaError> {
        let sign = |what: String| CaError::Sign { subject: id.to_string(), what };
        let now = OffsetDateTime::now_utc();
        let not_after = (now + self.lifetime).min(self.not_after);
        if not_after <= now {
            return Err(CaError::IssuerExpired);
        }
        let key = SecretKey::generate().map_err(|e| sign(e.to_string()))?;
        let serial = random_serial()?;
        let mut params = CertificateParams::default();
        // no subject: the URI SAN is the identity, and is critical then (RFC 5280 section 4.2.1.6)
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            vec![SanType::URI(id.to_string().try_into().map_err(|e: rcgen::Error| sign(e.to_string()))?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        // certificates count whole seconds
        params.not_before = (now - BACKDATE).replace_nanosecond(0).unwrap_or(now);
        params.not_after = not_after.replace_nanosecond(0).unwrap_or(not_after);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(&key, &self.issuer).map_err(|e| sign(e.to_string()))?;
        let pkcs8 = Zeroizing::new(key.0.serialize_der());
        let signer = {
            let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
            rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der.into()).map_err(|e| sign(e.to_string()))?
        };
        let chain = [certificate.der()].into_iter().chain(&self.chain).cloned().collect();
        let svid = Svid {
            spiffe_id: id.clone(),
            chain,
            key: signer,
            not_before: params.not_before.into(),
            not_after: params.not_after.into(),
            serial: format!("{:032x}", u128::from_be_bytes(serial)),
        };
        Ok((svid, pkcs8))
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

/// 128 random bits, positive as RFC 5280 section 4.1.2.2 wants: the top bit is clear, the next one set so that
/// the number keeps its 16 bytes.
fn random_serial() -> Result<[u8; 16], CaError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial)
        .map_err(|_| CaError::Sign { subject: "a serial number".into(), what: "no randomness".into() })?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn authority(
    name: &str,
    path_length: BasicConstraints,
    life: Duration,
) -> Result<CertificateParams, CaError> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATE;
    params.not_after = now + life;
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
    Ok(params)
}

/// Both files are on disk before either has its name, and the key gets its own last: a crash leaves nothing
/// that counts, or a certificate whose key [`finish_first_start`] puts in place.
fn create_root(directory: &Path, trust_domain: &TrustDomain) -> Result<(), CaError> {
    let subject = format!("meshd root {trust_domain}");
    let sign = |e: rcgen::Error| CaError::Sign { subject: subject.clone(), what: e.to_string() };
    let key = SecretKey::generate().map_err(sign)?;
    let mut params = authority(&subject, BasicConstraints::Unconstrained, ROOT_LIFETIME)?;
    // a signing certificate that is a trust domain's own carries its SPIFFE ID (X509-SVID section 4.1)
    let id = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(id.try_into().map_err(sign)?)];
    let certificate = params.self_signed(&key).map_err(sign)?;
    let key_pem = Zeroizing::new(key.0.serialize_pem());
    files::stage(directory, ROOT_KEY, key_pem.as_bytes(), 0o600)?;
    files::stage(directory, ROOT_CERTIFICATE, certificate.pem().as_bytes(), 0o644)?;
    files::put_in_place(directory, ROOT_CERTIFICATE)?;
    files::put_in_place(directory, ROOT_KEY)
}

/// Ends a first start that a crash cut off before its last rename. False: there is no such key, or it is of
/// another certificate.
pub(super) fn finish_first_start(directory: &Path, roots: &[CertificateDer<'_>]) -> Result<bool, CaError> {
    let Some(pem) = files::read_secret(&files::staged(directory, ROOT_KEY))? else { return Ok(false) };
    let (Ok(key), Some(root)) = (KeyPair::from_pem(&pem), roots.first()) else { return Ok(false) };
    if check(root, &SecretKey(key)).is_err() {
        return Ok(false);
    }
    files::put_in_place(directory, ROOT_KEY).map(|()| true)
}

/// The certificate may sign, is of this key and is valid now. Returns its end.
fn check(certificate: &CertificateDer<'_>, key: &SecretKey) -> Result<OffsetDateTime, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|e| format!("is no certificate: {e}"))?;
    if !parsed.is_ca() {
        return Err("is no CA certificate (CA:TRUE is missing)".to_owned());
    }
    if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err("does not belong to its key".to_owned());
    }
    let not_after = parsed.validity().not_after.to_datetime();
    if !parsed.validity().is_valid() {
        return Err(format!("is not valid now (until {not_after}); replace it"));
    }
    Ok(not_after)
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
