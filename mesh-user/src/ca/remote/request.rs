//! A new key and the request to certify it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _, SanType};
use rustls::sign::SigningKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize as _, Zeroizing};

use super::RemoteError;
use crate::{ca::proto::istio::IstioCertificateRequest, identity::SpiffeId};

/// Where ztunnel and meshd say whose certificate they ask for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// A P-256 key that was made here; wiped when it is dropped.
pub(super) struct NewKey(KeyPair);

impl Drop for NewKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl NewKey {
    pub(super) fn generate() -> Result<Self, RemoteError> {
        KeyPair::generate().map(Self).map_err(|error| RemoteError::Local(format!("no key: {error}")))
    }

    /// PEM. `id`: what is asked for, which istiod looks for in the request; meshd's CA does not look.
    pub(super) fn csr(&self, id: Option<&SpiffeId>) -> Result<String, RemoteError> {
        let failed = |error: rcgen::Error| RemoteError::Local(format!("no CSR: {error}"));
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(id) = id {
            params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(failed)?)];
        }
        params.serialize_request(&self.0).and_then(|request| request.pem()).map_err(failed)
    }

    /// The public key's bits, as a certificate holds them.
    pub(super) fn public_bits(&self) -> &[u8] {
        self.0.der_bytes()
    }

    /// Signs handshakes.
    pub(super) fn signer(&self) -> Result<Arc<dyn SigningKey>, RemoteError> {
        let pkcs8 = self.to_der();
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der)
            .map_err(|error| RemoteError::Local(format!("no signer: {error}")))
    }

    /// PKCS #8, for the workload that the certificate is for, and nobody else.
    pub(super) fn to_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// For the node's own file, and nowhere else.
    pub(super) fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// From the node's own file.
    pub(super) fn from_pem(pem: &str) -> Result<Self, String> {
        KeyPair::from_pem(pem).map(Self).map_err(|error| format!("holds no private key: {error}"))
    }
}

/// What is asked of `CreateCertificate`. `impersonated`: a workload's identity that this node asks for.
pub(super) fn certificate(
    csr: String,
    lifetime: Duration,
    impersonated: Option<&SpiffeId>,
) -> IstioCertificateRequest {
    let metadata = impersonated.map(|id| {
        let value = Value { kind: Some(Kind::StringValue(id.to_string())) };
        Struct { fields: BTreeMap::from([(IMPERSONATED.to_owned(), value)]) }
    });
    let validity_duration = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    IstioCertificateRequest { csr, validity_duration, metadata }
}
