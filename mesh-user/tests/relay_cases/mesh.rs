//! Two relays between a client and a server, all over loopback sockets in one process.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mesh_user::{
    identity::{SpiffeId, Svid},
    proxy::relay::{LiveStats, RelayKind, RelayOptions, RelayOutcome, WireLeg, relay},
    tls::{Established, HandshakeLimits, KernelTls, OffloadError, TlsContext, TlsSettings},
};
use rustls::{SupportedCipherSuite, crypto::CryptoProvider};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::Kinds;
use crate::test_pki::{TestCa, bundles, shared};

pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/db";

/// Time in which the client's first data comes up with the rest of its handshake, sometimes: both are read together.
const SETTLING: Duration = Duration::from_millis(20);

/// `full` divided by `MESHD_TEST_SCALE`, at least 1.
pub(crate) fn scaled(full: usize) -> usize {
    let scale = std::env::var("MESHD_TEST_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (full / usize::max(scale, 1)).max(1)
}

pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// One authority, two identities, two nodes.
pub(crate) struct Trust {
    pub(crate) ca: TestCa,
    client: TlsContext,
    server: TlsContext,
    client_svid: Svid,
    server_svid: Svid,
    expected: Arc<BTreeSet<SpiffeId>>,
}

impl Trust {
    pub(crate) fn new() -> Self {
        Self::with_provider(mesh_user::tls::provider())
    }

    /// Only this suite, and its version of TLS, is offered.
    pub(crate) fn with_suite(suite: SupportedCipherSuite) -> Self {
        Self::with_provider(CryptoProvider { cipher_suites: vec![suite], ..mesh_user::tls::provider() })
    }

    fn with_provider(provider: CryptoProvider) -> Self {
        let ca = TestCa::new("cluster.local");
        let settings = TlsSettings::new("cluster.local".parse().unwrap());
        let bundles = shared(bundles(&[&ca]));
        Self {
            client: TlsContext::with_provider(settings.clone(), Arc::clone(&bundles), provider.clone()),
            server: TlsContext::with_provider(settings, bundles, provider),
            client_svid: ca.svid(CLIENT),
            server_svid: ca.svid(SERVER),
            expected: Arc::new([SERVER.parse().unwrap()].into()),
            ca,
        }
    }

    pub(crate) async fn connect(&self, stream: TcpStream) -> Established {
        let address = stream.peer_addr().unwrap().ip();
        let limits = HandshakeLimits { timeout: Duration::from_secs(60), ..HandshakeLimits::default() };
        self.client.connect(stream, &self.client_svid, &self.expected, address, limits).await.unwrap()
    }

    pub(crate) async fn accept(&self, stream: TcpStream) -> Established {
        let limits = HandshakeLimits { timeout: Duration::from_secs(60), ..HandshakeLimits::default() };
        self.server.accept(stream, &self.server_svid, limits).await.unwrap()
    }
}

pub(crate) async fn leg(established: Established, kind: RelayKind, kernel: &KernelTls) -> WireLeg {
    if kind == RelayKind::Userspace {
        return WireLeg::Userspace(Box::new(established));
    }
    match established.offload(kernel, Duration::from_secs(5)).await {
        Ok(wire) => WireLeg::Ktls { wire: Box::new(wire), splice: kind == RelayKind::KtlsSplice },
        Err(OffloadError::NotOffloaded { reason, .. }) => panic!("not offloaded: {reason}"),
        Err(OffloadError::Lost(error)) => panic!("lost: {error}"),
    }
}

/// Client, relay, wire, relay, server.
pub(crate) struct Mesh {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) client_live: Arc<LiveStats>,
    pub(crate) client_relay: JoinHandle<RelayOutcome>,
    pub(crate) server_relay: JoinHandle<RelayOutcome>,
    pub(crate) resumed: bool,
}

impl Mesh {
    pub(crate) async fn start(kinds: &Kinds) -> Self {
        Self::start_in(&Trust::new(), kinds, RelayOptions::default(), &[]).await
    }

    pub(crate) async fn start_with(kinds: &Kinds, options: RelayOptions) -> Self {
        Self::start_in(&Trust::new(), kinds, options, &[]).await
    }

    pub(crate) async fn start_with_early(kinds: &Kinds, early: &[u8]) -> Self {
        Self::start_in(&Trust::new(), kinds, RelayOptions::default(), early).await
    }

    /// The client's wire leg has a send buffer of twice `bytes` (the kernel doubles it) that does not grow.
    pub(crate) async fn start_with_send_buffer(kinds: &Kinds, bytes: usize) -> Self {
        let (near, far) = tcp_pair().await;
        socket2::SockRef::from(&near).set_send_buffer_size(bytes).unwrap();
        Self::start_over((near, far), &Trust::new(), kinds, RelayOptions::default(), &[], SETTLING).await
    }

    /// The server's relay begins after `settling`.
    pub(crate) async fn start_at_once(
        trust: &Trust,
        kinds: &Kinds,
        options: RelayOptions,
        early: &[u8],
        small_send_buffer: bool,
        settling: Duration,
    ) -> Self {
        let (near, far) = tcp_pair().await;
        if small_send_buffer {
            socket2::SockRef::from(&near).set_send_buffer_size(23_040).unwrap();
        }
        Self::start_over((near, far), trust, kinds, options, early, settling).await
    }

    pub(crate) async fn start_in(trust: &Trust, kinds: &Kinds, options: RelayOptions, early: &[u8]) -> Self {
        Self::start_over(tcp_pair().await, trust, kinds, options, early, SETTLING).await
    }

    /// `early` is what the application sent before its relay runs.
    async fn start_over(
        (near, far): (TcpStream, TcpStream),
        trust: &Trust,
        kinds: &Kinds,
        options: RelayOptions,
        early: &[u8],
        settling: Duration,
    ) -> Self {
        let ((mut client, client_app), (server_app, server)) = tokio::join!(tcp_pair(), tcp_pair());
        client.write_all(early).await.unwrap();
        near.set_nodelay(true).unwrap();
        if kinds.client == RelayKind::Plain {
            let client_live = Arc::new(LiveStats::default());
            let client_relay = spawn(client_app, WireLeg::Plain(near), options, Arc::clone(&client_live));
            let server_relay = spawn(server_app, WireLeg::Plain(far), options, Arc::default());
            return Self { client, server, client_live, client_relay, server_relay, resumed: false };
        }
        let near = async {
            let near = trust.connect(near).await;
            let resumed = near.facts().resumed;
            let live = Arc::new(LiveStats::default());
            let wire = leg(near, kinds.client, &kinds.kernel).await;
            (spawn(client_app, wire, options, Arc::clone(&live)), live, resumed)
        };
        let far = async {
            let far = trust.accept(far).await;
            if !settling.is_zero() {
                tokio::time::sleep(settling).await;
            }
            leg(far, kinds.server, &kinds.kernel).await
        };
        let ((client_relay, client_live, resumed), wire) = tokio::join!(near, far);
        let server_relay = spawn(server_app, wire, options, Arc::default());
        Self { client, server, client_live, client_relay, server_relay, resumed }
    }
}

pub(crate) fn spawn(
    app: TcpStream,
    wire: WireLeg,
    options: RelayOptions,
    live: Arc<LiveStats>,
) -> JoinHandle<RelayOutcome> {
    mesh_user::sys::socket::prepare_leg(&app).unwrap();
    tokio::spawn(async move { relay(app, wire, &options, &live).await })
}
