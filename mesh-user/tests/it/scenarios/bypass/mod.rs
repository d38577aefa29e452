//! A workload that wants past meshd, and a neighbour that wants in: what they try, and that they get nothing.

pub(super) mod forged;
pub(super) mod moments;
pub(super) mod places;
pub(super) mod uncaptured;

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, accepted, is_unserved, json_lines, last_line, probe, serve, serve_at, start_probe,
};
use crate::it::netns::Place;
use crate::it::peer;
use crate::it::process::{PATIENCE, Program};
use crate::it::scripts;

pub(super) const STORIES: &[Story] = stories![
    Daemon 120:
        socket_options_do_not_lead_past_meshd,
        a_source_route_leads_nowhere,
        a_socket_older_than_meshd_is_captured_when_it_connects,
        meshds_own_ports_serve_nobody,
        what_listens_on_loopback_stays_there;
];

/// Starts a verb of `attempts.py`.
fn attempt(place: &Place, args: &[&str]) -> anyhow::Result<Program> {
    scripts::python(place, "attempts.py", args).start()
}

/// Runs a verb of `attempts.py` to its end: all that it says.
pub(super) fn attempted(place: &Place, args: &[&str]) -> anyhow::Result<Vec<Value>> {
    Ok(json_lines(&attempt(place, args)?.finish(PATIENCE * 4)?.succeeded()?))
}

/// Each line's `saw` must be what the table says of its `case`.
fn must_have_seen(lines: &[Value], expected: &[(&str, &str)]) -> anyhow::Result<()> {
    for (case, saw) in expected {
        let line = lines.iter().find(|line| line["case"] == *case).with_context(|| format!("no {case}"))?;
        ensure!(line["saw"] == *saw, "{case}: {} and not {saw}", line["saw"]);
    }
    Ok(())
}

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
        for to in [mesh.server.at(7000), mesh.server.at6(7000)] {
            let seen = probe(&mesh.client, to, &["--send", MARKER, "--device", "eth0"])?;
            ensure!(seen["connect"] == "host unreachable", "{to}: {seen}");
        }
        let seen =
            probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--shutdown", "--device", "lo"])?;
        ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
        Ok(())
    })?;
    let accepted = accepted(&server);
    ensure!(accepted == 4, "the server accepted {accepted} connections: {}", server.stdout());
    let refused = mesh.a.metric("meshd_bpf_events_total", &["event=\"device_bound_refused\""])?;
    ensure!(refused == 2, "{refused} counted as bound to a device");
    Ok(())
}

fn a_source_route_leads_nowhere(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let beside = serve(&mesh.outsider, 7000, &["--echo"])?;
    let (host, via) = (mesh.server.v4.to_string(), mesh.outsider.v4.to_string());
    let connects = |line: &Value| !line["case"].as_str().unwrap_or_default().contains("datagram");
    let seen = attempted(&mesh.client, &["source-route", &host, "7000", &via])?;
    for line in seen.iter().filter(|line| connects(line)) {
        ensure!(line["saw"] != MARKER, "{line}");
    }
    ensure!(accepted(&server) == 0 && accepted(&beside) == 0, "{}{}", server.stdout(), beside.stdout());
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
