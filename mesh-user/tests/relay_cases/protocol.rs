//! What a peer says besides data, at the worst moment or in breach of the protocol.

use std::{sync::Arc, time::Duration};

use mesh_user::{
    proxy::relay::{EndedBy, RelayOptions, RelayOutcome, WireLeg},
    tls::{Established, OffloadError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use super::{
    Kinds, expect_reset,
    mesh::{Trust, leg, spawn, tcp_pair},
    peer::{LastFlight, RustlsPeer},
    raw::{ALERT, DATA, HANDSHAKE, RawPeer},
};

const KEY_UPDATE_REQUESTED: [u8; 5] = [24, 0, 0, 1, 1];

/// The handshake of our server with a client that adds to its last flight as `last` says.
async fn handshake<P>(last: impl AsyncFnOnce(LastFlight) -> P) -> (Established, P) {
    let trust = Trust::new();
    let (near, far) = tcp_pair().await;
    let client = async {
        let flight = LastFlight::of(&trust, near).await;
        // The server has sent all it has to say, and waits: what follows arrives as one.
        last(flight).await
    };
    tokio::join!(trust.accept(far), client)
}

async fn serve(wire: WireLeg) -> (TcpStream, JoinHandle<RelayOutcome>) {
    let (app, app_leg) = tcp_pair().await;
    (app, spawn(app_leg, wire, RelayOptions::default(), Arc::default()))
}

/// Where the connection cannot be offloaded, it goes on in user space.
async fn offloaded_or_not(established: Established, kinds: &Kinds) -> WireLeg {
    match established.offload(&kinds.kernel, Duration::from_millis(500)).await {
        Ok(wire) => WireLeg::Ktls { wire: Box::new(wire), splice: false },
        Err(OffloadError::NotOffloaded { established, .. }) => WireLeg::Userspace(established),
        Err(OffloadError::Lost(error)) => panic!("lost: {error}"),
    }
}

pub(crate) async fn a_key_update_with_the_handshake_is_answered(kinds: Kinds) {
    use std::io::Write as _;
    for first_data in [&b"first"[..], b""] {
        let (established, mut peer) = handshake(async |flight| {
            flight.with(|tls| {
                tls.refresh_traffic_keys().unwrap();
                tls.writer().write_all(first_data).unwrap();
            })
        })
        .await;
        let (mut app, relay) = serve(leg(established, kinds.server, &kinds.kernel).await).await;
        let mut got = vec![0; first_data.len()];
        app.read_exact(&mut got).await.unwrap();
        assert_eq!(got, first_data);
        app.write_all(b"answer").await.unwrap();
        assert_eq!(peer.read(6).await, b"answer");
        peer.write(b"more");
        let mut got = [0; 4];
        app.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"more");
        drop((app, peer));
        relay.await.unwrap();
    }
}

pub(crate) async fn a_message_split_around_the_offload_is_understood(kinds: Kinds) {
    let (established, mut peer) = handshake(async |flight| {
        flight.with_raw(|raw| raw.seal(HANDSHAKE, &KEY_UPDATE_REQUESTED[..2])).await
    })
    .await;
    let wire = offloaded_or_not(established, &kinds).await;
    let (mut app, _relay) = serve(wire).await;
    let rest = peer.seal(HANDSHAKE, &KEY_UPDATE_REQUESTED[2..]);
    peer.write(&rest).await;
    // What was sealed before it is seen comes first.
    for _ in 0..100 {
        app.write_all(b"answer").await.unwrap();
        let received = peer.receive().await;
        if received != Some((DATA, b"answer".to_vec())) {
            assert_eq!(received, Some((HANDSHAKE, vec![24, 0, 0, 1, 0])));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the KeyUpdate is not answered");
}

pub(crate) async fn what_follows_close_notify_is_ignored(kinds: Kinds) {
    let (established, mut peer) = handshake(async |flight| {
        let last = |raw: &mut RawPeer| {
            [raw.seal(DATA, b"last"), raw.seal(ALERT, &[1, 0]), b"no record at all".to_vec()].concat()
        };
        flight.with_raw(last).await
    })
    .await;
    let (mut app, _relay) = serve(leg(established, kinds.server, &kinds.kernel).await).await;
    let mut got = Vec::new();
    app.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last");
    app.write_all(b"answer").await.unwrap();
    assert_eq!(peer.receive().await, Some((DATA, b"answer".to_vec())));
}

pub(crate) async fn a_breach_with_the_handshake_is_answered_by_an_alert(kinds: Kinds) {
    let (established, mut peer) = handshake(async |flight| {
        flight.with_raw(|raw| [raw.seal(DATA, b"good"), vec![23, 3, 3, 0, 3, 1, 2]].concat()).await
    })
    .await;
    // The record's last byte comes when the offload already waits for it.
    let finishing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        peer.write(&[3]).await;
    };
    let (wire, ()) = tokio::join!(offloaded_or_not(established, &kinds), finishing);
    let (app, relay) = serve(wire).await;
    expect_reset(app).await;
    assert_told(&mut peer, "a short record", &[BAD_RECORD_MAC, DECODE_ERROR]).await;
    assert_eq!(relay.await.unwrap().ended_by.label(), "wire_protocol");
}

const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;

/// A fatal alert of one of these descriptions, then FIN.
async fn assert_told(peer: &mut RawPeer, what: &str, descriptions: &[u8]) {
    let told = tokio::time::timeout(Duration::from_secs(20), peer.receive()).await;
    let Ok(Some((ALERT, body))) = told else { panic!("{what}: no alert but {told:?}") };
    assert_eq!(body[0], 2, "{what}: {body:?} is not fatal");
    assert!(descriptions.contains(&body[1]), "{what}: alert {} instead of {descriptions:?}", body[1]);
    assert!(peer.sees_the_end().await, "{what}: no FIN");
}

/// rustls and the kernel differ in what they look at first, so some breaches have two right names.
pub(crate) async fn a_breach_of_the_protocol_is_answered_by_an_alert(kinds: Kinds) {
    type Breach = fn(&mut RawPeer) -> Vec<u8>;
    let cases: [(&str, &[u8], Breach); 14] = [
        ("a forged record", &[BAD_RECORD_MAC], |raw| {
            let mut record = raw.seal(DATA, b"forged");
            record[7] ^= 1;
            record
        }),
        ("a record too short for its tag", &[BAD_RECORD_MAC, DECODE_ERROR], |_| vec![23, 3, 3, 0, 2, 1, 2]),
        ("a record that is too large", &[RECORD_OVERFLOW, DECODE_ERROR], |_| {
            vec![23, 3, 3, 0xff, 0xff, 1, 2]
        }),
        ("no TLS", &[BAD_RECORD_MAC, DECODE_ERROR, RECORD_OVERFLOW], |_| b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a handshake message out of place", &[UNEXPECTED_MESSAGE], |raw| {
            raw.seal(HANDSHAKE, &[8, 0, 0, 2, 0, 0])
        }),
        ("an unknown content type", &[UNEXPECTED_MESSAGE, DECODE_ERROR], |raw| raw.seal(24, b"beat")),
        ("an unknown kind of KeyUpdate", &[ILLEGAL_PARAMETER, DECODE_ERROR], |raw| {
            raw.seal(HANDSHAKE, &[24, 0, 0, 1, 7])
        }),
        ("a KeyUpdate of two bytes", &[DECODE_ERROR], |raw| raw.seal(HANDSHAKE, &[24, 0, 0, 2, 0, 0])),
        ("an alert of one byte", &[DECODE_ERROR], |raw| raw.seal(ALERT, &[1])),
        ("an empty alert", &[DECODE_ERROR, UNEXPECTED_MESSAGE], |raw| raw.seal(ALERT, &[])),
        ("a record again", &[BAD_RECORD_MAC], |raw| raw.seal(DATA, b"again").repeat(2)),
        ("records in another order", &[BAD_RECORD_MAC], |raw| {
            let first = raw.seal(DATA, b"first");
            [raw.seal(DATA, b"second"), first].concat()
        }),
        ("a byte more than a record holds", &[RECORD_OVERFLOW], |raw| raw.seal(DATA, &vec![7; 16_385])),
        ("padding beyond what a record holds", &[RECORD_OVERFLOW], |raw| {
            raw.seal_padded(DATA, b"good", 16_384)
        }),
    ];
    for (what, descriptions, breach) in cases {
        let (mut app, relay, peer) = RustlsPeer::behind(&kinds).await;
        let mut peer = peer.into_raw();
        let good = peer.seal(DATA, b"good");
        peer.write(&good).await;
        let mut got = [0; 4];
        app.read_exact(&mut got).await.unwrap();
        let breach = breach(&mut peer);
        peer.write(&breach).await;
        assert_told(&mut peer, what, descriptions).await;
        expect_reset(app).await;
        assert_eq!(relay.await.unwrap().ended_by.label(), "wire_protocol", "{what}");
    }
}

pub(crate) async fn a_fatal_alert_of_the_peer_ends_both_legs(kinds: Kinds) {
    let (app, relay, peer) = RustlsPeer::behind(&kinds).await;
    let mut peer = peer.into_raw();
    let record = peer.seal(ALERT, &[2, 80]);
    peer.write(&record).await;
    expect_reset(app).await;
    assert!(!peer.sees_the_end().await, "an alert is not answered");
    assert!(matches!(relay.await.unwrap().ended_by, EndedBy::WireProtocol(_)));
}
