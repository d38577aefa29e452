//! What every relay kind must do, told as stories between an application's client and server with two
//! relays between them.

mod floods;
mod mesh;
mod party;
mod peer;
mod protocol;
mod random;
mod raw;

use std::{future::Future, io::ErrorKind, net::Shutdown, pin::Pin, sync::Arc, time::Duration};

use mesh_user::{
    proxy::relay::{CloseReason, EndedBy, LiveStats, RelayKind, RelayOptions},
    tls::KernelTls,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use floods::{
    a_flood_of_warnings_ends_the_connection, a_renegotiation_is_refused,
    empty_records_carry_nothing_and_keep_nothing_alive, key_updates_without_data_end_the_connection,
    padding_is_taken_off, records_that_mean_nothing_end_the_connection, tickets_without_end_do_no_harm,
};
use mesh::{Mesh, scaled};
use peer::RustlsPeer;
use protocol::{
    a_breach_of_the_protocol_is_answered_by_an_alert, a_breach_with_the_handshake_is_answered_by_an_alert,
    a_fatal_alert_of_the_peer_ends_both_legs, a_key_update_with_the_handshake_is_answered,
    a_message_split_around_the_offload_is_understood, what_follows_close_notify_is_ignored,
};
use random::random_exchanges_are_what_the_model_says;

/// For what takes milliseconds, on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which kinds the two relays are.
#[derive(Clone)]
pub(crate) struct Kinds {
    pub(crate) client: RelayKind,
    pub(crate) server: RelayKind,
    pub(crate) kernel: KernelTls,
}

type Case = fn(Kinds) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! table {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), (|kinds| Box::pin($name(kinds)) as Pin<Box<dyn Future<Output = ()>>>) as Case)),*]
    };
}

/// All cases by name.
pub(crate) fn cases() -> Vec<(&'static str, Case)> {
    table![
        bulk_both_ways_arrives_unchanged,
        every_cipher_suite_carries_both_ways,
        a_used_up_key_is_changed_or_ends_the_connection,
        small_messages_ping_pong,
        bytes_around_an_urgent_one_do_not_wait,
        an_end_with_the_last_data_travels,
        the_server_may_speak_first,
        data_sent_with_the_handshake_arrives,
        half_close_from_the_client_travels,
        half_close_from_the_server_travels,
        a_reset_by_the_client_reaches_the_server,
        a_reset_by_the_server_reaches_the_client,
        a_reset_after_half_close_reaches_the_other_side,
        a_truncated_wire_resets_the_application,
        garbage_on_the_wire_resets_the_application,
        a_slow_reader_blocks_the_writer,
        a_burst_larger_than_the_send_buffer_arrives,
        idle_connections_hold_no_buffer_and_time_out,
        a_relay_is_closed_from_outside,
        tickets_after_the_handshake_resume_the_next_one,
        a_key_update_of_the_peer_is_followed_or_ends_the_connection,
        a_live_connection_changes_hands,
        a_key_update_with_the_handshake_is_answered,
        a_message_split_around_the_offload_is_understood,
        what_follows_close_notify_is_ignored,
        a_breach_with_the_handshake_is_answered_by_an_alert,
        a_breach_of_the_protocol_is_answered_by_an_alert,
        a_fatal_alert_of_the_peer_ends_both_legs,
        padding_is_taken_off,
        empty_records_carry_nothing_and_keep_nothing_alive,
        key_updates_without_data_end_the_connection,
        a_flood_of_warnings_ends_the_connection,
        tickets_without_end_do_no_harm,
        a_renegotiation_is_refused,
        records_that_mean_nothing_end_the_connection,
        random_exchanges_are_what_the_model_says,
    ]
}

