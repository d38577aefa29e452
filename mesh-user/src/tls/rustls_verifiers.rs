//! The adapters that let rustls ask our verifier. They add no rule of their own.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{
    VerifyError,
    originate::ServerBelief,
    verify::{PeerRole, PeerVerifier},
};
use crate::identity::SpiffeId;

fn refuse(error: VerifyError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn chain_of<'a>(leaf: &CertificateDer<'a>, rest: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf).chain(rest).cloned().collect()
}

fn system_time(now: UnixTime) -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs())
}

/// How signatures are checked, the same in both traits.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, self.verifier.algorithms())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, self.verifier.algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.verifier.algorithms().supported_schemes()
        }
    };
}

/// Verifies servers of one set of expected identities.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) verifier: Arc<PeerVerifier>,
    pub(crate) expected: Arc<BTreeSet<SpiffeId>>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = chain_of(end_entity, intermediates);
        self.verifier
            .verify(&chain, PeerRole::Server, Some(&self.expected), system_time(now))
            .map(|_| ServerCertVerified::assertion())
            .map_err(refuse)
    }

    signatures!();
}

/// Verifies servers outside the mesh.
#[derive(Debug)]
pub(crate) struct OriginVerifier {
    pub(super) verifier: Arc<ServerBelief>,
}

impl ServerCertVerifier for OriginVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier
            .verify(end_entity, intermediates, server_name, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(refuse)
    }

    signatures!();
}

/// Verifies clients; policy decides afterwards which identities may do what.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) verifier: Arc<PeerVerifier>,
    /// Whether a client without a certificate is refused, or served as nobody.
    pub(crate) is_required: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.is_required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = chain_of(end_entity, intermediates);
        self.verifier
            .verify(&chain, PeerRole::Client, None, system_time(now))
            .map(|_| ClientCertVerified::assertion())
            .map_err(refuse)
    }

    signatures!();
}
