//! TLS to servers themselves, outside the mesh's identities (TLS origination). A server is proven by the authorities and
//! names that a rule gives, never by an address; without them by the system's authorities and the host's name. Keys
//! stay with rustls, and sessions are not resumed: each connection proves its server.
//!
//! What a name is compared with follows Envoy's matchers of `match_typed_subject_alt_names`
//! (`source/common/tls/cert_validator/san_matcher.cc`): DNS with wildcards, URI, e-mail, IP address; never the common name.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    ClientConfig,
    client::{Resumption, UnbufferedClientConnection},
    crypto::WebPkiSupportedAlgorithms,
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime,
};
use tokio::net::TcpStream;
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy, anchor_from_trusted_cert,
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use super::{
    HandshakeError, HandshakeLimits, TlsContext, VerifyError,
    context::{local, provider},
    handshake::{Established, Proven, drive},
    rustls_verifiers::OriginVerifier,
    session::Session,
    verify::path_error,
};
use crate::identity::RevocationList;

/// What an [`Originator`] is made of.
pub struct OriginatorParts {
    /// A server's certificate must chain to one of these.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Lists of the authorities; none: revocation is not looked at.
    pub revocations: Option<Vec<CertificateRevocationListDer<'static>>>,
    /// The client's chain, leaf first, and its key.
    pub client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// The certificate must be for one of these; empty: for the name that the server is called by.
    pub names: Vec<String>,
    /// Nothing is verified but that the server has its certificate's key.
    pub believes_anybody: bool,
}

/// Opens TLS as one rule has it.
pub struct Originator {
    config: Arc<ClientConfig>,
    servers: Arc<ServerBelief>,
}

impl std::fmt::Debug for Originator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Originator").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// A server proven in the handshake of this very connection, as its rule asked.
#[derive(Debug, Clone)]
pub struct VerifiedServer {
    /// When it was verified.
    pub proven_at: SystemTime,
    /// Leaf first; kept so that the connection can be decided again.
    pub chain: Arc<[CertificateDer<'static>]>,
}

impl Originator {
    /// Ready to open connections.
    ///
    /// # Errors
    /// In words, without anything of the key, when a certificate, list or key cannot be used.
    pub fn new(parts: OriginatorParts) -> Result<Self, String> {
        let provider = Arc::new(provider());
        let OriginatorParts { authorities, revocations, client, names, believes_anybody } = parts;
        let anchors = authorities.iter().map(|authority| {
            let anchor = anchor_from_trusted_cert(authority).map(|anchor| anchor.to_owned());
            anchor.map_err(|error| format!("an authority's certificate cannot be used: {error}"))
        });
        let lists = revocations.map(|lists| lists.into_iter().map(revocation_list).collect::<Result<_, _>>());
        let servers = Arc::new(ServerBelief {
            anchors: anchors.collect::<Result<_, _>>()?,
            lists: lists.transpose()?,
            names,
            believes_anybody,
            algorithms: provider.signature_verification_algorithms,
        });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OriginVerifier { verifier: Arc::clone(&servers) }));
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("the client's certificate and key cannot be used: {error}"))?,
        };
        config.resumption = Resumption::disabled();
        config.require_ems = true;
        Ok(Self { config: Arc::new(config), servers })
    }

    /// Decides again about a live connection's server: a rule's authorities, lists or names may have changed. The time is
    /// that of its handshake, as for [`super::PeerVerifier::verify_live`].
    ///
    /// # Errors
    /// Why it would not be believed.
    pub fn verify_live(&self, server: &VerifiedServer, name: &ServerName<'_>) -> Result<(), VerifyError> {
        let (leaf, intermediates) = server
            .chain
            .split_first()
            .ok_or_else(|| VerifyError::Malformed("the chain is empty".to_owned()))?;
        let then = server.proven_at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.servers.verify(leaf, intermediates, name, UnixTime::since_unix_epoch(then))
    }
}

