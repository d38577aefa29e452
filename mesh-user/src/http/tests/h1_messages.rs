//! Single messages of HTTP/1, byte for byte: what the application gets for a request, and the client for an answer.

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test(start_paused = true)]
async fn the_application_gets_what_was_decided() {
    let cases = [
        (
            "GET /a?b HTTP/1.1\r\nHost: a\r\nX-Case:  v \r\n\r\n",
            "GET /a?b HTTP/1.1\r\nHost: a\r\nX-Case: v\r\n\r\n",
        ),
        ("\r\nGET / HTTP/1.1\r\nHost:\r\n\r\n", "not http"),
        ("GET http://A/x HTTP/1.1\r\nHost: a\r\n\r\n", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?q HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"),
        // A host that only the target names is not lost: the gate has decided on it.
        ("GET http://a/b HTTP/1.0\r\n\r\n", "GET /b HTTP/1.0\r\nHost: a\r\n\r\n"),
        (
            "GET /edit?x HTTP/1.1\r\nHost: a\r\nAuthorization: t\r\nx-user: eve\r\nX_User: eve\r\nX-Seen: 1\r\n\r\n",
            "GET /edited HTTP/1.1\r\nHost: a\r\nX-Seen: 1\r\nx-user: alice\r\nx-seen: 2\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c, websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n003;x=y\r\nabc\r\n0;z\r\nT:  v\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n",
        ),
    ];
    for (input, expected) in cases {
        let found = talk(&[input.as_bytes()], OK, true, Settings::default()).await;
        if expected == "not http" {
            assert!(found.ended.starts_with(expected), "{found:?}");
            continue;
        }
        assert_eq!(found.application_read, expected, "{input:?}: {found:?}");
        assert!(found.client_read.ends_with("ok"), "{input:?}: {found:?}");
        assert_eq!(found.client_read.contains("x-checked: yes"), input.contains("/edit"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_gets_the_answer_as_it_was() {
    let (get, head) = ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let old = "GET / HTTP/1.0\r\n\r\n";
    let same = [
        (get, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        (get, "HTTP/1.1 200 OK\r\n\r\nuntil the end"),
        (get, "HTTP/1.0 200 OK\r\nServer: x\r\n\r\nuntil the end"),
        (get, "HTTP/1.1 204 No Content\r\n\r\n"),
        (get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        (head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (
            get,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
        ),
        (get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nT: v\r\n\r\n"),
        (old, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"),
    ];
    for (input, reply) in same {
        let found = talk(&[input.as_bytes()], reply.as_bytes(), true, Settings::default()).await;
        assert_eq!(found.client_read, reply, "{input:?}");
        assert_eq!(found.ended, "ended", "{reply:?}");
    }
    let found =
        talk(&[old.as_bytes()], b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 OK\r\n\r\na", true, Settings::default())
            .await;
    assert_eq!(found.client_read, "HTTP/1.1 200 OK\r\n\r\na", "no interim response to HTTP/1.0");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_or_is_not_http_shows() {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let cases = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "HTTP/1.1 200", "cut: "),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "HTTP/1.1 200", "cut: "),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", "", "cut: "),
        ("HTTP/1.1 200 O", "", "cut: "),
        ("", "", "ended: "),
        ("SSH-2.0-x\r\n\r\n", "HTTP/1.1 502", "ended: "),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 502",
            "ended: ",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "HTTP/1.1 502", "ended: "),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", "HTTP/1.1 502", "ended: "),
    ];
    for (reply, starts, ended) in cases {
        let found = talk(&[get.as_bytes()], reply.as_bytes(), true, Settings::default()).await;
        assert_eq!(found.client_read.get(..starts.len()), Some(starts), "{reply:?}: {found:?}");
        assert!(found.ended.starts_with(ended), "{reply:?}: {found:?}");
        assert!(starts.ends_with("502") || !found.client_read.contains("0\r\n\r\n"), "{reply:?}: {found:?}");
        assert!(found.lines[0].ends_with("error"), "{reply:?}: {found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_too_many_is_not_taken_for_the_next() {
    let two = [OK, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"].concat();
    let requests = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    let found = talk(&[requests.as_bytes()], &two, false, Settings::default()).await;
    assert!(!found.client_read.contains("forged"), "{found:?}");
    assert_eq!(found.seen, ["GET a /1"]);
}

#[tokio::test(start_paused = true)]
async fn denials_say_what_istio_says() {
    let forbidden =
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 19\r\ncontent-type: text/plain\r\n\r\nRBAC: access denied";
    let closing = "HTTP/1.1 403 Forbidden\r\ncontent-length: 19\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nRBAC: access denied";
    let tail = "GET /deny2 HTTP/1.1\r\nHost: a\r\n\r\n";
    let cases = [
        ("GET /deny HTTP/1.1\r\nHost: a\r\n\r\n", forbidden, 2),
        ("POST /deny HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", forbidden, 2),
        (
            "POST /deny HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nT: v\r\n\r\n",
            forbidden,
            2,
        ),
        ("POST /deny HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", closing, 1),
        ("POST /deny HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n", closing, 1),
        ("POST /deny HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", closing, 1),
        ("GET /deny HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", closing, 1),
        ("GET /deny HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", closing, 1),
        (
            "HEAD /deny HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 19\r\ncontent-type: text/plain\r\n\r\n",
            2,
        ),
        (
            "POST /deny HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-type: application/grpc\r\ngrpc-status: 7\r\ngrpc-message: RBAC: access denied\r\n\r\n",
            2,
        ),
        (
            "GET /token HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 401 Unauthorized\r\ncontent-length: 14\r\ncontent-type: text/plain\r\nwww-authenticate: Bearer realm=\"a\"\r\n\r\nJwt is expired",
            2,
        ),
    ];
    for (input, expected, decided) in cases {
        let found = talk(&[input.as_bytes(), tail.as_bytes()], OK, true, Settings::default()).await;
        let expected = if decided == 2 { format!("{expected}{forbidden}") } else { expected.to_owned() };
        assert_eq!(found.client_read, expected, "{input:?}");
        assert_eq!((found.opened, found.seen.len()), (0, decided), "{input:?}");
        assert!(found.lines[0].starts_with("Denied"), "{found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_application_that_is_down_is_503_and_asked_again() {
    let mut between = between(Settings::default());
    between.applications.close();
    between
        .client
        .write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    between.client.shutdown().await.unwrap();
    let mut read = String::new();
    between.client.read_to_string(&mut read).await.unwrap();
    assert_eq!(read.matches("HTTP/1.1 503 Service Unavailable\r\n").count(), 2, "{read}");
    assert!(read.ends_with("reset reason: remote connection failure"), "{read}");
    assert_eq!(between.opened.load(Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn each_request_is_reported_without_its_query() {
    let input = "POST /edit/x?token=secret HTTP/1.1\r\nHost: shop:80\r\nContent-Length: 3\r\n\r\nabc\
                 GET /deny?token=secret HTTP/1.1\r\nHost: a\r\n\r\n";
    let found = talk(&[input.as_bytes()], OK, false, Settings::default()).await;
    assert_eq!(
        found.lines,
        ["Allowed POST shop:80 /edit/x 200 in=3 out=2 by=issuer/alice", "Denied GET a /deny 403 in=0 out=19"]
    );
}