/// Those that TCP without TLS can meet.
pub(crate) fn plain_cases() -> Vec<(&'static str, Case)> {
    table![
        bulk_both_ways_arrives_unchanged,
        small_messages_ping_pong,
        bytes_around_an_urgent_one_do_not_wait,
        an_end_with_the_last_data_travels,
        the_server_may_speak_first,
        data_sent_with_the_handshake_arrives,
        half_close_from_the_client_travels,
        half_close_from_the_server_travels,
        a_reset_by_the_client_reaches_the_server,
        a_reset_by_the_server_reaches_the_client,
        a_reset_after_half_close_reaches_the_other_side,
        a_slow_reader_blocks_the_writer,
        idle_connections_hold_no_buffer_and_time_out,
        a_relay_is_closed_from_outside,
        random_exchanges_are_what_the_model_says,
    ]
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from((i * 31 + i / 251 + usize::from(seed)) % 256).unwrap()).collect()
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

async fn bulk_both_ways_arrives_unchanged(kinds: Kinds) {
    let mesh = Mesh::start(&kinds).await;
    let length = scaled(64 << 20);
    let (up, down) = (pattern(1, length), pattern(2, length));
    let (client, server) = (mesh.client, mesh.server);
    let exchange = |stream: TcpStream, send: Vec<u8>, expect: Vec<u8>| async move {
        let (mut reader, mut writer) = stream.into_split();
        let sending = async {
            writer.write_all(&send).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let receiving = async {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), expect.len());
            assert!(got == expect, "the bytes differ");
        };
        tokio::join!(sending, receiving);
    };
    tokio::join!(exchange(client, up.clone(), down.clone()), exchange(server, down, up));
    for relay in [mesh.client_relay, mesh.server_relay] {
        let outcome = relay.await.unwrap();
        assert_eq!(outcome.ended_by, EndedBy::Finished);
        assert_eq!(outcome.app_to_wire_bytes, length as u64);
        assert_eq!(outcome.wire_to_app_bytes, length as u64);
    }
}

async fn every_cipher_suite_carries_both_ways(kinds: Kinds) {
    for suite in mesh_user::tls::provider().cipher_suites {
        if suite.suite().as_str().is_some_and(|name| name.contains("RSA")) {
            continue; // the test's keys are ECDSA
        }
        let mesh =
            Mesh::start_in(&mesh::Trust::with_suite(suite), &kinds, RelayOptions::default(), &[]).await;
        half_close(mesh.client, mesh.server).await;
        assert_eq!(mesh.client_relay.await.unwrap().ended_by, EndedBy::Finished, "{suite:?}");
        assert_eq!(mesh.server_relay.await.unwrap().ended_by, EndedBy::Finished, "{suite:?}");
    }
}

async fn a_used_up_key_is_changed_or_ends_the_connection(kinds: Kinds) {
    let options = RelayOptions { records_per_key: 5, ..RelayOptions::default() };
    let mut mesh = Mesh::start_with(&kinds, options).await;
    let (mut writes_failed, message) = (false, pattern(6, 1000));
    let mut got = vec![0; 1000];
    for _ in 0..scaled(200).max(20) {
        writes_failed = mesh.client.write_all(&message).await.is_err()
            || mesh.server.read_exact(&mut got).await.is_err()
            || mesh.server.write_all(&message).await.is_err()
            || mesh.client.read_exact(&mut got).await.is_err();
        if writes_failed {
            break;
        }
        assert!(got == message);
    }
    let kernel_cannot = kinds.kernel.rekey.is_err()
        && (kinds.client != RelayKind::Userspace || kinds.server != RelayKind::Userspace);
    assert_eq!(writes_failed, kernel_cannot);
    if kernel_cannot {
        let outcomes = [mesh.client_relay.await.unwrap().ended_by, mesh.server_relay.await.unwrap().ended_by];
        assert!(outcomes.contains(&EndedBy::KeyExhausted), "{outcomes:?}");
    }
}

async fn small_messages_ping_pong(kinds: Kinds) {
    let mut mesh = Mesh::start(&kinds).await;
    let mut buffer = vec![0; 40_000];
    for round in 0..scaled(400) {
        let message = pattern(round.to_le_bytes()[0], 1 + (round * 97) % 40_000);
        mesh.client.write_all(&message).await.unwrap();
        mesh.server.read_exact(&mut buffer[..message.len()]).await.unwrap();
        assert!(buffer[..message.len()] == message);
        mesh.server.write_all(&message[..1]).await.unwrap();
        mesh.client.read_exact(&mut buffer[..1]).await.unwrap();
        assert_eq!(buffer[0], message[0]);
    }
}

