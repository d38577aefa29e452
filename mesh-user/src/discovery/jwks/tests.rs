//! A store against key servers on loopback that rotate, fail, stall, redirect and lie.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{JwksConfig, JwksSettings, JwksStatus, JwksStore, Schedule};
use crate::jwt::{
    JwksSource, KeyLocation, Keys, MAX_JWKS_BYTES,
    test_tokens::{ED, P256, Signer, jwks},
};

/// What a server answers, by path.
type Answer = dyn Fn(&str) -> Response<Full<Bytes>> + Send + Sync;

struct Server {
    origin: String,
    answer: Arc<Mutex<Arc<Answer>>>,
    requests: Arc<AtomicU64>,
    /// Of its certificate.
    root: Option<CertificateDer<'static>>,
}

fn text(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(body.into())).unwrap()
}

fn keys(signers: &[(&Signer, &str)]) -> String {
    jwks(&signers.iter().map(|(signer, kid)| signer.jwk(&json!({"kid": kid}))).collect::<Vec<_>>())
}

impl Server {
    async fn start(encrypted: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if encrypted { "https" } else { "http" };
        let origin = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
        let answer: Arc<Mutex<Arc<Answer>>> =
            Arc::new(Mutex::new(Arc::new(|_: &str| text(200, keys(&[(&ED, "one")])))));
        let requests = Arc::new(AtomicU64::new(0));
        let (acceptor, root) = if encrypted { tls() } else { (None, None) };
        tokio::spawn(serve(listener, acceptor, Arc::clone(&answer), Arc::clone(&requests)));
        Self { origin, answer, requests, root }
    }

    fn answers(&self, answer: impl Fn(&str) -> Response<Full<Bytes>> + Send + Sync + 'static) {
        *self.answer.lock().unwrap() = Arc::new(answer);
    }

    fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    fn location(&self) -> KeyLocation {
        KeyLocation::Jwks(format!("{}/jwks", self.origin).into())
    }
}

fn tls() -> (Option<TlsAcceptor>, Option<CertificateDer<'static>>) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (own.cert.der().clone(), own.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.into()))
        .unwrap();
    (Some(Arc::new(config).into()), Some(certificate))
}

