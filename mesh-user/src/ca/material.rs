//! Which files of the CA's folder sign, and what they chain to: meshd's own (`ca.crt`, `ca.key`, and with an intermediate
//! `intermediate.crt`, `intermediate.key`), or those that Istio takes from its secret `cacerts` (`root-cert.pem`,
//! `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`). Only reads; whether they sign well is tried by the CA.
//!
//! Source: Istio, "Plug in CA Certificates".

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;

use super::{CaError, files, own_files::finish_first_start};

pub(super) const ROOT_CERTIFICATE: &str = "ca.crt";
pub(super) const ROOT_KEY: &str = "ca.key";
pub(super) const INTERMEDIATE_CERTIFICATE: &str = "intermediate.crt";
pub(super) const INTERMEDIATE_KEY: &str = "intermediate.key";

pub(super) const PLUGGED_ROOTS: &str = "root-cert.pem";
const PLUGGED_CERTIFICATE: &str = "ca-cert.pem";
const PLUGGED_KEY: &str = "ca-key.pem";
const PLUGGED_CHAIN: &str = "cert-chain.pem";
/// Istio's names.
pub(super) const PLUGGED_IN: [&str; 4] = [PLUGGED_ROOTS, PLUGGED_CERTIFICATE, PLUGGED_KEY, PLUGGED_CHAIN];

/// What a folder holds to sign with.
pub(super) struct Material {
    /// Whom SVIDs chain to.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// From the issuing certificate up to below the root; empty: a root issues.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The certificate of the key.
    pub(super) issuing: CertificateDer<'static>,
    pub(super) issuing_path: PathBuf,
    /// Of a key that is there and nobody else can read; whether it belongs to the certificate is tried by who uses it.
    pub(super) key_path: PathBuf,
}

impl Material {
    /// None: the folder holds no CA yet.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, CaError> {
        let is_there = |name: &&str| std::fs::symlink_metadata(directory.join(name)).is_ok();
        let Some(plugged) = PLUGGED_IN.iter().find(|name| is_there(name)) else {
            return Self::read_own(directory);
        };
        let own = [ROOT_CERTIFICATE, ROOT_KEY, INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY];
        if let Some(own) = own.iter().find(|name| is_there(name)) {
            let what = format!("holds {own} and {plugged}, so two CAs: move the files of one elsewhere");
            return Err(incomplete(directory, what));
        }
        Self::read_plugged_in(directory).map(Some)
    }

    fn read_own(directory: &Path) -> Result<Option<Self>, CaError> {
        let roots = files::read_certificates(&directory.join(ROOT_CERTIFICATE))?;
        let root_key = files::read_secret(&directory.join(ROOT_KEY))?;
        let intermediate = files::read_certificates(&directory.join(INTERMEDIATE_CERTIFICATE))?;
        let intermediate_key = files::read_secret(&directory.join(INTERMEDIATE_KEY))?;
        let lacks = |what: &str| Err(incomplete(directory, what.to_owned()));
        match (roots, root_key, intermediate, intermediate_key) {
            (None, None, None, None) => Ok(None),
            (Some((roots, _)), _, Some((chain, _)), Some(_)) => {
                Self::from_parts(directory, roots, chain, (INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY))
                    .map(Some)
            }
            (Some((roots, _)), Some(_), None, None) => {
                let issuing = roots.iter().take(1).cloned().collect();
                Self::from_parts(directory, roots, issuing, (ROOT_CERTIFICATE, ROOT_KEY)).map(Some)
            }
            (None, Some(_), None, None) => {
                lacks("ca.key without ca.crt: restore ca.crt, or remove ca.key to start a new trust")
            }
            (None, _, _, _) => lacks("an intermediate needs ca.crt, the roots it chains to"),
            (Some(_), _, Some(_), None) => lacks("intermediate.crt without intermediate.key"),
            (Some(_), _, None, Some(_)) => lacks("intermediate.key without intermediate.crt"),
            (Some((roots, _)), None, None, None) => {
                if finish_first_start(directory, &roots)? {
                    return Self::read_own(directory);
                }
                lacks("ca.crt without ca.key or an intermediate: nothing to sign with")
            }
        }
    }

    /// `cert-chain.pem` repeats `ca-cert.pem`, and often the root; it may be left out where a root signs.
    fn read_plugged_in(directory: &Path) -> Result<Self, CaError> {
        let lacks =
            |name: &str| incomplete(directory, format!("{name} is missing beside {}", PLUGGED_IN.join(", ")));
        let certificates = |name: &str| files::read_certificates(&directory.join(name));
        let (roots, _) = certificates(PLUGGED_ROOTS)?.ok_or_else(|| lacks(PLUGGED_ROOTS))?;
        let (mut chain, _) = certificates(PLUGGED_CERTIFICATE)?.ok_or_else(|| lacks(PLUGGED_CERTIFICATE))?;
        files::read_secret(&directory.join(PLUGGED_KEY))?.ok_or_else(|| lacks(PLUGGED_KEY))?;
        chain.truncate(1);
        chain.extend(certificates(PLUGGED_CHAIN)?.map(|(between, _)| between).unwrap_or_default());
        Self::from_parts(directory, roots, chain, (PLUGGED_CERTIFICATE, PLUGGED_KEY))
    }

    /// `chain` begins with the issuing certificate; roots and what comes twice are left out of it.
    fn from_parts(
        directory: &Path,
        roots: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        (issuing_name, key_name): (&str, &str),
    ) -> Result<Self, CaError> {
        let issuing_path = directory.join(issuing_name);
        let Some(issuing) = chain.first().cloned() else {
            return Err(incomplete(directory, format!("{issuing_name} holds no certificate")));
        };
        let mut between = Vec::new();
        for certificate in chain {
            if !roots.contains(&certificate) && !between.contains(&certificate) {
                between.push(certificate);
            }
        }
        let key_path = directory.join(key_name);
        Ok(Self { roots, chain: between, issuing, issuing_path, key_path })
    }
}

fn incomplete(directory: &Path, what: String) -> CaError {
    CaError::Incomplete { path: directory.to_owned(), what }
}
