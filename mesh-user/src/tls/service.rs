//! TLS of a service of ours, for clients that may or may not have an SVID: TLS 1.3 only, nothing is resumed, and a client
//! certificate that is given but not believed ends the handshake.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, ResolvesServerCert},
};

use super::{
    HandshakeError, PeerVerifier,
    context::{local, provider},
    rustls_verifiers::ClientVerifier,
};

/// A server's configuration; `certificate` is asked at each handshake.
///
/// # Errors
/// When the provider lacks what TLS 1.3 needs.
pub fn service_config(
    verifier: Arc<PeerVerifier>,
    certificate: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, HandshakeError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(local)?
        .with_client_cert_verifier(Arc::new(ClientVerifier { verifier, is_required: false }))
        .with_cert_resolver(certificate);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // A resumed session would bring back a client whose certificate was revoked since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
