//! A root and an SVID per pod for meshes that bring no certificate authority of their own.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// The root, in PEM, and what signs with it.
pub(super) struct Authority {
    pub(super) root: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Certificate and key, in PEM.
pub(super) struct Svid {
    pub(super) chain: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = name("meshd benchmark root");
        let key = KeyPair::generate()?;
        let root = params.self_signed(&key)?.pem();
        Ok(Self { root, issuer: Issuer::new(params, key) })
    }

    /// P-256, as meshd's own and Istio's.
    pub(super) fn svid(&self, spiffe_id: &str) -> Result<Svid> {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.distinguished_name = name("workload");
        params.subject_alt_names = vec![SanType::URI(spiffe_id.try_into()?)];
        (params.not_before, params.not_after) = (now - Duration::minutes(5), now + Duration::days(1));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        Ok(Svid { chain: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}