async fn serve(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    answer: Arc<Mutex<Arc<Answer>>>,
    requests: Arc<AtomicU64>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
        match acceptor.clone() {
            None => drop(tokio::spawn(converse(stream, answer, requests))),
            Some(acceptor) => drop(tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    converse(stream, answer, requests).await;
                }
            })),
        }
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Arc<Mutex<Arc<Answer>>>,
    requests: Arc<AtomicU64>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        requests.fetch_add(1, Relaxed);
        let answer = Arc::clone(&answer.lock().unwrap());
        async move {
            let path = request.uri().path().to_owned();
            if path == "/stall" {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(answer(&path))
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn settings() -> JwksSettings {
    JwksSettings {
        allow_addresses: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        schedule: Schedule {
            retry: Duration::from_millis(5),
            retry_at_most: Duration::from_millis(20),
            between_hints: Duration::from_millis(1),
            ..Schedule::default()
        },
        ..JwksSettings::default()
    }
}

fn source(location: &KeyLocation) -> JwksSource {
    JwksSource { location: location.clone(), timeout: Duration::from_secs(5) }
}

/// Waits for a status; the bound is only there to end a test that fails.
async fn until(store: &JwksStore, what: impl Fn(&JwksStatus) -> bool) -> JwksStatus {
    let mut attempts = store.attempts.subscribe();
    let wait = async {
        loop {
            if let Some(status) = store.status().into_iter().find(|status| what(status)) {
                return status;
            }
            attempts.changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("never came: {:?}", store.status()))
}

async fn first_attempt(settings: JwksSettings, source: JwksSource) -> JwksStatus {
    let store = JwksStore::open(settings).unwrap();
    store.set_sources(&[source]);
    store.tried().await;
    store.status().remove(0)
}

#[tokio::test]
async fn keys_are_fetched_and_a_rotation_is_seen_when_a_token_asks() {
    let server = Server::start(false).await;
    let location = server.location();
    let store = JwksStore::open(settings()).unwrap();
    assert!(store.keys(&location).is_none());
    store.set_sources(&[source(&location)]);
    let status = until(&store, |s| s.keys == 1).await;
    assert_eq!((status.failures, status.last_error, status.age_seconds), (0, None, Some(0)));
    let before = store.keys(&location).unwrap();
    server.answers(|_| text(200, keys(&[(&ED, "one"), (&P256, "two")])));
    store.unknown_key(&location);
    until(&store, |s| s.keys == 2).await;
    assert_ne!(store.keys(&location).unwrap(), before);
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn the_systems_roots_are_read_only_where_keys_are_fetched_over_https() {
    let (plain, encrypted) = (Server::start(false).await, Server::start(true).await);
    let store = JwksStore::open(settings()).unwrap();
    store.set_sources(&[source(&plain.location())]);
    let status = until(&store, |s| s.keys == 1).await;
    assert!(status.next_in_seconds.is_some_and(|seconds| seconds <= 20 * 60), "{status:?}");
    assert!(!store.fetcher.has_read_roots());
    store.set_sources(&[source(&encrypted.location())]);
    until(&store, |s| s.failures > 0).await;
    assert!(store.fetcher.has_read_roots());
}

#[tokio::test]
async fn without_a_hint_keys_are_fetched_again_when_their_time_comes() {
    let server = Server::start(false).await;
    let schedule = Schedule { refresh: Duration::from_millis(10), ..settings().schedule };
    let store = JwksStore::open(JwksSettings { schedule, ..settings() }).unwrap();
    store.set_sources(&[source(&server.location())]);
    until(&store, |s| s.keys == 1).await;
    server.answers(|_| text(200, keys(&[(&ED, "one"), (&P256, "two")])));
    until(&store, |s| s.keys == 2).await;
}

#[tokio::test]
async fn hints_do_not_make_more_than_one_fetch_in_their_time() {
    let server = Server::start(false).await;
    let schedule = Schedule { between_hints: Duration::from_secs(3600), ..settings().schedule };
    let store = JwksStore::open(JwksSettings { schedule, ..settings() }).unwrap();
    store.set_sources(&[source(&server.location())]);
    store.tried().await;
    let mut attempts = store.attempts.subscribe();
    attempts.mark_unchanged();
    for _ in 0..1000 {
        store.unknown_key(&server.location());
        tokio::task::yield_now().await;
    }
    assert!(timeout(Duration::from_millis(50), attempts.changed()).await.is_err());
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn an_outage_leaves_the_keys_and_says_so() {
    let server = Server::start(false).await;
    let store = JwksStore::open(settings()).unwrap();
    store.set_sources(&[source(&server.location())]);
    until(&store, |s| s.keys == 1).await;
    let known = store.keys(&server.location()).unwrap();
    for (status, body) in
        [(500, String::new()), (200, "<html>".to_owned()), (200, jwks(&[])), (404, String::new())]
    {
        server.answers(move |_| text(status, body.clone()));
        store.unknown_key(&server.location());
        let failing = until(&store, |s| s.failures >= 2).await;
        assert_eq!(failing.keys, 1);
        assert!(failing.last_error.is_some());
        assert!(Arc::ptr_eq(&store.keys(&server.location()).unwrap(), &known));
        server.answers(|_| text(200, keys(&[(&ED, "one")])));
        until(&store, |s| s.failures == 0).await;
    }
}

#[tokio::test]
async fn keys_that_nobody_confirmed_for_too_long_are_dropped() {
    let server = Server::start(false).await;
    let schedule = Schedule { keep: Duration::ZERO, ..settings().schedule };
    let store = JwksStore::open(JwksSettings { schedule, ..settings() }).unwrap();
    store.set_sources(&[source(&server.location())]);
    until(&store, |s| s.keys == 1).await;
    server.answers(|_| text(503, ""));
    store.unknown_key(&server.location());
    until(&store, |s| s.failures > 0 && s.keys == 0).await;
    assert!(store.keys(&server.location()).is_none());
}

#[tokio::test]
async fn answers_that_are_no_keys_are_refused_with_their_reason() {
    let server = Server::start(false).await;
    server.answers(|path| match path {
        "/redirect" => {
            let mut response = text(302, "");
            response.headers_mut().insert("location", "http://localhost/jwks".parse().unwrap());
            response
        }
        "/huge" => text(200, format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(MAX_JWKS_BYTES))),
        "/none" => text(200, jwks(&[ED.jwk(&json!({"use": "enc"}))])),
        "/list" => text(200, "[]"),
        _ => text(403, ""),
    });
    for (path, expected) in [
        ("/redirect", "redirects to \"http://localhost/jwks\", which is not followed"),
        ("/huge", "larger than 128 KiB"),
        ("/none", "none of the 1 keys"),
        ("/list", "not a JSON object"),
        ("/other", "answers 403"),
        ("/stall", "no answer within 100ms"),
    ] {
        let location = KeyLocation::Jwks(format!("{}{path}", server.origin).into());
        let mut source = source(&location);
        if path == "/stall" {
            source.timeout = Duration::from_millis(100);
        }
        let error = first_attempt(settings(), source).await.last_error.unwrap();
        assert!(error.contains(expected), "{path}: {error}");
    }
}

#[tokio::test]
async fn places_that_cannot_be_asked_are_said() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let closed = format!("http://127.0.0.1:{unused}/");
    for (url, expected) in [
        (closed.as_str(), "cannot connect to 127.0.0.1"),
        ("me@issuer.example/.well-known/openid-configuration", "is no URL"),
    ] {
        let status = first_attempt(settings(), source(&KeyLocation::Jwks(url.into()))).await;
        let error = status.last_error.unwrap();
        assert!(error.contains(expected), "{url}: {error}");
    }
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_not_connected_to_whatever_its_name() {
    let server = Server::start(false).await;
    let port = server.origin.rsplit(':').next().unwrap().to_owned();
    let strict = || JwksSettings { allow_addresses: Vec::new(), ..settings() };
    for host in ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", "[fe80::1]"] {
        let status =
            first_attempt(strict(), source(&KeyLocation::Jwks(format!("http://{host}:{port}/").into())))
                .await;
        let error = status.last_error.unwrap();
        assert!(error.contains("no address that may be connected to"), "{host}: {error}");
    }
    // Discovery leads elsewhere: that place is checked as well.
    let metadata = "{\"jwks_uri\":\"http://169.254.169.254/latest\"}";
    server.answers(move |_| text(200, metadata));
    let status = first_attempt(settings(), source(&KeyLocation::of_issuer(&server.origin))).await;
    assert!(status.last_error.unwrap().contains("169.254.169.254:80 is link-local"));
}

#[tokio::test]
async fn an_issuers_discovery_document_leads_to_its_keys() {
    let server = Server::start(false).await;
    let origin = server.origin.clone();
    server.answers(move |path| match path {
        "/tenant/.well-known/openid-configuration" => {
            text(200, json!({"jwks_uri": format!("{origin}/k")}).to_string())
        }
        "/k" => text(200, keys(&[(&ED, "one")])),
        "/bad/.well-known/openid-configuration" => text(200, "{}"),
        _ => text(404, ""),
    });
    let location = |path: &str| KeyLocation::of_issuer(&format!("{}{path}", server.origin));
    assert_eq!(first_attempt(settings(), source(&location("/tenant/"))).await.keys, 1);
    let error = first_attempt(settings(), source(&location("/bad"))).await.last_error.unwrap();
    assert!(error.contains("has no jwks_uri"), "{error}");
}

#[tokio::test]
async fn https_needs_a_root_that_vouches_and_is_not_left_for_http() {
    let server = Server::start(true).await;
    let untrusted = first_attempt(settings(), source(&server.location())).await;
    let error = untrusted.last_error.unwrap();
    assert!(error.contains("TLS with localhost"), "{error}");
    assert_eq!(server.requests(), 0);
    let trusting = || JwksSettings { extra_roots: server.root.iter().cloned().collect(), ..settings() };
    assert_eq!(first_attempt(trusting(), source(&server.location())).await.keys, 1);
    let other_name = KeyLocation::Jwks(server.origin.replace("localhost", "127.0.0.1").into());
    assert!(
        first_attempt(trusting(), source(&other_name))
            .await
            .last_error
            .unwrap()
            .contains("TLS with 127.0.0.1")
    );
    server.answers(|_| text(200, "{\"jwks_uri\":\"http://localhost/jwks\"}"));
    let error =
        first_attempt(trusting(), source(&KeyLocation::of_issuer(&server.origin))).await.last_error.unwrap();
    assert!(error.contains("came by https"), "{error}");
}

#[tokio::test]
async fn places_come_and_go_with_the_policies_and_keep_their_keys() {
    let (first, second) = (Server::start(false).await, Server::start(false).await);
    let store = JwksStore::open(settings()).unwrap();
    let (one, two) = (source(&first.location()), source(&second.location()));
    store.set_sources(std::slice::from_ref(&one));
    until(&store, |s| s.keys == 1).await;
    let known = store.keys(&one.location).unwrap();
    first.answers(|_| text(500, ""));
    store.set_sources(&[one.clone(), two.clone()]);
    store.tried().await;
    assert!(Arc::ptr_eq(&store.keys(&one.location).unwrap(), &known));
    assert_eq!((store.status().len(), first.requests()), (2, 1));
    // Another timeout asks again, and the keys are not missed meanwhile.
    let patient = JwksSource { timeout: Duration::from_secs(6), ..one.clone() };
    store.set_sources(&[patient, two.clone()]);
    assert!(Arc::ptr_eq(&store.keys(&one.location).unwrap(), &known));
    until(&store, |s| s.url == one.location.url() && s.failures > 0).await;
    store.set_sources(std::slice::from_ref(&two));
    assert!(store.keys(&one.location).is_none());
    assert_eq!(store.status().len(), 1);
}

#[test]
fn settings_are_read_from_the_nodes_file() {
    let folder = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["idp.example".to_owned()]).unwrap();
    let (good, bad) = (folder.path().join("good.pem"), folder.path().join("bad.pem"));
    std::fs::write(&good, own.cert.pem()).unwrap();
    std::fs::write(&bad, "nothing").unwrap();
    let config = JwksConfig {
        allow_addresses: vec!["127.0.0.1/32".parse().unwrap()],
        extra_roots: vec![good.clone()],
    };
    let settings = JwksSettings::load(&config).unwrap();
    assert_eq!(settings.extra_roots, [own.cert.der().clone()]);
    assert_eq!((settings.allow_addresses, settings.schedule), (config.allow_addresses, Schedule::default()));
    let error = JwksSettings::load(&JwksConfig { extra_roots: vec![good, bad], ..JwksConfig::default() })
        .unwrap_err();
    assert!(error.to_string().contains("bad.pem"), "{error}");
}
