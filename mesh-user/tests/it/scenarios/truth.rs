//! What programs are told about their connections is what they would be told without a mesh.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, json_lines, probe, serve, serve_at, start_probe, wait_event};
use crate::it::process::PATIENCE;

pub(super) const STORIES: &[Story] = stories![
    Daemon 90:
        client_and_server_are_told_each_others_real_addresses,
        a_server_older_than_meshd_is_told_the_truth,
        a_client_with_several_addresses_is_told_the_one_on_the_wire,
        every_listener_of_a_shared_port_is_reached,
        a_destination_outside_the_mesh_is_left_alone,
        a_program_outside_the_mesh_is_left_alone,
        a_workload_reaches_its_own_address_without_meshd,
        an_mptcp_socket_is_refused_to_the_enrolled_only,
];

/// Connects to a server that tells the truth; what the client was told, and what the server.
pub(super) fn views(mesh: &Mesh, to: SocketAddr, options: &[&str]) -> anyhow::Result<(Value, Value)> {
    let finished = start_probe(&mesh.client, to, options)?.finish(PATIENCE)?;
    let lines = json_lines(&finished.stdout);
    let client = lines.iter().find(|line| line["event"] == "connected").context(finished.stdout.clone())?;
    let told = lines.last().and_then(|line| line["text"].as_str()).context(finished.stdout.clone())?;
    Ok((client.clone(), serde_json::from_str(told).with_context(|| format!("the server said {told:?}"))?))
}

/// Connects and compares what both sides were told.
fn told_the_truth(mesh: &Mesh, to: SocketAddr, options: &[&str]) -> anyhow::Result<()> {
    let (connected, server) = views(mesh, to, options)?;
    let own: SocketAddr = field(&connected, "local")?;
    let client_host: std::net::IpAddr =
        if to.is_ipv4() { mesh.client.v4.into() } else { mesh.client.v6.into() };
    ensure!(field(&connected, "peer")? == to, "getpeername of the client: {connected}");
    ensure!(own.ip() == client_host, "getsockname of the client: {connected}");
    ensure!(field(&server, "accepted")? == own, "accept of the server says {server}, the client is {own}");
    ensure!(field(&server, "peer")? == own, "getpeername of the server says {server}, the client is {own}");
    ensure!(field(&server, "local")? == to, "getsockname of the server: {server}");
    Ok(())
}

