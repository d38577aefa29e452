//! Real endpoints on loopback, asked one round at a time: who is believed, what is taken, what stays.

use std::os::unix::fs::PermissionsExt as _;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{CertificateParams, KeyPair};
use rustls::server::ResolvesServerCert;

use super::*;
use crate::{
    config::Config,
    identity::{JwtAuthorities, RevocationList, Svid},
    tls::{
        PeerRole,
        test_pki::{Leaf, TestCa, self_signed},
    },
};

const PARTNER: &str = "partner.example";
const ENDPOINT: &str = "spiffe://partner.example/spiffe-bundle-endpoint";
const WEB: &str = "spiffe://partner.example/ns/shop/sa/web";

/// The partner's endpoint, of which everything can be changed while it serves.
struct Endpoint {
    url: String,
    svid: Arc<ArcSwap<Svid>>,
    trust: watch::Sender<Arc<OwnTrust>>,
    stop: CancellationToken,
}

fn bundle(roots: &[&TestCa], sequence: u64) -> Arc<OwnTrust> {
    let roots: Vec<_> = roots.iter().map(|ca| ca.root()).collect();
    Arc::new(OwnTrust::new(&roots, &JwtAuthorities::new(), sequence, Duration::from_secs(600)).unwrap())
}

impl Endpoint {
    async fn start(svid: Svid, trust: Arc<OwnTrust>) -> Self {
        let svid = Arc::new(ArcSwap::from_pointee(svid));
        let newest = Arc::clone(&svid);
        let certificate = Arc::new(SvidCertificate::new(move || Some(newest.load_full())));
        let (url, trust, stop) = serve(certificate, trust).await;
        Self { url, svid, trust, stop }
    }

    fn publish(&self, roots: &[&TestCa], sequence: u64) {
        self.trust.send_replace(bundle(roots, sequence));
    }
}

async fn serve(
    certificate: Arc<dyn ResolvesServerCert>,
    trust: Arc<OwnTrust>,
) -> (String, watch::Sender<Arc<OwnTrust>>, CancellationToken) {
    let limits = EndpointLimits::default();
    let server = BundleServer::bind("127.0.0.1:0".parse().unwrap(), certificate, limits).await.unwrap();
    let url = format!("https://localhost:{}/", server.address().unwrap().port());
    let (trust, stop) = (watch::Sender::new(trust), CancellationToken::new());
    tokio::spawn(server.serve(trust.subscribe(), stop.clone()));
    (url, trust, stop)
}

/// Our side of it.
struct Us {
    dir: tempfile::TempDir,
    config: FederationConfig,
}

impl Us {
    fn known_by_svid(url: &str, begin_with: &TestCa) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("partner.pem");
        std::fs::write(&file, pem(&begin_with.root())).unwrap();
        let us = Self::with(dir, url, EndpointProfile::HttpsSpiffe);
        us.entry(|entry| {
            entry.endpoint_spiffe_id = Some(ENDPOINT.to_owned());
            entry.bundle_file = Some(file);
        })
    }

    fn with(dir: tempfile::TempDir, url: &str, profile: EndpointProfile) -> Self {
        let entry = FederatedTrustDomain {
            trust_domain: PARTNER.parse().unwrap(),
            bundle_endpoint: url.to_owned(),
            profile,
            endpoint_spiffe_id: None,
            bundle_file: None,
        };
        let loopback = ["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let config = FederationConfig {
            trust_domains: vec![entry],
            allow_addresses: loopback.to_vec(),
            ..FederationConfig::default()
        };
        Self { dir, config }
    }

    fn entry(mut self, change: impl FnOnce(&mut FederatedTrustDomain)) -> Self {
        change(&mut self.config.trust_domains[0]);
        self
    }

    fn open(&self) -> Federation {
        Federation::open(&self.config, &"own.example".parse().unwrap(), &self.dir.path().join("state"))
            .unwrap()
    }
}

impl Federation {
    /// One round with the first trust domain: what went wrong, if anything.
    async fn round(&mut self) -> Option<String> {
        let good = self.relationships[0].refresh(&self.shared, 0).await;
        let status = self.watcher().status();
        let error = status.iter().find(|s| s.trust_domain.as_str() == PARTNER).unwrap().last_error.clone();
        assert_eq!(good, error.is_none(), "{error:?}");
        error
    }

    fn believes(&self) -> Vec<CertificateDer<'static>> {
        self.trust().borrow().roots[&PARTNER.parse().unwrap()].clone()
    }
}

