//! HTTP/2 with the `h2` crate's own client and server on either side.

use std::future::poll_fn;

use ::h2::{self, Reason, RecvStream, client::SendRequest, server::SendResponse};
use bytes::Bytes;
use hyper::{HeaderMap, Request, Response};
use tokio::time::timeout;

use super::*;

type Sender = SendRequest<Bytes>;

async fn client(stream: DuplexStream) -> (Sender, JoinHandle<Result<(), h2::Error>>) {
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// Gives every stream of every connection of the application to `handle`.
fn serve_h2<H, F>(mut applications: mpsc::UnboundedReceiver<DuplexStream>, handle: H)
where
    H: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        while let Some(stream) = applications.recv().await {
            let handle = handle.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(handle(request, respond));
                }
            });
        }
    });
}

async fn collect(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        all.extend(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok((all, body.trailers().await?))
}

/// Answers with the request's head and body, and its trailers as trailers.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let Ok((data, trailers)) = collect(body).await else { return };
    let user = parts.headers.get("x-user").map_or("-", |user| user.to_str().unwrap());
    respond.send_informational(Response::builder().status(103).body(()).unwrap()).unwrap();
    let mut to = respond.send_response(Response::new(()), false).unwrap();
    to.send_data(Bytes::from(format!("{} {} {user} {}", parts.method, parts.uri, data.len())), false)
        .unwrap();
    to.send_trailers(trailers.unwrap_or_default()).unwrap();
}

fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://shop:80{path}")).body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_stream_is_decided_and_carried_whole() {
    let between = between(Settings::default());
    let (opened, lines, rules) = (between.opened.clone(), between.lines.clone(), between.rules.clone());
    serve_h2(between.applications, echo);
    let (mut sender, connection) = client(between.client).await;
    for (path, size, expected) in [
        ("/a?b", 0, Some("POST http://shop:80/a?b - 0")),
        ("/deny", 0, None),
        ("/big", 400_000, Some("POST http://shop:80/big - 400000")),
        ("/edit", 10, Some("POST http://shop:80/edited alice 10")),
    ] {
        sender = sender.ready().await.unwrap();
        let (response, mut to) = sender.send_request(request("POST", path), false).unwrap();
        to.send_data(vec![b'x'; size].into(), false).unwrap();
        to.send_trailers(HeaderMap::from_iter([(
            HeaderName::from_static("t"),
            HeaderValue::from_static("v"),
        )]))
        .unwrap();
        let response = response.await.unwrap();
        let status = response.status();
        assert_eq!(response.headers().contains_key("x-checked"), path == "/edit");
        let (body, trailers) = collect(response.into_body()).await.unwrap();
        match expected {
            Some(text) => {
                assert_eq!((status.as_u16(), String::from_utf8(body).unwrap().as_str()), (200, text));
                assert_eq!(trailers.unwrap()["t"], "v");
            }
            None => assert_eq!((status.as_u16(), body.as_slice()), (403, b"RBAC: access denied".as_slice())),
        }
    }
    drop(sender);
    connection.await.unwrap().unwrap();
    assert!(matches!(between.served.await.unwrap(), Served::Ended(None)));
    assert_eq!(opened.load(Relaxed), 1);
    assert_eq!(rules.seen.lock().unwrap()[0], "POST shop:80 /a?b");
    assert_eq!(
        lines.0.lock().unwrap()[..2],
        ["Allowed POST shop:80 /a 200 in=0 out=27", "Denied POST shop:80 /deny 403 in=0 out=19"]
    );
}

