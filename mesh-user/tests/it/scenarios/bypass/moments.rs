//! The moments at which capture comes, goes or changes hands, and what an attacker makes of them.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::attempt;
use crate::it::capture::Capture;
use crate::it::daemon::Node;
use crate::it::foreign::Foreign;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, is_unserved, json_lines, last_line, must_serve, probe, serve, serve_at, start_probe,
    wait_event,
};
use crate::it::nodefile::{Workload, node_file};
use crate::it::process::{PATIENCE, Program, wait_until};

pub(in crate::it::scenarios) const STORIES: &[Story] = stories![
    Daemon 180:
        a_client_that_races_its_enrolment_is_served_as_itself_or_not_at_all,
        daemons_killed_at_any_moment_let_nothing_past,
        stopped_daemons_let_nothing_past;
    Daemon 120:
        ports_that_a_workload_took_first_keep_it_from_nothing,
        a_hook_of_an_older_version_goes_when_its_successor_comes,
        an_address_that_changes_hands_is_not_believed_before_the_file_says_so;
];

/// Exchanges numbered texts with the server until the file is there.
fn hammer(mesh: &Mesh, from: &crate::it::netns::Place, file: &str, prefix: &str) -> anyhow::Result<Program> {
    let mut hammer = attempt(from, &["hammer", file, &mesh.server.v4.to_string(), "7000", prefix])?;
    hammer.wait_to_say("begun", PATIENCE)?;
    Ok(hammer)
}

/// What was answered, and how many were not.
fn outcome(hammer: Program, file: &str) -> anyhow::Result<(Vec<String>, u64)> {
    std::fs::write(file, "")?;
    let said = last_line(&hammer.finish(PATIENCE * 2)?)?;
    let answered: Vec<String> = serde_json::from_value(said["answered"].clone())?;
    Ok((answered, said["failed"].as_u64().context("no count of failures")?))
}

fn a_client_that_races_its_enrolment_is_served_as_itself_or_not_at_all(
    ground: &Ground,
) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let stop = ground.dir().join("stop").to_string_lossy().into_owned();
    let capture = Capture::start_of_heads(&mesh.wire, "racing")?;
    let racer = hammer(&mesh, &mesh.outsider, &stop, "RACE")?;
    std::thread::sleep(Duration::from_millis(300));
    mesh.workloads.push(Workload::pod(&mesh.outsider, "node-a"));
    mesh.configure()?;
    mesh.a.ctl(&["reload"])?.succeeded()?;
    mesh.b.ctl(&["reload"])?.succeeded()?;
    wait_event(&server, "the newcomer", |event| event["event"] == "accepted")?;
    std::thread::sleep(Duration::from_millis(500));
    let (answered, failed) = outcome(racer, &stop)?;
    let tap = capture.stop()?;
    ensure!(!answered.is_empty() && failed > 0, "no race: {} answered, {failed} not", answered.len());
    for text in &answered {
        ensure!(tap.find(text.as_bytes()).is_none(), "{text} was answered and is readable on the wire");
    }
    let accepted: Vec<Value> = json_lines(&server.stdout());
    let accepted = accepted.iter().filter(|event| event["event"] == "accepted").count();
    let proven = || {
        let newcomer = |line: &&Value| line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/outsider";
        mesh.b.access_log().iter().filter(newcomer).count()
    };
    wait_until(PATIENCE, "every connection that the server accepted to be one of the newcomer's own", || {
        Ok(proven() >= accepted)
    })
}

