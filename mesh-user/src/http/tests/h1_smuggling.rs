//! Requests that two parsers could read differently: each is refused, the connection is closed, and the application is
//! not even connected to.

use proptest::prelude::*;

use super::*;

/// What is sent, and the status that comes back.
const REFUSED: &[(&str, u16)] = &[
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 4\r\n\r\nabcd", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n", 400),
    ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\nHost: a\n\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\u{1}b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\u{7f}b\r\n\r\n", 400),
    ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
    ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET http://a/ HTTP/1.1\r\n\r\n", 400),
    ("GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("CONNECT b:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 400),
    ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 1\r\n\r\n", 400),
    ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /é HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /\r\n", 400),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Content-Length\r\nContent-Length: 0\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: authorization\r\n\r\n", 400),
    ("GET /edit HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-User\r\n\r\n", 400),
];

fn status(found: &str) -> u16 {
    found.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn what_is_ambiguous_is_refused_and_reaches_no_application() {
    for (input, expected) in REFUSED {
        let found = talk(&[input.as_bytes()], b"HTTP/1.1 200 OK\r\n\r\n", true, Settings::default()).await;
        // The bare end of input in a request line is an end inside of a head.
        if *input == "GET /\r\n" {
            assert_eq!((found.client_read.as_str(), found.opened), ("", 0), "{found:?}");
            continue;
        }
        assert_eq!(status(&found.client_read), *expected, "{input:?}: {found:?}");
        assert!(found.client_read.contains("\r\nconnection: close\r\n"), "{input:?}: {found:?}");
        assert_eq!(found.client_read.matches("HTTP/1.1 ").count(), 1, "{input:?}: {found:?}");
        assert_eq!((found.opened, found.application_read.as_str()), (0, ""), "{input:?}");
        assert_eq!(found.lines.len(), 1, "{input:?}: {found:?}");
        assert!(found.lines[0].starts_with("Refused"), "{input:?}: {found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_depend_on_how_bytes_arrive() {
    for (input, _) in REFUSED {
        let whole = talk(&[input.as_bytes()], b"", false, Settings::default()).await;
        let bytewise: Vec<_> = input.as_bytes().chunks(1).collect();
        let pieces = talk(&bytewise, b"", false, Settings::default()).await;
        assert_eq!(pieces.client_read, whole.client_read, "{input:?}");
        assert_eq!((pieces.opened, pieces.ended), (0, whole.ended), "{input:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_is_bounded_in_bytes_fields_and_time() {
    let settings = Settings { max_head_bytes: 1000, max_headers: 4, ..Settings::default() };
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(1000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(4));
    let fits = format!("GET / HTTP/1.1\r\nHost: a\r\n{}Connection: close\r\n\r\n", "X: y\r\n".repeat(2));
    let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for (input, expected) in [(long, 431), (many, 431), (fits, 200)] {
        let found = talk(&[input.as_bytes()], reply, false, settings.clone()).await;
        assert_eq!(status(&found.client_read), expected, "{found:?}");
    }
    let Between { mut client, opened, .. } = between(settings);
    client.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!((&answer, opened.load(Relaxed)), (b"HTTP/1.1 408", 0));
}

#[tokio::test(start_paused = true)]
async fn a_malformed_body_ends_the_connection_without_its_last_chunk() {
    let head = "POST /edit HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "3\r\nabcX",
        "3\nabc\r\n0\r\n\r\n",
        "g\r\n",
        "3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nX-User: eve\r\n\r\n",
        "0\r\nX_User: eve\r\n\r\n",
        "0\r\nauthorization: eve\r\n\r\n",
        "0\r\nX: a\n\r\n",
        "0\r\nX : a\r\n\r\n",
        "0\r\n\n",
    ] {
        let input = format!("{head}{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let found = talk(&[input.as_bytes()], b"", false, Settings::default()).await;
        assert_eq!(status(&found.client_read), 400, "{body:?}: {found:?}");
        assert!(!found.application_read.contains("0\r\n"), "{body:?}: {found:?}");
        assert!(!found.application_read.contains("smuggled"), "{body:?}: {found:?}");
        assert_eq!(found.seen.len(), 1, "{body:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn underscores_follow_the_setting() {
    let input = b"GET / HTTP/1.1\r\nHost: a\r\nX_Y: 1\r\nConnection: close\r\n\r\n";
    let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for (underscores, expected, forwarded) in
        [(Underscores::Allow, 200, true), (Underscores::Drop, 200, false), (Underscores::Refuse, 400, false)]
    {
        let settings = Settings { underscores, ..Settings::default() };
        let found = talk(&[input], reply, false, settings).await;
        assert_eq!(status(&found.client_read), expected, "{underscores:?}");
        assert_eq!(found.application_read.contains("X_Y"), forwarded, "{underscores:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever head is accepted, a second parser reads in what is forwarded what the gate saw.
    #[test]
    fn what_is_forwarded_is_what_the_gate_saw(lines in prop::collection::vec(prop::sample::select(vec![
        "GET / HTTP/1.1", "POST /a?b HTTP/1.1", "GET http://a/x HTTP/1.1", "GET /x HTTP/1.0", "Host: a", "Host: A", "Host:b",
        "Content-Length: 3", "content-length: 03", "Transfer-Encoding: chunked", "X: \t y \t", "X:", " folded", "X_Y: 1",
        "Connection: close", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c, websocket", "HTTP2-Settings: AAA", "\u{b}",
    ]), 1..8)) {
        let bytes = format!("{}\r\n\r\n", lines.join("\r\n"));
        let complete = HeadScan::request().feed(bytes.as_bytes(), 60_000);
        if let (Ok(Scanned::Complete(end)), true) = (complete, !bytes.starts_with("\r\n")) {
            let bytes = &bytes.as_bytes()[..end];
            if let Ok(parsed) = parse_request(bytes, &Settings::default()) {
                let head = parsed.head(bytes);
                let mut out = BytesMut::new();
                super::super::h1::write_request(&mut out, bytes, &parsed, &Edits::default());
                let mut store = [httparse::EMPTY_HEADER; 64];
                let mut again = httparse::Request::new(&mut store);
                prop_assert_eq!(again.parse(&out), Ok(httparse::Status::Complete(out.len())));
                prop_assert_eq!(again.method, Some(head.method));
                prop_assert_eq!(again.path, Some(head.path));
                let hosts = again.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
                prop_assert!(hosts.map(|field| field.value).all(|host| host.eq_ignore_ascii_case(head.authority.as_bytes())));
                let hidden = ["connection", "upgrade", "http2-settings"];
                let kept = |name: &str| !hidden.contains(&name.to_ascii_lowercase().as_str());
                let shown: Vec<_> = head.fields().filter(|(name, _)| kept(name)).collect();
                let sent: Vec<_> =
                    again.headers.iter().map(|field| (field.name, field.value)).filter(|(name, _)| kept(name)).collect();
                prop_assert_eq!(shown, sent);
            }
        }
    }
}