/// A read ends before a byte that is marked as urgent, also on a leg that has learnt to be read once only.
async fn bytes_around_an_urgent_one_do_not_wait(kinds: Kinds) {
    let mut mesh = Mesh::start(&kinds).await;
    let mut buffer = [0; 5];
    for _ in 0..8 {
        mesh.client.write_all(b"hello").await.unwrap();
        mesh.server.read_exact(&mut buffer).await.unwrap();
        // At once: the relay finds all of it.
        let client = SockRef::from(&mesh.client);
        client.send(b"ab").unwrap();
        client.send_out_of_band(b"!").unwrap();
        client.send(b"cd").unwrap();
        let read = tokio::time::timeout(PATIENCE, mesh.server.read_exact(&mut buffer)).await;
        read.expect("what follows an urgent byte waits").unwrap();
        assert_eq!(&buffer, b"ab!cd");
    }
}

/// Data and the end behind it are told of together, by one event.
async fn an_end_with_the_last_data_travels(kinds: Kinds) {
    let mut mesh = Mesh::start(&kinds).await;
    let mut buffer = [0; 5];
    for _ in 0..8 {
        mesh.client.write_all(b"hello").await.unwrap();
        mesh.server.read_exact(&mut buffer).await.unwrap();
        mesh.server.write_all(b"hello").await.unwrap();
        mesh.client.read_exact(&mut buffer).await.unwrap();
    }
    for stream in [&mesh.client, &mesh.server] {
        SockRef::from(stream).send(b"bye").unwrap();
        SockRef::from(stream).shutdown(Shutdown::Write).unwrap();
    }
    for stream in [&mut mesh.server, &mut mesh.client] {
        let read = tokio::time::timeout(PATIENCE, read_to_end(stream)).await;
        assert_eq!(read.expect("the end is not told"), b"bye");
    }
    assert_eq!(mesh.client_relay.await.unwrap().ended_by, EndedBy::Finished);
    assert_eq!(mesh.server_relay.await.unwrap().ended_by, EndedBy::Finished);
}

async fn the_server_may_speak_first(kinds: Kinds) {
    let mut mesh = Mesh::start(&kinds).await;
    mesh.server.write_all(b"220 ready\r\n").await.unwrap();
    let mut greeting = [0; 11];
    mesh.client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
}

async fn data_sent_with_the_handshake_arrives(kinds: Kinds) {
    let mesh = Mesh::start_with_early(&kinds, &pattern(9, 30_000)).await;
    let (mut client, mut server) = (mesh.client, mesh.server);
    client.shutdown().await.unwrap();
    assert!(read_to_end(&mut server).await == pattern(9, 30_000));
}

async fn half_close_from_the_client_travels(kinds: Kinds) {
    let mesh = Mesh::start(&kinds).await;
    half_close(mesh.client, mesh.server).await;
    assert_eq!(mesh.client_relay.await.unwrap().ended_by, EndedBy::Finished);
    assert_eq!(mesh.server_relay.await.unwrap().ended_by, EndedBy::Finished);
}

async fn half_close_from_the_server_travels(kinds: Kinds) {
    let mesh = Mesh::start(&kinds).await;
    half_close(mesh.server, mesh.client).await;
    assert_eq!(mesh.client_relay.await.unwrap().ended_by, EndedBy::Finished);
    assert_eq!(mesh.server_relay.await.unwrap().ended_by, EndedBy::Finished);
}

async fn half_close(mut first: TcpStream, mut second: TcpStream) {
    first.write_all(b"question").await.unwrap();
    first.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut second).await, b"question");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answer = pattern(3, 300_000);
    let writing = async {
        second.write_all(&answer).await.unwrap();
        second.shutdown().await.unwrap();
    };
    let (got, ()) = tokio::join!(read_to_end(&mut first), writing);
    assert!(got == answer);
}

