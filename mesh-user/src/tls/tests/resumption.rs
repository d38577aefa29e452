//! A session that resumes another proves nothing anew: it must be the same two, and both must still be believed.

use std::sync::Mutex;

use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::ServerName;

use super::*;
use crate::tls::rustls_verifiers::ServerVerifier;

const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";

/// A handshake, the ticket with it, and whether it resumed an earlier one.
async fn resumed(nodes: &Nodes) -> bool {
    let (mut client, mut server) = nodes.established().await;
    assert_eq!(client.facts().resumed, server.facts().resumed);
    confirm(&mut client, &mut server).await;
    server.facts().resumed
}

#[tokio::test]
async fn a_renewed_certificate_of_either_end_begins_anew() {
    let ca = TestCa::new("cluster.local");
    let mut nodes = Nodes::of(&ca);
    assert!(!resumed(&nodes).await);
    assert!(resumed(&nodes).await);
    nodes.server_svid = ca.svid(DB);
    assert!(!resumed(&nodes).await, "the server's renewal was overlooked");
    assert!(resumed(&nodes).await);
    nodes.client_svid = ca.svid(WEB);
    assert!(!resumed(&nodes).await, "the client's renewal was overlooked");
}

#[tokio::test]
async fn trust_that_was_withdrawn_is_withdrawn_from_resumed_sessions() {
    let stranger = TestCa::new("cluster.local");
    let nodes = Nodes::of(&TestCa::new("cluster.local"));
    let old = nodes.server_bundles.load_full();
    assert!(!resumed(&nodes).await);
    nodes.server_bundles.store(Arc::new(bundles(&[&stranger])));
    assert_eq!(nodes.handshake().await.1.unwrap_err().label(), "unknown_authority");
    nodes.server_bundles.store(old);
    // The ticket was spent on the attempt.
    resumed(&nodes).await;
    nodes.client_bundles.store(Arc::new(bundles(&[&stranger])));
    assert_eq!(nodes.handshake().await.0.unwrap_err().label(), "unknown_authority");
    nodes.client_bundles.store(Arc::new(TrustBundles::default()));
    assert_eq!(nodes.handshake().await.0.unwrap_err().label(), "unknown_authority");
}

#[tokio::test]
async fn a_peer_that_is_refused_at_resumption_is_told_so() {
    let ca = TestCa::new("cluster.local");
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let suites = provider().cipher_suites.into_iter();
        let cipher_suites = suites.filter(|suite| suite.version() == version).collect();
        let one = CryptoProvider { cipher_suites, ..provider() };
        let nodes = Nodes::with(&ca, one, ca.svid(WEB), ca.svid(DB));
        let (mut client, mut server) = nodes.established().await;
        if server.will_be_confirmed() {
            confirm(&mut client, &mut server).await;
        }
        nodes.client_bundles.store(Arc::new(TrustBundles::default()));
        let (client, server) = nodes.handshake().await;
        assert_eq!(client.unwrap_err().label(), "unknown_authority", "{version:?}");
        let alert = match server {
            // It hears of it right behind the handshake.
            Ok(mut server) => server.next_record().await.unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(alert.contains("CertificateUnknown"), "{version:?}: {alert}");
    }
}

#[tokio::test]
async fn a_session_does_not_outlive_the_certificate_that_began_it() {
    let ca = TestCa::new("cluster.local");
    let exact =
        TlsSettings { clock_skew: Duration::ZERO, ..TlsSettings::new("cluster.local".parse().unwrap()) };
    // Certificates count in whole seconds.
    let end = SystemTime::now() + Duration::from_secs(3);
    let short = |id| ca.issue(&Leaf { not_after: end, ..Leaf::of(id) });
    let client_ends = Nodes::with_settings(&ca, provider(), &exact, short(WEB), ca.svid(DB));
    let server_ends = Nodes::with_settings(&ca, provider(), &exact, ca.svid(WEB), short(DB));
    for nodes in [&client_ends, &server_ends] {
        assert!(!resumed(nodes).await);
        assert!(resumed(nodes).await);
    }
    tokio::time::sleep(end.duration_since(SystemTime::now()).unwrap() + Duration::from_secs(1)).await;
    assert_eq!(client_ends.handshake().await.1.unwrap_err().label(), "expired");
    assert_eq!(server_ends.handshake().await.0.unwrap_err().label(), "expired");
}

#[tokio::test]
async fn another_expected_server_does_not_find_the_session() {
    let mut nodes = Nodes::of(&TestCa::new("cluster.local"));
    assert!(!resumed(&nodes).await);
    nodes.expected = expecting(&[OTHER]);
    assert_eq!(nodes.handshake().await.0.unwrap_err().label(), "wrong_identity");
    nodes.expected = expecting(&[DB, OTHER]);
    assert!(!resumed(&nodes).await);
}

