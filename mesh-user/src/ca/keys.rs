//! Keys that sign certificates, and what every certificate of this CA has: a random serial number. A key's serialized
//! form is wiped when it is dropped, and never shown.

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::{Zeroize, Zeroizing};

use super::CaError;

/// A signing key.
pub(super) struct SecretKey(KeyPair);

impl SecretKey {
    /// ECDSA P-256.
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate().map(Self)
    }

    pub(super) fn from_pem(pem: &str) -> Result<Self, rcgen::Error> {
        KeyPair::from_pem(pem).map(Self)
    }

    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// PKCS #8.
    pub(super) fn to_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl rcgen::SigningKey for SecretKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        rcgen::SigningKey::sign(&self.0, message)
    }
}

/// 128 random bits, positive as RFC 5280 section 4.1.2.2 wants: the top bit is clear, the next one set so that
/// the number keeps its 16 bytes.
pub(super) fn random_serial() -> Result<[u8; 16], CaError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial)
        .map_err(|_| CaError::Sign { subject: "a serial number".into(), what: "no randomness".into() })?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

/// The certificate may sign, is of this key and is valid now. Returns its end.
pub(super) fn check(certificate: &CertificateDer<'_>, key: &SecretKey) -> Result<OffsetDateTime, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|e| format!("is no certificate: {e}"))?;
    if !parsed.is_ca() {
        return Err("is no CA certificate (CA:TRUE is missing)".to_owned());
    }
    if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err("does not belong to its key".to_owned());
    }
    let not_after = parsed.validity().not_after.to_datetime();
    if !parsed.validity().is_valid() {
        return Err(format!("is not valid now (until {not_after}); replace it"));
    }
    Ok(not_after)
}
