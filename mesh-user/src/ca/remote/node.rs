//! The node's own certificate and its key: the one key that an agent writes, mode 0600 and in one file, so that a restart
//! needs no new join token and a crash leaves the old pair or the new one.

use std::{path::Path, time::SystemTime};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{RemoteError, answer::Answer, request::NewKey};
use crate::{
    ca::{CaError, files},
    identity::Svid,
    tls::PeerVerifier,
};

/// In the node's `stateDir`.
pub(super) const FILE: &str = "node.pem";

/// The certificate that was kept; none: there is no file.
///
/// # Errors
/// When others could read the file, or what it holds is no certificate that counts now.
pub(super) fn read(
    directory: &Path,
    verifier: &PeerVerifier,
    now: SystemTime,
) -> Result<Option<Svid>, CaError> {
    let path = directory.join(FILE);
    let Some(pem) = files::read_secret(&path)? else { return Ok(None) };
    let key = NewKey::from_pem(&pem).map_err(|what| CaError::Invalid { path, what })?;
    let answer = Answer::read("this node", std::slice::from_ref(&*pem))?;
    Ok(Some(answer.svid(None, &key, verifier, now)?))
}

/// Keeps the pair.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn write(directory: &Path, key: &NewKey, svid: &Svid) -> Result<(), CaError> {
    let key = key.pem();
    let chain: String = svid.chain.iter().map(pem).collect();
    let mut text = Zeroizing::new(String::with_capacity(key.len() + chain.len()));
    text.push_str(&key);
    text.push_str(&chain);
    files::write(directory, FILE, text.as_bytes(), 0o600)
}

fn pem(der: &CertificateDer<'_>) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// The one-time token.
///
/// # Errors
/// When there is none, others could read it, or it is nothing that a CA made.
pub(super) fn join_token(file: Option<&Path>) -> Result<Zeroizing<String>, RemoteError> {
    let Some(path) = file else {
        return Err(RemoteError::NotJoined("ca.joinTokenFile is not set".to_owned()));
    };
    let token = match files::read_secret(path) {
        Ok(Some(token)) => Zeroizing::new(token.trim().to_owned()),
        Ok(None) => return Err(RemoteError::NotJoined(format!("there is no {}", path.display()))),
        Err(error) => return Err(RemoteError::NotJoined(error.to_string())),
    };
    if token.is_empty() || token.len() > 1024 || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(RemoteError::NotJoined(format!("{} holds no token", path.display())));
    }
    Ok(token)
}
