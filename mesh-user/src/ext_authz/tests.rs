//! Authorizers of the tests' own, over both protocols and in every way that one can fail, on in-memory connections.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tower_service::Service;

use super::{
    proto::{
        BoolValue, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderField, HeaderValueOption,
        HttpResponse, HttpStatus, OkHttpResponse, QueryParameter, Status,
    },
    *,
};
use crate::telemetry::MetricsLimits;

/// Serves each connection with a task of its own.
struct Fake<F> {
    serve: F,
    connections: AtomicUsize,
    gone: AtomicBool,
    asked: Mutex<Vec<ServiceName>>,
}

impl<F: Fn(DuplexStream) + Send + Sync> Fake<F> {
    fn new(serve: F) -> Self {
        Self {
            serve,
            connections: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
            asked: Mutex::default(),
        }
    }
}

impl<F: Fn(DuplexStream) + Send + Sync> Connector for Fake<F> {
    async fn connect(&self, service: &ServiceName) -> Result<Box<dyn Io>, String> {
        self.asked.lock().unwrap().push(service.clone());
        if self.gone.load(SeqCst) {
            return Err("connection refused".to_owned());
        }
        self.connections.fetch_add(1, SeqCst);
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        (self.serve)(theirs);
        Ok(Box::new(ours))
    }
}

/// Answers HTTP/1.1 by a function.
fn over_http<R>(respond: R) -> impl Fn(DuplexStream) + Send + Sync
where
    R: Fn(Request<Incoming>) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
{
    move |stream| {
        let respond = respond.clone();
        let service = service_fn(move |request| {
            let response = respond(request);
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}

#[derive(Clone)]
struct Answers<R>(R);

impl<R> Service<tonic::Request<CheckRequest>> for Answers<R>
where
    R: Fn(CheckRequest) -> Result<CheckResponse, tonic::Status>,
{
    type Response = tonic::Response<CheckResponse>;
    type Error = tonic::Status;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<CheckRequest>) -> Self::Future {
        std::future::ready((self.0)(request.into_inner()).map(tonic::Response::new))
    }
}

/// Answers gRPC by a function.
fn over_grpc<R>(respond: R) -> impl Fn(DuplexStream) + Send + Sync
where
    R: Fn(CheckRequest) -> Result<CheckResponse, tonic::Status> + Clone + Send + Sync + 'static,
{
    move |stream| {
        let respond = respond.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            assert_eq!(request.uri().path(), proto::CHECK);
            assert_eq!(request.uri().authority().map(ToString::to_string).as_deref(), Some("authz.example"));
            let respond = Answers(respond.clone());
            async move {
                let codec = tonic_prost::ProstCodec::default();
                Ok::<_, Infallible>(tonic::server::Grpc::new(codec).unary(respond, request).await)
            }
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
    }
}

fn authorizer(kind: &str, fields: &str) -> Authorizer {
    let entry = format!(
        r#"{{"name": "authz", "{kind}": {{"service": "authz.example", "port": 9000, "timeout": "5s" {fields}}}}}"#
    );
    Authorizer::new(&serde_json::from_str(&entry).unwrap()).unwrap()
}

fn http(fields: &str) -> Authorizer {
    authorizer("envoyExtAuthzHttp", fields)
}

fn grpc(fields: &str) -> Authorizer {
    authorizer("envoyExtAuthzGrpc", fields)
}

fn check() -> Check {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("authorization", "Bearer secret"),
        ("x-team", "blue"),
        ("x-team", "green"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("content-length", "17"),
        ("x-envoy-auth-partial-body", "false"),
    ] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let party = |address: &str, who: &str| Party {
        address: address.parse().unwrap(),
        principal: Some(format!("spiffe://cluster.local/ns/shop/sa/{who}")),
    };
    Check {
        source: party("10.0.0.2:4711", "client"),
        destination: party("10.0.0.1:80", "server"),
        sni: Some("shop.example".to_owned()),
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
        http: Some(HttpCheck {
            id: 7,
            method: "POST".to_owned(),
            path: "/a?b=c".to_owned(),
            authority: "shop:80".to_owned(),
            scheme: "https",
            protocol: "HTTP/1.1".to_owned(),
            headers,
        }),
    }
}

fn workload() -> WorkloadName {
    WorkloadName { namespace: "shop".into(), name: "server".into() }
}

async fn ask(authorizer: &Authorizer, fake: &impl Connector) -> Outcome {
    authorizer.ask(&check(), &workload(), fake, &Metrics::new("n", MetricsLimits::default())).await
}

/// In one line: what a table of cases compares.
fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Allowed { failed_open: None, .. } => "allowed".to_owned(),
        Outcome::Allowed { failed_open: Some(why), .. } => format!("open: {why}"),
        Outcome::Denied { answer, error: None } => format!("denied {}", answer.status.as_u16()),
        Outcome::Denied { answer, error: Some(why) } => format!("{} {why}", answer.status.as_u16()),
    }
}

