//! A service on loopback, its audit in a file, and clients of each kind.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::watch,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::super::*;
use crate::{
    ca::{
        audit::Sink,
        authority::{Authority, AuthoritySettings},
        callers::{ConfiguredNodes, kubernetes::fake::ApiServer},
        jwt_svid::JwtAuthority,
        proto::{
            istio::{
                IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
            },
            meshd::{RedeemRequest, join_client::JoinClient},
        },
        signing::{SignedSvid, SigningRequest},
    },
    identity::{SpiffeId, Svid, TrustBundles, TrustDomain},
};

/// Keeps what agents acknowledge, and tells of a trust of the test's own.
pub(super) struct Recording {
    inner: Authority,
    trust: watch::Sender<Arc<Trust>>,
    pub(super) acknowledged: Mutex<Vec<(String, u64)>>,
}

impl Recording {
    fn new(inner: Authority) -> Self {
        let bundles = inner.trust().borrow().bundles.clone();
        let trust = watch::Sender::new(Arc::new(Trust { version: 1, bundles }));
        Self { inner, trust, acknowledged: Mutex::default() }
    }

    /// Has agents believe something else from now on.
    pub(super) fn distribute(&self, bundles: TrustBundles) {
        self.trust.send_modify(|trust| *trust = Arc::new(Trust { version: trust.version + 1, bundles }));
    }
}

impl CertificateAuthority for Recording {
    fn trust_domain(&self) -> &TrustDomain {
        self.inner.trust_domain()
    }

    fn sign(&self, request: SigningRequest) -> BoxFuture<'_, Result<SignedSvid, CaError>> {
        self.inner.sign(request)
    }

    fn own_svid<'a>(&'a self, id: &'a SpiffeId, names: &'a [String]) -> BoxFuture<'a, Result<Svid, CaError>> {
        self.inner.own_svid(id, names)
    }

    fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    fn acknowledge(&self, node: &str, version: u64) {
        self.acknowledged.lock().unwrap().push((node.to_owned(), version));
    }
}

/// A running service.
pub(super) struct Ground {
    pub(super) service: Arc<Service>,
    pub(super) authority: Arc<Recording>,
    pub(super) address: std::net::SocketAddr,
    pub(super) folder: tempfile::TempDir,
    stop: CancellationToken,
    _api_server: ApiServer,
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

const BASE: &str = "
trustDomain: mesh.test
listen: ['127.0.0.1:0']
dnsNames: [ca.test]
maxSvidLifetimeSeconds: 172800
kubernetes: {}
nodes:
  - { name: n1, identities: ['spiffe://mesh.test/ns/shop/*'] }
  - { name: n2, identities: ['spiffe://mesh.test/ns/bank/sa/teller'] }
";

impl Ground {
    pub(super) async fn new() -> Self {
        Self::with("").await
    }

