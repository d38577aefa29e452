//! Makes the runner's certificates SVIDs: its keys stay, their certificates are issued anew by an authority whose root
//! lies beside them. Those that no SVID can be made of (P-224, RSA with 1024 bits) stay as they are, and are refused.

use std::{fs, path::Path, time::SystemTime};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_user as meshd_library;
use mesh_user::identity::{SpiffeId, Svid, TrustBundles, TrustDomain};
use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use test_pki::{Leaf, TestCa};

#[path = "../../src/tls/test_pki.rs"]
#[expect(dead_code, reason = "the library's own tests use the rest")]
mod test_pki;

const TRUST_DOMAIN: &str = "bogo.example";
/// Whose certificates all of them are.
const RUNNER: &str = "spiffe://bogo.example/ns/bogo/sa/runner";
const ROOT: &str = "root.der";
/// The certificate's file, its key's, and whether an authority stands between it and the root.
const CERTIFICATES: [(&str, &str, bool); 6] = [
    ("cert.pem", "key.pem", false),
    ("rsa_chain_cert.pem", "rsa_chain_key.pem", true),
    ("ecdsa_p256_cert.pem", "ecdsa_p256_key.pem", false),
    ("ecdsa_p384_cert.pem", "ecdsa_p384_key.pem", false),
    ("ecdsa_p521_cert.pem", "ecdsa_p521_key.pem", false),
    ("ed25519_cert.pem", "ed25519_key.pem", false),
];

/// The identity that the runner proves, and the shim.
pub(crate) fn runner() -> Result<SpiffeId> {
    Ok(RUNNER.parse()?)
}

/// The shim's own trust domain.
pub(crate) fn trust_domain() -> Result<TrustDomain> {
    Ok(TRUST_DOMAIN.parse()?)
}

/// Issues every certificate in the runner's `folder` anew, valid for half an hour.
pub(crate) fn certify(folder: &Path) -> Result<()> {
    let root = TestCa::new(TRUST_DOMAIN);
    let below = root.below(|_| {});
    let leaf = Leaf::of(RUNNER);
    for (certificate, key, in_between) in CERTIFICATES {
        let pem = fs::read_to_string(folder.join(key)).with_context(|| format!("no {key}"))?;
        let key = KeyPair::from_pem(&pem).with_context(|| format!("cannot read {key}"))?;
        let chain = if in_between { &below } else { &root }.certify(&leaf, &key);
        fs::write(folder.join(certificate), pem_of(&chain)).with_context(|| format!("no {certificate}"))?;
    }
    fs::write(folder.join(ROOT), root.root()).context("cannot write the root")
}

fn pem_of(chain: &[CertificateDer<'_>]) -> String {
    let blocks = chain.iter().map(|certificate| {
        let body = STANDARD.encode(certificate);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    });
    blocks.collect()
}

/// What the shim believes: the root that [`certify`] left in the working folder, which the runner shares.
pub(crate) fn bundles() -> Result<TrustBundles> {
    let root = fs::read(ROOT).with_context(|| format!("no {ROOT} in the working folder: run -certify"))?;
    Ok(TrustBundles {
        roots: [(trust_domain()?, vec![CertificateDer::from(root)])].into(),
        ..TrustBundles::default()
    })
}

/// The chain in a PEM file.
pub(crate) fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<_, _> = CertificateDer::pem_file_iter(file)?.collect();
    certificates.with_context(|| format!("cannot read {}", file.display()))
}

/// The SVID in two PEM files.
pub(crate) fn svid(certificate: &Path, key: &Path) -> Result<Svid> {
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("cannot read {}", key.display()))?;
    let now = SystemTime::now();
    Ok(Svid {
        spiffe_id: runner()?,
        chain: chain(certificate)?,
        key: any_supported_type(&key).context("a key that rustls does not take")?,
        // Only the daemon's own renewal asks for these.
        not_before: now,
        not_after: now,
        serial: String::new(),
    })
}
