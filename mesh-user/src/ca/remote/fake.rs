//! A CA for tests: real gRPC over real TLS (or a Unix socket), which answers as well or as badly as it is told to.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, StreamExt as _, stream};
use prost_types::value::Kind;
use rcgen::{CertificateSigningRequestParams, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{
    ca::proto::{
        istio::{
            IstioCertificateRequest, IstioCertificateResponse,
            istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
        },
        meshd::{
            Bundle, RedeemRequest, RedeemResponse, TrustState, WatchRequest,
            join_server::{Join, JoinServer},
            trust_server::{self, TrustServer},
        },
    },
    tls::{
        provider,
        test_pki::{Leaf, TestCa},
    },
};

/// What the CA does with requests for certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Good,
    Refuses(tonic::Code),
    OtherKey,
    OtherIdentity,
    Expired,
    OfTheFuture,
    OtherRoot,
    NoCertificates,
    Garbage,
    Huge,
    Endless,
}

/// What it knows and saw.
pub(super) struct Fake {
    pub(super) ca: TestCa,
    stranger: TestCa,
    pub(super) mood: Mutex<Mood>,
    pub(super) life: Mutex<Duration>,
    pub(super) tokens: Mutex<HashSet<String>>,
    pub(super) trust: watch::Sender<TrustState>,
    pub(super) asked: AtomicUsize,
    /// The newest version that a node has acknowledged.
    pub(super) acknowledged: AtomicU64,
    pub(super) callers: Mutex<Vec<String>>,
    /// `authorization` and `clusterid` of the last call.
    pub(super) shown: Mutex<Vec<Option<String>>>,
    /// Needs a node's certificate, as `meshd ca` does over TCP.
    pub(super) needs_node: bool,
}

