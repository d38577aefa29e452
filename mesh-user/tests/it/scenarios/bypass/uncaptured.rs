//! What TCP capture cannot see: with `capture.uncaptured: pass` it passes, with `refuse` a STRICT workload is refused it.

use std::net::IpAddr;

use anyhow::ensure;
use serde_json::Value;

use super::{attempt, attempted, must_have_seen};
use crate::it::daemon::Node;
use crate::it::foreign::Foreign;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, PERMISSIVE, STRICT, accepted, json_lines, last_line, must_serve, probe, serve,
};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, Program};

pub(in crate::it::scenarios) const STORIES: &[Story] = stories![
    Daemon 120:
        what_capture_cannot_see_passes_unless_the_file_says_otherwise,
        a_strict_workload_sends_no_datagram_to_the_mesh,
        a_strict_workload_is_given_no_socket_that_capture_cannot_see,
        a_strict_workload_serves_no_datagrams_on_a_port_of_its_choice,
        a_mode_that_changes_holds_for_sockets_that_are_open,
        a_datagram_socket_older_than_meshd_is_known_by_its_address,
        a_connection_older_than_meshd_goes_on_as_it_was,
        a_program_that_rewrites_after_ours_reaches_nobody,
        meshd_itself_is_refused_nothing;
];

fn refuse(node: &mut Node) {
    node.capture.insert("uncaptured".into(), "refuse".into());
}

fn refusing(ground: &Ground) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::given(ground)?;
    refuse(&mut mesh.a);
    refuse(&mut mesh.b);
    mesh.start()?;
    Ok(mesh)
}

fn counted(node: &Node, event: &str) -> anyhow::Result<i64> {
    node.metric("meshd_bpf_events_total", &[&format!("event=\"{event}\"")])
}

/// Answers datagrams in `place`.
fn receive(place: &Place) -> anyhow::Result<Program> {
    let mut receiver = attempt(place, &["receive", "7053"])?;
    receiver.wait_to_say("listening", PATIENCE)?;
    Ok(receiver)
}

