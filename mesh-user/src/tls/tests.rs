//! Handshakes over loopback sockets: who is believed, who is refused and why, and that nothing is lost.

mod certificates;
mod origination;
mod resumption;
mod revocation;
mod streams;
mod wire;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls::{CipherSuite, crypto::CryptoProvider};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    Established, HandshakeError, HandshakeLimits, PeerRole, PeerVerifier, TlsContext, TlsSettings,
    Unconfirmed, VerifyError, provider,
    test_pki::{Leaf, TestCa, bundles, self_signed, shared},
};
use crate::{
    identity::{SpiffeId, Svid, TrustBundles},
    sys::socket::reset_on_close,
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

pub(super) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    let (client, server) = (client.unwrap(), accepted.unwrap().0);
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

fn expecting(ids: &[&str]) -> Arc<BTreeSet<SpiffeId>> {
    Arc::new(ids.iter().map(|id| id.parse().unwrap()).collect())
}

fn limits() -> HandshakeLimits {
    HandshakeLimits { timeout: Duration::from_secs(5), ..HandshakeLimits::default() }
}

/// Two nodes with a trust of their own each.
struct Nodes {
    client: TlsContext,
    server: TlsContext,
    client_bundles: Arc<ArcSwap<TrustBundles>>,
    server_bundles: Arc<ArcSwap<TrustBundles>>,
    client_svid: Svid,
    server_svid: Svid,
    expected: Arc<BTreeSet<SpiffeId>>,
}

impl Nodes {
    fn of(ca: &TestCa) -> Self {
        Self::with(ca, provider(), ca.svid(WEB), ca.svid(DB))
    }

    fn with(ca: &TestCa, provider: CryptoProvider, client_svid: Svid, server_svid: Svid) -> Self {
        let settings = TlsSettings::new("cluster.local".parse().unwrap());
        Self::with_settings(ca, provider, &settings, client_svid, server_svid)
    }

    fn with_settings(
        ca: &TestCa,
        provider: CryptoProvider,
        settings: &TlsSettings,
        client_svid: Svid,
        server_svid: Svid,
    ) -> Self {
        let [client_bundles, server_bundles] = [(); 2].map(|()| shared(bundles(&[ca])));
        let context = |bundles, provider| TlsContext::with_provider(settings.clone(), bundles, provider);
        Self {
            client: context(Arc::clone(&client_bundles), provider.clone()),
            server: context(Arc::clone(&server_bundles), provider),
            client_bundles,
            server_bundles,
            client_svid,
            server_svid,
            expected: expecting(&[DB]),
        }
    }

    async fn handshake(&self) -> (Result<Established, HandshakeError>, Result<Established, HandshakeError>) {
        let (near, far) = tcp_pair().await;
        let address = near.peer_addr().unwrap().ip();
        let connect = self.client.connect(near, &self.client_svid, &self.expected, address, limits());
        tokio::join!(connect, self.server.accept(far, &self.server_svid, limits()))
    }

    async fn established(&self) -> (Established, Established) {
        let (client, server) = self.handshake().await;
        (client.unwrap(), server.unwrap())
    }
}

#[tokio::test]
async fn every_suite_proves_both_identities() {
    let ca = TestCa::new("cluster.local");
    for suite in provider().cipher_suites {
        let name = suite.suite();
        if matches!(
            name,
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        ) {
            continue; // needs an RSA key
        }
        let one = CryptoProvider { cipher_suites: vec![suite], ..provider() };
        let nodes = Nodes::with(&ca, one, ca.svid(WEB), ca.svid(DB));
        // A client offers both versions; one of them has no suite then.
        let (client, server) = nodes.handshake().await;
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(client.peer().unwrap().spiffe_id.to_string(), DB, "{name:?}");
        assert_eq!(server.peer().unwrap().spiffe_id.to_string(), WEB, "{name:?}");
        assert_eq!(client.facts().cipher_suite.suite(), name);
        assert_eq!(client.alpn(), Some(&b"meshd/1"[..]));
    }
}

/// Who is refused by the server for what it presents, and with which label.
#[tokio::test]
async fn bad_client_certificates_are_refused_by_cause() {
    let ca = TestCa::new("cluster.local");
    let stranger = TestCa::new("cluster.local");
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let good = Leaf::of(WEB);
    let cases = [
        ("unknown_authority", stranger.svid(WEB)),
        ("unknown_authority", self_signed(&good)),
        ("trust_domain", ca.svid("spiffe://elsewhere.example/ns/shop/sa/web")),
        ("expired", ca.issue(&Leaf { not_after: now - hour, not_before: now - 2 * hour, ..good.clone() })),
        (
            "not_yet_valid",
            ca.issue(&Leaf { not_before: now + hour, not_after: now + 2 * hour, ..good.clone() }),
        ),
        ("bad_spiffe_id", ca.issue(&Leaf { uris: vec![WEB.to_owned(), DB.to_owned()], ..good.clone() })),
        ("bad_spiffe_id", ca.issue(&Leaf { uris: vec!["https://web.example".to_owned()], ..good.clone() })),
        (
            "bad_spiffe_id",
            ca.issue(&Leaf { uris: vec!["spiffe://cluster.local".to_owned()], ..good.clone() }),
        ),
        (
            "bad_spiffe_id",
            ca.issue(&Leaf { uris: vec![], dns_names: vec!["web".to_owned()], ..good.clone() }),
        ),
        ("usage", ca.issue(&Leaf { is_ca: true, ..good.clone() })),
        ("usage", ca.issue(&Leaf { key_usage: vec![KeyUsagePurpose::KeyAgreement], ..good.clone() })),
        (
            "usage",
            ca.issue(&Leaf { extended_key_usage: vec![ExtendedKeyUsagePurpose::ServerAuth], ..good.clone() }),
        ),
    ];
    for (label, svid) in cases {
        let nodes = Nodes::with(&ca, provider(), svid, ca.svid(DB));
        let error = nodes.handshake().await.1.unwrap_err();
        assert_eq!(error.label(), label, "{error}");
    }
}

#[tokio::test]
async fn unusual_but_valid_certificates_are_accepted() {
    let ca = TestCa::new("cluster.local");
    let now = SystemTime::now();
    let good = Leaf::of(WEB);
    let skewed = Duration::from_secs(30);
    for leaf in [
        Leaf { dns_names: vec!["web.shop".to_owned()], ..good.clone() },
        Leaf { extended_key_usage: vec![], ..good.clone() },
        Leaf { not_after: now - skewed, ..good.clone() },
        Leaf { not_before: now + skewed, ..good.clone() },
    ] {
        let nodes = Nodes::with(&ca, provider(), ca.issue(&leaf), ca.svid(DB));
        nodes.handshake().await.1.unwrap();
    }
}

#[tokio::test]
async fn a_root_of_one_trust_domain_does_not_speak_for_another() {
    let (ours, theirs) = (TestCa::new("cluster.local"), TestCa::new("other.example"));
    let mut nodes = Nodes::with(&ours, provider(), theirs.svid("spiffe://other.example/x"), ours.svid(DB));
    nodes.server_bundles.store(Arc::new(bundles(&[&ours, &theirs])));
    nodes.handshake().await.1.unwrap();
    nodes.client_svid = theirs.svid(WEB);
    assert_eq!(nodes.handshake().await.1.unwrap_err().label(), "unknown_authority");
}

#[tokio::test]
async fn a_server_of_another_identity_is_refused() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::with(&ca, provider(), ca.svid(WEB), ca.svid("spiffe://cluster.local/ns/shop/sa/evil"));
    let (client, server) = nodes.handshake().await;
    assert!(matches!(
        client.unwrap_err(),
        HandshakeError::Certificate(VerifyError::WrongIdentity(id)) if id.path().ends_with("evil")
    ));
    assert_eq!(server.unwrap_err().label(), "peer_alert");
}