/// As the daemon has it.
fn verifier(federation: &Federation) -> PeerVerifier {
    PeerVerifier::new(
        "own.example".parse().unwrap(),
        Vec::new(),
        CLOCK_SKEW,
        Arc::clone(&federation.shared.trust),
        provider().signature_verification_algorithms,
    )
}

fn pem(certificate: &[u8]) -> String {
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        BASE64_STANDARD.encode(certificate)
    )
}

#[tokio::test]
async fn a_rotation_of_the_roots_is_followed_and_outlives_a_restart_without_the_endpoint() {
    let (old, new) = (TestCa::new(PARTNER), TestCa::new(PARTNER));
    let endpoint = Endpoint::start(old.svid(ENDPOINT), bundle(&[&old], 1)).await;
    let us = Us::known_by_svid(&endpoint.url, &old);
    let mut federation = us.open();
    let mut told = federation.trust();
    assert_eq!(federation.believes(), [old.root()]);
    let peer = verifier(&federation);
    let must_believe =
        |svid: &Svid| drop(peer.verify(&svid.chain, PeerRole::Client, None, SystemTime::now()).unwrap());
    let (by_old, by_new) = (old.svid(WEB), new.svid(WEB));
    assert_eq!(federation.round().await, None);
    assert!(!told.has_changed().unwrap());
    endpoint.publish(&[&old, &new], 2);
    assert_eq!(federation.round().await, None);
    assert!(told.has_changed().unwrap());
    assert_eq!(told.borrow_and_update().roots[&PARTNER.parse().unwrap()], [old.root(), new.root()]);
    must_believe(&by_old);
    must_believe(&by_new);
    endpoint.svid.store(Arc::new(new.svid(ENDPOINT)));
    assert_eq!(federation.round().await, None);
    must_believe(&by_old);
    endpoint.publish(&[&new], 3);
    assert_eq!(federation.round().await, None);
    must_believe(&by_new);
    let withdrawn = peer.verify(&by_old.chain, PeerRole::Client, None, SystemTime::now());
    assert_eq!(withdrawn.unwrap_err().label(), "unknown_authority");
    assert_eq!(federation.believes(), [new.root()]);
    // The operator's file still says what was at the beginning.
    endpoint.stop.cancel();
    drop(federation);
    let mut federation = us.open();
    assert_eq!(federation.believes(), [new.root()]);
    endpoint.svid.store(Arc::new(old.svid(ENDPOINT)));
    assert!(federation.round().await.is_some());
    assert_eq!(federation.believes(), [new.root()]);
    assert_eq!(federation.watcher().problems().len(), 1);
}

#[tokio::test]
async fn an_endpoint_that_proves_another_identity_changes_nothing() {
    let (ca, stranger) = (TestCa::new(PARTNER), TestCa::new("evil.example"));
    let endpoint = Endpoint::start(ca.svid(ENDPOINT), bundle(&[&stranger], 9)).await;
    let us = Us::known_by_svid(&endpoint.url, &ca);
    let mut federation = us.open();
    let elsewhere = "spiffe://evil.example/spiffe-bundle-endpoint";
    for (what, svid, why) in [
        ("a workload's SVID", ca.svid(WEB), "may not serve"),
        ("another trust domain's endpoint", stranger.svid(elsewhere), "trust domain evil.example is unknown"),
        ("a stranger who says that it is the one", stranger.svid(ENDPOINT), "no path to a root"),
        ("nobody's", self_signed(&Leaf::of(ENDPOINT)), "no path to a root"),
        ("a web certificate", web_svid(&ca), "exactly one SPIFFE ID"),
    ] {
        endpoint.svid.store(Arc::new(svid));
        let error = federation.round().await.expect(what);
        assert!(error.contains(why) && error.contains("endpointSpiffeId"), "{what}: {error}");
        assert_eq!(federation.believes(), [ca.root()], "{what}");
    }
    endpoint.svid.store(Arc::new(ca.svid(ENDPOINT)));
    assert_eq!(federation.round().await, None);
    assert_eq!(
        federation.believes(),
        [stranger.root()],
        "what it says of its own trust domain is its business"
    );
}

fn web_svid(ca: &TestCa) -> Svid {
    let mut leaf = Leaf::of(ENDPOINT);
    leaf.uris.clear();
    leaf.dns_names.push("localhost".to_owned());
    ca.issue(&leaf)
}

