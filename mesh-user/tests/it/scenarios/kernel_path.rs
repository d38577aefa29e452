//! The kernel path: workloads of one node that say so reach each other from socket to socket once policy has allowed
//! the pair, and nothing of what meshd promises is lost on the way.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, ONLY_CLIENT, STRICT, is_unserved, json_lines, last_line, must_serve, probe, serve,
    start_probe, wait_event,
};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Daemon 60:
        the_canary_proves_the_kernel_path,
        an_allowed_pair_connects_past_meshd_from_its_second_connection_on,
        without_the_setting_or_the_permission_everything_stays_on_tls,
        what_is_no_longer_allowed_is_cut_on_the_kernel_path_too,
        a_connection_on_the_kernel_path_outlives_the_daemon_and_is_cut_by_the_next,
        an_address_that_somebody_else_answers_for_gets_no_byte;
];

/// All workloads on node a, which lets them take the kernel path.
fn given(ground: &Ground) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::given(ground)?;
    for workload in &mut mesh.workloads {
        "node-a".clone_into(&mut workload.node);
    }
    mesh.a.settings.insert("sameNode".to_owned(), json!("kernel"));
    Ok(mesh)
}

fn started(ground: &Ground) -> anyhow::Result<Mesh> {
    let mut mesh = given(ground)?;
    mesh.start()?;
    Ok(mesh)
}

fn kernel_lines(mesh: &Mesh) -> Vec<Value> {
    mesh.a.access_log().into_iter().filter(|line| line["relay"] == "kernel").collect()
}

/// A first connection by TLS, after which the pair is known.
fn acquaint(mesh: &Mesh, place: &Place) -> anyhow::Result<()> {
    let seen = probe(place, mesh.server.at(7000), &["--send", "first", "--shutdown"])?;
    ensure!(seen["text"] == "first" && seen["ended"] == "eof", "{seen}");
    Ok(())
}

fn the_canary_proves_the_kernel_path(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = given(ground)?;
    mesh.a.canary = true;
    mesh.start()?;
    let why_not = mesh.a.why_not_proven("kernel path")?;
    ensure!(why_not.is_none(), "{why_not:?}");
    // Nobody asked for it there.
    ensure!(mesh.b.why_not_proven("kernel path").is_err(), "node b tried it too");
    Ok(())
}

fn an_allowed_pair_connects_past_meshd_from_its_second_connection_on(ground: &Ground) -> anyhow::Result<()> {
    let mesh = started(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    for to in [mesh.server.at(7000), mesh.server.at6(7000)] {
        mesh.watched("first", || {
            let seen = probe(&mesh.client, to, &["--send", MARKER, "--shutdown"])?;
            ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
            Ok(())
        })?;
        let before = kernel_lines(&mesh).len();
        let finished = start_probe(&mesh.client, to, &["--send", MARKER, "--shutdown"])?.finish(PATIENCE)?;
        let (connected, seen) = (&json_lines(&finished.stdout)[0], last_line(&finished)?);
        ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
        ensure!(connected["peer"] == to.to_string(), "the client is told another server: {connected}");
        wait_event(&server, "the client's own address", |event| {
            // Its listener is of both families.
            let canonical = |end: &Value| {
                let end = end.as_str()?.parse::<std::net::SocketAddr>().ok()?;
                Some((end.ip().to_canonical(), end.port()))
            };
            event["event"] == "accepted" && canonical(&event["peer"]) == canonical(&connected["local"])
        })?;
        wait_until(PATIENCE, "two lines of the kernel path", || Ok(kernel_lines(&mesh).len() == before + 2))?;
        for (direction, peer) in [("outbound", "server"), ("inbound", "client")] {
            let lines = kernel_lines(&mesh);
            let line = lines[before..].iter().find(|line| line["direction"] == direction);
            let line = line.ok_or_else(|| anyhow::anyhow!("no {direction} line: {lines:?}"))?;
            ensure!(line["peer_spiffe_id"] == format!("spiffe://cluster.local/ns/shop/sa/{peer}"), "{line}");
            ensure!(line["verdict"] == "allow" && line["response_flags"] == "-", "{line}");
            ensure!(
                line["bytes_received"] == MARKER.len() && line["bytes_sent"] == MARKER.len(),
                "the echo's bytes are counted wrongly: {line}"
            );
        }
    }
    // The server is gone, and the client is told at once.
    drop(server);
    let refused = probe(&mesh.client, mesh.server.at(7000), &["--send", "x"])?;
    ensure!(refused["ended"] == "refused", "{refused}");
    let is_failed = |line: &Value| line["relay"] == "kernel" && line["response_flags"] == "CONNECT";
    mesh.a.wait_access_log("the connect that failed", is_failed)?;
    Ok(())
}

fn without_the_setting_or_the_permission_everything_stays_on_tls(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = given(ground)?;
    mesh.policies(&format!("{STRICT}{ONLY_CLIENT}"))?;
    mesh.workloads[0].same_node = Some("tls");
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    mesh.watched("the client says tls", || {
        for _ in 0..3 {
            must_serve(&mesh)?;
        }
        Ok(())
    })?;
    for _ in 0..2 {
        let denied = probe(&mesh.other, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
        ensure!(is_unserved(&denied), "{denied}");
    }
    ensure!(kernel_lines(&mesh).is_empty(), "{:?}", kernel_lines(&mesh));
    Ok(())
}

fn what_is_no_longer_allowed_is_cut_on_the_kernel_path_too(ground: &Ground) -> anyhow::Result<()> {
    let mesh = started(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    for place in [&mesh.client, &mesh.other] {
        acquaint(&mesh, place)?;
    }
    let wait = ground.scale().of("15000", "90000");
    let cut = start_probe(&mesh.other, mesh.server.at(7000), &["--send", "live", "--wait-ms", wait])?;
    let spared = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "live", "--wait-ms", wait])?;
    wait_for_live(&mesh, 2)?;
    mesh.policies(&format!("{STRICT}{ONLY_CLIENT}"))?;
    let seen = last_line(&cut.finish(PATIENCE * 4)?)?;
    ensure!(seen["ended"] == "reset" && seen["text"] == "live", "the other's connection: {seen}");
    let line = mesh.a.wait_access_log("the cut", |line| {
        line["relay"] == "kernel"
            && line["direction"] == "inbound"
            && line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/other"
            && line["response_flags"] == "POLICY_CHANGED"
    })?;
    ensure!(line["verdict"] == "deny", "{line}");
    let denied = probe(&mesh.other, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(is_unserved(&denied), "{denied}");
    let seen = last_line(&spared.finish(PATIENCE * 4)?)?;
    ensure!(seen["ended"] == "open" && seen["text"] == "live", "the allowed connection: {seen}");
    Ok(())
}

/// Waits until so many connections on the kernel path are listed.
fn wait_for_live(mesh: &Mesh, wanted: usize) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("{wanted} live connections on the kernel path"), || {
        let listed = mesh.a.ctl_json(&["connections"])?;
        let rows = listed["connections"].as_array().cloned().unwrap_or_default();
        let clients = rows.iter().filter(|row| row["relay"] == "kernel" && row["direction"] == "outbound");
        Ok(clients.count() == wanted)
    })
}