/// Where a fake listens; it stops when this goes.
pub(super) struct Listening {
    pub(super) address: String,
    stop: CancellationToken,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Fake {
    pub(super) fn new(needs_node: bool) -> Arc<Self> {
        let ca = TestCa::new("cluster.local");
        let trust = watch::Sender::new(state(1, &ca, Vec::new()));
        Arc::new(Self {
            ca,
            stranger: TestCa::new("cluster.local"),
            mood: Mutex::new(Mood::Good),
            life: Mutex::new(Duration::from_secs(3600)),
            tokens: Mutex::default(),
            trust,
            asked: AtomicUsize::default(),
            acknowledged: AtomicU64::default(),
            callers: Mutex::default(),
            shown: Mutex::default(),
            needs_node,
        })
    }

    pub(super) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Tells another trust.
    pub(super) fn tell(&self, version: u64, revocation_lists: Vec<Vec<u8>>) {
        self.trust.send_replace(state(version, &self.ca, revocation_lists));
    }

    /// Over TLS; port 0: any.
    pub(super) async fn listen(self: &Arc<Self>, port: u16) -> Listening {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let leaf = Leaf {
            dns_names: vec!["localhost".to_owned()],
            ..Leaf::of("spiffe://cluster.local/ns/meshd/sa/ca")
        };
        let own = self.ca.issue(&leaf);
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.root()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(own.chain, own.key))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let incoming = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.ok()?;
            Some((accepted.0, listener))
        });
        let incoming =
            incoming.map(move |tcp| acceptor.accept(tcp)).buffer_unordered(8).filter_map(|tls| async {
                let tls = tls.ok()?;
                let peer = tls.get_ref().1.peer_certificates().map(|chain| chain[0].clone().into_owned());
                Some(std::io::Result::Ok(Io::new(tls, Peer(peer))))
            });
        self.serve(incoming, format!("localhost:{port}"))
    }

    pub(super) fn listen_at(self: &Arc<Self>, path: &Path) -> Listening {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let incoming = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.ok()?;
            Some((std::io::Result::Ok(Io::new(accepted.0, Peer(None))), listener))
        });
        self.serve(incoming, format!("unix:{}", path.display()))
    }

    fn serve(
        self: &Arc<Self>,
        incoming: impl Stream<Item = std::io::Result<Io>> + Send + 'static,
        address: String,
    ) -> Listening {
        let stop = CancellationToken::new();
        let server = tonic::transport::Server::builder()
            .add_service(IstioCertificateServiceServer::new(Arc::clone(self)))
            .add_service(TrustServer::new(Arc::clone(self)))
            .add_service(JoinServer::new(Arc::clone(self)));
        let (stopped, dead) = (stop.clone(), stop.clone());
        let incoming = incoming
            .map(move |io| io.map(|io| Io { dead: Some(Box::pin(dead.clone().cancelled_owned())), ..io }));
        // Not in order: a CA that dies cuts its streams.
        tokio::spawn(async move {
            tokio::select! {
                ended = server.serve_with_incoming(Box::pin(incoming)) => ended.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        Listening { address, stop }
    }

    fn certified(&self, csr: &str, id: &str, mood: Mood) -> Vec<String> {
        let request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let now = SystemTime::now();
        let life = *self.life.lock().unwrap();
        let mut leaf =
            Leaf { not_before: now - Duration::from_secs(60), not_after: now + life, ..Leaf::of(id) };
        let hour = Duration::from_secs(3600);
        match mood {
            Mood::OtherIdentity => leaf.uris = vec!["spiffe://cluster.local/ns/shop/sa/admin".to_owned()],
            Mood::Expired => (leaf.not_before, leaf.not_after) = (now - 2 * hour, now - hour),
            Mood::OfTheFuture => (leaf.not_before, leaf.not_after) = (now + hour, now + 2 * hour),
            _ => {}
        }
        let ca = if mood == Mood::OtherRoot { &self.stranger } else { &self.ca };
        let chain = match mood {
            Mood::OtherKey => ca.certify(&leaf, &KeyPair::generate().unwrap()),
            _ => ca.certify(&leaf, &request.public_key),
        };
        let mut answer: Vec<_> = chain.iter().chain([&ca.root()]).map(pem).collect();
        match mood {
            Mood::NoCertificates => answer.clear(),
            Mood::Garbage => {
                answer = vec!["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into()];
            }
            Mood::Huge => answer = vec!["x".repeat(200 * 1024)],
            Mood::Endless => answer = vec![answer[0].repeat(17)],
            _ => {}
        }
        answer
    }
}

/// The trust of one root.
pub(super) fn state(version: u64, ca: &TestCa, revocation_lists: Vec<Vec<u8>>) -> TrustState {
    let bundle = Bundle {
        trust_domain: ca.trust_domain.to_string(),
        roots: vec![ca.root().to_vec()],
        revocation_lists,
        ..Bundle::default()
    };
    TrustState { version, bundles: vec![bundle] }
}

pub(super) fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// The SPIFFE ID of a client.
fn caller<T>(request: &Request<T>) -> Option<String> {
    let certificate = request.extensions().get::<Peer>()?.0.clone()?;
    let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}

#[tonic::async_trait]
impl IstioCertificateService for Arc<Fake> {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let caller = caller(&request);
        if self.needs_node && caller.is_none() {
            return Err(Status::unauthenticated("who are you?"));
        }
        *self.shown.lock().unwrap() = ["authorization", "clusterid"]
            .map(|name| Some(request.metadata().get(name)?.to_str().ok()?.to_owned()))
            .to_vec();
        let request = request.into_inner();
        let impersonated = request.metadata.and_then(|metadata| {
            match metadata.fields.get("ImpersonatedIdentity")?.kind.clone()? {
                Kind::StringValue(id) => Some(id),
                _ => None,
            }
        });
        self.callers.lock().unwrap().extend(caller.clone());
        let id = impersonated.or(caller).ok_or_else(|| Status::unauthenticated("nobody"))?;
        let mood = *self.mood.lock().unwrap();
        if let Mood::Refuses(code) = mood {
            return Err(Status::new(code, "not you"));
        }
        Ok(Response::new(IstioCertificateResponse { cert_chain: self.certified(&request.csr, &id, mood) }))
    }
}

#[tonic::async_trait]
impl Join for Arc<Fake> {
    async fn redeem(&self, request: Request<RedeemRequest>) -> Result<Response<RedeemResponse>, Status> {
        let request = request.into_inner();
        if !self.tokens.lock().unwrap().remove(&request.token) {
            return Err(Status::unauthenticated("no such token"));
        }
        let cert_chain = self.certified(&request.csr, "spiffe://cluster.local/node/node-a", Mood::Good);
        Ok(Response::new(RedeemResponse { cert_chain }))
    }
}

#[tonic::async_trait]
impl trust_server::Trust for Arc<Fake> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<TrustState, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if self.needs_node && caller(&request).is_none() {
            return Err(Status::unauthenticated("who are you?"));
        }
        let mut heard = request.into_inner();
        let fake = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok(Some(word)) = heard.message().await {
                fake.acknowledged.fetch_max(word.version, Ordering::Relaxed);
            }
        });
        let (tell, told) = mpsc::channel(4);
        let mut trust = self.trust.subscribe();
        trust.mark_changed();
        tokio::spawn(async move {
            while trust.changed().await.is_ok() {
                let state = trust.borrow_and_update().clone();
                if tell.send(Ok(state)).await.is_err() {
                    return;
                }
            }
        });
        let told = stream::unfold(told, |mut told| async { told.recv().await.map(|state| (state, told)) });
        Ok(Response::new(Box::pin(told)))
    }
}

trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// A connection and whose it is, as tonic wants it.
struct Io {
    bytes: Box<dyn Bytes>,
    peer: Peer,
    /// The CA dies, and its connections with it.
    dead: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

#[derive(Clone)]
struct Peer(Option<CertificateDer<'static>>);

impl Io {
    fn new(io: impl Bytes + 'static, peer: Peer) -> Self {
        Self { bytes: Box::new(io), peer, dead: None }
    }
}

impl Connected for Io {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.dead.as_mut().is_none_or(|dead| dead.as_mut().poll(cx).is_ready()) {
            self.dead = None;
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.bytes).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }
}
