//! The admin API over real sockets, with a daemon that only tells stories.

#[path = "fake.rs"]
mod fake;

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_util::sync::CancellationToken;

use self::fake::Fake;
use super::{api::ApiError, *};
use crate::telemetry::{Direction, RelayKind};

fn connection(id: u64) -> ConnectionRow {
    ConnectionRow {
        id,
        direction: Direction::Outbound,
        workload: "shop/web".into(),
        source: "10.0.1.2:40000".into(),
        destination: "10.0.2.2:5432".into(),
        original_destination: None,
        peer: Some("shop/db".into()),
        peer_spiffe_id: None,
        own_spiffe_id: None,
        state: "relaying".into(),
        relay: RelayKind::KtlsSplice,
        capture_form: "listener".into(),
        tls: None,
        resumed: false,
        bytes_sent: Some(1),
        bytes_received: Some(2),
        age_ms: 3,
        idle_ms: Some(0),
    }
}

struct Running {
    dir: tempfile::TempDir,
    story: Arc<Fake>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start(story: Fake, limits: AdminLimits) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let server = AdminServer::bind(dir.path(), limits).unwrap();
    let (story, stop) = (Arc::new(story), CancellationToken::new());
    let task = tokio::spawn(server.serve(Arc::<Fake>::clone(&story), None, stop.clone()));
    Running { dir, story, stop, task }
}

impl Running {
    fn client(&self) -> AdminClient {
        AdminClient::new(self.dir.path())
    }

    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("admin.sock")).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let _reset =
            tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test]
async fn documents_come_back_as_the_types_they_are() {
    let connections = (0..3).map(connection).collect();
    let running = start(Fake { connections, ..Fake::default() }, AdminLimits::default());
    let client = running.client();
    assert_eq!(client.get::<Status>("/v1/status").await.unwrap().node, "node-a");
    assert_eq!(client.get::<Vec<WorkloadRow>>("/v1/workloads").await.unwrap()[0].mode, Mode::Strict);
    let list: ConnectionList = client.get("/v1/connections?limit=2").await.unwrap();
    assert_eq!((list.total, list.connections), (3, vec![connection(0), connection(1)]));
    assert_eq!(client.text("/metrics").await.unwrap(), "# EOF\n");
    assert_eq!(client.text("/healthz/ready").await.unwrap(), "ready\n");
    let from = client::query_value("spiffe://cluster.local/ns/shop/sa/web");
    let path = format!("/v1/policy/explain?from={from}&to={}", client::query_value("[fd00::1]:80"));
    let explanation: Explanation = client.get(&path).await.unwrap();
    assert!(explanation.decided_by.contains("fd00::1"), "{explanation:?}");
}

#[tokio::test]
async fn failures_carry_a_status_and_a_sentence() {
    let running =
        start(Fake { reload_fails: true, not_ready: true, ..Fake::default() }, AdminLimits::default());
    let client = running.client();
    let refused = |error: ClientError| match error {
        ClientError::Refused { status, message } => (status, message),
        other => panic!("{other}"),
    };
    let (status, message) = refused(client.post::<ReloadReport>("/v1/reload").await.unwrap_err());
    assert_eq!((status, message.as_str()), (422, "node.yaml:3:5: unknown field"));
    assert_eq!(refused(client.text("/healthz/ready").await.unwrap_err()).0, 503);
    assert_eq!(refused(client.get::<Status>("/v1/nothing").await.unwrap_err()).0, 404);
    assert_eq!(refused(client.get::<Status>("/v1/reload").await.unwrap_err()).0, 405);
    let explain = |query: &'static str| client.get::<Explanation>(query);
    assert_eq!(refused(explain("/v1/policy/explain?from=web&to=a/b:2").await.unwrap_err()).0, 400);
    assert_eq!(refused(explain("/v1/policy/explain?from=a/b").await.unwrap_err()).0, 400);
    let (status, message) =
        refused(explain("/v1/policy/explain?from=a/b&to=shop/ghost:1").await.unwrap_err());
    assert!(status == 404 && message.contains("shop/ghost"), "{message}");
}

