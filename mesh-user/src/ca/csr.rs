//! Certificate signing requests (RFC 2986): who sends one proves that it has the key; what the request asks to be is not
//! looked at.

use std::fmt;

use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest, oid_registry, prelude::FromDer, public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

use crate::config::KeyKind;

/// A longer one is no CSR of an SVID.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
/// The shortest RSA key that peers believe.
pub const MIN_RSA_BITS: usize = 2048;
/// A longer one only costs time; bits.
pub const MAX_RSA_BITS: usize = 4096;

/// Why a CSR is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Too long.
    #[error("the CSR has more than {MAX_CSR_BYTES} bytes")]
    TooLong,
    /// No CSR at all.
    #[error("no CSR: {0}")]
    Malformed(String),
    /// The key is of no kind that certificates are made for.
    #[error(
        "the CSR's key is {0}: use ECDSA P-256 or P-384, Ed25519, or RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits"
    )]
    Key(String),
    /// The signature is not by the key that it is about.
    #[error("the CSR is not signed by its own key, so nobody proved to have that")]
    NotPossessed,
}

impl KeyKind {
    /// All.
    pub const ALL: [Self; 4] = [Self::EcdsaP256, Self::EcdsaP384, Self::Ed25519, Self::Rsa];

    /// What is wrong with it, when it is of another kind, or weak.
    fn of(key: &SubjectPublicKeyInfo<'_>) -> Result<Self, String> {
        match key.parsed() {
            Ok(PublicKey::RSA(rsa)) if key.algorithm.algorithm == oid_registry::OID_PKCS1_RSAENCRYPTION => {
                match rsa.key_size() {
                    MIN_RSA_BITS..=MAX_RSA_BITS => Ok(Self::Rsa),
                    bits => Err(format!("RSA of {bits} bits")),
                }
            }
            Ok(PublicKey::EC(point)) => {
                // compressed points are no certificates' (RFC 5480 section 2.2: need not be supported)
                if point.data().first() != Some(&4) {
                    return Err("a compressed point".to_owned());
                }
                match key.algorithm.parameters.as_ref().and_then(|named| named.as_oid().ok()) {
                    Some(curve) if curve == oid_registry::OID_EC_P256 => Ok(Self::EcdsaP256),
                    Some(curve) if curve == oid_registry::OID_NIST_EC_P384 => Ok(Self::EcdsaP384),
                    _ => Err("ECDSA on another curve".to_owned()),
                }
            }
            _ if key.algorithm.algorithm == oid_registry::OID_SIG_ED25519 => Ok(Self::Ed25519),
            _ => Err("of another kind".to_owned()),
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaP256 => "ECDSA P-256",
            Self::EcdsaP384 => "ECDSA P-384",
            Self::Ed25519 => "Ed25519",
            Self::Rsa => "RSA",
        })
    }
}

/// A request whose sender has the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    /// `SubjectPublicKeyInfo`, DER.
    public_key: Vec<u8>,
    key_kind: KeyKind,
}

impl Csr {
    /// Reads PEM, and has the proof of possession checked.
    ///
    /// # Errors
    /// When it is too long, no CSR, of a key that is weak or of no known kind, or not signed by its own key.
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
        let malformed = |error: &dyn fmt::Display| CsrError::Malformed(error.to_string());
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(malformed(&"there is more behind it"));
        }
        let key = &request.certification_request_info.subject_pki;
        let key_kind = KeyKind::of(key).map_err(CsrError::Key)?;
        request.verify_signature().map_err(|_| CsrError::NotPossessed)?;
        Ok(Self { public_key: key.raw.to_vec(), key_kind })
    }

    /// `SubjectPublicKeyInfo`, DER.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// What its key is.
    pub fn key_kind(&self) -> KeyKind {
        self.key_kind
    }
}
