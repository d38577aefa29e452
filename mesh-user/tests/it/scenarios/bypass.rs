//! A workload that wants past meshd, and a neighbour that wants in: what they try, and that they get nothing.

use std::net::SocketAddr;

use anyhow::ensure;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, accepted, is_unserved, last_line, probe, serve, serve_at, start_probe};
use crate::it::netns::Place;
use crate::it::peer;
use crate::it::process::PATIENCE;

pub(super) const STORIES: &[Story] = stories![
    Daemon 120:
        socket_options_do_not_lead_past_meshd,
        a_socket_older_than_meshd_is_captured_when_it_connects,
        meshds_own_ports_serve_nobody,
        what_listens_on_loopback_stays_there;
];

/// Where meshd listens in each workload's namespace.
const OWN_PORTS: [u16; 2] = [15001, 15006];

fn socket_options_do_not_lead_past_meshd(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    mesh.watched("options", || {
        for (to, way) in [
            (mesh.server.at(7000), "--mark"),
            (mesh.server.at6(7000), "--mark"),
            (mesh.server.at(7000), "--transparent"),
        ] {
            let seen = probe(&mesh.client, to, &["--send", MARKER, "--shutdown", way])?;
            ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{to} {way}: {seen}");
        }
        // Bound to the wire's device it cannot reach meshd on loopback, and reaches nothing else.
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--device", "eth0"])?;
        ensure!(is_unserved(&seen), "{seen}");
        Ok(())
    })?;
    let accepted = accepted(&server);
    ensure!(accepted == 3, "the server accepted {accepted} connections: {}", server.stdout());
    Ok(())
}

fn a_socket_older_than_meshd_is_captured_when_it_connects(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let go = ground.dir().join("go");
    let file = go.to_string_lossy().into_owned();
    // The time to wait for meshd counts.
    let options = ["--send", MARKER, "--shutdown", "--connect-when", &file, "--wait-ms", "120000"];
    let mut old = start_probe(&mesh.client, mesh.server.at(7000), &options)?;
    old.wait_to_say("waiting", PATIENCE)?;
    mesh.start()?;
    mesh.watched("old", || {
        std::fs::write(&go, "")?;
        let seen = last_line(&old.finish(PATIENCE * 2)?)?;
        ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
        Ok(())
    })?;
    let line =
        mesh.a.wait_access_log("the old socket's connection", |line| line["direction"] == "outbound")?;
    ensure!(line["peer_spiffe_id"].as_str().is_some(), "{line}");
    Ok(())
}

fn meshds_own_ports_serve_nobody(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let dial = |from: &Place, to: SocketAddr| {
        let seen = probe(from, to, &["--send", MARKER, "--wait-ms", "1500"])?;
        ensure!(is_unserved(&seen), "{} reached {to}: {seen}", from.name);
        anyhow::Ok(())
    };
    for port in OWN_PORTS {
        dial(&mesh.client, SocketAddr::from(([127, 0, 0, 1], port)))?;
        dial(&mesh.client, mesh.client.at(port))?;
        dial(&mesh.other, mesh.client.at(port))?;
        dial(&mesh.client, mesh.server.at(port))?;
        dial(&mesh.outsider, mesh.server.at(port))?;
        for at in [format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}"), format!("[::]:{port}")] {
            let squat = mesh.client.launch("squat", &peer::command_line(&["serve", &at])).finish(PATIENCE)?;
            squat.failed()?;
        }
    }
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
    ensure!(seen["text"] == MARKER, "meshd does not serve any more: {seen}");
    Ok(())
}

fn what_listens_on_loopback_stays_there(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let private = serve_at(&mesh.server, "127.0.0.1:7000", &["--echo"])?;
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
    ensure!(is_unserved(&seen), "{seen}");
    ensure!(!private.stdout().contains("accepted"), "reached: {}", private.stdout());
    let seen =
        probe(&mesh.server, SocketAddr::from(([127, 0, 0, 1], 7000)), &["--send", MARKER, "--shutdown"])?;
    ensure!(seen["text"] == MARKER, "its own loopback is disturbed: {seen}");
    Ok(())
}
