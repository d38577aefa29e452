//! Certificates that must not be believed, and one that must: made with rcgen from the mesh's own root, or from a
//! root of a stranger. Keys lie in the story's folder for `openssl s_client`.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

/// What a hostile (or honest) certificate claims.
pub(crate) struct Claim {
    pub(crate) uris: Vec<String>,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl Claim {
    /// Valid now, with exactly this identity.
    pub(crate) fn of(spiffe_id: &str) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            uris: vec![spiffe_id.to_owned()],
            not_before: now - Duration::minutes(5),
            not_after: now + Duration::hours(1),
        }
    }

    /// The same, ended a day ago: beyond any allowed clock skew.
    pub(crate) fn expired(mut self) -> Self {
        self.not_before = OffsetDateTime::now_utc() - Duration::days(3);
        self.not_after = OffsetDateTime::now_utc() - Duration::days(1);
        self
    }

    fn params(&self) -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = self
            .uris
            .iter()
            .map(|uri| Ok(SanType::URI(uri.as_str().try_into()?)))
            .collect::<anyhow::Result<_>>()?;
        params.not_before = self.not_before;
        params.not_after = self.not_after;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params)
    }
}

/// Files of a certificate chain and its key.
pub(crate) struct Files {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

/// What a certificate's key is for: `meshd` makes ECDSA keys, Istio's CA RSA ones by default.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    Ecdsa,
    Rsa,
}

impl Keys {
    fn generate(self) -> anyhow::Result<KeyPair> {
        Ok(match self {
            Self::Ecdsa => KeyPair::generate()?,
            Self::Rsa => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?,
        })
    }
}

/// A certificate by the CA whose `ca.crt` and `ca.key` lie in `ca_dir`.
pub(crate) fn issued_by_mesh(ca_dir: &Path, claim: &Claim, into: &Path, name: &str) -> anyhow::Result<Files> {
    issued_by_mesh_for(Keys::Ecdsa, ca_dir, claim, into, name)
}

/// The same for a key of this kind.
pub(crate) fn issued_by_mesh_for(
    keys: Keys,
    ca_dir: &Path,
    claim: &Claim,
    into: &Path,
    name: &str,
) -> anyhow::Result<Files> {
    issue(keys, claim, &mesh_issuer(ca_dir)?, into, name)
}

fn mesh_issuer(ca_dir: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let root = fs::read_to_string(ca_dir.join("ca.crt")).context("the mesh's root certificate")?;
    let key = fs::read_to_string(ca_dir.join("ca.key")).context("the mesh's root key")?;
    Ok(Issuer::from_ca_cert_pem(&root, KeyPair::from_pem(&key)?)?)
}

/// A certificate by a root that nobody trusts.
pub(crate) fn issued_by_stranger(claim: &Claim, into: &Path, name: &str) -> anyhow::Result<Files> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    issue(Keys::Ecdsa, claim, &Issuer::new(params, KeyPair::generate()?), into, name)
}

/// A list of the CA in `ca_dir` that takes the certificate of this serial, lower-case hex, back.
pub(crate) fn revocation_list(ca_dir: &Path, serial: &str) -> anyhow::Result<String> {
    let now = OffsetDateTime::now_utc();
    let serial = u128::from_str_radix(serial, 16).context("a serial in hex")?;
    let revoked = rcgen::RevokedCertParams {
        serial_number: rcgen::SerialNumber::from_slice(&serial.to_be_bytes()),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let params = rcgen::CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::days(1),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(&mesh_issuer(ca_dir)?)?.pem()?)
}

/// A certificate that vouches for itself.
pub(crate) fn self_signed(claim: &Claim, into: &Path, name: &str) -> anyhow::Result<Files> {
    let key = KeyPair::generate()?;
    let certificate = claim.params()?.self_signed(&key)?;
    store(&certificate.pem(), &key, into, name)
}

/// A certificate for this host that vouches for itself, as its key's file only root may read.
pub(crate) fn web_server(host: &str, into: &Path, name: &str) -> anyhow::Result<Files> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([host.to_owned()])?.self_signed(&key)?;
    let files = store(&certificate.pem(), &key, into, name)?;
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600))?;
    Ok(files)
}

/// Two authorities of one root, with keys and files as Istio's Makefile makes them for two clusters' secret `cacerts`.
pub(crate) fn plugged_in(folders: [&Path; 2]) -> anyhow::Result<()> {
    let authority = |name: &str, below| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(below);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        params
    };
    let root_key = Keys::Rsa.generate()?;
    let root = authority("Root CA", BasicConstraints::Unconstrained).self_signed(&root_key)?.pem();
    let issuer = Issuer::from_ca_cert_pem(&root, root_key)?;
    for folder in folders {
        let key = Keys::Rsa.generate()?;
        let params =
            authority(&format!("Intermediate CA {}", folder.display()), BasicConstraints::Constrained(0));
        let certificate = params.signed_by(&key, &issuer)?.pem();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let chain = format!("{certificate}{root}");
        for (name, content) in [
            ("root-cert.pem", &root),
            ("ca-cert.pem", &certificate),
            ("cert-chain.pem", &chain),
            ("ca-key.pem", &key.serialize_pem()),
        ] {
            fs::write(folder.join(name), content)?;
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

fn issue(
    keys: Keys,
    claim: &Claim,
    issuer: &Issuer<'_, KeyPair>,
    into: &Path,
    name: &str,
) -> anyhow::Result<Files> {
    let key = keys.generate()?;
    let certificate = claim.params()?.signed_by(&key, issuer)?;
    store(&certificate.pem(), &key, into, name)
}

fn store(chain: &str, key: &KeyPair, into: &Path, name: &str) -> anyhow::Result<Files> {
    let files = Files { chain: into.join(format!("{name}.crt")), key: into.join(format!("{name}.key")) };
    std::fs::write(&files.chain, chain)?;
    std::fs::write(&files.key, key.serialize_pem())?;
    Ok(files)
}