fn a_connection_on_the_kernel_path_outlives_the_daemon_and_is_cut_by_the_next(
    ground: &Ground,
) -> anyhow::Result<()> {
    let mut mesh = started(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    acquaint(&mesh, &mesh.other)?;
    let wait = ground.scale().of("30000", "240000");
    let living = start_probe(&mesh.other, mesh.server.at(7000), &["--send", "live", "--wait-ms", wait])?;
    wait_for_live(&mesh, 1)?;
    mesh.a.kill()?;
    mesh.a.start()?;
    wait_for_live(&mesh, 1)?;
    mesh.policies(&format!("{STRICT}{ONLY_CLIENT}"))?;
    let seen = last_line(&living.finish(PATIENCE * 8)?)?;
    ensure!(seen["ended"] == "reset" && seen["text"] == "live", "{seen}");
    let line = mesh.a.wait_access_log("the cut", |line| {
        line["relay"] == "kernel" && line["response_flags"] == "POLICY_CHANGED"
    })?;
    ensure!(line["peer_spiffe_id"].as_str().is_some_and(|id| id.contains("/ns/shop/sa/")), "{line}");
    Ok(())
}

fn an_address_that_somebody_else_answers_for_gets_no_byte(ground: &Ground) -> anyhow::Result<()> {
    let mesh = started(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    acquaint(&mesh, &mesh.client)?;
    drop(server);
    // The server's pod loses its address to one that no mesh knows.
    let address = format!("{}/24", mesh.server.v4);
    mesh.server.run(&["ip", "address", "del", &address, "dev", "eth0"])?.succeeded()?;
    mesh.outsider.run(&["ip", "address", "add", &address, "dev", "eth0"])?.succeeded()?;
    mesh.client.run(&["ip", "neighbour", "flush", "all"])?.succeeded()?;
    let thief = serve(&mesh.outsider, 7000, &["--banner", "stolen"])?;
    let robbed = start_probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER])?;
    wait_until(PATIENCE, "the thief's answer to be dropped", || {
        Ok(mesh.a.metric("meshd_bpf_events_total", &["kernel_path_forged"])? >= 1)
    })?;
    ensure!(!robbed.stdout().contains("connected"), "{}", robbed.stdout());
    ensure!(!thief.stdout().contains("accepted"), "{}", thief.stdout());
    Ok(())
}