/// One that has authorities of its own is no other name of ours as far as certificates go, also while none is known.
#[tokio::test]
async fn an_alias_with_a_bundle_of_its_own_is_held_against_that_one() {
    let (ours, olds) = (TestCa::new("cluster.local"), TestCa::new("old.example"));
    let old = "spiffe://old.example/ns/shop/sa/web";
    let verify = |svid: &Svid, bundles: &TrustBundles| {
        let mut settings = TlsSettings::new("cluster.local".parse().unwrap());
        settings.trust_domain_aliases = vec!["old.example".parse().unwrap()];
        let tls = TlsContext::new(settings, shared(bundles.clone()));
        let outcome = tls.verifier().verify(&svid.chain, PeerRole::Client, None, SystemTime::now());
        outcome.map(|peer| peer.spiffe_id.to_string()).map_err(|error| error.label())
    };
    let none_of_its_own = bundles(&[&ours]);
    assert_eq!(verify(&ours.svid(old), &none_of_its_own), Ok(old.to_owned()));
    assert_eq!(verify(&olds.svid(old), &none_of_its_own), Err("unknown_authority"));
    let own = bundles(&[&ours, &olds]);
    assert_eq!(verify(&olds.svid(old), &own), Ok(old.to_owned()));
    assert_eq!(verify(&ours.svid(old), &own), Err("unknown_authority"));
    assert_eq!(verify(&olds.svid(WEB), &own), Err("unknown_authority"));
    let mut not_known_yet = bundles(&[&ours]);
    not_known_yet.roots.insert("old.example".parse().unwrap(), Vec::new());
    assert_eq!(verify(&ours.svid(old), &not_known_yet), Err("unknown_authority"));
}