fn daemons_killed_at_any_moment_let_nothing_past(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo", "--quiet"])?;
    must_serve(&mesh)?;
    let stop = ground.dir().join("stop").to_string_lossy().into_owned();
    let capture = Capture::start_of_heads(&mesh.wire, "killed")?;
    let mut client = hammer(&mesh, &mesh.client, &stop, MARKER)?;
    // Before the first kill: at the end its waiting exchanges may last longer than it is given.
    client.wait_to_say("served", PATIENCE)?;
    let (rounds, step_ms) = ground.scale().of((16, 40), (3, 4000));
    for round in 0..rounds {
        // In the midst of handshakes and relays, then at a later moment of its start each time.
        for node in [&mut mesh.a, &mut mesh.b] {
            node.kill()?;
            node.launch()?;
        }
        std::thread::sleep(Duration::from_millis(round * step_ms));
    }
    for node in [&mut mesh.a, &mut mesh.b] {
        node.wait_ready()?;
    }
    must_serve(&mesh)?;
    let (answered, failed) = outcome(client, &stop)?;
    ensure!(!answered.is_empty() && failed > 0, "{} answered, {failed} not", answered.len());
    capture.stop()?.must_not_show(MARKER)
}

fn stopped_daemons_let_nothing_past(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let signal = |mesh: &mut Mesh, signal| {
        mesh.a.meshd()?.signal(signal)?;
        mesh.b.meshd()?.signal(signal)
    };
    let capture = mesh.capture("stopped")?;
    signal(&mut mesh, Signal::SIGSTOP)?;
    let options = ["--send", MARKER, "--shutdown", "--wait-ms", "60000"];
    let waiting = start_probe(&mesh.client, mesh.server.at(7000), &options)?;
    let knock = ["--send", "knock knock", "--wait-ms", "60000"];
    let stranger = start_probe(&mesh.outsider, mesh.server.at(7000), &knock)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!server.stdout().contains("accepted"), "{}", server.stdout());
    signal(&mut mesh, Signal::SIGCONT)?;
    let seen = last_line(&waiting.finish(PATIENCE * 2)?)?;
    ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
    let seen = last_line(&stranger.finish(PATIENCE * 2)?)?;
    ensure!(is_unserved(&seen), "{seen}");
    capture.stop()?.must_not_show(MARKER)
}

fn ports_that_a_workload_took_first_keep_it_from_nothing(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let squatters = [
        serve_at(&mesh.client, "127.0.0.1:15001", &["--echo"])?,
        serve_at(&mesh.client, "[::1]:15006", &["--echo"])?,
        serve_at(&mesh.server, "[::]:15006", &["--echo"])?,
    ];
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let closed = |mesh: &Mesh| {
        let options = ["--send", MARKER, "--wait-ms", "2000"];
        let seen = probe(&mesh.client, mesh.server.at(7000), &options)?;
        ensure!(is_unserved(&seen), "{seen}");
        anyhow::Ok(())
    };
    mesh.watched("taken", || must_serve(&mesh))?;
    let seen = probe(&mesh.outsider, mesh.server.at(7000), &["--send", "knock knock", "--wait-ms", "2000"])?;
    ensure!(is_unserved(&seen), "the server has lost its guard: {seen}");
    // Neither does a daemon that dies hand its clients to whoever waits there.
    mesh.a.kill()?;
    mesh.watched("taken-dead", || {
        closed(&mesh)?;
        // So that there is something on the wire.
        probe(&mesh.outsider, mesh.server.at(7000), &["--send", "knock knock", "--wait-ms", "2000"]).map(drop)
    })?;
    mesh.a.start()?;
    mesh.watched("taken-again", || must_serve(&mesh))?;
    for squatter in &squatters {
        ensure!(!squatter.stdout().contains("accepted"), "{}", squatter.stdout());
    }
    Ok(())
}

/// Names of the programs on the story's cgroup.
fn attached(mesh: &Mesh, ground: &Ground) -> anyhow::Result<String> {
    let cgroup = ground.cgroup().to_string_lossy().into_owned();
    mesh.outsider.run(&["bpftool", "-j", "cgroup", "show", &cgroup])?.succeeded()
}

