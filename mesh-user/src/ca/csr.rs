//! Certificate signing requests (RFC 2986): who sends one proves that it has the key; what the request asks to be is not
//! looked at.

use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

/// A longer one is no CSR of an SVID.
pub const MAX_CSR_BYTES: usize = 16 * 1024;

/// Why a CSR is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Too long.
    #[error("the CSR has more than {MAX_CSR_BYTES} bytes")]
    TooLong,
    /// No CSR at all.
    #[error("no CSR: {0}")]
    Malformed(String),
    /// The signature is not by the key that it is about.
    #[error("the CSR is not signed by its own key, so nobody proved to have that")]
    NotPossessed,
}

/// A request whose sender has the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    /// `SubjectPublicKeyInfo`, DER.
    public_key: Vec<u8>,
}

impl Csr {
    /// Reads PEM, and has the proof of possession checked.
    ///
    /// # Errors
    /// When it is too long, no CSR, or not signed by its own key.
    pub fn from_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLong);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
        Self::from_der(&der.map_err(|error| CsrError::Malformed(error.to_string()))?)
    }

    /// Reads DER, and has the proof of possession checked.
    ///
    /// # Errors
    /// As [`Self::from_pem`].
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLong);
        }
        let malformed = |error: &dyn std::fmt::Display| CsrError::Malformed(error.to_string());
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(malformed(&"there is more behind it"));
        }
        request.verify_signature().map_err(|_| CsrError::NotPossessed)?;
        Ok(Self { public_key: request.certification_request_info.subject_pki.raw.to_vec() })
    }

    /// `SubjectPublicKeyInfo`, DER.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}
