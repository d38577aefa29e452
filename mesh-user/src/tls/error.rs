//! Why a handshake or a certificate was refused: typed causes with a label that metrics and the access log
//! may rely on. Never carries key material or bytes that the peer sent, other than its claimed names.

use std::{fmt, io, time::Duration};

use crate::identity::{SpiffeId, TrustDomain};

/// Why a peer's certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No path from the leaf to a root of the peer's own trust domain.
    #[error("no path to a root of trust domain {0}: check that both nodes share its trust bundle")]
    UnknownAuthority(TrustDomain),
    /// The trust domain is neither ours, an alias, nor in a bundle.
    #[error("trust domain {0} is unknown here: add its trust bundle if its workloads should be believed")]
    TrustDomain(TrustDomain),
    /// No path from a server outside the mesh to an authority that its rule trusts.
    #[error(
        "no path to an authority that the DestinationRule trusts: check caCertificates and the server's chain"
    )]
    UntrustedServer,
    /// A server outside the mesh is proven to be somebody else.
    #[error("the certificate is for none of these names: {0}")]
    WrongName(String),
    /// Revoked, or whether it is cannot be told.
    #[error("the certificate may be revoked: {0}")]
    Revoked(&'static str),
    /// Not valid any more, beyond the allowed clock skew.
    #[error("the certificate has expired: check the peer's SVID renewal and both clocks")]
    Expired,
    /// Not valid yet, beyond the allowed clock skew.
    #[error("the certificate is not valid yet: check both clocks")]
    NotYetValid,
    /// The leaf is a CA, or its key usage forbids what it is used for.
    #[error("the certificate is not usable for this: {0}")]
    Usage(&'static str),
    /// An issuer on the path may not vouch for it: path length, name constraints.
    #[error("an issuer of the certificate may not vouch for it: {0}")]
    Constraint(&'static str),
    /// A signature algorithm or a key that proves nothing any more.
    #[error("the certificate proves too little: {0}")]
    Weak(&'static str),
    /// Not exactly one URI SAN, or it is no SPIFFE ID.
    #[error("the certificate does not carry exactly one SPIFFE ID: {0}")]
    BadSpiffeId(String),
    /// Proven, but not an identity that may serve the destination (secure naming).
    #[error("{0} is proven, but may not serve this destination")]
    WrongIdentity(SpiffeId),
    /// Not parsable, or a signature in the chain is wrong.
    #[error("the certificate chain is malformed or wrongly signed: {0}")]
    Malformed(String),
}

impl VerifyError {
    /// A stable name for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::UnknownAuthority(_) | Self::UntrustedServer => "unknown_authority",
            Self::WrongName(_) => "wrong_name",
            Self::TrustDomain(_) => "trust_domain",
            Self::Revoked(_) => "revoked",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Usage(_) => "usage",
            Self::Constraint(_) => "constraint",
            Self::Weak(_) => "weak",
            Self::BadSpiffeId(_) => "bad_spiffe_id",
            Self::WrongIdentity(_) => "wrong_identity",
            Self::Malformed(_) => "bad_certificate",
        }
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Our verifier refused the peer's certificate.
    #[error("the peer's certificate is refused: {0}")]
    Certificate(#[from] VerifyError),
    /// The client sent no certificate.
    #[error("the peer presented no certificate: it must be an enrolled workload")]
    NoCertificate,
    /// The peer refused us with an alert.
    #[error("the peer refused the handshake with alert {0}: its log says why")]
    PeerAlert(String),
    /// The first bytes are no TLS record.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// Both speak TLS, but no dialect of it that both allow.
    #[error("nothing in common with the peer: {0}")]
    Incompatible(Dialect, #[source] rustls::Error),
    /// A protocol violation.
    #[error("TLS protocol error: {0}")]
    Protocol(#[source] rustls::Error),
    /// Not finished in time.
    #[error("the handshake did not finish within {0:?}")]
    Timeout(Duration),
    /// More bytes before the end of the handshake than a handshake needs.
    #[error("the peer sent more than {0} bytes without completing the handshake")]
    TooLarge(usize),
    /// The peer closed the connection.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The socket failed.
    #[error("the socket failed during the handshake")]
    Io(#[from] io::Error),
    /// Our own side cannot take part.
    #[error("cannot set up the handshake: {0}")]
    Local(String),
}

/// What two ends of a handshake must have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The application protocol's name.
    Alpn,
    /// The version of TLS.
    Version,
    /// The cipher suite.
    CipherSuite,
    /// The group of the key exchange, or its other parameters.
    KeyExchange,
}

impl Dialect {
    fn missing(error: &rustls::Error) -> Option<Self> {
        use rustls::{Error, PeerIncompatible as Peer};
        match error {
            Error::NoApplicationProtocol => Some(Self::Alpn),
            Error::PeerIncompatible(
                Peer::ServerDoesNotSupportTls12Or13
                | Peer::ServerTlsVersionIsDisabledByOurConfig
                | Peer::SupportedVersionsExtensionRequired
                // Every client of TLS 1.2 or later that can prove itself here sends it.
                | Peer::SignatureAlgorithmsExtensionRequired
                | Peer::Tls12NotOffered
                | Peer::Tls12NotOfferedOrEnabled,
            ) => Some(Self::Version),
            Error::PeerIncompatible(Peer::NoCipherSuitesInCommon) => Some(Self::CipherSuite),
            Error::PeerIncompatible(
                Peer::NoKxGroupsInCommon
                | Peer::NoEcPointFormatsInCommon
                | Peer::NoSignatureSchemesInCommon
                | Peer::ExtendedMasterSecretExtensionRequired,
            ) => Some(Self::KeyExchange),
            _ => None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Alpn => "alpn",
            Self::Version => "tls_version",
            Self::CipherSuite => "cipher_suite",
            Self::KeyExchange => "key_exchange",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alpn => "no ALPN name; it must offer meshd/1 or istio, or none",
            Self::Version => "no version of TLS; it must be 1.3 or 1.2",
            Self::CipherSuite => "no cipher suite; it must be AES-GCM with ECDHE or ChaCha20-Poly1305",
            Self::KeyExchange => {
                "no way to exchange keys; see its groups, signatures, extended master secret"
            }
        })
    }
}

impl HandshakeError {
    /// A stable name for metrics and the access log.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Certificate(error) => error.label(),
            Self::NoCertificate => "no_certificate",
            Self::PeerAlert(_) => "peer_alert",
            Self::NotTls => "not_tls",
            Self::Incompatible(dialect, _) => dialect.label(),
            Self::Protocol(_) => "protocol",
            Self::Timeout(_) => "timeout",
            Self::TooLarge(_) => "too_large",
            Self::Closed => "closed",
            Self::Io(_) => "io",
            Self::Local(_) => "local",
        }
    }

    /// Finds the typed cause behind what rustls reports.
    pub(crate) fn from_rustls(error: rustls::Error, past_first_record: bool) -> Self {
        use rustls::{CertificateError, Error, InvalidMessage};
        match error {
            Error::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<VerifyError>() {
                    Some(cause) => Self::Certificate(cause.clone()),
                    None => Self::Certificate(VerifyError::Malformed(other.to_string())),
                }
            }
            Error::InvalidCertificate(cause) => Self::Certificate(VerifyError::Malformed(cause.to_string())),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(alert) => Self::PeerAlert(format!("{alert:?}")),
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) if !past_first_record => Self::NotTls,
            other => match Dialect::missing(&other) {
                Some(dialect) => Self::Incompatible(dialect, other),
                None => Self::Protocol(other),
            },
        }
    }
}