/// A socket address; one that is v4-mapped counts as the IPv4 one it means.
pub(super) fn field(seen: &Value, name: &str) -> anyhow::Result<SocketAddr> {
    let text = seen[name].as_str().with_context(|| format!("no {name} in {seen}"))?;
    let address: SocketAddr = text.parse()?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn client_and_server_are_told_each_others_real_addresses(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _dual_stack = serve(&mesh.server, 7000, &["--truth"])?;
    let _only_v4 = serve_at(&mesh.server, "0.0.0.0:7001", &["--truth"])?;
    for options in [&[][..], &["--nonblocking"], &["--mapped"], &["--mapped", "--nonblocking"]] {
        for to in [mesh.server.at(7000), mesh.server.at(7001)] {
            told_the_truth(&mesh, to, options).with_context(|| format!("to {to} with {options:?}"))?;
        }
    }
    for options in [&[][..], &["--nonblocking"]] {
        told_the_truth(&mesh, mesh.server.at6(7000), options)
            .with_context(|| format!("IPv6 with {options:?}"))?;
    }
    mesh.must_have_relayed_by(ground.relay())
}

fn a_server_older_than_meshd_is_told_the_truth(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let _server = serve(&mesh.server, 7000, &["--truth"])?;
    mesh.start()?;
    told_the_truth(&mesh, mesh.server.at(7000), &[])?;
    mesh.must_have_relayed_by(ground.relay())
}

fn a_client_with_several_addresses_is_told_the_one_on_the_wire(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let second = std::net::Ipv4Addr::new(10, 201, 0, 99);
    mesh.client.run(&["ip", "addr", "add", &format!("{second}/24"), "dev", "eth0"])?.succeeded()?;
    // The file's first address of a family is the workload's, whatever the kernel would pick.
    mesh.workloads[0].addresses.insert(0, second.into());
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--truth"])?;
    let own = mesh.client.v4;
    // Unbound; bound by the program to either address, which it keeps.
    let bound = [format!("{own}:0"), format!("{second}:0")];
    let cases = [(&[][..], second), (&["--from", &bound[0]], own), (&["--from", &bound[1]], second)];
    for (options, expected) in cases {
        let capture = mesh.capture("addresses")?;
        let (client, server) = views(&mesh, mesh.server.at(7000), options)?;
        let local = field(&client, "local")?;
        ensure!(local.ip() == expected, "getsockname with {options:?}: {client}");
        let peer = field(&server, "peer")?;
        ensure!(peer.ip() == expected, "with {options:?} the server says {server}");
        // A program that bound an address holds the port there itself: the wire leg must have another.
        ensure!((peer.port() == local.port()) == options.is_empty(), "with {options:?}: {client} {server}");
        capture.stop()?.must_be_tls_between(expected.into(), mesh.server.at(7000))?;
    }
    Ok(())
}

fn every_listener_of_a_shared_port_is_reached(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--truth", "--reuseport", "3"])?;
    for _ in 0..40 {
        told_the_truth(&mesh, mesh.server.at(7000), &[])?;
    }
    for listener in 0..3 {
        wait_event(&server, &format!("listener {listener}"), |event| event["listener"] == listener)?;
    }
    mesh.must_have_relayed_by(ground.relay())
}

fn a_destination_outside_the_mesh_is_left_alone(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.outsider, 7000, &["--echo"])?;
    let capture = mesh.capture("untouched")?;
    let seen = probe(&mesh.client, mesh.outsider.at(7000), &["--send", MARKER, "--shutdown"])?;
    ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
    let tap = capture.stop()?;
    ensure!(tap.find(MARKER.as_bytes()).is_some(), "nobody there speaks TLS: {}", tap.summary());
    ensure!(mesh.a.access_log().is_empty(), "meshd had a hand in it: {:?}", mesh.a.access_log());
    Ok(())
}

fn a_program_outside_the_mesh_is_left_alone(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let refused = probe(&mesh.client, mesh.outsider.at(7000), &[])?;
    ensure!(refused["connect"] == "refused", "{refused}");
    let _server = serve(&mesh.b.place, 7000, &["--echo"])?;
    let seen = probe(&mesh.outsider, mesh.b.place.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(seen["text"] == "x" && seen["ended"] == "eof", "{seen}");
    Ok(())
}

fn a_workload_reaches_its_own_address_without_meshd(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.client, 7000, &["--truth"])?;
    for own in [mesh.client.at(7000), mesh.client.at6(7000)] {
        told_the_truth(&mesh, own, &[])?;
    }
    ensure!(mesh.a.access_log().is_empty(), "meshd had a hand in it: {:?}", mesh.a.access_log());
    mesh.a.kill()?;
    told_the_truth(&mesh, mesh.client.at6(7000), &[])
}

fn an_mptcp_socket_is_refused_to_the_enrolled_only(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let ask = |place: &crate::it::netns::Place| {
        let peer = place.launch("mptcp", &crate::it::peer::command_line(&["mptcp"]));
        crate::it::mesh::last_line(&peer.finish(PATIENCE)?)
    };
    let enrolled = ask(&mesh.client)?;
    ensure!(enrolled["socket"] == "refused", "{enrolled}");
    if std::path::Path::new("/proc/sys/net/mptcp/enabled").exists() {
        let outsider = ask(&mesh.outsider)?;
        ensure!(outsider["socket"] == "given", "{outsider}");
    }
    Ok(())
}
