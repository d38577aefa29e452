//! A [`CertificateAuthority`] over one issuing key that never changes: what the service is tried with, and what `meshd ca`
//! opens as long as it has no other.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tokio::sync::watch;
use zeroize::{Zeroize, Zeroizing};

use super::{
    CaError, EmbeddedCa, Issuer,
    material::Material,
    signing::{CertificateAuthority, SignedSvid, SigningRequest, Trust},
};
use crate::identity::{SpiffeId, Svid, TrustBundles, TrustDomain};

/// Certificates are valid a little before now, so that a peer with a slow clock accepts them.
const BACKDATE: Duration = Duration::from_secs(60);

/// One key.
pub struct SingleIssuer {
    trust_domain: TrustDomain,
    lifetime: Duration,
    longest: Duration,
    signer: Signer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    trust: watch::Sender<Arc<Trust>>,
}

impl std::fmt::Debug for SingleIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SingleIssuer").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl SingleIssuer {
    /// Signs with the files of `directory`, which are made where there are none: for `lifetime` unless a request says
    /// otherwise, for `longest` at most.
    ///
    /// # Errors
    /// As [`EmbeddedCa::open`].
    pub fn open(
        directory: &Path,
        trust_domain: TrustDomain,
        lifetime: Duration,
        longest: Duration,
    ) -> Result<Self, CaError> {
        let bundles = EmbeddedCa::open(directory, trust_domain.clone(), lifetime)?.bundles();
        let gone =
            || CaError::Incomplete { path: directory.to_owned(), what: "its files went away".to_owned() };
        let material = Material::read(directory)?.ok_or_else(gone)?;
        let invalid =
            |e: rcgen::Error| CaError::Invalid { path: material.key_path.clone(), what: e.to_string() };
        let key = KeyPair::from_pem(&material.key).map_err(invalid)?;
        let signer = Signer::from_ca_cert_der(&material.issuing, key).map_err(invalid)?;
        Ok(Self {
            trust_domain,
            lifetime,
            longest,
            signer,
            chain: material.chain,
            roots: material.roots,
            trust: watch::Sender::new(Arc::new(Trust { version: 1, bundles })),
        })
    }

    /// Has agents believe something else from now on.
    pub fn distribute(&self, bundles: TrustBundles) {
        self.trust.send_modify(|trust| *trust = Arc::new(Trust { version: trust.version + 1, bundles }));
    }

    fn certify(
        &self,
        id: &SpiffeId,
        dns_names: &[String],
        key: &impl PublicKeyData,
        lifetime: Duration,
    ) -> Result<SignedSvid, CaError> {
        let sign = |what: String| CaError::Sign { subject: id.to_string(), what };
        if *id.trust_domain() != self.trust_domain {
            return Err(sign(format!("this CA signs for trust domain {} only", self.trust_domain)));
        }
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| sign("no randomness".to_owned()))?;
        serial[0] = serial[0] & 0x7f | 0x40;
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let failed = |e: rcgen::Error| sign(e.to_string());
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(failed)?)];
        for name in dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.clone().try_into().map_err(failed)?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATE).replace_nanosecond(0).unwrap_or(now);
        params.not_after = (now + lifetime.min(self.longest)).replace_nanosecond(0).unwrap_or(now);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(key, &self.signer).map_err(failed)?;
        Ok(SignedSvid {
            chain: std::iter::once(certificate.der()).chain(&self.chain).cloned().collect(),
            roots: self.roots.clone(),
            serial: format!("{:032x}", u128::from_be_bytes(serial)),
            not_before: params.not_before,
            not_after: params.not_after,
        })
    }

    fn own(&self, id: &SpiffeId, dns_names: &[String]) -> Result<Svid, CaError> {
        let sign = |what: String| CaError::Sign { subject: id.to_string(), what };
        let mut key = KeyPair::generate().map_err(|e| sign(e.to_string()))?;
        let leaf = self.certify(id, dns_names, &key, self.lifetime)?;
        let pkcs8 = Zeroizing::new(key.serialize_der());
        key.zeroize();
        let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
        let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der.into());
        Ok(Svid {
            spiffe_id: id.clone(),
            chain: leaf.chain,
            key: signer.map_err(|e| sign(e.to_string()))?,
            not_before: leaf.not_before.into(),
            not_after: leaf.not_after.into(),
            serial: leaf.serial,
        })
    }
}

impl CertificateAuthority for SingleIssuer {
    fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    fn sign(&self, request: SigningRequest) -> BoxFuture<'_, Result<SignedSvid, CaError>> {
        Box::pin(async move {
            let key = SubjectPublicKeyInfo::from_der(request.csr.public_key());
            let key =
                key.map_err(|e| CaError::Sign { subject: request.id.to_string(), what: e.to_string() })?;
            self.certify(&request.id, &[], &key, request.lifetime.unwrap_or(self.lifetime))
        })
    }

    fn own_svid<'a>(
        &'a self,
        id: &'a SpiffeId,
        dns_names: &'a [String],
    ) -> BoxFuture<'a, Result<Svid, CaError>> {
        Box::pin(async move { self.own(id, dns_names) })
    }

    fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    fn acknowledge(&self, node: &str, version: u64) {
        tracing::debug!(node, version, "an agent has this trust in force");
    }
}