fn respond(status: u16, headers: &[(&str, &str)], body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

#[tokio::test]
async fn an_http_check_tells_what_istio_tells() {
    let seen = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&seen);
    let fake = Fake::new(over_http(move |request: Request<Incoming>| {
        *kept.lock().unwrap() = Some(request.into_parts().0);
        respond(200, &[], "")
    }));
    let outcome = ask(&http(r#", "pathPrefix": "/check""#), &fake).await;
    assert_eq!(told(&outcome), "allowed");
    let head = seen.lock().unwrap().take().unwrap();
    assert_eq!((head.method.as_str(), head.uri.to_string().as_str()), ("POST", "/check/a?b=c"));
    let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "content-length", "host"]);
    assert_eq!(
        (&head.headers["host"], &head.headers["content-length"]),
        (&"shop:80".parse().unwrap(), &"0".parse().unwrap())
    );
    assert_eq!(fake.asked.lock().unwrap()[0].to_string(), "authz.example:9000");

    let fields = r#", "includeRequestHeadersInCheck": ["X-Team", "coo*", "*length", "x-envoy-*"], "includeHeadersInCheck": ["nothing"],
        "includeAdditionalHeadersInCheck": {"x-mesh": "m", "authorization": "fixed"}"#;
    ask(&http(fields), &fake).await;
    let head = seen.lock().unwrap().take().unwrap();
    let value = |name: &str| head.headers[name].to_str().unwrap().to_owned();
    assert_eq!(
        (value("x-team"), value("cookie"), value("x-mesh")),
        ("blue,green".into(), "a=1; b=2".into(), "m".into())
    );
    assert_eq!((value("authorization"), value("content-length")), ("fixed".into(), "0".into()));
    assert!(!head.headers.contains_key("x-envoy-auth-partial-body"));
}

#[tokio::test]
async fn an_http_answer_means_what_envoy_makes_of_it() {
    const OPEN: &str = r#", "failOpen": true"#;
    const LATER: &str = r#", "statusOnError": "503""#;
    for (status, fields, expected) in [
        (200, "", "allowed"),
        (201, "", "denied 201"),
        (204, OPEN, "denied 204"),
        (302, "", "denied 302"),
        (401, OPEN, "denied 401"),
        (500, "", "403 it answers 500"),
        (503, LATER, "503 it answers 503"),
        (503, OPEN, "open: it answers 503"),
    ] {
        let fake = Fake::new(over_http(move |_| respond(status, &[("location", "http://elsewhere/")], "")));
        assert_eq!(told(&ask(&http(fields), &fake).await), expected, "{status} {fields}");
        assert_eq!(fake.connections.load(SeqCst), 1, "a redirect was followed");
    }
}