/// Remembers sessions, and believes that the server takes early data whatever its ticket says.
#[derive(Debug)]
struct Eager {
    sessions: ClientSessionMemoryCache,
    early_bytes: u32,
    taken: Mutex<usize>,
}

impl ClientSessionStore for Eager {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.sessions.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.sessions.set_tls12_session(name, value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.sessions.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.sessions.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut ticket = self.sessions.take_tls13_ticket(name)?;
        ticket._private_set_max_early_data_size(self.early_bytes);
        *self.taken.lock().unwrap() += 1;
        Some(ticket)
    }
}

/// A client of another make, which keeps its tickets where it likes.
struct Foreigner {
    config: Arc<ClientConfig>,
    store: Arc<Eager>,
}

/// What became of one handshake of it.
struct Met {
    server: Established,
    resumed: bool,
    early_data_taken: bool,
}

impl Foreigner {
    fn new(nodes: &Nodes, early_bytes: u32) -> Self {
        let store = Arc::new(Eager {
            sessions: ClientSessionMemoryCache::new(8),
            early_bytes,
            taken: Mutex::default(),
        });
        let verifier = ServerVerifier {
            verifier: Arc::clone(nodes.client.verifier()),
            expected: expecting(&[DB, OTHER]),
        };
        let svid = &nodes.client_svid;
        let own = SingleCertAndKey::from(CertifiedKey::new(svid.chain.clone(), Arc::clone(&svid.key)));
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(own));
        config.alpn_protocols = vec![b"meshd/1".to_vec()];
        config.enable_early_data = early_bytes > 0;
        config.resumption = Resumption::store(Arc::<Eager>::clone(&store));
        Self { config: Arc::new(config), store }
    }

    /// Handshakes with a server of this SVID, says `early` before it may, and takes the ticket.
    async fn meets(&self, nodes: &Nodes, svid: &Svid, early: &'static [u8]) -> Met {
        use std::io::Write as _;
        let (near, far) = tcp_pair().await;
        let config = Arc::clone(&self.config);
        let client = tokio::task::spawn_blocking(move || {
            let mut tcp = near.into_std().unwrap();
            tcp.set_nonblocking(false).unwrap();
            let mut tls = ClientConnection::new(config, "10.0.0.1".try_into().unwrap()).unwrap();
            if let Some(mut writer) = tls.early_data().filter(|_| !early.is_empty()) {
                writer.write_all(early).unwrap();
            }
            while tls.is_handshaking() || tls.wants_write() {
                tls.complete_io(&mut tcp).unwrap();
            }
            // The ticket.
            tls.read_tls(&mut tcp).unwrap();
            tls.process_new_packets().unwrap();
            (tls.handshake_kind() == Some(HandshakeKind::Resumed), tls.is_early_data_accepted())
        });
        let mut server = nodes.server.accept(far, svid, limits()).await.unwrap();
        server.confirm().await.unwrap();
        let (resumed, early_data_taken) = client.await.unwrap();
        assert_eq!(server.facts().resumed, resumed);
        Met { server, resumed, early_data_taken }
    }
}

#[tokio::test]
async fn a_ticket_of_one_workloads_server_is_worth_nothing_at_anothers() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::of(&ca);
    let (db, other, renewed) = (ca.svid(DB), ca.svid(OTHER), ca.svid(DB));
    let foreigner = Foreigner::new(&nodes, 0);
    assert!(!foreigner.meets(&nodes, &db, b"").await.resumed);
    assert!(foreigner.meets(&nodes, &db, b"").await.resumed, "tickets are good for nothing");
    assert!(!foreigner.meets(&nodes, &other, b"").await.resumed, "another workload took the ticket");
    // That one's own ticket is the latest now.
    assert!(foreigner.meets(&nodes, &other, b"").await.resumed);
    assert!(!foreigner.meets(&nodes, &renewed, b"").await.resumed, "the key outlived its SVID");
    assert_eq!(*foreigner.store.taken.lock().unwrap(), 4, "no ticket was offered");
}

#[tokio::test]
async fn early_data_is_never_taken() {
    let nodes = Nodes::of(&TestCa::new("cluster.local"));
    let foreigner = Foreigner::new(&nodes, 1000);
    assert!(!foreigner.meets(&nodes, &nodes.server_svid, b"").await.resumed);
    let met = foreigner.meets(&nodes, &nodes.server_svid, b"said too early").await;
    assert!(met.resumed && !met.early_data_taken);
    assert!(met.server.plaintext.is_empty(), "early data would reach the application");
    assert_eq!(met.server.peer().unwrap().spiffe_id.to_string(), WEB);
}