#[tokio::test]
async fn an_alias_of_our_trust_domain_is_our_trust_domain() {
    let ca = TestCa::new("cluster.local");
    let mut settings = TlsSettings::new("cluster.local".parse().unwrap());
    settings.trust_domain_aliases = vec!["old.example".parse().unwrap()];
    let mut nodes = Nodes::with(&ca, provider(), ca.svid(WEB), ca.svid("spiffe://old.example/ns/shop/sa/db"));
    assert_eq!(nodes.handshake().await.0.unwrap_err().label(), "trust_domain");
    nodes.client = TlsContext::new(settings, shared(bundles(&[&ca])));
    nodes.handshake().await.0.unwrap();
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::of(&ca);
    let (near, far) = tcp_pair().await;
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(super::rustls_verifiers::ServerVerifier {
            verifier: Arc::clone(nodes.client.verifier()),
            expected: Arc::clone(&nodes.expected),
        }))
        .with_no_client_auth();
    let anonymous = std::thread::spawn(move || {
        let mut tcp = near.into_std().unwrap();
        tcp.set_nonblocking(false).unwrap();
        let mut tls =
            rustls::ClientConnection::new(Arc::new(config), "x.example".try_into().unwrap()).unwrap();
        while tls.complete_io(&mut tcp).is_ok_and(|(read, _)| read > 0) {}
    });
    let error = nodes.server.accept(far, &nodes.server_svid, limits()).await.unwrap_err();
    assert!(matches!(error, HandshakeError::NoCertificate), "{error}");
    anonymous.join().unwrap();
}

#[tokio::test]
async fn other_protocols_stalls_and_floods_are_refused() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::of(&ca);
    let short = HandshakeLimits { timeout: Duration::from_millis(200), max_bytes: 8192 };
    let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff, 3, 3];
    endless.resize(32 * 1024, 0);
    for (label, bytes) in
        [("not_tls", &b"GET / HTTP/1.1\r\n\r\n"[..]), ("timeout", b"\x16\x03\x01"), ("too_large", &endless)]
    {
        let (mut near, far) = tcp_pair().await;
        near.write_all(bytes).await.unwrap();
        let error = nodes.server.accept(far, &nodes.server_svid, short).await.unwrap_err();
        assert_eq!(error.label(), label, "{error}");
    }
    let (near, far) = tcp_pair().await;
    drop(near);
    assert_eq!(nodes.server.accept(far, &nodes.server_svid, short).await.unwrap_err().label(), "closed");
}

/// The server's word carries the ticket.
async fn confirm(client: &mut Established, server: &mut Established) {
    server.confirm().await.unwrap();
    client.confirmed().await.unwrap();
}

#[tokio::test]
async fn a_resumed_session_keeps_its_identity_and_is_verified_again() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::of(&ca);
    for resumed in [false, true, true] {
        let (client, server) = nodes.handshake().await;
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        assert_eq!((client.facts().resumed, server.facts().resumed), (resumed, resumed));
        assert_eq!(server.peer().unwrap().spiffe_id.to_string(), WEB);
        assert_eq!(client.peer().unwrap().spiffe_id.to_string(), DB);
        confirm(&mut client, &mut server).await;
    }
    nodes.server_bundles.store(Arc::new(bundles(&[&TestCa::new("cluster.local")])));
    let error = nodes.handshake().await.1.unwrap_err();
    assert_eq!(error.label(), "unknown_authority");
}