fn a_hook_of_an_older_version_goes_when_its_successor_comes(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    mesh.a.kill()?;
    // A hook that this version does not know, pinned as meshd pins its own; a map of another shape in place of ours.
    let old = Foreign::attach(ground.cgroup(), &["watch_connect"])?;
    let links = mesh.outsider.run(&["bpftool", "-j", "link", "show"])?.succeeded()?;
    let links: Vec<Value> = serde_json::from_str(&links)?;
    let newest = links.iter().filter_map(|link| link["id"].as_u64()).max().context("no link")?;
    let pins = mesh.a.runtime_dir().join("bpf");
    let at = |name: &str| pins.join(name).to_string_lossy().into_owned();
    let bpftool = |args: &[&str]| mesh.outsider.run(&[&["bpftool"], args].concat())?.succeeded();
    bpftool(&["link", "pin", "id", &newest.to_string(), &at("link-older")])?;
    std::fs::remove_file(pins.join("map-STATS"))?;
    let map = at("map-STATS");
    bpftool(&[
        "map", "create", &map, "type", "array", "key", "4", "value", "4", "entries", "1", "name", "x",
    ])?;
    drop(old);
    ensure!(attached(&mesh, ground)?.contains("watch_connect"), "the pin does not hold it");
    mesh.a.start()?;
    ensure!(!attached(&mesh, ground)?.contains("watch_connect"), "the older version's hook goes on");
    mesh.watched("newer", || must_serve(&mesh))?;
    ensure!(mesh.a.metric("meshd_bpf_events_total", &["captured"])? > 0, "{}", mesh.a.metrics()?);
    Ok(())
}

fn an_address_that_changes_hands_is_not_believed_before_the_file_says_so(
    ground: &Ground,
) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    must_be_reached(&mesh, "server")?;
    // The server's pod is gone; another of the same node gets its address, and node a has not heard of it.
    let address = mesh.server.v4;
    let on_wire = format!("{address}/24");
    mesh.server.run(&["ip", "addr", "del", &on_wire, "dev", "eth0"])?.succeeded()?;
    mesh.outsider.run(&["ip", "addr", "add", &on_wire, "dev", "eth0"])?.succeeded()?;
    for place in [&mesh.client, &mesh.a.place, &mesh.b.place] {
        place.run(&["ip", "neigh", "flush", "all"])?.succeeded()?;
    }
    mesh.workloads[2].addresses.retain(|known| *known != address);
    let mut heir = Workload::pod(&mesh.outsider, "node-b");
    heir.addresses.push(address.into());
    mesh.workloads.push(heir);
    tell(&mesh, &mesh.b)?;
    let server = serve(&mesh.outsider, 7000, &["--echo"])?;
    mesh.watched("heir", || {
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--wait-ms", "3000"])?;
        ensure!(is_unserved(&seen), "{seen}");
        Ok(())
    })?;
    ensure!(!server.stdout().contains("accepted"), "{}", server.stdout());
    mesh.a.wait_access_log("who it was", |line| {
        line["response_flags"] == "TLS_FAILURE" && line["error"].to_string().contains("/sa/outsider")
    })?;
    tell(&mesh, &mesh.a)?;
    must_serve(&mesh)?;
    must_be_known(&mesh, "outsider")
}

/// A connection from the client is served by the workload of this service account.
fn must_be_reached(mesh: &Mesh, account: &str) -> anyhow::Result<()> {
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(mesh)?;
    must_be_known(mesh, account)
}

fn must_be_known(mesh: &Mesh, account: &str) -> anyhow::Result<()> {
    let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    mesh.a
        .wait_access_log(account, |line| line["peer_spiffe_id"] == *id && line["verdict"] == "allow")
        .map(drop)
}

/// One node hears of the story's workloads.
fn tell(mesh: &Mesh, node: &Node) -> anyhow::Result<()> {
    node.configure(&node_file(node, &mesh.workloads, &mesh.services))?;
    node.ctl(&["reload"])?.succeeded().map(drop)
}