#[tokio::test]
async fn an_endpoint_whose_svid_was_taken_back_is_not_heard() {
    let ca = TestCa::new(PARTNER);
    let (svid, next) = (ca.svid(ENDPOINT), ca.svid(ENDPOINT));
    let serial = x509_parser::parse_x509_certificate(&svid.chain[0]).unwrap().1.raw_serial().to_vec();
    let endpoint = Endpoint::start(svid, bundle(&[&ca], 1)).await;
    let mut federation = Us::known_by_svid(&endpoint.url, &ca).open();
    assert_eq!(federation.round().await, None);
    let told = federation.trust();
    let list = RevocationList::new(ca.revocation_list(SystemTime::now(), &[&serial]).into()).unwrap();
    federation.watcher().revoke(&[(PARTNER.parse().unwrap(), vec![list])].into());
    assert!(federation.round().await.unwrap().contains("may be revoked"));
    endpoint.svid.store(Arc::new(next));
    assert_eq!(federation.round().await, None);
    assert!(!told.has_changed().unwrap(), "what is believed of workloads is merged with the lists elsewhere");
}

#[tokio::test]
async fn an_older_bundle_is_ignored() {
    let (one, two) = (TestCa::new(PARTNER), TestCa::new(PARTNER));
    let endpoint = Endpoint::start(two.svid(ENDPOINT), bundle(&[&two], 7)).await;
    let us = Us::known_by_svid(&endpoint.url, &two);
    let mut federation = us.open();
    assert_eq!(federation.round().await, None);
    endpoint.publish(&[&one], 6);
    let error = federation.round().await.unwrap();
    assert!(error.contains("number 6 is lower than 7"), "{error}");
    assert_eq!(federation.believes(), [two.root()]);
    // Also after a restart.
    drop(federation);
    let mut federation = us.open();
    assert!(federation.round().await.unwrap().contains("number 6 is lower than 7"));
    endpoint.publish(&[&two], 6);
    assert_eq!(federation.round().await, None, "it says what is known");
    endpoint.publish(&[&one, &two], 8);
    assert_eq!(federation.round().await, None);
    assert_eq!(federation.believes(), [one.root(), two.root()]);
}

#[tokio::test]
async fn an_operators_new_bundle_is_the_latest_until_the_next_fetch() {
    let (lost, fresh) = (TestCa::new(PARTNER), TestCa::new(PARTNER));
    let endpoint = Endpoint::start(lost.svid(ENDPOINT), bundle(&[&lost], 100)).await;
    let us = Us::known_by_svid(&endpoint.url, &lost);
    let mut federation = us.open();
    assert_eq!(federation.round().await, None);
    // All keys were replaced at once, and the numbers begin anew.
    endpoint.svid.store(Arc::new(fresh.svid(ENDPOINT)));
    endpoint.publish(&[&fresh], 1);
    assert!(federation.round().await.unwrap().contains("no path to a root"));
    assert_eq!(federation.believes(), [lost.root()]);
    std::fs::write(us.dir.path().join("partner.pem"), pem(&fresh.root())).unwrap();
    assert_eq!(federation.round().await, None);
    assert_eq!(federation.believes(), [fresh.root()]);
}

