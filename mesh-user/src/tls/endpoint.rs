//! TLS of a bundle endpoint: a server that asks nobody for a certificate, and a client that believes one SPIFFE ID. Nothing
//! of workloads' own connections: no session is remembered, no key leaves rustls.
//!
//! Source: SPIFFE Federation sections 5.2.1.3, 5.2.2.3 and 5.2.2.4.

use std::{collections::BTreeSet, sync::Arc};

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    server::{NoServerSessionStorage, ResolvesServerCert},
};

use super::{PeerVerifier, context::provider, rustls_verifiers::ServerVerifier};
use crate::identity::SpiffeId;

/// The only protocol spoken at a bundle endpoint.
const HTTP_1_1: &[u8] = b"http/1.1";

/// A client without a certificate that believes a server only when it proves `expected`.
///
/// # Errors
/// When rustls does not take its settings.
pub fn endpoint_client(
    verifier: Arc<PeerVerifier>,
    expected: SpiffeId,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = ServerVerifier { verifier, expected: Arc::new(BTreeSet::from([expected])) };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A server that shows what `certificate` resolves to.
///
/// # Errors
/// When rustls does not take its settings.
pub fn endpoint_server(certificate: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
