//! Connections of HTTP/1 over time: a real client and server, splits at every position, tunnels, answers that come early,
//! and a side that does not read.

use std::convert::Infallible;

use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::*;

/// Answers with method, path, and length of body; trailers are named.
async fn echo(request: hyper::Request<Incoming>) -> Result<hyper::Response<Full<bytes::Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let body = request.into_body().collect().await.unwrap();
    let trailers = body.trailers().map_or(0, hyper::HeaderMap::len);
    let text = format!("[{line} {}+{trailers}]", body.to_bytes().len());
    Ok(hyper::Response::new(Full::from(text)))
}

/// Serves every connection that is made with hyper.
fn serve_echo(mut applications: mpsc::UnboundedReceiver<DuplexStream>) {
    tokio::spawn(async move {
        while let Some(stream) = applications.recv().await {
            let mut server = hyper::server::conn::http1::Builder::new();
            server.auto_date_header(false);
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(echo)).with_upgrades());
        }
    });
}

const PIPELINE: &[u8] = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\
    POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
    POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n1\r\nd\r\n0\r\nT: v\r\n\r\n\
    GET /deny HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy\r\n\
    HEAD /4 HTTP/1.1\r\nHost: a\r\n\r\n\
    GET /5 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

async fn pipelined(parts: &[&[u8]]) -> (String, Vec<String>) {
    let Between { mut client, applications, rules, opened, served, .. } = between(Settings::default());
    serve_echo(applications);
    for part in parts {
        client.write_all(part).await.unwrap();
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
    let mut read = String::new();
    client.read_to_string(&mut read).await.unwrap();
    drop(client);
    assert!(matches!(served.await.unwrap(), Served::Ended(None)));
    assert_eq!(opened.load(Relaxed), 1);
    let seen = rules.seen.lock().unwrap().clone();
    (read, seen)
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_is_answered_in_order_wherever_it_is_split() {
    let (whole, seen) = pipelined(&[PIPELINE]).await;
    let bodies: Vec<_> = whole.split('[').skip(1).map(|rest| rest.split(']').next().unwrap()).collect();
    assert_eq!(bodies, ["GET /1 0+0", "POST /2 5+0", "POST /3 4+1", "GET /5 0+0"], "{whole}");
    assert_eq!(seen, ["GET a /1", "POST a /2", "POST a /3", "GET a /deny", "HEAD a /4", "GET a /5"]);
    assert_eq!(whole.matches("HTTP/1.1 ").count(), 6, "{whole}");
    for at in 1..PIPELINE.len() {
        let (read, _) = pipelined(&[&PIPELINE[..at], &PIPELINE[at..]]).await;
        assert_eq!(read, whole, "split at {at}");
    }
    let bytewise: Vec<_> = PIPELINE.chunks(1).collect();
    assert_eq!(pipelined(&bytewise).await.0, whole);
}

#[tokio::test(start_paused = true)]
async fn a_real_client_keeps_its_connection() {
    let Between { client, applications, opened, .. } = between(Settings::default());
    serve_echo(applications);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    for (path, size, status, text) in [
        ("/a", 0, 200, "[POST /a 0+0]"),
        ("/big", 3_000_000, 200, "[POST /big 3000000+0]"),
        ("/deny", 2_000, 403, "RBAC: access denied"),
        ("/edit", 1, 200, "[POST /edited 1+0]"),
    ] {
        let body: Full<bytes::Bytes> = Full::from(vec![b'x'; size]);
        let request = hyper::Request::post(path).header("host", "a").body(body).unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        let found = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(found, text, "{path}");
    }
    assert_eq!(opened.load(Relaxed), 1);
}

/// Reads up to the end of a head.
async fn head(stream: &mut DuplexStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_becomes_a_tunnel_with_half_close() {
    let websocket = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let connect = "CONNECT b:1 HTTP/1.1\r\nHost: b:1\r\n\r\n";
    for (request, answer) in
        [(websocket, switching), (connect, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")]
    {
        let Between { mut client, mut applications, served, lines, rules, .. } = between(Settings::default());
        // What looks like a request and is sent before the answer is bytes of the tunnel.
        client.write_all(request.as_bytes()).await.unwrap();
        client.write_all(b"GET /smuggled HTTP/1.1\r\n\r\n").await.unwrap();
        let mut application = applications.recv().await.unwrap();
        assert_eq!(head(&mut application).await, request);
        application.write_all(answer.as_bytes()).await.unwrap();
        application.write_all(b"\0hello").await.unwrap();
        assert_eq!(head(&mut client).await, answer);
        client.write_all(b"\0there").await.unwrap();
        client.shutdown().await.unwrap();
        let mut read = Vec::new();
        application.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"GET /smuggled HTTP/1.1\r\n\r\n\0there");
        application.write_all(b", bye").await.unwrap();
        drop(application);
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"\0hello, bye");
        assert!(matches!(served.await.unwrap(), Served::Ended(None)));
        assert_eq!(rules.seen.lock().unwrap().len(), 1);
        assert!(lines.0.lock().unwrap()[0].ends_with("in=32 out=11"), "{lines:?}", lines = lines.0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_that_the_application_declines_stays_http() {
    let Between { mut client, applications, rules, .. } = between(Settings::default());
    serve_echo(applications);
    client
        .write_all(
            b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
              GET /deny HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await
        .unwrap();
    let mut read = String::new();
    client.read_to_string(&mut read).await.unwrap();
    assert!(read.contains("[GET /chat 0+0]HTTP/1.1 403"), "{read}");
    assert_eq!(rules.seen.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn continue_is_asked_and_answered_end_to_end() {
    let Between { mut client, mut applications, .. } = between(Settings::default());
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut application = applications.recv().await.unwrap();
    assert_eq!(head(&mut application).await, request);
    application.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert_eq!(head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"abc").await.unwrap();
    let mut body = [0; 3];
    application.read_exact(&mut body).await.unwrap();
    application.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    client.write_all(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(head(&mut application).await.starts_with("GET /next"));
}

#[tokio::test(start_paused = true)]
async fn a_final_answer_in_place_of_continue_ends_the_connection() {
    let Between { mut client, mut applications, rules, .. } = between(Settings::default());
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 39\r\nExpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    let mut application = applications.recv().await.unwrap();
    head(&mut application).await;
    application.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    head(&mut client).await;
    // A body to one reader, a request to the other: it reaches neither.
    client.write_all(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut read = Vec::new();
    application.read_to_end(&mut read).await.unwrap();
    client.read_to_end(&mut read).await.unwrap();
    assert_eq!((read.as_slice(), rules.seen.lock().unwrap().len()), (b"".as_slice(), 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_stream_while_the_request_is_sent() {
    let Between { mut client, mut applications, .. } = between(Settings::default());
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        .await
        .unwrap();
    let mut application = applications.recv().await.unwrap();
    head(&mut application).await;
    application.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    head(&mut client).await;
    let mut seen = vec![0; 6];
    application.read_exact(&mut seen).await.unwrap();
    for turn in 0..3 {
        let chunk = format!("1\r\n{turn}\r\n");
        let mut read = [0; 6];
        client.write_all(chunk.as_bytes()).await.unwrap();
        application.read_exact(&mut read).await.unwrap();
        assert_eq!(read, chunk.as_bytes());
        application.write_all(chunk.as_bytes()).await.unwrap();
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(read, chunk.as_bytes());
    }
    // The answer ends first; the application still gets all of the request.
    application.write_all(b"0\r\n\r\n").await.unwrap();
    client.write_all(b"0\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    application.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"0\r\n\r\n");
}

#[tokio::test(start_paused = true)]
async fn the_clients_end_reaches_the_application_and_the_answer_the_client() {
    let Between { mut client, mut applications, served, .. } = between(Settings::default());
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut application = applications.recv().await.unwrap();
    let mut request = Vec::new();
    application.read_to_end(&mut request).await.unwrap();
    application.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    let mut read = String::new();
    client.read_to_string(&mut read).await.unwrap();
    assert!(read.ends_with("ok"));
    assert!(matches!(served.await.unwrap(), Served::Ended(None)));
}

#[tokio::test(start_paused = true)]
async fn an_idle_application_that_ends_ends_the_client() {
    let Between { mut client, mut applications, .. } = between(Settings::default());
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut application = applications.recv().await.unwrap();
    head(&mut application).await;
    application.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    head(&mut client).await;
    drop(application);
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
}

/// Writes until nothing is taken for a long time; how much was.
async fn flood(stream: &mut DuplexStream, head: &[u8], piece: &[u8]) -> usize {
    stream.write_all(head).await.unwrap();
    let mut taken = 0;
    while timeout(Duration::from_secs(30), stream.write_all(piece)).await.is_ok() {
        taken += piece.len();
        assert!(taken < 1_000_000, "nothing stops the sender");
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn a_side_that_does_not_read_stops_the_other() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let by_length = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";
    let chunk = [b"400\r\n".as_slice(), &[b'x'; 1024], b"\r\n"].concat();
    for (head, piece) in [(request.as_slice(), chunk.as_slice()), (by_length, &[b'x'; 1024])] {
        let Between { mut client, applications, .. } = between(Settings::default());
        let taken = flood(&mut client, head, piece).await;
        assert!(taken < 64 * 1024, "{taken}");
        drop(applications);
    }
    let Between { mut client, mut applications, .. } = between(Settings::default());
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut application = applications.recv().await.unwrap();
    head(&mut application).await;
    let taken = flood(&mut application, b"HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 1024]).await;
    assert!(taken < 64 * 1024, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sends_while_its_request_is_decided_is_not_lost() {
    let Between { mut client, applications, served, .. } = between(Settings::default());
    serve_echo(applications);
    client.write_all(b"POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe").await.unwrap();
    for part in [&b"l"[..], b"lo", b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"] {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.write_all(part).await.unwrap();
    }
    let mut read = String::new();
    client.read_to_string(&mut read).await.unwrap();
    assert!(read.contains("[POST /late 5+0]") && read.contains("[GET /next 0+0]"), "{read}");
    assert!(matches!(served.await.unwrap(), Served::Ended(None)));
}

#[tokio::test]
async fn a_client_that_resets_ends_what_it_asked() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (peer, _) = listener.accept().await.unwrap();
    let (rules, lines) = (Arc::new(Rules::default()), Arc::new(Lines::default()));
    let (gate, observer) = (Arc::clone(&rules), Arc::clone(&lines));
    let served = tokio::spawn(async move {
        let open = || async { Ok(duplex(1).0) };
        serve(peer, BytesMut::new(), open, &*gate, &*observer, &Settings::default()).await
    });
    client.write_all(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    while rules.seen.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let served = timeout(Duration::from_secs(60), served).await.expect("it ends").unwrap();
    assert!(matches!(served, Served::Ended(Some(HttpError::Peer(_)))), "{served:?}");
    assert_eq!(*lines.0.lock().unwrap(), ["Undecided GET a /wait 0 in=0 out=0 error"]);
}