    /// With more of its file.
    pub(super) async fn with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agents.sock");
        let uid = nix::unistd::geteuid();
        let local = format!("unixSocket: {{ path: {}, node: n1, uids: [{uid}] }}\n", socket.display());
        let config = AuthorityConfig::parse(&format!("{BASE}{local}{more}"), "ca.yaml").unwrap();
        let directory = folder.path().join("ca");
        let (lifetime, longest) = (Duration::from_secs(86_400), Duration::from_secs(172_800));
        let settings = AuthoritySettings {
            lifetime,
            max_lifetime: longest,
            ..AuthoritySettings::new(directory.clone(), config.trust_domain.clone())
        };
        let inner = Authority::open(settings).unwrap();
        let join_tokens = JoinTokens::new(inner.state().clone());
        let authority = Arc::new(Recording::new(inner));
        let api_server = ApiServer::start().await;
        let audit = Audit::start(Sink::File(folder.path().join("audit")), config.audit.refusals_per_second);
        let parts = ServiceParts {
            authority: Arc::clone(&authority) as _,
            placement: Arc::new(ConfiguredNodes::new(&config.nodes)),
            kubernetes: Some(api_server.tokens()),
            join_tokens,
            jwt: Arc::new(JwtAuthority::open(&directory, config.trust_domain.clone()).unwrap()),
            audit: Arc::new(audit.unwrap()),
        };
        let service = Service::new(&config, parts).await.unwrap();
        let listeners = Listeners::bind(&config).await.unwrap();
        let address = listeners.addresses()[0];
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&service).follow(stop.clone()));
        tokio::spawn(listeners.serve(Arc::clone(&service), stop.clone()));
        Self { service, authority, address, folder, stop, _api_server: api_server }
    }

    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.service.trust().bundles.roots.values().next().unwrap().clone()
    }

    pub(super) fn client_config(&self, own: Option<&Own>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for root in self.roots() {
            roots.add(root).unwrap();
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()));
        let builder =
            builder.with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12]).unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match own {
            Some(own) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.serialize_der()));
                builder.with_client_auth_cert(own.chain.clone(), key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// As a program would: the server proves the name that it was asked for.
    pub(super) async fn tls(&self, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("ca.test").unwrap();
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub(super) async fn channel(&self, own: Option<&Own>) -> Result<Channel, tonic::transport::Error> {
        let (address, config) = (self.address, Arc::new(self.client_config(own)));
        let connect = service_fn(move |_: http::Uri| {
            let connector = TlsConnector::from(Arc::clone(&config));
            async move {
                let stream = TcpStream::connect(address).await?;
                let stream = connector.connect(ServerName::try_from("ca.test").unwrap(), stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("https://ca.test").connect_with_connector(connect).await
    }

    /// Over the Unix socket.
    pub(super) async fn local(&self) -> Channel {
        let path = self.folder.path().join("agents.sock");
        let connect = service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        Endpoint::from_static("http://ca.test").connect_with_connector(connect).await.unwrap()
    }

    pub(super) async fn anonymous(&self) -> Channel {
        self.channel(None).await.unwrap()
    }

    fn audit_path(&self) -> PathBuf {
        self.folder.path().join("audit")
    }

    pub(super) fn audit_text(&self) -> String {
        std::fs::read_to_string(self.audit_path()).unwrap_or_default()
    }

    pub(super) fn audit(&self) -> Vec<serde_json::Value> {
        self.audit_text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of which `wanted` says yes.
    pub(super) async fn audited(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let found = async {
            loop {
                if let Some(line) = self.audit().into_iter().find(&wanted) {
                    return line;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(30), found).await;
        found.unwrap_or_else(|_elapsed| panic!("the audit lacks a line: {}", self.audit_text()))
    }

    /// A node's certificate, by a join token.
    pub(super) async fn join(&self, node: &str) -> Own {
        let tokens = self.service.join_tokens();
        let (_, token) = tokens.create(node, Duration::from_secs(60), SystemTime::now()).await.unwrap();
        let key = KeyPair::generate().unwrap();
        let request = RedeemRequest { token: token.to_string(), csr: csr(&key, &[]) };
        let answer = JoinClient::new(self.anonymous().await).redeem(request).await.unwrap().into_inner();
        Own::new(key, &answer.cert_chain)
    }
}

/// A key and the certificate that was got for it.
pub(super) struct Own {
    pub(super) key: KeyPair,
    pub(super) chain: Vec<CertificateDer<'static>>,
}

impl Own {
    pub(super) fn new(key: KeyPair, texts: &[String]) -> Self {
        // The last entry is the roots.
        Self { key, chain: certificates(&texts[..texts.len() - 1].concat()) }
    }

    pub(super) fn uris(&self) -> Vec<String> {
        names(&self.chain[0]).into_iter().filter(|name| name.starts_with("URI(")).collect()
    }
}

pub(super) fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

/// All alternative names.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap().value;
    names
        .general_names
        .iter()
        .map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => format!("URI({uri})"),
            x509_parser::extensions::GeneralName::DNSName(name) => format!("DNS({name})"),
            other => format!("{other:?}"),
        })
        .collect()
}

/// PEM that asks for these URI names.
pub(super) fn csr(key: &KeyPair, uris: &[&str]) -> String {
    let mut params = CertificateParams::new(vec!["evil.test".to_owned()]).unwrap();
    params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// A CSR whose signature is by another key than its own.
pub(super) fn forged_csr() -> String {
    let der = pem::parse(csr(&KeyPair::generate().unwrap(), &[])).unwrap().into_contents();
    let mut forged = der.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", forged))
}

/// What `CreateCertificate` is asked.
pub(super) fn ask(csr: String, token: Option<&str>, asked: Option<&str>) -> Request<IstioCertificateRequest> {
    let field = |id: &str| {
        let value = Value { kind: Some(Kind::StringValue(id.to_owned())) };
        Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() }
    };
    let mut request =
        Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: asked.map(field) });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

/// Asks with a fresh key.
pub(super) async fn obtain(
    channel: Channel,
    token: Option<&str>,
    asked: Option<&str>,
) -> Result<Own, Status> {
    let key = KeyPair::generate().unwrap();
    let request = ask(csr(&key, &[]), token, asked);
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
    Ok(Own::new(key, &answer.into_inner().cert_chain))
}