#[tokio::test]
async fn a_session_does_not_resume_for_another_client_identity() {
    let ca = TestCa::new("cluster.local");
    let mut nodes = Nodes::of(&ca);
    let (client, server) = nodes.handshake().await;
    confirm(&mut client.unwrap(), &mut server.unwrap()).await;
    nodes.client_svid = ca.svid("spiffe://cluster.local/ns/shop/sa/other");
    let (_, server) = nodes.handshake().await;
    let server = server.unwrap();
    assert!(!server.facts().resumed);
    assert_eq!(server.peer().unwrap().spiffe_id.path(), "/ns/shop/sa/other");
}

#[tokio::test]
async fn a_connection_is_confirmed_or_denied_or_refused_after_the_handshake() {
    let ca = TestCa::new("cluster.local");
    for suite in provider().cipher_suites.into_iter().filter(|suite| suite.tls13().is_some()) {
        let only = CryptoProvider { cipher_suites: vec![suite], ..provider() };
        let nodes = Nodes::with(&ca, only, ca.svid(WEB), ca.svid(DB));
        // The second is a resumed one.
        for _ in 0..2 {
            let (mut client, mut server) = nodes.established().await;
            assert!(client.will_be_confirmed());
            let early = tokio::time::timeout(Duration::from_millis(50), client.confirmed()).await;
            assert!(early.is_err(), "nobody has confirmed it: {early:?}");
            confirm(&mut client, &mut server).await;
        }
        let (mut client, server) = nodes.established().await;
        drop(server.deny());
        assert!(matches!(client.confirmed().await, Err(Unconfirmed::Denied)));
        let (mut client, server) = nodes.established().await;
        reset_on_close(server.stream());
        drop(server);
        assert!(matches!(client.confirmed().await, Err(Unconfirmed::Refused(_))));
    }
}

#[tokio::test]
async fn before_tls_13_the_handshake_itself_is_the_last_word() {
    let ca = TestCa::new("cluster.local");
    let suite = provider().cipher_suites.into_iter().find(|suite| suite.tls13().is_none()).unwrap();
    let only = CryptoProvider { cipher_suites: vec![suite], ..provider() };
    let nodes = Nodes::with(&ca, only, ca.svid(WEB), ca.svid(DB));
    let (mut client, server) = nodes.established().await;
    assert!(!client.will_be_confirmed() && server.outgoing.is_empty());
    drop(server.deny());
    assert!(matches!(client.confirmed().await, Err(Unconfirmed::Refused(_))));
}

#[tokio::test]
async fn data_that_came_with_the_last_flight_is_not_lost() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::of(&ca);
    let (near, far) = tcp_pair().await;
    // A relay in the middle holds the client's last flight until data has been added to it.
    let (mut middle_near, middle_far) = tcp_pair().await;
    let (mut near_end, near_client) = (near, far);
    let address = near_client.peer_addr().unwrap().ip();
    let client = async {
        let mut client = nodes
            .client
            .connect(near_client, &nodes.client_svid, &nodes.expected, address, limits())
            .await
            .unwrap();
        let mut record = vec![0; 20_000];
        let sealed = client.session.seal(&mut client.ciphertext, &[7; 10_000], &mut record).unwrap().unwrap();
        client.stream.write_all(&record[..sealed]).await.unwrap();
        client
    };
    let middle = async {
        let mut bytes = vec![0; 64 * 1024];
        let hello = near_end.read(&mut bytes).await.unwrap();
        middle_near.write_all(&bytes[..hello]).await.unwrap();
        let flight = middle_near.read(&mut bytes).await.unwrap();
        near_end.write_all(&bytes[..flight]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let last = near_end.read(&mut bytes).await.unwrap();
        assert!(last > 10_000, "the last flight and the data came together: {last}");
        // All but the end of the data record.
        middle_near.write_all(&bytes[..last - 100]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        middle_near.write_all(&bytes[last - 100..last]).await.unwrap();
        middle_near
    };
    let server = async {
        middle_far.set_nodelay(true).unwrap();
        let mut server = nodes.server.accept(middle_far, &nodes.server_svid, limits()).await.unwrap();
        server.reach_record_boundary().await.unwrap();
        server
    };
    let (_client, _middle, server) = tokio::join!(client, middle, server);
    assert_eq!(server.plaintext, vec![7; 10_000]);
}