#[tokio::test]
async fn headers_of_an_http_answer_go_where_the_provider_says() {
    let headers = [
        ("x-user", "spoofed"),
        ("x-user", "alice"),
        ("x-a", "1"),
        ("set-cookie", "c=1"),
        ("set-cookie", "d=2"),
        ("www-authenticate", "Basic"),
        ("x-envoy-auth-headers-to-remove", "authorization, x-secret,, b d"),
    ];
    let answers = |status| Fake::new(over_http(move |_| respond(status, &headers, "why")));
    let Outcome::Allowed { changes, .. } = ask(&http(""), &answers(200)).await else { panic!("not allowed") };
    let removed = vec![HeaderName::from_static("authorization"), HeaderName::from_static("x-secret")];
    assert_eq!(changes, Changes { remove: removed, ..Changes::default() });
    let fields = r#", "headersToUpstreamOnAllow": ["x-u*", "x-envoy-auth-headers-to-remove"], "headersToDownstreamOnAllow": ["set-cookie"]"#;
    let Outcome::Allowed { changes, .. } = ask(&http(fields), &answers(200)).await else {
        panic!("not allowed")
    };
    let put = |name: &'static str, value: &'static str, put| {
        (HeaderName::from_static(name), HeaderValue::from_static(value), put)
    };
    assert_eq!(changes.request, [put("x-user", "alice", Put::Replace)]);
    assert_eq!(changes.response, [put("set-cookie", "c=1", Put::Add), put("set-cookie", "d=2", Put::Add)]);

    for (fields, expected) in [
        ("", &["date", "set-cookie", "www-authenticate", "x-a", "x-user"][..]),
        (r#", "headersToDownstreamOnDeny": ["X-A"]"#, &["www-authenticate", "x-a"]),
    ] {
        let Outcome::Denied { answer, error: None } = ask(&http(fields), &answers(403)).await else {
            panic!("not denied")
        };
        let mut names: Vec<_> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.retain(|name| *name != "content-length");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names, expected);
        assert_eq!(answer.body, "why");
    }
}