#[tokio::test(start_paused = true)]
async fn interim_answers_are_passed_on() {
    let between = between(Settings::default());
    serve_h2(between.applications, echo);
    let (sender, _connection) = client(between.client).await;
    let (mut response, _) = sender.ready().await.unwrap().send_request(request("GET", "/"), true).unwrap();
    let interim = poll_fn(|context| response.poll_informational(context)).await.unwrap().unwrap();
    assert_eq!(interim.status(), 103);
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn grpc_is_denied_with_trailers_only() {
    let between = between(Settings::default());
    let (mut sender, _connection) = client(between.client).await;
    for (path, status) in [("/deny", "7"), ("/token", "16")] {
        let mut request = request("POST", path);
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        sender = sender.ready().await.unwrap();
        let (response, _body) = sender.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!((response.status().as_u16(), response.body().is_end_stream()), (200, true));
        assert_eq!(response.headers()["grpc-status"], status);
    }
    assert_eq!(between.opened.load(Relaxed), 0);
    let lines = between.lines.0.lock().unwrap();
    assert!(lines[0].ends_with("grpc=7") && lines[1].ends_with("grpc=16"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_grpc_call_is_reported() {
    let between = between(Settings::default());
    serve_h2(between.applications, echo);
    let (mut sender, _connection) = client(between.client).await;
    for (content_type, status) in [("application/grpc", "5"), ("application/grpc", "99"), ("text/plain", "5")]
    {
        let mut request = request("POST", "/call");
        request.headers_mut().insert("content-type", HeaderValue::from_static(content_type));
        sender = sender.ready().await.unwrap();
        let (response, mut to) = sender.send_request(request, false).unwrap();
        // It comes back as it is.
        let status = HeaderValue::from_static(status);
        to.send_trailers(HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), status)])).unwrap();
        collect(response.await.unwrap().into_body()).await.unwrap();
    }
    let lines = between.lines.0.lock().unwrap();
    let ends = lines.iter().map(|line| line.split_once(" grpc=").map(|(_, status)| status));
    assert_eq!(ends.collect::<Vec<_>>(), [Some("5"), None, None], "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn two_hosts_are_refused() {
    let between = between(Settings::default());
    let (sender, _connection) = client(between.client).await;
    let mut request = request("GET", "/");
    request.headers_mut().insert("host", HeaderValue::from_static("other"));
    let (response, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 400);
    assert_eq!((between.opened.load(Relaxed), between.rules.seen.lock().unwrap().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_trailer_may_not_name_what_the_gate_set() {
    let between = between(Settings::default());
    serve_h2(between.applications, echo);
    let (sender, _connection) = client(between.client).await;
    let (response, mut to) =
        sender.ready().await.unwrap().send_request(request("POST", "/edit"), false).unwrap();
    to.send_trailers(HeaderMap::from_iter([(
        HeaderName::from_static("x-user"),
        HeaderValue::from_static("eve"),
    )]))
    .unwrap();
    assert!(response.await.unwrap_err().is_reset());
}

#[tokio::test(start_paused = true)]
async fn resets_pass_both_ways_with_their_reason() {
    let between = between(Settings::default());
    let (tell, mut told) = mpsc::unbounded_channel();
    serve_h2(between.applications, move |request, mut respond| {
        let tell = tell.clone();
        async move {
            match request.uri().path() {
                "/refuse" => respond.send_reset(Reason::REFUSED_STREAM),
                "/break" => {
                    let mut to = respond.send_response(Response::new(()), false).unwrap();
                    to.send_data("part".into(), false).unwrap();
                    tokio::task::yield_now().await;
                    to.send_reset(Reason::HTTP_1_1_REQUIRED);
                }
                _ => tell.send(poll_fn(|context| respond.poll_reset(context)).await.unwrap()).unwrap(),
            }
        }
    });
    let (mut sender, _connection) = client(between.client).await;
    sender = sender.ready().await.unwrap();
    let (response, _) = sender.send_request(request("GET", "/refuse"), true).unwrap();
    assert_eq!(response.await.unwrap_err().reason(), Some(Reason::REFUSED_STREAM));
    let (response, _) = sender.send_request(request("GET", "/break"), true).unwrap();
    let broken = match response.await {
        Ok(response) => collect(response.into_body()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(broken.reason(), Some(Reason::HTTP_1_1_REQUIRED));
    let (_response, mut to) = sender.send_request(request("POST", "/leave"), false).unwrap();
    to.send_data("x".into(), false).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    to.send_reset(Reason::INTERNAL_ERROR);
    assert_eq!(told.recv().await, Some(Reason::INTERNAL_ERROR));
}

#[tokio::test(start_paused = true)]
async fn a_decision_is_dropped_with_its_stream() {
    let between = between(Settings::default());
    let (sender, _connection) = client(between.client).await;
    let (response, mut to) =
        sender.ready().await.unwrap().send_request(request("POST", "/wait"), false).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    to.send_reset(Reason::CANCEL);
    drop(response);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(between.lines.0.lock().unwrap()[0], "Undecided POST shop:80 /wait 0 in=0 out=0");
    assert_eq!(between.opened.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn an_application_that_is_down_is_503_and_one_that_leaves_ends_the_client() {
    let mut down = between(Settings::default());
    down.applications.close();
    let (sender, _connection) = client(down.client).await;
    let (response, _) = sender.ready().await.unwrap().send_request(request("GET", "/"), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 503);

    let mut between = between(Settings::default());
    let (sender, connection) = client(between.client).await;
    let mut sender = sender.ready().await.unwrap();
    let (response, _) = sender.send_request(request("GET", "/"), true).unwrap();
    let stream = between.applications.recv().await.unwrap();
    let mut server = h2::server::handshake(stream).await.unwrap();
    let accepted = server.accept().await.unwrap().unwrap();
    drop((server, accepted));
    assert_eq!(response.await.unwrap().status(), 503);
    drop(sender);
    _ = timeout(Duration::from_secs(60), connection).await.expect("GOAWAY ends the client's connection");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_back_all_it_opens_is_sent_away() {
    let between = between(Settings { reset_budget: 20, ..Settings::default() });
    let (hold, _held) = mpsc::unbounded_channel();
    serve_h2(between.applications, move |request, respond| {
        hold.send((request, respond)).unwrap();
        std::future::ready(())
    });
    let (sender, connection) = client(between.client).await;
    for _ in 0..100 {
        let Ok(mut ready) = sender.clone().ready().await else { break };
        let Ok((response, mut to)) = ready.send_request(request("POST", "/"), false) else { break };
        tokio::time::sleep(Duration::from_millis(1)).await;
        to.send_reset(Reason::CANCEL);
        drop(response);
        tokio::time::sleep(Duration::from_millis(1)).await;
        if connection.is_finished() {
            break;
        }
    }
    drop(sender);
    let error = connection.await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    assert!(matches!(between.served.await.unwrap(), Served::Ended(Some(HttpError::RapidReset))));
}

#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_read_stops_the_client() {
    let between = between(Settings { stream_window_bytes: 65_535, ..Settings::default() });
    // Streams are held, and nothing of them is read.
    let (hold, _held) = mpsc::unbounded_channel();
    serve_h2(between.applications, move |request, respond| {
        hold.send((request, respond)).unwrap();
        std::future::ready(())
    });
    let (sender, _connection) = client(between.client).await;
    let (_response, mut to) =
        sender.ready().await.unwrap().send_request(request("POST", "/"), false).unwrap();
    let mut taken = 0;
    loop {
        to.reserve_capacity(1024);
        if to.capacity() == 0 {
            let capacity = poll_fn(|context| to.poll_capacity(context));
            if timeout(Duration::from_secs(30), capacity).await.is_err() {
                break;
            }
        }
        let size = to.capacity().min(1024);
        to.send_data(vec![0; size].into(), false).unwrap();
        taken += size;
        assert!(taken < 2_000_000, "nothing stops the sender");
    }
    assert!(taken < 300_000, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_stops_the_application() {
    let between = between(Settings { stream_window_bytes: 65_535, ..Settings::default() });
    let (tell, mut told) = mpsc::unbounded_channel();
    serve_h2(between.applications, move |_request, mut respond| {
        let tell = tell.clone();
        async move {
            let mut to = respond.send_response(Response::new(()), false).unwrap();
            let mut taken = 0;
            loop {
                to.reserve_capacity(1024);
                if to.capacity() == 0 {
                    let capacity = poll_fn(|context| to.poll_capacity(context));
                    if timeout(Duration::from_secs(30), capacity).await.is_err() {
                        break;
                    }
                }
                let size = to.capacity().min(1024);
                to.send_data(vec![0; size].into(), false).unwrap();
                taken += size;
                if taken > 2_000_000 {
                    break;
                }
            }
            tell.send(taken).unwrap();
        }
    });
    let (sender, _connection) = client(between.client).await;
    let (response, _) = sender.ready().await.unwrap().send_request(request("GET", "/"), true).unwrap();
    let _body = response.await.unwrap().into_body();
    let taken = told.recv().await.unwrap();
    assert!(taken < 300_000, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn connect_carries_bytes_both_ways() {
    let between = between(Settings::default());
    serve_h2(between.applications, |request, mut respond| async move {
        assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), ("CONNECT", "db:5432"));
        let mut body = request.into_body();
        let mut to = respond.send_response(Response::new(()), false).unwrap();
        while let Some(data) = body.data().await {
            to.send_data(data.unwrap(), false).unwrap();
        }
        to.send_data("bye".into(), true).unwrap();
    });
    let (sender, _connection) = client(between.client).await;
    let request = Request::builder().method("CONNECT").uri("db:5432").body(()).unwrap();
    let (response, mut to) = sender.ready().await.unwrap().send_request(request, false).unwrap();
    let mut body = response.await.unwrap().into_body();
    for text in ["one", "two"] {
        to.send_data(text.into(), false).unwrap();
        assert_eq!(body.data().await.unwrap().unwrap(), text);
    }
    to.send_data(Bytes::new(), true).unwrap();
    assert_eq!(body.data().await.unwrap().unwrap(), "bye");
    assert_eq!(between.rules.seen.lock().unwrap()[..], ["CONNECT db:5432 "]);
}