#[tokio::test]
async fn a_web_endpoint_is_known_by_its_name_and_a_new_certificate_is_taken_up() {
    let partner = TestCa::new(PARTNER);
    let dir = tempfile::tempdir().unwrap();
    let (chain, key) = (dir.path().join("web.crt"), dir.path().join("web.key"));
    let issue = |name: &str| {
        let own = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&own).unwrap();
        std::fs::write(&chain, certificate.pem()).unwrap();
        std::fs::write(&key, own.serialize_pem()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        certificate.pem()
    };
    let authority = dir.path().join("authority.pem");
    std::fs::write(&authority, issue("localhost")).unwrap();
    let files = Arc::new(CertificateFiles::open(&chain, &key).unwrap());
    let shown: Arc<dyn ResolvesServerCert> = Arc::<CertificateFiles>::clone(&files);
    let (url, ..) = serve(shown, bundle(&[&partner], 1)).await;

    let mut us = Us::with(tempfile::tempdir().unwrap(), &url, EndpointProfile::HttpsWeb);
    let mut federation = us.open();
    let error = federation.round().await.unwrap();
    assert!(error.contains("federation.extraRoots"), "{error}");
    assert!(federation.believes().is_empty(), "nobody is believed before the first fetch");
    us.config.extra_roots.push(authority.clone());
    let mut federation = us.open();
    assert_eq!(federation.round().await, None);
    assert_eq!(federation.believes(), [partner.root()]);

    // A certificate that is believed, for another name.
    std::fs::write(&authority, issue("elsewhere.example")).unwrap();
    files.look().unwrap();
    let error = us.open().round().await.unwrap();
    assert!(error.contains("not valid for name"), "{error}");
    // Half of a renewal is not used.
    std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(files.look().unwrap_err().to_string().contains("cannot be used with the certificate"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(files.look().unwrap_err().to_string().contains("others may read"));
}

#[tokio::test]
async fn the_nodes_own_addresses_are_not_asked_unless_allowed() {
    let ca = TestCa::new(PARTNER);
    let endpoint = Endpoint::start(ca.svid(ENDPOINT), bundle(&[&ca], 1)).await;
    let mut us = Us::known_by_svid(&endpoint.url, &ca);
    us.config.allow_addresses.clear();
    let error = us.open().round().await.unwrap();
    assert!(error.contains("federation.allowAddresses"), "{error}");
}

/// The endpoint of one trust domain serves the bundle of another.
#[tokio::test]
async fn an_endpoint_of_another_trust_domain_is_held_against_that_ones_bundle() {
    let (hub, partner) = (TestCa::new("hub.example"), TestCa::new(PARTNER));
    let id = "spiffe://hub.example/spiffe-bundle-endpoint";
    let endpoint = Endpoint::start(hub.svid(id), bundle(&[&partner], 1)).await;
    let mut us = Us::known_by_svid(&endpoint.url, &hub);
    let hubs = FederatedTrustDomain {
        trust_domain: "hub.example".parse().unwrap(),
        endpoint_spiffe_id: Some(id.to_owned()),
        ..us.config.trust_domains[0].clone()
    };
    us.config.trust_domains.push(hubs);
    us = us.entry(|entry| {
        entry.endpoint_spiffe_id = Some(id.to_owned());
        entry.bundle_file = None;
    });
    let mut federation = us.open();
    assert_eq!(federation.round().await, None);
    assert_eq!(federation.believes(), [partner.root()]);
    endpoint.svid.store(Arc::new(partner.svid(id)));
    endpoint.publish(&[], 2);
    assert!(federation.round().await.unwrap().contains("no path to a root of trust domain hub.example"));
}

#[test]
fn a_trust_domain_that_is_no_longer_followed_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b): (TrustDomain, TrustDomain) = ("a.example".parse().unwrap(), "b.example".parse().unwrap());
    let folder = Folder::open(dir.path(), &[&a, &b]).unwrap();
    let ca = TestCa::new("a.example");
    let kept = |of: &TrustDomain| Kept {
        trust_domain: of.clone(),
        began_with: None,
        newest: Some(1),
        bundle: String::from_utf8(bundle(&[&ca], 1).body().to_vec()).unwrap(),
    };
    folder.store(&kept(&a)).unwrap();
    folder.store(&kept(&b)).unwrap();
    assert_eq!(folder.load(&a).unwrap().1.roots, [ca.root()]);
    let folder = Folder::open(dir.path(), &[&b]).unwrap();
    assert!(folder.load(&a).is_none());
    // One trust domain's file under another's name is nobody's.
    let path = |of: &str| dir.path().join("federation").join(format!("{of}.json"));
    std::fs::rename(path("b.example"), path("a.example")).unwrap();
    assert!(folder.load(&a).is_none() && folder.load(&b).is_none());
    std::fs::write(path("b.example"), "{").unwrap();
    assert!(folder.load(&b).is_none());
}

#[test]
fn a_nodes_own_bundle_is_numbered_upwards() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (TestCa::new(PARTNER).root(), TestCa::new(PARTNER).root());
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let number = |trust: OwnTrust| {
        let bundle: serde_json::Value = serde_json::from_slice(trust.body()).unwrap();
        assert_eq!(bundle["spiffe_refresh_hint"], 60);
        bundle["spiffe_sequence"].as_u64().unwrap()
    };
    let open = || OwnTrustKeeper::open(dir.path(), Duration::from_secs(60));
    let mut keeper = open();
    let roots = [one.clone()];
    assert_eq!(number(keeper.publish(&roots, &JwtAuthorities::new(), at(1000)).unwrap()), 1000);
    assert_eq!(number(keeper.publish(&roots, &JwtAuthorities::new(), at(2000)).unwrap()), 1000);
    let mut keeper = open();
    assert_eq!(number(keeper.publish(&roots, &JwtAuthorities::new(), at(3000)).unwrap()), 1000);
    let roots = [one, two.clone()];
    assert_eq!(
        number(keeper.publish(&roots, &JwtAuthorities::new(), at(900)).unwrap()),
        1001,
        "the clock went back"
    );
    assert_eq!(number(open().publish(&[two], &JwtAuthorities::new(), at(5000)).unwrap()), 5000);
}