#[tokio::test]
async fn a_grpc_check_tells_what_envoy_tells() {
    let seen = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&seen);
    let fake = Fake::new(over_grpc(move |request| {
        *kept.lock().unwrap() = Some(request);
        Ok(CheckResponse::default())
    }));
    let grpc = grpc("");
    assert_eq!(told(&ask(&grpc, &fake).await), "allowed");
    let attributes = seen.lock().unwrap().take().unwrap().attributes.unwrap();
    let (source, destination) = (attributes.source.unwrap(), attributes.destination.unwrap());
    assert_eq!(source.principal, "spiffe://cluster.local/ns/shop/sa/client");
    let address = source.address.unwrap().socket_address.unwrap();
    assert_eq!((address.address.as_str(), address.port_value), ("10.0.0.2", 4711));
    assert_eq!(
        (destination.principal.as_str(), destination.service.as_str()),
        ("spiffe://cluster.local/ns/shop/sa/server", "")
    );
    let request = attributes.request.unwrap();
    assert_eq!(request.time, Some(proto::Timestamp { seconds: 1, nanos: 500_000_000 }));
    let request = request.http.unwrap();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/a?b=c"));
    assert_eq!((request.host.as_str(), request.scheme.as_str()), ("shop:80", "https"));
    assert_eq!((request.id.as_str(), request.protocol.as_str()), ("7", "HTTP/1.1"));
    let mut headers: Vec<_> = request.headers.iter().map(|(k, v)| format!("{k}={v}")).collect();
    headers.sort_unstable();
    assert_eq!(
        headers,
        [
            ":authority=shop:80",
            ":method=POST",
            ":path=/a?b=c",
            ":scheme=https",
            "authorization=Bearer secret",
            "content-length=17",
            "cookie=a=1; b=2",
            "x-team=blue,green",
        ]
    );
    assert!(attributes.metadata_context.is_some() && attributes.route_metadata_context.is_some());

    let connection = Check { http: None, ..check() };
    let metrics = Metrics::new("n", MetricsLimits::default());
    let outcome = grpc.ask(&connection, &workload(), &fake, &metrics).await;
    assert_eq!(told(&outcome), "allowed");
    let attributes = seen.lock().unwrap().take().unwrap().attributes.unwrap();
    assert!(attributes.request.is_none());
    assert_eq!(attributes.destination.unwrap().service, "shop.example");
    assert_eq!(fake.connections.load(SeqCst), 1, "the connection was not used again");
    let text = metrics.text();
    assert!(text.contains(r#"meshd_ext_authz_checks_total{provider="authz",result="allowed"} 1"#), "{text}");
    assert!(text.contains(r#"meshd_ext_authz_seconds_count{provider="authz"} 1"#), "{text}");
    // An HTTP authorizer knows no connections; that is no failure that could open.
    let outcome = http(r#", "failOpen": true"#).ask(&connection, &workload(), &fake, &metrics).await;
    assert_eq!(told(&outcome), "500 an HTTP authorizer cannot be asked about a connection");
}

fn status(code: i32) -> Status {
    Status { code, message: "because\n".to_owned() }
}

fn option(key: &str, value: &str, append: Option<bool>, append_action: i32) -> HeaderValueOption {
    let header = HeaderField { key: key.to_owned(), value: value.to_owned(), raw_value: Vec::new() };
    HeaderValueOption { header: Some(header), append: append.map(|value| BoolValue { value }), append_action }
}

fn ok(headers: Vec<HeaderValueOption>) -> CheckResponse {
    let ok = OkHttpResponse { headers, ..OkHttpResponse::default() };
    CheckResponse { status: Some(status(0)), http_response: Some(HttpResponse::Ok(ok)) }
}

fn denied(code: Option<i32>, headers: Vec<HeaderValueOption>) -> DeniedHttpResponse {
    DeniedHttpResponse { status: code.map(|code| HttpStatus { code }), headers, body: "no".to_owned() }
}

#[tokio::test]
async fn a_grpc_answer_means_what_envoy_makes_of_it() {
    const OPEN: &str = r#", "failOpen": true"#;
    let with = |code, response| CheckResponse { status: Some(status(code)), http_response: response };
    let deny = |code| Some(HttpResponse::Denied(denied(code, Vec::new())));
    let fail = |code| Some(HttpResponse::Error(denied(code, Vec::new())));
    for (answer, fields, expected) in [
        (CheckResponse::default(), "", "allowed"),
        (with(0, None), "", "allowed"),
        (with(0, deny(Some(401))), "", "allowed"),
        (with(7, None), OPEN, "denied 403"),
        (with(16, deny(Some(401))), "", "denied 401"),
        (with(16, deny(None)), "", "denied 403"),
        (with(7, Some(HttpResponse::Ok(OkHttpResponse::default()))), "", "denied 403"),
        (with(7, deny(Some(99))), OPEN, "500 99 is no status for a client"),
        (with(13, fail(None)), "", "403 it says that it failed: 13 \"because\""),
        (with(13, fail(Some(502))), "", "502 it says that it failed: 13 \"because\""),
        (with(13, fail(Some(502))), OPEN, "open: it says that it failed: 13 \"because\""),
        (ok(vec![option("a b", "1", None, 0)]), OPEN, "500 \"a b\" is no header"),
        (ok(vec![option(":path", "/x", None, 0)]), OPEN, "500 \":path\" is no header"),
        (ok(vec![option("Host", "x", None, 0)]), OPEN, "500 it wants host changed, which meshd does not do"),
        (ok(vec![option("x", "a\r\nb: c", None, 0)]), OPEN, "500 the value of x is none"),
        (ok(vec![option("x", "1", None, 9)]), OPEN, "500 9 is no action on a header"),
    ] {
        let shown = format!("{answer:?} {fields}");
        let fake = Fake::new(over_grpc(move |_| Ok(answer.clone())));
        assert_eq!(told(&ask(&grpc(fields), &fake).await), expected, "{shown}");
    }
}

#[tokio::test]
async fn a_grpc_answer_changes_what_it_says() {
    let answer = OkHttpResponse {
        headers: vec![
            option("X-Default", "1", None, 0),
            option("x-append", "2", Some(true), 0),
            option("x-set", "3", Some(false), 1),
            option("x-absent", "4", None, 1),
            option("x-present", "5", None, 3),
        ],
        headers_to_remove: vec!["Authorization".to_owned(), ":path".to_owned()],
        response_headers_to_add: vec![option("set-cookie", "c", Some(true), 0)],
        query_parameters_to_set: vec![QueryParameter { key: "user".into(), value: "al%20ice".into() }],
        query_parameters_to_remove: vec!["token".to_owned()],
    };
    let answer = CheckResponse { status: Some(status(0)), http_response: Some(HttpResponse::Ok(answer)) };
    let fake = Fake::new(over_grpc(move |_| Ok(answer.clone())));
    let Outcome::Allowed { changes, .. } = ask(&grpc(""), &fake).await else { panic!("not allowed") };
    let puts: Vec<_> = changes.request.iter().map(|(name, _, put)| (name.as_str(), *put)).collect();
    assert_eq!(
        puts,
        [
            ("x-default", Put::Replace),
            ("x-append", Put::Add),
            ("x-set", Put::Replace),
            ("x-absent", Put::AddIfAbsent),
            ("x-present", Put::ReplaceIfPresent),
        ]
    );
    assert_eq!(changes.remove, ["authorization"]);
    assert_eq!(changes.response[0].2, Put::Add);
    assert_eq!(changes.path("/a?token=x&b").as_deref(), Some("/a?b&user=al%20ice"));

    let sneaky = OkHttpResponse {
        query_parameters_to_set: vec![QueryParameter { key: "a".into(), value: "b&admin=1".into() }],
        ..OkHttpResponse::default()
    };
    let sneaky = CheckResponse { status: None, http_response: Some(HttpResponse::Ok(sneaky)) };
    let fake = Fake::new(over_grpc(move |_| Ok(sneaky.clone())));
    assert_eq!(told(&ask(&grpc(""), &fake).await), "500 a query parameter is not encoded");
}

/// What is on the other end of a connection that no authorizer serves.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Silent,
    Closes,
    Says(&'static [u8]),
    Endless(&'static [u8]),
}

fn wrong(wrong: Wrong) -> impl Fn(DuplexStream) + Send + Sync {
    move |mut stream| {
        tokio::spawn(async move {
            let mut request = [0; 1024];
            // Before that a client takes whatever comes for a breach.
            _ = stream.read(&mut request).await;
            match wrong {
                Wrong::Silent => std::future::pending().await,
                Wrong::Closes => {}
                Wrong::Says(text) => {
                    _ = stream.write_all(text).await;
                    // It is read before it ends.
                    while stream.read(&mut request).await.is_ok_and(|n| n > 0) {}
                }
                Wrong::Endless(text) => {
                    _ = stream.write_all(text).await;
                    while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
                }
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_denies_unless_the_provider_fails_open() {
    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
    for (wrong_one, kinds, expected) in [
        (Wrong::Silent, &["http", "grpc"][..], "no answer within 5s"),
        (Wrong::Closes, &["http", "grpc"], "does not answer: "),
        (Wrong::Says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), &["http", "grpc"], "does not answer: "),
        (Wrong::Says(b"\0\0\0\0garbage and more of it, in no frame"), &["http", "grpc"], "does not answer: "),
        (Wrong::Says(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"), &["http"], "no answer within 5s"),
        (Wrong::Endless(CHUNKED), &["http"], "its answer is larger than 256 KiB"),
        (Wrong::Endless(b"HTTP/1.1 200 OK\r\nx: "), &["http"], "does not answer: "),
    ] {
        for kind in kinds {
            let authorizer = |fields: &str| if *kind == "http" { http(fields) } else { grpc(fields) };
            let outcome = told(&ask(&authorizer(""), &Fake::new(wrong(wrong_one))).await);
            assert!(outcome.starts_with(&format!("403 {expected}")), "{kind} {wrong_one:?}: {outcome}");
            let outcome =
                told(&ask(&authorizer(r#", "failOpen": true"#), &Fake::new(wrong(wrong_one))).await);
            assert!(outcome.starts_with(&format!("open: {expected}")), "{kind} {wrong_one:?}: {outcome}");
        }
    }
}

#[tokio::test]
async fn grpc_that_is_none_or_fails_denies() {
    let page = over_http(|_| respond(200, &[("content-type", "text/html")], "<html>"));
    let outcome = told(&ask(&grpc(""), &Fake::new(page)).await);
    assert!(outcome.starts_with("403 does not answer"), "{outcome}");
    let html = |stream| {
        let service = service_fn(|_| async {
            Ok::<_, Infallible>(respond(
                200,
                &[("content-type", "text/html")],
                "<html><body>hello</body></html>",
            ))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(server.serve_connection(TokioIo::<DuplexStream>::new(stream), service));
    };
    let outcome = told(&ask(&grpc(""), &Fake::new(html)).await);
    assert!(outcome.starts_with("403 does not answer"), "{outcome}");
    let refuses = over_grpc(|_| Err(tonic::Status::permission_denied("no")));
    let outcome = told(&ask(&grpc(""), &Fake::new(refuses)).await);
    assert_eq!(outcome, "403 does not answer: gRPC status PermissionDenied");
    let huge = over_grpc(|_| {
        let body = DeniedHttpResponse { body: "x".repeat(300 * 1024), ..denied(None, Vec::new()) };
        Ok(CheckResponse { status: Some(status(7)), http_response: Some(HttpResponse::Denied(body)) })
    });
    let outcome = told(&ask(&grpc(""), &Fake::new(huge)).await);
    assert!(outcome.starts_with("403 does not answer: gRPC status"), "{outcome}");
}

#[tokio::test]
async fn an_authorizer_that_comes_and_goes_is_asked_on_a_new_connection() {
    for kind in ["http", "grpc"] {
        // Each connection serves one check, then closes although it said that it would stay.
        let streams: Arc<Mutex<Vec<tokio::task::JoinHandle<()>>>> = Arc::default();
        let tasks = Arc::clone(&streams);
        let serve = move |stream: DuplexStream| {
            let task = tokio::spawn(async move {
                let http = service_fn(|_| async { Ok::<_, Infallible>(respond(200, &[], "")) });
                let check = service_fn(|request: Request<Incoming>| async move {
                    let codec = tonic_prost::ProstCodec::default();
                    let respond = Answers(|_| Ok(CheckResponse::default()));
                    Ok::<_, Infallible>(tonic::server::Grpc::new(codec).unary(respond, request).await)
                });
                if kind == "http" {
                    _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), http)
                        .await;
                } else {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    _ = server.serve_connection(TokioIo::new(stream), check).await;
                }
            });
            tasks.lock().unwrap().push(task);
        };
        let fake = Fake::new(serve);
        let authorizer = if kind == "http" { http("") } else { grpc("") };
        for round in 1..=3 {
            assert_eq!(told(&ask(&authorizer, &fake).await), "allowed", "{kind} {round}");
            assert_eq!(told(&ask(&authorizer, &fake).await), "allowed", "{kind} {round} again");
            assert_eq!(fake.connections.load(SeqCst), round, "{kind}");
            let task = streams.lock().unwrap().pop().unwrap();
            task.abort();
            // The stream is dropped with the task.
            assert!(task.await.unwrap_err().is_cancelled());
        }
        fake.gone.store(true, SeqCst);
        assert_eq!(
            told(&ask(&authorizer, &fake).await),
            "403 cannot be reached: connection refused",
            "{kind}"
        );
    }
}

#[tokio::test]
async fn checks_under_way_are_bounded() {
    let authorizer = Arc::new(http(""));
    let fake = Arc::new(Fake::new(wrong(Wrong::Silent)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..MAX_CHECKS {
        let (authorizer, fake) = (Arc::clone(&authorizer), Arc::clone(&fake));
        tasks.spawn(async move { ask(&authorizer, &*fake).await });
    }
    while fake.connections.load(SeqCst) < MAX_CHECKS {
        tokio::task::yield_now().await;
    }
    assert_eq!(told(&ask(&authorizer, &*fake).await), "403 1024 checks wait for it already");
    // Whoever gives up gives back the place.
    tasks.shutdown().await;
    let served = Fake::new(over_http(|_| respond(200, &[], "")));
    assert_eq!(told(&ask(&authorizer, &served).await), "allowed");
}
