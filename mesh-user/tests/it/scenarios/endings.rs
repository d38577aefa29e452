//! How connections end travels from one end to the other: FIN as FIN, reset as reset, and never a reset as a FIN.

use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::it::daemon::Node;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{Mesh, accepted, last_line, probe, serve, start_probe, wait_event};
use crate::it::process::{PATIENCE, Program, wait_until};

pub(super) const STORIES: &[Story] = stories![
    EveryRelay 60:
        half_close_from_client_reaches_server_and_the_answer_comes_back,
        half_close_from_server_leaves_the_way_to_it_open,
        a_reset_by_the_client_reaches_the_server_as_reset,
        a_reset_by_the_server_reaches_the_client_as_reset,
        a_killed_client_is_noticed_by_the_server,
        a_killed_server_is_noticed_by_the_client;
    Daemon 60:
        a_service_that_is_down_is_a_reset_at_once_and_never_a_clean_end,
        an_unreachable_node_is_an_error_and_never_a_clean_end,
        a_peer_that_does_not_read_is_waited_for_and_one_that_is_gone_is_not,
];

fn half_close_from_client_reaches_server_and_the_answer_comes_back(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    // The server answers only after the client's FIN, with more than fits any buffer.
    let server = serve(&mesh.server, 7000, &["--reply-kib", "4096"])?;
    let seen = probe(
        &mesh.client,
        mesh.server.at(7000),
        &["--send-kib", "512", "--shutdown", "--wait-ms", "20000"],
    )?;
    ensure!(seen["ended"] == "eof" && seen["received"] == 4096 * 1024, "{seen}");
    let ended = wait_event(&server, "the FIN", |event| event["event"] == "ended")?;
    ensure!(ended["ended"] == "eof" && ended["received"] == 512 * 1024, "{ended}");
    mesh.must_have_relayed_by(ground.relay())
}

fn half_close_from_server_leaves_the_way_to_it_open(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--banner", "bye", "--shutdown-first"])?;
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send-kib", "2048", "--shutdown"])?;
    ensure!(seen["text"] == "bye" && seen["ended"] == "eof" && seen["sent_all"] == true, "{seen}");
    let ended = wait_event(&server, "all of the client's bytes", |event| event["event"] == "ended")?;
    ensure!(ended["ended"] == "eof" && ended["received"] == 2048 * 1024, "{ended}");
    mesh.must_have_relayed_by(ground.relay())
}

fn a_reset_by_the_client_reaches_the_server_as_reset(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &[])?;
    // A client that gives up before its handshake is done never gets as far as the server.
    let wait = ground.scale().of("200", "5000");
    start_probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--reset", "--before-reset-ms", wait])?
        .finish(PATIENCE)?
        .succeeded()?;
    let ended = wait_event(&server, "the end", |event| event["event"] == "ended")?;
    ensure!(ended["ended"] == "reset", "{ended}");
    mesh.must_have_relayed_by(ground.relay())
}

fn a_reset_by_the_server_reaches_the_client_as_reset(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--reset"])?;
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "x"])?;
    ensure!(seen["ended"] == "reset", "{seen}");
    mesh.must_have_relayed_by(ground.relay())
}

/// An end that comes before a relay is chosen is another story.
fn wait_until_relayed(mesh: &Mesh) -> anyhow::Result<()> {
    wait_until(PATIENCE, "both nodes to relay the connection", || {
        let live = |node: &Node| -> anyhow::Result<bool> {
            let said = node.ctl_json(&["connections"])?;
            Ok(said["connections"].as_array().is_some_and(|connections| connections.len() == 1))
        };
        Ok(live(&mesh.a)? && live(&mesh.b)?)
    })
}

fn a_killed_client_is_noticed_by_the_server(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let mut client = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--wait-ms", "60000"])?;
    wait_until_relayed(&mesh)?;
    client.kill_hard()?;
    // The kernel closes a killed program's socket as the program would have: with a FIN when all was read.
    wait_event(&server, "the end", |event| event["event"] == "ended")?;
    mesh.must_have_relayed_by(ground.relay())
}

fn a_killed_server_is_noticed_by_the_client(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let client = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--wait-ms", "30000"])?;
    wait_until_relayed(&mesh)?;
    server.signal(Signal::SIGKILL)?;
    let seen = last_line(&client.finish(PATIENCE)?)?;
    ensure!(seen["ended"] != "open", "the client was left waiting: {seen}");
    mesh.must_have_relayed_by(ground.relay())
}

/// An end that no program takes for a complete answer.
fn must_have_failed(seen: &Value) -> anyhow::Result<()> {
    ensure!(seen["received"] == 0, "{seen}");
    let how = seen["ended"].as_str().unwrap_or_default();
    ensure!(["reset", "refused", "host unreachable", "timeout"].contains(&how), "{seen}");
    Ok(())
}

fn a_service_that_is_down_is_a_reset_at_once_and_never_a_clean_end(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let seen = probe(&mesh.client, mesh.server.at(7999), &["--send", "x"])?;
    must_have_failed(&seen)?;
    let limit_ms = ground.scale().of(1_000, 10_000);
    ensure!(seen["ms"].as_u64().is_some_and(|ms| ms < limit_ms), "not at once: {seen}");
    Ok(())
}

fn an_unreachable_node_is_an_error_and_never_a_clean_end(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    mesh.server.run(&["ip", "link", "set", "eth0", "down"])?.succeeded()?;
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--wait-ms", "40000"])?;
    must_have_failed(&seen)
}

fn a_peer_that_does_not_read_is_waited_for_and_one_that_is_gone_is_not(
    ground: &Ground,
) -> anyhow::Result<()> {
    let timeout_ms = ground.scale().of(1000, 5000);
    let mut mesh = Mesh::given(ground)?;
    mesh.limits = json!({ "userTimeoutMs": timeout_ms });
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--reply-kib", "1"])?;
    // More than all buffers on the way hold, so that somebody must wait.
    let kib = 16 * 1024;
    let (much, wait) = (kib.to_string(), ["--wait-ms", "120000"]);
    let sending = |times: usize| -> anyhow::Result<Program> {
        let options = [&["--send-kib", &much, "--shutdown"], &wait[..]].concat();
        let client = start_probe(&mesh.client, mesh.server.at(7000), &options)?;
        wait_until(PATIENCE, "the server to see the client", || Ok(accepted(&server) == times))?;
        server.signal(Signal::SIGSTOP)?;
        Ok(client)
    };
    let paused = sending(1)?;
    std::thread::sleep(Duration::from_millis(4 * timeout_ms));
    server.signal(Signal::SIGCONT)?;
    let seen = last_line(&paused.finish(PATIENCE * 2)?)?;
    ensure!(seen["received"] == 1024 && seen["ended"] == "eof" && seen["sent_all"] == true, "{seen}");
    let cut_off = sending(2)?;
    mesh.server.run(&["ip", "link", "set", "eth0", "down"])?.succeeded()?;
    let seen = last_line(&cut_off.finish(PATIENCE * 2)?)?;
    ensure!(seen["ended"] == "reset", "{seen}");
    mesh.a.wait_access_log("the peer that is gone", |line| line["error"] == "user_timeout")?;
    Ok(())
}
