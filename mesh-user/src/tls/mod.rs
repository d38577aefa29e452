//! Handshakes, verifiers, session resumption, offload to the kernel. Identity comes only from here: from a
//! certificate proven in the TLS handshake of that very connection, never from an address.

mod believed;
mod client_hello;
mod confirm;
mod context;
mod endpoint;
mod error;
mod handshake;
mod offload;
mod originate;
mod probe;
mod rustls_verifiers;
mod service;
mod session;
mod settle;
mod stream;
#[cfg(test)]
pub(crate) mod test_pki;
#[cfg(test)]
mod tests;
mod verify;

#[cfg(test)]
use crate as meshd_library;
pub use client_hello::{ClientHello, Detected, MAX_CLIENT_HELLO_BYTES, detect};
pub(crate) use confirm::Unconfirmed;
pub use context::{ALPN_PROTOCOLS, TlsContext, TlsSettings, provider};
pub use endpoint::{endpoint_client, endpoint_server};
pub use error::{Dialect, HandshakeError, VerifyError};
pub use handshake::{Established, HandshakeLimits, Proven, SessionFacts};
pub(crate) use offload::set_secrets;
pub use offload::{KernelCipher, KernelTls, OffloadError, Offloaded};
pub use originate::{Originator, OriginatorParts, VerifiedServer};
pub(crate) use rustls_verifiers::ServerVerifier;
pub use service::service_config;
pub use session::{
    KernelSession, MAX_RECORD_BYTES, MAX_RECORD_PLAINTEXT_BYTES, Processed, RECORD_OVERHEAD_BYTES, Session,
    Step,
};
pub use stream::TlsStream;
pub use verify::{PeerRole, PeerVerifier, VerifiedPeer, why_no_authority};
