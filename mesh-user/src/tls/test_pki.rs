//! Certificate authorities and SVIDs for tests, good ones and each kind of bad one. Also compiled into the
//! relay tests under `tests/`, which is why it names the library by an alias of its parent.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm, string::Ia5String,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::meshd_library::identity::{Svid, TrustBundles, TrustDomain};

/// A root of one trust domain.
pub(crate) struct TestCa {
    /// The domain.
    pub(crate) trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    /// The authorities between it and the root, its own certificate first.
    above: Vec<CertificateDer<'static>>,
}

/// What a leaf is to be; start from [`Leaf::of`].
#[derive(Clone)]
pub(crate) struct Leaf {
    /// The URI names.
    pub(crate) uris: Vec<String>,
    /// The DNS names.
    pub(crate) dns_names: Vec<String>,
    /// Start of validity.
    pub(crate) not_before: SystemTime,
    /// End of validity.
    pub(crate) not_after: SystemTime,
    /// Marks it as a CA.
    pub(crate) is_ca: bool,
    /// Key usage; empty leaves the extension out.
    pub(crate) key_usage: Vec<KeyUsagePurpose>,
    /// Extended key usage; empty leaves the extension out.
    pub(crate) extended_key_usage: Vec<ExtendedKeyUsagePurpose>,
    /// Extensions that no field stands for.
    pub(crate) extensions: Vec<CustomExtension>,
    /// What its key is for.
    pub(crate) algorithm: &'static SignatureAlgorithm,
}

impl Leaf {
    /// A good leaf for `id`, valid for an hour around now.
    pub(crate) fn of(id: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![id.to_owned()],
            dns_names: Vec::new(),
            not_before: now - Duration::from_secs(1800),
            not_after: now + Duration::from_secs(1800),
            is_ca: false,
            key_usage: vec![KeyUsagePurpose::DigitalSignature],
            extended_key_usage: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            extensions: Vec::new(),
            algorithm: &PKCS_ECDSA_P256_SHA256,
        }
    }
}

impl TestCa {
    /// A fresh root.
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self::with_key(trust_domain, KeyPair::generate().unwrap())
    }

    /// A fresh root with this key.
    pub(crate) fn with_key(trust_domain: &str, key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("root of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap().der().clone();
        let trust_domain = trust_domain.parse().unwrap();
        Self { trust_domain, issuer: Issuer::new(params, key), root, above: Vec::new() }
    }

    /// An authority below this one, as `change` has it.
    pub(crate) fn below(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let depth = self.above.len();
        params.distinguished_name.push(DnType::CommonName, format!("{depth} below {}", self.trust_domain));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        let own = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let above = std::iter::once(own).chain(self.above.iter().cloned()).collect();
        let (trust_domain, root) = (self.trust_domain.clone(), self.root());
        Self { trust_domain, issuer: Issuer::new(params, key), root, above }
    }

    /// A certificate for a key that nobody here has.
    pub(crate) fn certify(&self, leaf: &Leaf, key: &impl PublicKeyData) -> Vec<CertificateDer<'static>> {
        let own = params(leaf).signed_by(key, &self.issuer).unwrap().der().clone();
        std::iter::once(own).chain(self.above.iter().cloned()).collect()
    }

    /// The list that takes this authority's certificates of these serials back, from `since` for a day.
    pub(crate) fn revocation_list(
        &self,
        since: SystemTime,
        serials: &[&[u8]],
    ) -> rcgen::CertificateRevocationList {
        let entry = |serial: &&[u8]| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: since.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: since.into(),
            next_update: (since + Duration::from_secs(86_400)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap()
    }

    /// The root certificate.
    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    /// A good SVID.
    pub(crate) fn svid(&self, id: &str) -> Svid {
        self.issue(&Leaf::of(id))
    }

    /// An SVID with this leaf.
    pub(crate) fn issue(&self, leaf: &Leaf) -> Svid {
        let key = KeyPair::generate_for(leaf.algorithm).unwrap();
        svid(leaf, self.certify(leaf, &key), &key)
    }
}

/// A leaf that signs itself.
pub(crate) fn self_signed(leaf: &Leaf) -> Svid {
    let key = KeyPair::generate().unwrap();
    let certificate = params(leaf).self_signed(&key).unwrap();
    svid(leaf, vec![certificate.der().clone()], &key)
}

/// The bundles that hold these authorities' roots.
pub(crate) fn bundles(authorities: &[&TestCa]) -> TrustBundles {
    let mut roots = BTreeMap::<_, Vec<_>>::new();
    for ca in authorities {
        roots.entry(ca.trust_domain.clone()).or_default().push(ca.root());
    }
    TrustBundles { roots, ..TrustBundles::default() }
}

fn params(leaf: &Leaf) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = leaf.not_before.into();
    params.not_after = leaf.not_after.into();
    params.is_ca = if leaf.is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    params.key_usages.clone_from(&leaf.key_usage);
    params.extended_key_usages.clone_from(&leaf.extended_key_usage);
    let uris = leaf.uris.iter().map(|u| SanType::URI(Ia5String::try_from(u.as_str()).unwrap()));
    let names = leaf.dns_names.iter().map(|n| SanType::DnsName(Ia5String::try_from(n.as_str()).unwrap()));
    params.subject_alt_names = uris.chain(names).collect();
    params.custom_extensions.clone_from(&leaf.extensions);
    params
}

fn svid(leaf: &Leaf, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Svid {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let placeholder = "spiffe://unparsable.example/leaf".parse().unwrap();
    Svid {
        spiffe_id: leaf.uris.first().and_then(|u| u.parse().ok()).unwrap_or(placeholder),
        serial: format!("{:x}", chain[0].iter().fold(0_u64, |h, b| h.rotate_left(5) ^ u64::from(*b))),
        chain,
        key: any_supported_type(&key).unwrap(),
        not_before: leaf.not_before,
        not_after: leaf.not_after,
    }
}

/// Shares a value that tests swap.
pub(crate) fn shared(bundles: TrustBundles) -> Arc<arc_swap::ArcSwap<TrustBundles>> {
    Arc::new(arc_swap::ArcSwap::from_pointee(bundles))
}