impl TlsContext {
    /// Handshakes with a server outside the mesh over a stream with `TCP_NODELAY`. `name` is what the server is called by:
    /// it is sent as SNI where it is a DNS name, and its certificate must be for it where the rule lists no names.
    pub async fn originate(
        stream: TcpStream,
        originator: &Originator,
        name: ServerName<'static>,
        limits: HandshakeLimits,
    ) -> Result<Established, HandshakeError> {
        let connection = UnbufferedClientConnection::new(Arc::clone(&originator.config), name);
        let session = connection.map(Session::client).map_err(local)?;
        // Verified by the session itself, since none is ever resumed.
        let prove = |chain: &[CertificateDer<'static>], _| {
            Ok(Proven::Server(Arc::new(VerifiedServer { proven_at: SystemTime::now(), chain: chain.into() })))
        };
        drive(stream, Vec::new(), session, limits, prove).await
    }
}

/// Which servers are believed.
#[derive(Debug)]
pub(super) struct ServerBelief {
    anchors: Vec<TrustAnchor<'static>>,
    lists: Option<Vec<RevocationList>>,
    names: Vec<String>,
    believes_anybody: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerBelief {
    pub(super) fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.algorithms
    }

    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        called: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        if self.believes_anybody {
            return Ok(());
        }
        let malformed = |error: webpki::Error| VerifyError::Malformed(error.to_string());
        let certificate = EndEntityCert::try_from(leaf).map_err(malformed)?;
        let lists: Vec<_> = self.lists.iter().flatten().map(RevocationList::list).collect();
        // A certificate whose authority has no list, or an old one, is not believed, as in OpenSSL.
        let revocation = match &self.lists {
            None => None,
            Some(_) => Some(
                RevocationOptionsBuilder::new(&lists)
                    .map_err(|_| VerifyError::Revoked("caCrl holds no list"))?
                    .with_depth(RevocationCheckDepth::Chain)
                    .with_status_policy(UnknownStatusPolicy::Deny)
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .build(),
            ),
        };
        certificate
            .verify_for_usage(
                self.algorithms.all,
                &self.anchors,
                intermediates,
                now,
                KeyUsage::server_auth(),
                revocation,
                None,
            )
            .map_err(|error| path_error(error, VerifyError::UntrustedServer))?;
        let called = called.to_str();
        let mut wanted = self.names.iter().map(String::as_str).collect::<Vec<_>>();
        if wanted.is_empty() {
            wanted.push(&called);
        }
        if wanted.iter().any(|name| is_for(leaf, &certificate, name)) {
            return Ok(());
        }
        Err(VerifyError::WrongName(wanted.join(", ")))
    }
}

fn revocation_list(list: CertificateRevocationListDer<'static>) -> Result<RevocationList, String> {
    RevocationList::new(list).map_err(|error| format!("a revocation list cannot be used: {error}"))
}

/// Whether a subject alternative name of the leaf is `name`.
fn is_for(leaf: &CertificateDer<'_>, certificate: &EndEntityCert<'_>, name: &str) -> bool {
    let as_host = ServerName::try_from(name);
    if as_host.is_ok_and(|host| certificate.verify_is_valid_for_subject_name(&host).is_ok()) {
        return true;
    }
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return false };
    let address: Option<IpAddr> = name.parse().ok();
    let is_it = |alternative: &GeneralName<'_>| match alternative {
        GeneralName::DNSName(dns) => dns.eq_ignore_ascii_case(name),
        GeneralName::URI(text) | GeneralName::RFC822Name(text) => *text == name,
        GeneralName::IPAddress(bytes) => address.is_some_and(|address| match address {
            IpAddr::V4(v4) => v4.octets() == **bytes,
            IpAddr::V6(v6) => v6.octets() == **bytes,
        }),
        _ => false,
    };
    parsed.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => names.general_names.iter().any(is_it),
        _ => false,
    })
}
