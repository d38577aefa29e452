//! What stands between two honest ends, or in place of one of them, and does to their handshake what it likes:
//! other pieces, other bytes, no bytes, none in time.

use std::future::pending;

use tokio::{
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    time::sleep,
};

use super::*;

const HEADER_BYTES: usize = 5;
const HANDSHAKE: u8 = 22;

/// Which end sent it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Client,
    Server,
}

/// A flight as its end wrote it, and what becomes of it: so many writes. Nothing more is an end of the stream.
type Middle<'a> = &'a mut dyn FnMut(From, &[u8]) -> Vec<Vec<u8>>;

/// One direction of a connection. Flights come whole: each is one write, and the other end waits for it.
async fn carry(
    from: From,
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    middle: &std::cell::RefCell<Middle<'_>>,
) {
    let mut flight = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = read.read(&mut flight).await {
        let pieces = (middle.borrow_mut())(from, &flight[..count]);
        if pieces.is_empty() {
            break;
        }
        for piece in pieces {
            if write.write_all(&piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// The same, kept in a table.
type Tamper = Box<dyn FnMut(From, &[u8]) -> Vec<Vec<u8>>>;

type Outcome = Result<Established, HandshakeError>;

/// A handshake of the two with somebody in the middle.
async fn through(nodes: &Nodes, limits: HandshakeLimits, middle: Middle<'_>) -> (Outcome, Outcome) {
    let ((near, near_far), (far_near, far)) = tokio::join!(tcp_pair(), tcp_pair());
    for stream in [&near_far, &far_near] {
        stream.set_nodelay(true).unwrap();
    }
    let ((client_read, client_write), (server_read, server_write)) =
        (near_far.into_split(), far_near.into_split());
    let middle = std::cell::RefCell::new(middle);
    let address = near.peer_addr().unwrap().ip();
    let both = async {
        tokio::join!(
            nodes.client.connect(near, &nodes.client_svid, &nodes.expected, address, limits),
            nodes.server.accept(far, &nodes.server_svid, limits)
        )
    };
    let carrying = async {
        tokio::join!(
            carry(From::Client, client_read, server_write, &middle),
            carry(From::Server, server_read, client_write, &middle)
        );
        pending::<()>().await;
    };
    tokio::select! {
        outcomes = both => outcomes,
        () = carrying => unreachable!("it does not end"),
    }
}

fn soon() -> HandshakeLimits {
    HandshakeLimits { timeout: Duration::from_millis(300), ..HandshakeLimits::default() }
}

/// On a busy machine an end of stream must come before it.
fn later() -> HandshakeLimits {
    HandshakeLimits { timeout: Duration::from_secs(2), ..HandshakeLimits::default() }
}

fn nodes() -> Nodes {
    Nodes::of(&TestCa::new("cluster.local"))
}

/// The same handshake messages in records of at most `size` bytes.
fn in_records_of(size: usize, mut flight: &[u8]) -> Vec<u8> {
    let mut cut = Vec::new();
    while let [content_type, major, minor, high, low, rest @ ..] = flight {
        let (body, next) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        let size = if *content_type == HANDSHAKE { size } else { body.len() };
        for piece in body.chunks(size) {
            let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
            cut.extend([*content_type, *major, *minor, length[0], length[1]]);
            cut.extend_from_slice(piece);
        }
        flight = next;
    }
    cut
}

fn bytes_of(flight: &[u8], size: usize) -> Vec<Vec<u8>> {
    flight.chunks(size).map(<[u8]>::to_vec).collect()
}

#[tokio::test]
async fn a_handshake_may_come_in_any_pieces() {
    let nodes = nodes();
    let mut hello_seen = false;
    let mut pieces: [(&str, Tamper); 5] = [
        ("byte by byte", Box::new(|_, flight| bytes_of(flight, 1))),
        ("in segments of 100 bytes", Box::new(|_, flight| bytes_of(flight, 100))),
        (
            "the hello in records of one byte",
            Box::new(move |from, flight| {
                let is_hello = from == From::Client && !std::mem::replace(&mut hello_seen, true);
                vec![if is_hello { in_records_of(1, flight) } else { flight.to_vec() }]
            }),
        ),
        (
            "the hello in records of 50 bytes, byte by byte",
            Box::new(|from, flight| {
                let is_hello = from == From::Client && flight[HEADER_BYTES] == 1 && flight[0] == HANDSHAKE;
                bytes_of(&if is_hello { in_records_of(50, flight) } else { flight.to_vec() }, 1)
            }),
        ),
        (
            "late",
            Box::new(|_, flight| {
                std::thread::sleep(Duration::from_millis(20));
                vec![flight.to_vec()]
            }),
        ),
    ];
    for (what, middle) in &mut pieces {
        let (client, server) = through(&nodes, limits(), middle).await;
        client.unwrap_or_else(|error| panic!("the client, {what}: {error}"));
        server.unwrap_or_else(|error| panic!("the server, {what}: {error}"));
    }
}

#[tokio::test]
async fn a_hello_in_pieces_is_recognised() {
    let mut hello = Vec::new();
    let _ = through(&nodes(), soon(), &mut |_, flight| {
        hello = flight.to_vec();
        vec![]
    })
    .await;
    let cut = in_records_of(3, &hello);
    assert!(matches!(super::super::detect(&cut), super::super::Detected::Tls(found) if found.mesh));
    assert_eq!(super::super::detect(&cut[..cut.len() - 1]), super::super::Detected::NeedMore);
}

/// Whoever changes a byte that is not the version of a record, which says nothing, stops the handshake.
#[tokio::test]
async fn a_tampered_handshake_stands_at_one_end_at_most() {
    let nodes = nodes();
    for (from, nth) in [(From::Client, 0), (From::Server, 0), (From::Client, 1)] {
        // Primes, so that all parts of the flights are met.
        for at in (5..).step_by(if from == From::Server { 89 } else { 31 }) {
            let (mut seen, mut changed) = (0, false);
            let (client, server) = through(&nodes, soon(), &mut |sender, flight| {
                let mut flight = flight.to_vec();
                if sender == from {
                    if seen == nth && at < flight.len() {
                        flight[at] ^= 0x10;
                        changed = true;
                    }
                    seen += 1;
                }
                vec![flight]
            })
            .await;
            if !changed {
                break;
            }
            assert!(
                client.is_err() || server.is_err(),
                "byte {at} of a flight was changed and nobody noticed"
            );
        }
    }
}

#[tokio::test]
async fn a_downgrade_to_tls_12_is_noticed() {
    const SUPPORTED_VERSIONS: [u8; 2] = [0, 43];
    let (client, server) = through(&nodes(), limits(), &mut |from, flight| {
        let mut flight = flight.to_vec();
        if from == From::Client && flight[0] == HANDSHAKE && flight[HEADER_BYTES] == 1 {
            // Type, length, list length, TLS 1.3: seen by the server as an extension that it does not know.
            let is_it =
                |at: &usize| flight[*at..*at + 2] == SUPPORTED_VERSIONS && flight[*at + 5..*at + 7] == [3, 4];
            let at = (0..flight.len() - 7).find(is_it).unwrap();
            flight[at..at + 2].copy_from_slice(&[0x6a, 0x6a]);
        }
        vec![flight]
    })
    .await;
    let error = client.unwrap_err();
    assert!(error.label() == "protocol" && error.to_string().contains("Downgrade"), "{error}");
    assert_eq!(server.unwrap_err().label(), "peer_alert");
}

#[tokio::test]
async fn a_flight_that_is_cut_or_never_comes_is_named() {
    let nodes = nodes();
    for (from, nth) in [(From::Client, 0), (From::Server, 0), (From::Client, 1)] {
        for keep in [0, 3, 20] {
            let mut seen = 0;
            let (client, server) = through(&nodes, soon(), &mut |sender, flight| {
                let is_it = sender == from && seen == nth;
                seen += usize::from(sender == from);
                vec![if is_it { flight[..keep].to_vec() } else { flight.to_vec() }]
            })
            .await;
            let waiting = if from == From::Client { &server } else { &client };
            assert_eq!(waiting.as_ref().unwrap_err().label(), "timeout", "{keep} bytes of flight {nth} came");
        }
        let mut seen = 0;
        let (client, server) = through(&nodes, later(), &mut |sender, flight| {
            let is_it = sender == from && seen == nth;
            seen += usize::from(sender == from);
            if is_it { vec![] } else { vec![flight.to_vec()] }
        })
        .await;
        let waiting = if from == From::Client { &server } else { &client };
        assert_eq!(waiting.as_ref().unwrap_err().label(), "closed", "flight {nth} ended the stream");
    }
}

/// A peer that keeps the connection alive with a byte now and then has no more time than a silent one.
#[tokio::test]
async fn dripping_bytes_buys_no_time() {
    let nodes = nodes();
    let (mut near, far) = tcp_pair().await;
    let dripping = async {
        for byte in [22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3].into_iter().chain(std::iter::repeat(0)) {
            if near.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        pending::<()>().await;
    };
    tokio::select! {
        outcome = nodes.server.accept(far, &nodes.server_svid, soon()) => {
            assert_eq!(outcome.unwrap_err().label(), "timeout");
        }
        () = dripping => unreachable!("it does not end"),
    }
}

/// A `ClientHello` of long ago: no extensions, this version, suites of its time.
fn old_hello(minor: u8) -> Vec<u8> {
    let body = [&[3, minor][..], &[7; 32], &[0, 0, 4, 0, 0x2f, 0xc0, 0x13, 1, 0]].concat();
    record(HANDSHAKE, &[&[1, 0, 0, u8::try_from(body.len()).unwrap()], &body[..]].concat())
}

fn record(content_type: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[content_type, 3, 1, length[0], length[1]], body].concat()
}

#[tokio::test]
async fn what_is_no_handshake_is_refused_by_cause() {
    const ALERT: u8 = 21;
    const CHANGE_CIPHER_SPEC: u8 = 20;
    let warning = record(ALERT, &[1, 100]);
    let endless = [&[1, 0, 0xff, 0xff, 3, 3][..], &vec![0; 65_533]].concat();
    let endless = endless.chunks(16_384).flat_map(|part| record(HANDSHAKE, part)).collect();
    let cases = [
        ("SSL 2", "not_tls", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10]),
        ("SSL 3", "tls_version", old_hello(0)),
        ("TLS 1.0", "tls_version", old_hello(1)),
        ("TLS 1.1", "tls_version", old_hello(2)),
        ("TLS 1.2 without extensions", "tls_version", old_hello(3)),
        ("an empty handshake record", "protocol", record(HANDSHAKE, &[])),
        (
            "a record of 65535 bytes",
            "protocol",
            [&[HANDSHAKE, 3, 1, 0xff, 0xff][..], &vec![1; 20_000]].concat(),
        ),
        ("a message of 16 MiB", "protocol", record(HANDSHAKE, &[1, 0xff, 0xff, 0xff, 3, 3])),
        ("a hello without end", "too_large", endless),
        ("a ServerHello", "protocol", record(HANDSHAKE, &[2, 0, 0, 2, 3, 3])),
        ("a Finished", "protocol", record(HANDSHAKE, &[20, 0, 0, 2, 3, 3])),
        ("application data", "protocol", record(23, b"GET / HTTP/1.1")),
        ("a heartbeat", "not_tls", record(24, &[1, 0xff, 0xff])),
        ("a fatal alert", "peer_alert", record(ALERT, &[2, 40])),
        ("warnings without end", "protocol", warning.repeat(20)),
        ("ChangeCipherSpec without end", "protocol", record(CHANGE_CIPHER_SPEC, &[1]).repeat(20)),
        ("HTTP", "not_tls", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("zeros", "not_tls", vec![0; 10_000]),
        ("nothing", "timeout", vec![]),
    ];
    let nodes = nodes();
    for (what, label, bytes) in cases {
        let (mut near, far) = tcp_pair().await;
        let attack = async {
            // What does not fit any more was refused already.
            let _ = near.write_all(&bytes).await;
            near
        };
        let (outcome, _near) = tokio::join!(nodes.server.accept(far, &nodes.server_svid, soon()), attack);
        let error = outcome.expect_err(what);
        assert_eq!(error.label(), label, "{what}: {error:?}");
    }
}

/// The same from a server, for our client.
#[tokio::test]
async fn what_is_no_answer_is_refused_by_cause() {
    let cases = [
        ("HTTP", "not_tls", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("a ClientHello", "protocol", old_hello(3)),
        (
            "a record of 65535 bytes",
            "protocol",
            [&[HANDSHAKE, 3, 3, 0xff, 0xff][..], &vec![1; 20_000]].concat(),
        ),
        ("an alert", "peer_alert", record(21, &[2, 70])),
        ("application data", "protocol", record(23, b"HTTP/1.1 200 OK")),
        // TLS 1.1 is chosen by a server that knows no later one.
        ("TLS 1.1", "tls_version", {
            let body = [&[3, 2][..], &[7; 32], &[0, 0xc0, 0x13, 0]].concat();
            record(HANDSHAKE, &[&[2, 0, 0, u8::try_from(body.len()).unwrap()], &body[..]].concat())
        }),
        ("nothing", "timeout", vec![]),
    ];
    let nodes = nodes();
    for (what, label, bytes) in cases {
        let (near, mut far) = tcp_pair().await;
        let address = near.peer_addr().unwrap().ip();
        let attack = async {
            let _ = far.write_all(&bytes).await;
            far
        };
        let connect = nodes.client.connect(near, &nodes.client_svid, &nodes.expected, address, soon());
        let (outcome, _far) = tokio::join!(connect, attack);
        let error = outcome.expect_err(what);
        assert_eq!(error.label(), label, "{what}: {error:?}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_stand_for_a_handshake(
        start in proptest::sample::select(vec![vec![], vec![22, 3, 1], vec![22, 3, 3, 0, 64, 1, 0, 0, 60, 3, 3]]),
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let nodes = nodes();
            let (mut near, far) = tcp_pair().await;
            near.write_all(&[&start[..], &bytes].concat()).await.unwrap();
            near.shutdown().await.unwrap();
            assert!(nodes.server.accept(far, &nodes.server_svid, soon()).await.is_err());
        });
    }
}
