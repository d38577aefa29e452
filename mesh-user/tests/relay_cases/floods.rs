//! Peers that keep a proven connection busy with what is no data.

use std::time::Duration;

use mesh_user::proxy::relay::{EndedBy, RelayKind, RelayOptions};
use tokio::io::AsyncReadExt;

use super::{
    Kinds, expect_reset,
    mesh::{Trust, scaled},
    peer::RustlsPeer,
    raw::{ALERT, DATA, HANDSHAKE, RawPeer},
};

const WARNING: u8 = 1;
const USER_CANCELED: u8 = 90;
const NO_RENEGOTIATION: u8 = 100;

pub(crate) async fn padding_is_taken_off(kinds: Kinds) {
    let (mut app, _relay, peer) = RustlsPeer::behind(&kinds).await;
    let mut peer = peer.into_raw();
    for zeros in [1, 255, 16_000] {
        let record = peer.seal_padded(DATA, b"padded", zeros);
        peer.write(&record).await;
        let mut got = [0; 6];
        app.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"padded", "{zeros} zeros");
    }
}

pub(crate) async fn empty_records_carry_nothing_and_keep_nothing_alive(kinds: Kinds) {
    let options = RelayOptions { idle_timeout: Duration::from_secs(1), ..RelayOptions::default() };
    let (mut app, relay, peer) = RustlsPeer::behind_in(&Trust::new(), &kinds, options).await;
    let mut peer = peer.into_raw();
    let mut records: Vec<u8> = (0..20).flat_map(|_| peer.seal(DATA, b"")).collect();
    records.extend(peer.seal(DATA, b"data"));
    peer.write(&records).await;
    let mut got = [0; 4];
    app.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"data");
    let sending = async {
        loop {
            let record = peer.seal(DATA, b"");
            peer.flood(&record).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        outcome = relay => {
            let ended_by = outcome.unwrap().ended_by;
            // The kernel passes over them in silence; rustls has had enough after 32.
            let is_right = ended_by == EndedBy::Idle || ended_by.label() == "wire_protocol";
            assert!(is_right, "{ended_by:?}");
        }
        () = sending => unreachable!("it does not end"),
    }
    expect_reset(app).await;
}

pub(crate) async fn key_updates_without_data_end_the_connection(kinds: Kinds) {
    let (app, relay, mut peer) = RustlsPeer::behind(&kinds).await;
    peer.flood_key_updates(200);
    expect_reset(app).await;
    let ended_by = relay.await.unwrap().ended_by;
    if kinds.client == RelayKind::Userspace || kinds.kernel.rekey.is_ok() {
        assert_eq!(ended_by.label(), "wire_protocol", "{ended_by:?}");
    } else {
        assert_eq!(ended_by, EndedBy::KeyUpdateUnsupported);
    }
}

pub(crate) async fn a_flood_of_warnings_ends_the_connection(kinds: Kinds) {
    let tls13 = RustlsPeer::behind(&kinds).await;
    let tls12 = RustlsPeer::behind_tls12(&kinds).await;
    for ((mut app, relay, peer), description) in [(tls13, USER_CANCELED), (tls12, NO_RENEGOTIATION)] {
        let mut peer = peer.into_raw();
        // Some are borne.
        let few = [peer.seal(ALERT, &[WARNING, description]), peer.seal(DATA, b"data")].concat();
        peer.write(&few).await;
        let mut got = [0; 4];
        app.read_exact(&mut got).await.unwrap();
        let many: Vec<u8> = (0..50).flat_map(|_| peer.seal(ALERT, &[WARNING, description])).collect();
        peer.flood(&many).await;
        expect_reset(app).await;
        assert_eq!(relay.await.unwrap().ended_by.label(), "wire_protocol", "alert {description}");
    }
}

/// A server may send as many as it likes; the client keeps a few.
pub(crate) async fn tickets_without_end_do_no_harm(kinds: Kinds) {
    let (mut app, _relay, peer) = RustlsPeer::behind(&kinds).await;
    let mut peer = peer.into_raw();
    for round in 0..scaled(50) {
        let mut records = Vec::new();
        for nonce in 0..40_u8 {
            // RFC 8446 section 4.6.1: lifetime, age, nonce, ticket, extensions.
            let ticket = [&[0, 0, 14, 16, 0, 0, 0, 0, 1, nonce, 0, 4][..], b"tick", &[0, 0]].concat();
            let message = [&[4, 0, 0, u8::try_from(ticket.len()).unwrap()], &ticket[..]].concat();
            records.extend(peer.seal(HANDSHAKE, &message));
        }
        records.extend(peer.seal(DATA, b"data"));
        peer.write(&records).await;
        let mut got = [0; 4];
        app.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"data", "round {round}");
    }
}

pub(crate) async fn a_renegotiation_is_refused(kinds: Kinds) {
    const HELLO_REQUEST: [u8; 4] = [0, 0, 0, 0];
    let (app, relay, peer) = RustlsPeer::behind_tls12(&kinds).await;
    let mut peer = peer.into_raw();
    let asked: Vec<u8> = (0..5).flat_map(|_| peer.seal(HANDSHAKE, &HELLO_REQUEST)).collect();
    peer.flood(&asked).await;
    expect_reset(app).await;
    assert_eq!(relay.await.unwrap().ended_by.label(), "wire_protocol");
}

/// rustls has no alert for some of these.
pub(crate) async fn records_that_mean_nothing_end_the_connection(kinds: Kinds) {
    type Make = fn(&mut RawPeer) -> Vec<u8>;
    let cases: [(&str, Make); 3] = [
        ("the beginning of a message of 16 MiB", |raw| raw.seal(HANDSHAKE, &[4, 0xff, 0xff, 0xff, 0])),
        ("nothing but padding", |raw| raw.seal_padded(0, b"", 100)),
        ("ChangeCipherSpec", |_| vec![20, 3, 3, 0, 1, 1]),
    ];
    for (what, make) in cases {
        let (app, relay, peer) = RustlsPeer::behind(&kinds).await;
        let mut peer = peer.into_raw();
        let record = make(&mut peer);
        peer.write(&record).await;
        expect_reset(app).await;
        assert_eq!(relay.await.unwrap().ended_by.label(), "wire_protocol", "{what}");
    }
}
