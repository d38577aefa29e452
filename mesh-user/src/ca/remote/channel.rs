//! The way to the CA: HTTP/2 over TLS whose server proves itself by roots that are believed, or over a Unix socket on the
//! same machine. Each connection is made with the roots and the certificate of its moment.

use std::{collections::BTreeSet, fmt, io, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    client::{ResolvesClientCert, WebPkiServerVerifier, danger::ServerCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower_service::Service;

use super::{RemoteError, trust::roots_file};
use crate::{
    ca::merged,
    identity::{SpiffeId, Svid, TrustBundles, TrustDomain},
    tls::{PeerVerifier, ServerVerifier, provider},
};

/// Until a connection is there, its handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that is silent for so long is asked whether it is there, and given up when it does not say so in time.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Calls under way on the connection.
const CALLS: usize = 64;
/// An answer is a chain, or the bundles of a mesh; a longer one is not read.
pub(super) const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Where a CA is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`, over TLS.
    Tcp(String),
    /// A Unix socket on this machine, where the kernel says who asks.
    Unix(PathBuf),
}

impl Address {
    /// `unix:/path` and `unix:///path` name a socket.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("unix:") {
            Some(path) => Self::Unix(path.strip_prefix("//").unwrap_or(path).into()),
            None => Self::Tcp(text.to_owned()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who the CA's server must prove to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerIdentity {
    /// One of its certificate's DNS names (or addresses).
    Name(ServerName<'static>),
    /// Its SPIFFE ID.
    Spiffe(SpiffeId),
}

impl ServerIdentity {
    /// A SPIFFE ID, or a name.
    ///
    /// # Errors
    /// In words, when it is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("spiffe://") {
            return text.parse().map(Self::Spiffe).map_err(|error| format!("{text:?}: {error}"));
        }
        let name =
            ServerName::try_from(text.to_owned()).map_err(|_| format!("{text:?} is no server name"))?;
        Ok(Self::Name(name))
    }
}

/// What connections are made with.
pub(super) struct Connector {
    pub(super) address: Address,
    pub(super) server: ServerIdentity,
    pub(super) trust_domain: TrustDomain,
    pub(super) versions: &'static [&'static SupportedProtocolVersion],
    /// What the server is held against, beside what the file says at that moment.
    pub(super) bundles: Arc<ArcSwap<TrustBundles>>,
    pub(super) roots_file: Option<PathBuf>,
    pub(super) clock_skew: Duration,
    /// Shown to the server where there is one.
    pub(super) own: Arc<ArcSwap<Option<Arc<Svid>>>>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Connector {
    /// Connects when it is first used, and again when the connection is gone.
    pub(super) fn channel(self: &Arc<Self>) -> Result<Channel, RemoteError> {
        let local = |error: &dyn fmt::Display| RemoteError::Local(error.to_string());
        let authority = match &self.address {
            Address::Tcp(address) => address.clone(),
            Address::Unix(_) => "localhost".to_owned(),
        };
        let scheme = if matches!(self.address, Address::Unix(_)) { "http" } else { "https" };
        let origin: Uri = format!("{scheme}://{authority}").parse().map_err(|e| local(&e))?;
        // The connector below makes the TLS itself: tonic is not to.
        let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|e| local(&e))?;
        let endpoint = endpoint
            .origin(origin)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true)
            .concurrency_limit(CALLS);
        Ok(endpoint.connect_with_connector_lazy(Dial(Arc::clone(self))))
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let address = match &self.address {
            Address::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Address::Tcp(address) => address,
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let config = self.tls(&self.believed().await).map_err(io::Error::other)?;
        let name = match &self.server {
            ServerIdentity::Name(name) => name.clone(),
            // Names nothing: the verifier looks at SPIFFE IDs, and no SNI is sent.
            ServerIdentity::Spiffe(_) => ServerName::IpAddress(stream.peer_addr()?.ip().into()),
        };
        Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
    }

    /// A file that an operator has just put there counts, whatever the CA told last.
    async fn believed(&self) -> TrustBundles {
        let known = TrustBundles::clone(&self.bundles.load());
        let Some(file) = self.roots_file.clone() else { return known };
        let domain = self.trust_domain.clone();
        let read = tokio::task::spawn_blocking(move || roots_file(&file, &domain)).await;
        match read {
            Ok(Ok(roots)) => merged(known, &roots),
            Ok(Err(error)) => {
                tracing::warn!(%error, "ca.rootsFile is not used");
                known
            }
            Err(_) => known,
        }
    }

    fn tls(&self, believed: &TrustBundles) -> Result<ClientConfig, String> {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(self.versions)
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(self.server_verifier(believed)?);
        let mut config = match &**self.own.load() {
            Some(svid) => builder.with_client_cert_resolver(shown(svid)),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = matches!(self.server, ServerIdentity::Name(_));
        Ok(config)
    }

    fn server_verifier(&self, bundles: &TrustBundles) -> Result<Arc<dyn ServerCertVerifier>, String> {
        if let ServerIdentity::Spiffe(id) = &self.server {
            let shared = Arc::new(ArcSwap::from_pointee(bundles.clone()));
            let algorithms = provider().signature_verification_algorithms;
            let domain = self.trust_domain.clone();
            let verifier = PeerVerifier::new(domain, Vec::new(), self.clock_skew, shared, algorithms);
            let expected = Arc::new(BTreeSet::from([id.clone()]));
            return Ok(Arc::new(ServerVerifier { verifier: Arc::new(verifier), expected }));
        }
        let of_domain = bundles.roots.get(&self.trust_domain).map(Vec::as_slice).unwrap_or_default();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(of_domain.iter().map(CertificateDer::clone));
        if roots.is_empty() {
            return Err(RemoteError::NoTrust(self.trust_domain.clone()).to_string());
        }
        let lists = bundles.revoked.get(&self.trust_domain).into_iter().flatten();
        let lists = lists.map(|list| CertificateRevocationListDer::from(list.der().to_vec()));
        // As for peers: what no list speaks of is believed, and a late list still says what it says.
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
            .with_crls(lists)
            .allow_unknown_revocation_status()
            .build();
        verifier.map(|verifier| verifier as Arc<dyn ServerCertVerifier>).map_err(|error| error.to_string())
    }
}

fn shown(svid: &Svid) -> Arc<dyn ResolvesClientCert> {
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(svid.chain.clone(), Arc::clone(&svid.key))))
}

/// [`Connector`] as tonic calls it.
struct Dial(Arc<Connector>);

impl Service<Uri> for Dial {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = Arc::clone(&self.0);
        Box::pin(async move {
            let connected = timeout(CONNECT_TIMEOUT, connector.connect()).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_servers_are_told_apart() {
        assert_eq!(Address::parse("ca.example:15012"), Address::Tcp("ca.example:15012".to_owned()));
        for text in ["unix:/run/ca.sock", "unix:///run/ca.sock"] {
            let address = Address::parse(text);
            assert_eq!(
                (&address, address.to_string()),
                (&Address::Unix("/run/ca.sock".into()), "unix:/run/ca.sock".into())
            );
        }
        let spiffe = ServerIdentity::parse("spiffe://td/ns/meshd/sa/ca").unwrap();
        assert!(matches!(spiffe, ServerIdentity::Spiffe(_)));
        for name in ["istiod.istio-system.svc", "10.0.0.1"] {
            assert!(matches!(ServerIdentity::parse(name), Ok(ServerIdentity::Name(_))), "{name}");
        }
        for wrong in ["", "spiffe://", "a b"] {
            ServerIdentity::parse(wrong).unwrap_err();
        }
    }
}
