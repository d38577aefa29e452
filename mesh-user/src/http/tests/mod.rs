//! Connections end to end, over pipes in memory: raw bytes or real clients on one side, raw bytes or real servers on the
//! other, and a gate that goes by the path.

mod h1_messages;
mod h1_smuggling;
mod h1_streams;
mod h2_streams;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::BytesMut;
use http::{HeaderName, HeaderValue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    task::JoinHandle,
};

use super::*;

/// Bytes that a pipe holds.
const PIPE: usize = 4096;

/// Denies `/deny*`, asks for a token at `/token*`, edits at `/edit*`, never answers at `/wait*`, takes its time at `/late*`.
#[derive(Default)]
struct Rules {
    seen: Mutex<Vec<String>>,
}

impl Gate for Rules {
    async fn decide(&self, head: &RequestHead<'_>) -> Decision {
        let line = format!("{} {} {}", head.method, head.authority, head.path);
        self.seen.lock().unwrap().push(line);
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        match head.path {
            path if path.starts_with("/deny") => {
                Decision::Deny(Denial { rule: Some("shop/no rule 0".into()), ..Denial::forbidden() })
            }
            path if path.starts_with("/token") => {
                Decision::Deny(Denial::unauthorized("Jwt is expired", value("Bearer realm=\"a\"")))
            }
            path if path.starts_with("/wait") => std::future::pending().await,
            path if path.starts_with("/late") => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Decision::Allow(Edits::default())
            }
            path if path.starts_with("/edit") => Decision::Allow(Edits {
                path: PathEdit::new("/edited"),
                remove: vec![name("authorization")],
                set: vec![(name("x-user"), value("alice"))],
                append: vec![(name("x-seen"), value("2"))],
                response: vec![(name("x-checked"), value("yes"), crate::http::ResponsePut::Add)],
                principal: Some("issuer/alice".into()),
                ..Edits::default()
            }),
            _ => Decision::Allow(Edits::default()),
        }
    }
}

/// Keeps one line per report.
#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Observer for Lines {
    fn request(&self, report: &RequestReport<'_>) {
        let status = report.status.map_or(0, |status| status.as_u16());
        let told = |name: &str, value: Option<&dyn std::fmt::Display>| {
            value.map_or(String::new(), |value| format!(" {name}={value}"))
        };
        let grpc = report.grpc_status.filter(|_| report.is_grpc);
        let line = format!(
            "{:?} {} {} {} {status} in={} out={}{}{}{}",
            report.verdict,
            report.method,
            report.host,
            report.path,
            report.bytes_received,
            report.bytes_sent,
            told("by", report.principal.as_ref().map(|by| by as _)),
            told("grpc", grpc.as_ref().map(|status| status as _)),
            if report.error.is_some() { " error" } else { "" },
        );
        self.0.lock().unwrap().push(line);
    }
}

/// meshd between a client and an application.
struct Between {
    client: DuplexStream,
    /// Ends of the application's side, one for each time that it was connected to.
    applications: mpsc::UnboundedReceiver<DuplexStream>,
    opened: Arc<AtomicUsize>,
    rules: Arc<Rules>,
    lines: Arc<Lines>,
    served: JoinHandle<Served<DuplexStream>>,
}

fn between(settings: Settings) -> Between {
    let (client, peer) = duplex(PIPE);
    let (give, applications) = mpsc::unbounded_channel();
    let opened = Arc::new(AtomicUsize::new(0));
    let (rules, lines) = (Arc::new(Rules::default()), Arc::new(Lines::default()));
    let (count, gate, observer) = (opened.clone(), rules.clone(), lines.clone());
    let served = tokio::spawn(async move {
        let open = || async {
            count.fetch_add(1, Relaxed);
            let (own, other) = duplex(PIPE);
            give.send(other).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(own)
        };
        serve(peer, BytesMut::new(), open, &*gate, &*observer, &settings).await
    });
    Between { client, applications, opened, rules, lines, served }
}

/// What came back from a connection, and what the application read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Talk {
    client_read: String,
    application_read: String,
    opened: usize,
    seen: Vec<String>,
    lines: Vec<String>,
    ended: String,
}

/// Sends `parts` as the client, one write each, and then ends. The application answers `reply`, then ends where told to.
async fn talk(parts: &[&[u8]], reply: &[u8], application_ends: bool, settings: Settings) -> Talk {
    let Between { client, mut applications, opened, rules, lines, served } = between(settings);
    let (mut read, mut write) = tokio::io::split(client);
    let reply = reply.to_vec();
    let application = tokio::spawn(async move {
        let mut got = Vec::new();
        while let Some(mut stream) = applications.recv().await {
            let mut buffer = [0; 512];
            // The answer follows the first bytes.
            let first = stream.read(&mut buffer).await.unwrap();
            got.extend(&buffer[..first]);
            _ = stream.write_all(&reply).await;
            if application_ends {
                _ = stream.shutdown().await;
            }
            _ = stream.read_to_end(&mut got).await;
        }
        got
    });
    let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
    let writer = tokio::spawn(async move {
        for part in parts {
            if write.write_all(&part).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        _ = write.shutdown().await;
    });
    let mut client_read = Vec::new();
    // A cut connection is dropped with what served it.
    let reader = tokio::spawn(async move {
        _ = read.read_to_end(&mut client_read).await;
        client_read
    });
    // The time is virtual.
    let served = tokio::time::timeout(Duration::from_secs(3600), served).await.expect("the connection ends");
    let ended = match served.unwrap() {
        Served::NotHttp { read, .. } => format!("not http: {}", String::from_utf8_lossy(&read)),
        Served::Ended(error) => error.map_or("ended".to_owned(), |error| format!("ended: {error}")),
        Served::Cut { error, .. } => format!("cut: {error}"),
    };
    writer.abort();
    Talk {
        client_read: String::from_utf8(reader.await.unwrap()).unwrap(),
        application_read: String::from_utf8(application.await.unwrap()).unwrap(),
        opened: opened.load(Relaxed),
        seen: rules.seen.lock().unwrap().clone(),
        lines: lines.0.lock().unwrap().clone(),
        ended,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_http_comes_back_untouched() {
    for input in [b"\x16\x03\x01\x02".as_slice(), b"EHLO there\r\n", b"GE", b"", b"get key\r\n"] {
        let parts: Vec<_> = input.chunks(1).collect();
        let found = talk(&parts, b"", false, Settings::default()).await;
        // The last byte needed decides; what was read until then comes back.
        let read = found.ended.strip_prefix("not http: ").unwrap();
        assert!(String::from_utf8_lossy(input).starts_with(read), "{}", found.ended);
        assert_eq!((found.client_read.as_str(), found.opened), ("", 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_not_http_after_the_wait() {
    let wait = Duration::from_millis(10);
    let Between { mut client, served, .. } =
        between(Settings { detect_timeout: Some(wait), ..Settings::default() });
    client.write_all(b"GE").await.unwrap();
    assert!(matches!(served.await.unwrap(), Served::NotHttp { read, .. } if read == "GE"));
}

#[tokio::test]
async fn a_connection_is_small() {
    let (peer, _client) = duplex(1);
    let open = || async { Ok(duplex(1).0) };
    let (rules, settings) = (Rules::default(), Settings::default());
    let serving = serve(peer, BytesMut::new(), open, &rules, &(), &settings);
    let bytes = size_of_val(&serving);
    assert!(bytes < 8 * 1024, "{bytes}");
}