/// Spoken by hand, so that nothing of ours is in between.
#[tokio::test]
async fn the_endpoint_answers_what_http_asks_of_it() {
    let ca = TestCa::new(PARTNER);
    let endpoint = Endpoint::start(ca.svid(ENDPOINT), bundle(&[&ca], 3)).await;
    let us = Us::known_by_svid(&endpoint.url, &ca);
    let federation = us.open();
    let KnownBy::Svid(tls) = &federation.relationships[0].known_by else { panic!("by its SVID") };
    let ask = async |request: &str| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let port = federation.relationships[0].endpoint.port_u16().unwrap();
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut stream = tls.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        stream.write_all(format!("{request}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Closed without close_notify or not, it has ended.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    let answer = ask("GET / HTTP/1.1\r\nHost: a").await;
    let lower = answer.to_lowercase();
    assert!(
        lower.starts_with("http/1.1 200") && lower.contains("content-type: application/json"),
        "{answer}"
    );
    assert!(answer.ends_with(std::str::from_utf8(bundle(&[&ca], 3).body()).unwrap()), "{answer}");
    let tag = answer.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    for (request, status) in [
        (format!("GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: {tag}"), "304"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"x\", W/{tag}"), "304"),
        ("GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"x\"".to_owned(), "200"),
        ("GET /x HTTP/1.1\r\nHost: a".to_owned(), "404"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0".to_owned(), "405"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(9000)), "431"),
    ] {
        let answer = ask(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
}

#[test]
fn what_cannot_be_federated_is_told() {
    let entry = |more: &str| {
        format!(
            "node: a\ntrustDomain: own.example\nfederation: {{ trustDomains: [ {{ trustDomain: b.example, bundleEndpoint: 'https://b.example/', {more} }} ] }}"
        )
    };
    let spiffe = "profile: https_spiffe, endpointSpiffeId: 'spiffe://b.example/e'";
    for (text, what) in [
        (entry("profile: https_web"), None),
        (entry(&format!("{spiffe}, bundleFile: /b.json")), None),
        (entry(spiffe), Some("needs a bundle to begin with")),
        (entry("profile: https_spiffe"), Some("must prove to be")),
        (entry("profile: https_web, endpointSpiffeId: 'spiffe://b.example/e'"), Some("https_spiffe only")),
        (
            entry("profile: https_spiffe, endpointSpiffeId: 'spiffe://b.example', bundleFile: /b"),
            Some("has a path"),
        ),
        (
            entry("profile: https_spiffe, endpointSpiffeId: 'spiffe://c.example/e'"),
            Some("c.example is not among"),
        ),
        (entry("profile: http"), Some("https_web")),
        (entry("profile: https_web").replace("https://b", "http://b"), Some("https://")),
        (entry("profile: https_web").replace("https://b", "https://u@b"), Some("no user")),
        (entry("profile: https_web").replace("b.example/'", "b.example:0/'"), Some("no port that exists")),
        (
            entry("profile: https_web").replace("trustDomain: b.example", "trustDomain: own.example"),
            Some("own"),
        ),
        (
            format!(
                "{}\ntrustBundles: [ {{ trustDomain: b.example, file: /b }} ]",
                entry("profile: https_web")
            ),
            Some("trustBundles too"),
        ),
        ("node: a\nfederation: { listen: '0.0.0.0:8443' }".to_owned(), None),
        ("node: a\nfederation: { listen: '0.0.0.0:0' }".to_owned(), Some("port 0")),
        (
            "node: a\nfederation: { listen: '0.0.0.0:8443', profile: https_web }".to_owned(),
            Some("certificateFile"),
        ),
        (
            "node: a\nfederation: { listen: '0.0.0.0:8443', spiffeId: 'spiffe://other/x' }".to_owned(),
            Some("spiffeId"),
        ),
        ("node: a\nfederation: { listen: '0.0.0.0:8443', refreshHintSeconds: 0 }".to_owned(), Some("86400")),
    ] {
        let error = Config::parse(&text, "node.yaml").err().map(|error| error.to_string());
        match (&error, what) {
            (None, None) => {}
            (Some(error), Some(what)) if error.contains(what) => {}
            _ => panic!("{text}: {error:?}"),
        }
    }
}