async fn reset(stream: TcpStream) {
    mesh_user::sys::socket::reset_on_close(&stream);
    drop(stream);
    tokio::task::yield_now().await;
}

async fn expect_reset(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

async fn a_reset_by_the_client_reaches_the_server(kinds: Kinds) {
    let mesh = Mesh::start(&kinds).await;
    reset(mesh.client).await;
    expect_reset(mesh.server).await;
    assert_eq!(mesh.client_relay.await.unwrap().ended_by, EndedBy::AppReset);
    assert_eq!(mesh.server_relay.await.unwrap().ended_by, EndedBy::WireReset);
}

async fn a_reset_by_the_server_reaches_the_client(kinds: Kinds) {
    let mesh = Mesh::start(&kinds).await;
    reset(mesh.server).await;
    expect_reset(mesh.client).await;
    assert_eq!(mesh.server_relay.await.unwrap().ended_by, EndedBy::AppReset);
    assert_eq!(mesh.client_relay.await.unwrap().ended_by, EndedBy::WireReset);
}

async fn a_reset_after_half_close_reaches_the_other_side(kinds: Kinds) {
    let mut mesh = Mesh::start(&kinds).await;
    mesh.client.shutdown().await.unwrap();
    let mut byte = [0];
    assert_eq!(mesh.server.read(&mut byte).await.unwrap(), 0);
    reset(mesh.client).await;
    assert_eq!(mesh.client_relay.await.unwrap().ended_by, EndedBy::AppReset);
    assert_eq!(mesh.server_relay.await.unwrap().ended_by, EndedBy::WireReset);
}

async fn a_truncated_wire_resets_the_application(kinds: Kinds) {
    let (mut app, relay, mut peer) = RustlsPeer::behind(&kinds).await;
    peer.write(b"all but the end");
    let mut got = [0; 15];
    app.read_exact(&mut got).await.unwrap();
    peer.fin_without_close_notify();
    expect_reset(app).await;
    assert_eq!(relay.await.unwrap().ended_by, EndedBy::Truncated);
}

async fn garbage_on_the_wire_resets_the_application(kinds: Kinds) {
    let (app, relay, mut peer) = RustlsPeer::behind(&kinds).await;
    let mut record = vec![23, 3, 3, 0, 64];
    record.extend_from_slice(&[0x5a; 64]);
    peer.raw(&record);
    expect_reset(app).await;
    assert_eq!(relay.await.unwrap().ended_by.label(), "wire_protocol");
}

async fn a_slow_reader_blocks_the_writer(kinds: Kinds) {
    let mut mesh = Mesh::start(&kinds).await;
    let chunk = pattern(5, 1 << 20);
    let mut accepted = 0;
    // Until nothing has been taken for a while: sockets, buffers and pipe are full.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(1500), mesh.client.write(&chunk[accepted % chunk.len()..]))
            .await
    {
        accepted += written.unwrap();
        assert!(accepted < 64 << 20, "no back-pressure");
    }
    mesh.client.shutdown().await.unwrap();
    let got = read_to_end(&mut mesh.server).await;
    assert_eq!(got.len(), accepted);
    assert!(got.iter().enumerate().all(|(i, byte)| *byte == chunk[i % chunk.len()]));
}

/// What fills the send buffer in one go, while nothing is in flight that an acknowledgement could follow, must
/// be sent all the same.
async fn a_burst_larger_than_the_send_buffer_arrives(kinds: Kinds) {
    let mut mesh = Mesh::start_with_send_buffer(&kinds, 23_040).await;
    let mut got = vec![0; 1 << 20];
    // Widens the receiver's window to several times the send buffer.
    for _ in 0..40 {
        mesh.client.write_all(&pattern(4, 40_000)).await.unwrap();
        mesh.server.read_exact(&mut got[..40_000]).await.unwrap();
    }
    for seed in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let burst = pattern(seed, 1 << 20);
        let (written, read) = tokio::join!(mesh.client.write_all(&burst), mesh.server.read_exact(&mut got));
        written.unwrap();
        read.unwrap();
        assert!(got == burst);
    }
}

