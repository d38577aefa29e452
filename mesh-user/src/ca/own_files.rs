//! What meshd itself puts into a CA's folder: a first root, and the files of an intermediate that another node signs with.

use std::{path::Path, time::Duration};

use rustls_pki_types::CertificateDer;

use super::{
    CaError, files,
    keys::{SecretKey, check},
    leaf,
    material::{INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, PLUGGED_IN, ROOT_CERTIFICATE, ROOT_KEY},
};
use crate::identity::TrustDomain;

/// Certificates are valid a little before now, so that a peer with a slow clock accepts them.
const BACKDATE: Duration = Duration::from_secs(60);

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