#[tokio::test]
async fn questions_with_a_body_are_answered_and_bounded() {
    let running = start(Fake::default(), AdminLimits::default());
    let client = running.client();
    let text = "a".repeat(3 << 20);
    let files = PolicyFiles { files: vec![PolicyFile { name: "p.yaml".into(), text }], replace: false };
    let rows: Vec<LintRow> = client.post_json("/v1/policy/lint", &files).await.unwrap();
    assert_eq!(rows[0].file, "p.yaml");
    let refused = |error: ClientError| match error {
        ClientError::Refused { status, message } => (status, message),
        other => panic!("{other}"),
    };
    let nothing = PolicyFiles::default();
    let error = client.post_json::<ImpactReport>("/v1/policy/impact", &nothing).await.unwrap_err();
    assert_eq!(refused(error), (422, "p.yaml:1:1: nothing".to_owned()));
    let token = Some("a".repeat(20_000));
    let request = Some(RequestQuery { token, ..RequestQuery::default() });
    let body = ExplainBody { from: "a/b".into(), to: "a/c:2".into(), request };
    let explanation: Explanation = client.post_json("/v1/policy/explain", &body).await.unwrap();
    assert!(!explanation.decided_by.contains("aaaa"), "{explanation:?}");
    let error = client.post_json::<Explanation>("/v1/policy/explain", &"s3cret").await.unwrap_err();
    let (status, message) = refused(error);
    assert!(status == 400 && !message.contains("s3cret"), "{message}");
    for (path, length) in [("lint", (4 << 20) + 1), ("impact", (4 << 20) + 1), ("explain", 64 * 1024 + 1)] {
        let request =
            format!("POST /v1/policy/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        let answer = running.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn oversized_requests_are_refused() {
    let running = start(Fake::default(), AdminLimits::default());
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(20_000));
    let answer = running.raw(long_path.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 4") || answer.is_empty(), "{answer}");
    let many_headers = format!("GET /v1/status HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(5_000));
    let answer = running.raw(many_headers.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer}");
    for body in ["Content-Length: 1025\r\n", "Transfer-Encoding: chunked\r\n"] {
        let answer =
            running.raw(format!("POST /v1/reload HTTP/1.1\r\nHost: x\r\n{body}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        let json = answer.rsplit("\r\n\r\n").next().unwrap();
        assert!(serde_json::from_str::<ApiError>(json).is_ok(), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_closed_and_frees_its_place() {
    let limits =
        AdminLimits { connections: 1, header_timeout: Duration::from_millis(200), ..AdminLimits::default() };
    let running = start(Fake::default(), limits);
    let mut silent = UnixStream::connect(running.dir.path().join("admin.sock")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(running.client().get::<Status>("/v1/status").await.is_err(), "the only place is taken");
    assert_eq!(running.story.refused.load(SeqCst), 1);
    let mut rest = Vec::new();
    let _reset = silent.read_to_end(&mut rest).await;
    assert!(running.client().get::<Status>("/v1/status").await.is_ok());
}

#[tokio::test]
async fn the_socket_is_private_replaces_a_dead_one_and_goes_with_its_server() {
    let running = start(Fake::default(), AdminLimits::default());
    let path = running.dir.path().join("admin.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let successor = AdminServer::bind(running.dir.path(), AdminLimits::default()).unwrap();
    running.stop.cancel();
    running.task.await.unwrap();
    assert!(path.exists(), "the successor's socket is not removed by its predecessor");
    drop(successor);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_at_the_sockets_path_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("admin.sock"), "precious").unwrap();
    let refused = AdminServer::bind(dir.path(), AdminLimits::default());
    assert!(matches!(refused, Err(ServerError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(dir.path().join("admin.sock")).unwrap(), "precious");
}

#[tokio::test]
async fn an_absent_daemon_is_told_with_what_to_do() {
    let error = AdminClient::new(Path::new("/nonexistent")).get::<Status>("/v1/status").await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("meshd is not running: /nonexistent/admin.sock: No such file"), "{text}");
    assert!(text.contains("systemctl start meshd") && text.contains("--runtime-dir"), "{text}");
}

/// A metrics endpoint, its address, and what ends it.
async fn metrics_endpoint(limits: AdminLimits) -> (std::net::SocketAddr, Arc<Fake>, CancellationToken) {
    let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap(), limits).await.unwrap();
    let (address, stop, story) =
        (server.address().unwrap(), CancellationToken::new(), Arc::new(Fake::default()));
    tokio::spawn(server.serve(Arc::<Fake>::clone(&story), stop.clone()));
    (address, story, stop)
}

async fn ask_tcp(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let text = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn tcp_serves_metrics_and_nothing_else() {
    let (address, _, stop) = metrics_endpoint(AdminLimits::default()).await;
    let metrics = ask_tcp(address, "GET /metrics").await;
    assert!(
        metrics.starts_with("HTTP/1.1 200") && metrics.contains("application/openmetrics-text"),
        "{metrics}"
    );
    for path in ["/", "/v1/status", "/v1/connections", "/v1/reload", "/healthz/ready"] {
        for method in ["GET", "POST"] {
            let answer = ask_tcp(address, &format!("{method} {path}")).await;
            assert!(answer.starts_with("HTTP/1.1 404"), "{method} {path}: {answer}");
        }
    }
    assert!(ask_tcp(address, "POST /metrics").await.starts_with("HTTP/1.1 405"));
    stop.cancel();
}

#[tokio::test]
async fn silent_clients_of_the_metrics_endpoint_are_few_and_soon_gone() {
    let limits =
        AdminLimits { connections: 2, header_timeout: Duration::from_millis(200), ..AdminLimits::default() };
    let (address, story, stop) = metrics_endpoint(limits).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let mut rest = Vec::new();
    let _reset = silent[2].read_to_end(&mut rest).await;
    assert_eq!(story.refused.load(SeqCst), 1, "the third is one too many");
    for stream in &mut silent[..2] {
        let _reset = stream.read_to_end(&mut rest).await;
    }
    assert!(ask_tcp(address, "GET /metrics").await.starts_with("HTTP/1.1 200"));
    stop.cancel();
}