/// Anybody may send echo requests without a raw socket.
fn let_ping(place: &Place) -> anyhow::Result<()> {
    place.run(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647"])?.succeeded()?;
    Ok(())
}

/// Datagrams of every way from one place to another.
fn datagrams(from: &Place, to: &Place) -> anyhow::Result<Vec<Value>> {
    let (v4, v6) = (to.v4.to_string(), to.v6.to_string());
    attempted(from, &["datagrams", &v4, &v6, "7053"])
}

fn all_saw(lines: &[Value], saw: &str) -> anyhow::Result<()> {
    ensure!(lines.len() == 7, "{lines:?}");
    match lines.iter().find(|line| line["saw"] != saw) {
        None => Ok(()),
        Some(line) => Err(anyhow::anyhow!("not {saw}: {line}")),
    }
}

/// Nobody was answered, and whoever could be told was. The kernel keeps the error of an IPv6 ping to itself.
fn all_refused(lines: &[Value]) -> anyhow::Result<()> {
    let (silent, told): (Vec<Value>, Vec<Value>) = lines
        .iter()
        .cloned()
        .partition(|line| line["case"] == "ping" && line["host"].to_string().contains(':'));
    ensure!(told.len() == 6 && told.iter().all(|line| line["saw"] == "EPERM"), "{told:?}");
    ensure!(silent.iter().all(|line| line["saw"] == "timeout" || line["saw"] == "EPERM"), "{silent:?}");
    Ok(())
}

/// A packet of an outsider's, so that a capture of nothing else is a witness.
fn knock(mesh: &Mesh) -> anyhow::Result<()> {
    let seen = probe(&mesh.outsider, mesh.a.place.at(7999), &[])?;
    ensure!(seen["connect"] == "refused", "{seen}");
    Ok(())
}

fn what_capture_cannot_see_passes_unless_the_file_says_otherwise(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let_ping(&mesh.client)?;
    let _receiver = receive(&mesh.server)?;
    let capture = mesh.capture("passed")?;
    all_saw(&datagrams(&mesh.client, &mesh.server)?, MARKER)?;
    ensure!(capture.stop()?.find(MARKER.as_bytes()).is_some(), "nobody encrypts datagrams");
    let kinds = attempted(&mesh.client, &["kinds"])?;
    must_have_seen(&kinds, &[("raw_tcp", "given"), ("tcp", "given")])
}

fn a_strict_workload_sends_no_datagram_to_the_mesh(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let_ping(&mesh.client)?;
    // Older than meshd: its port is not refused to it.
    let receiver = receive(&mesh.server)?;
    refuse(&mut mesh.a);
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let _outside = receive(&mesh.outsider)?;
    mesh.watched("refused", || {
        all_refused(&datagrams(&mesh.client, &mesh.server)?)?;
        let (host, via) = (mesh.server.v4.to_string(), mesh.outsider.v4.to_string());
        let routed = attempted(&mesh.client, &["source-route", &host, "7053", &via])?;
        must_have_seen(&routed, &[("by another, datagram", "EPERM"), ("by the host, datagram", "EPERM")])?;
        must_serve(&mesh)
    })?;
    ensure!(!receiver.stdout().contains("received"), "{}", receiver.stdout());
    ensure!(counted(&mesh.a, "uncaptured_dropped")? >= 7, "{}", mesh.a.metrics()?);
    // The mesh is what is guarded, not the rest of the world.
    let outside = datagrams(&mesh.client, &mesh.outsider)?;
    all_saw(&outside, MARKER)?;
    // The kernel's own answers and resets go their way: an outsider's ping is answered.
    let_ping(&mesh.outsider)?;
    let pinged = datagrams(&mesh.outsider, &mesh.client)?;
    let answers = pinged.iter().filter(|line| line["case"] == "ping" && line["saw"] == MARKER).count();
    ensure!(answers == 2, "{pinged:?}");
    Ok(())
}

fn a_strict_workload_is_given_no_socket_that_capture_cannot_see(ground: &Ground) -> anyhow::Result<()> {
    let mesh = refusing(ground)?;
    // Where the kernel has it at all.
    let _ = mesh.outsider.run(&["modprobe", "sctp"]);
    let outside = attempted(&mesh.outsider, &["kinds"])?;
    must_have_seen(&outside, &[("raw_tcp", "given"), ("raw_v6", "given")])?;
    let inside = attempted(&mesh.client, &["kinds"])?;
    let refused = ["raw_tcp", "raw_any", "raw_icmp", "raw_v6"].map(|case| (case, "EPERM"));
    must_have_seen(&inside, &refused)?;
    must_have_seen(&inside, &[("tcp", "given"), ("udp", "given")])?;
    let mut count = 4;
    // Linux 7 has no UDP-Lite, and SCTP is a module.
    for case in ["udplite", "sctp", "sctp_v6"] {
        if outside.iter().any(|line| line["case"] == case && line["saw"] == "given") {
            must_have_seen(&inside, &[(case, "EPROTONOSUPPORT")])?;
            count += 1;
        }
    }
    // No hook of a cgroup sees these families: docs/security-model.md says what becomes of them.
    must_have_seen(&inside, &[("packet", "given")])?;
    let seen = counted(&mesh.a, "uncaptured_socket_refused")?;
    ensure!(seen == count, "{seen} counted, {count} refused: {inside:?}");
    Ok(())
}

fn a_strict_workload_serves_no_datagrams_on_a_port_of_its_choice(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.workloads[2].exclude_inbound_ports = vec![7053];
    refuse(&mut mesh.b);
    mesh.start()?;
    let bound = attempted(&mesh.server, &["binds", "5353"])?;
    must_have_seen(
        &bound,
        &[
            ("0.0.0.0 5353", "EPERM"),
            (":: 5353", "EPERM"),
            ("127.0.0.1 5353", "bound"),
            ("::1 5353", "bound"),
            ("0.0.0.0 0", "bound"),
            // The file excludes it.
            ("0.0.0.0 7053", "bound"),
        ],
    )?;
    ensure!(counted(&mesh.b, "uncaptured_bind_refused")? == 2, "{}", mesh.b.metrics()?);
    // What answers on an excluded port answers the mesh too.
    let _receiver = receive(&mesh.server)?;
    let_ping(&mesh.client)?;
    let seen = datagrams(&mesh.client, &mesh.server)?;
    must_have_seen(&seen, &[("sendto", MARKER), ("connected", MARKER), ("mapped", MARKER)])
}

fn a_mode_that_changes_holds_for_sockets_that_are_open(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.policies(PERMISSIVE)?;
    refuse(&mut mesh.a);
    mesh.start()?;
    let _receiver = receive(&mesh.server)?;
    let_ping(&mesh.client)?;
    all_saw(&datagrams(&mesh.client, &mesh.server)?, MARKER)?;
    let go = ground.dir().join("go").to_string_lossy().into_owned();
    // An address that the file does not name: only the socket itself can say whose it is.
    mesh.client.run(&["ip", "addr", "add", "10.201.0.98/24", "dev", "eth0"])?.succeeded()?;
    let mut open =
        attempt(&mesh.client, &["later", &go, &mesh.server.v4.to_string(), "7053", "10.201.0.98"])?;
    open.wait_to_say("waiting", PATIENCE)?;
    mesh.policies(STRICT)?;
    mesh.a.ctl(&["reload"])?.succeeded()?;
    mesh.watched("tightened", || {
        knock(&mesh)?;
        std::fs::write(&go, "")?;
        let seen = last_line(&open.finish(PATIENCE)?)?;
        ensure!(seen["saw"] == "EPERM", "{seen}");
        all_refused(&datagrams(&mesh.client, &mesh.server)?)
    })?;
    Ok(())
}

fn a_datagram_socket_older_than_meshd_is_known_by_its_address(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    refuse(&mut mesh.a);
    let _receiver = receive(&mesh.server)?;
    let go = ground.dir().join("go").to_string_lossy().into_owned();
    let hosts = [mesh.server.v4.to_string(), mesh.server.v6.to_string()];
    let mut old = Vec::new();
    for host in &hosts {
        let mut one = attempt(&mesh.client, &["later", &go, host, "7053"])?;
        one.wait_to_say("waiting", PATIENCE)?;
        old.push(one);
    }
    mesh.start()?;
    mesh.watched("old", || {
        knock(&mesh)?;
        std::fs::write(&go, "")?;
        for one in old {
            let seen = last_line(&one.finish(PATIENCE)?)?;
            ensure!(seen["saw"] == "EPERM", "{seen}");
        }
        Ok(())
    })?;
    Ok(())
}

fn a_connection_older_than_meshd_goes_on_as_it_was(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    refuse(&mut mesh.a);
    refuse(&mut mesh.b);
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let go = ground.dir().join("go").to_string_lossy().into_owned();
    let mut old = attempt(&mesh.client, &["standing", &go, &mesh.server.v4.to_string(), "7000"])?;
    old.wait_to_say("waiting", PATIENCE)?;
    mesh.start()?;
    std::fs::write(&go, "")?;
    let said = json_lines(&old.finish(PATIENCE)?.succeeded()?);
    must_have_seen(&said, &[("first", "first"), ("later", "later")])
}

fn a_program_that_rewrites_after_ours_reaches_nobody(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    let before = accepted(&server);
    let host = mesh.server.v4.to_string();
    let rewriting = |to| {
        let mut foreign = Foreign::attach(ground.cgroup(), &["rewrite_connect"])?;
        foreign.lead_to(to, 7000)?;
        anyhow::Ok(foreign)
    };
    let undone = rewriting(mesh.server.v4)?;
    // What a STRICT server is told in plaintext it does not hear, but the client has said it.
    let seen = attempted(&mesh.client, &["connect", &host, "7000"])?;
    ensure!(seen[0]["saw"] != MARKER, "{seen:?}");
    ensure!(counted(&mesh.a, "capture_undone")? > 0, "nobody notices: {}", mesh.a.metrics()?);
    drop(undone);
    mesh.a.stop()?.succeeded()?;
    refuse(&mut mesh.a);
    mesh.configure()?;
    mesh.a.start()?;
    let foreign = rewriting(mesh.server.v4)?;
    let tap = mesh.watched("rewritten", || {
        let seen = attempted(&mesh.client, &["connect", &host, "7000"])?;
        ensure!(seen[0]["saw"] == "timeout", "{seen:?}");
        knock(&mesh)
    })?;
    let sent = tap.streams_with(IpAddr::V4(mesh.server.v4), 7000).count();
    ensure!(sent == 0, "its SYN left: {}", tap.summary());
    ensure!(counted(&mesh.a, "uncaptured_dropped")? > 0, "{}", mesh.a.metrics()?);
    ensure!(accepted(&server) == before, "{}", server.stdout());
    drop(foreign);
    must_serve(&mesh)
}

fn meshd_itself_is_refused_nothing(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    refuse(&mut mesh.a);
    mesh.a.capture.insert("form".into(), "hold".into());
    mesh.start()?;
    // It answers a held connect from a raw socket in the workload's namespace.
    for _ in 0..2 {
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER])?;
        ensure!(seen["connect"] == "refused", "{seen}");
        mesh.a.kill()?;
        mesh.a.start()?;
    }
    ensure!(counted(&mesh.a, "uncaptured_socket_refused")? == 0, "{}", mesh.a.metrics()?);
    Ok(())
}