async fn idle_connections_hold_no_buffer_and_time_out(kinds: Kinds) {
    let options = RelayOptions { idle_timeout: Duration::from_millis(1200), ..RelayOptions::default() };
    let mut mesh = Mesh::start_with(&kinds, options).await;
    for _ in 0..3 {
        mesh.client.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        mesh.server.read_exact(&mut got).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(mesh_user::proxy::relay::buffers_lent(), 0);
    expect_reset(mesh.server).await;
    let outcomes = [mesh.client_relay.await.unwrap().ended_by, mesh.server_relay.await.unwrap().ended_by];
    assert!(outcomes.contains(&EndedBy::Idle), "{outcomes:?}");
}

async fn a_relay_is_closed_from_outside(kinds: Kinds) {
    let mesh = Mesh::start(&kinds).await;
    let live: &Arc<LiveStats> = &mesh.client_live;
    live.close(CloseReason::Operator);
    expect_reset(mesh.client).await;
    expect_reset(mesh.server).await;
    assert_eq!(mesh.client_relay.await.unwrap().ended_by, EndedBy::Closed);
    assert_eq!(live.close_reason(), Some(&CloseReason::Operator));
}

async fn tickets_after_the_handshake_resume_the_next_one(kinds: Kinds) {
    let world = mesh::Trust::new();
    for resumed in [false, true] {
        let mut mesh = Mesh::start_in(&world, &kinds, RelayOptions::default(), &[]).await;
        assert_eq!(mesh.resumed, resumed);
        // The ticket is behind the handshake and before this answer.
        mesh.client.write_all(b"?").await.unwrap();
        mesh.server.read_exact(&mut [0]).await.unwrap();
        mesh.server.write_all(b"!").await.unwrap();
        mesh.client.read_exact(&mut [0]).await.unwrap();
    }
}

async fn a_key_update_of_the_peer_is_followed_or_ends_the_connection(kinds: Kinds) {
    let (mut app, relay, mut peer) = RustlsPeer::behind(&kinds).await;
    let follows = kinds.client == RelayKind::Userspace || kinds.kernel.rekey.is_ok();
    for round in 0..3_u8 {
        peer.write(&[round; 5]);
        let mut got = [0; 5];
        app.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [round; 5]);
        peer.update_keys();
        if !follows {
            expect_reset(app).await;
            assert_eq!(relay.await.unwrap().ended_by, EndedBy::KeyUpdateUnsupported);
            return;
        }
        peer.write(&[round + 100; 5]);
        app.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [round + 100; 5]);
        app.write_all(&[round; 7]).await.unwrap();
        assert_eq!(peer.read(7).await, [round; 7]);
    }
}

async fn a_live_connection_changes_hands(kinds: Kinds) {
    let mut mesh = Mesh::start(&kinds).await;
    mesh.client.write_all(b"before").await.unwrap();
    let mut got = [0; 6];
    mesh.server.read_exact(&mut got).await.unwrap();
    if kinds.client == RelayKind::Userspace {
        mesh.client_live.request_handover();
        mesh.client.write_all(b"stays.").await.unwrap();
        mesh.server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"stays.");
        return;
    }
    mesh.client_live.request_handover();
    let outcome = mesh.client_relay.await.unwrap();
    assert_eq!(outcome.ended_by, EndedBy::HandedOver);
    let handover = outcome.handover.unwrap();
    mesh.client.write_all(b"after!").await.unwrap();
    let state = serde_json::to_string(&handover.state).unwrap();
    let resumed =
        mesh_user::proxy::relay::Handover { state: serde_json::from_str(&state).unwrap(), ..*handover };
    let live = Arc::new(LiveStats::default());
    let second = tokio::spawn(async move { resumed.relay(&RelayOptions::default(), &live).await });
    mesh.server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"after!");
    mesh.server.write_all(&pattern(4, 100_000)).await.unwrap();
    mesh.server.shutdown().await.unwrap();
    assert!(read_to_end(&mut mesh.client).await == pattern(4, 100_000));
    mesh.client.shutdown().await.unwrap();
    assert_eq!(second.await.unwrap().ended_by, EndedBy::Finished);
}
