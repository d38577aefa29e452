//! The roots of a node's own CA, to hand to others: another trust domain, or a verifier that is no meshd. Makes nothing
//! and opens no key.

use std::{path::Path, time::SystemTime};

use rustls_pki_types::CertificateDer;
use serde_json::Value;

use super::{
    CaError, files, jwt_svid,
    material::{PLUGGED_ROOTS, ROOT_CERTIFICATE},
    spiffe_bundle,
};
use crate::identity::JwtAuthorities;

/// The roots in a CA's folder.
#[derive(Debug)]
pub struct OwnBundle {
    roots: Vec<CertificateDer<'static>>,
    pem: String,
    jwt_authorities: JwtAuthorities,
    changed: SystemTime,
}

impl OwnBundle {
    /// Reads the roots of the CA in `directory`.
    ///
    /// # Errors
    /// When there is no CA yet, or its roots cannot be read.
    pub fn read(directory: &Path) -> Result<Self, CaError> {
        for name in [ROOT_CERTIFICATE, PLUGGED_ROOTS] {
            let path = directory.join(name);
            let Some((roots, pem)) = files::read_certificates(&path)? else { continue };
            let changed = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
            let changed =
                changed.map_err(|source| CaError::Io { path: path.clone(), action: "look at it", source })?;
            return Ok(Self { roots, pem, jwt_authorities: JwtAuthorities::new(), changed });
        }
        let what = "holds no CA: start meshd once, which makes one, or name the CA's folder in ca.directory";
        Err(CaError::Incomplete { path: directory.to_owned(), what: what.to_owned() })
    }

    /// With the JWT authorities whose keys are in `directory`, if there are any.
    ///
    /// # Errors
    /// When they are there and cannot be read.
    pub fn with_jwt_authorities(self, directory: &Path) -> Result<Self, CaError> {
        Ok(Self { jwt_authorities: jwt_svid::read_published(directory)?, ..self })
    }

    /// DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots as they are in their file.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// As SPIFFE writes a trust bundle, its sequence number being the Unix time at which the roots' file changed.
    ///
    /// # Errors
    /// When a root's key has no form as a JWK.
    pub fn spiffe(&self) -> Result<Value, CaError> {
        spiffe_bundle::write(&self.roots, &self.jwt_authorities, self.changed)
    }
}
