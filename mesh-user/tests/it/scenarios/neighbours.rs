//! Other agents' programs on the same cgroup, and the canary that finds out when they break capture.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;

use crate::it::foreign::{Count, Foreign};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, is_unserved, last_line, must_serve, probe, serve};
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Daemon 90:
        programs_attached_before_and_after_meshd_go_on_working,
        a_program_that_takes_our_callbacks_costs_the_node_no_probe,
        a_canary_killed_midway_leaves_nothing_after_the_next_start,
        a_canary_that_fails_stops_the_start_and_opens_nothing,
];

fn programs_attached_before_and_after_meshd_go_on_working(ground: &Ground) -> anyhow::Result<()> {
    let watchers = ["watch_connect", "watch_rtt"];
    let before = Foreign::attach(ground.cgroup(), &watchers)?;
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let counts = |foreign: &Foreign| -> anyhow::Result<[u64; 2]> {
        Ok([foreign.count(Count::Connects)?, foreign.count(Count::RttCallbacks)?])
    };
    let heard = |name: &str, foreign: &Foreign| -> anyhow::Result<()> {
        // meshd's own probes at start are over: what comes now is the client's.
        let before = counts(foreign)?;
        let tap = mesh.watched(name, || must_serve(&mesh))?;
        tap.must_be_tls_between(mesh.client.v4.into(), mesh.server.at(7000))?;
        let after = counts(foreign)?;
        ensure!(after[0] > before[0], "{name} saw no connect");
        // It asked for them on the captured socket, whose callbacks meshd asks for too.
        ensure!(after[1] > before[1], "{name} lost its callbacks");
        Ok(())
    };
    heard("attached-before", &before)?;
    let after = Foreign::attach(ground.cgroup(), &watchers)?;
    heard("attached-after", &after)?;
    mesh.a.stop()?.succeeded()?;
    mesh.b.stop()?.succeeded()?;
    let connects = [before.count(Count::Connects)?, after.count(Count::Connects)?];
    probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    let later = [before.count(Count::Connects)?, after.count(Count::Connects)?];
    ensure!(
        later[0] > connects[0] && later[1] > connects[1],
        "meshd took them along: {connects:?} {later:?}"
    );
    Ok(())
}

fn a_program_that_takes_our_callbacks_costs_the_node_no_probe(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    // The smallest table of the node's own connections has 4096 entries; without callbacks none is ever removed.
    mesh.limits = serde_json::json!({ "connections": 64 });
    mesh.start()?;
    let _careless = Foreign::attach(ground.cgroup(), &["forget_callbacks"])?;
    let _server = serve(&mesh.server, 7000, &["--echo", "--quiet"])?;
    let to = mesh.server.at(7000).to_string();
    let probes = crate::it::peer::command_line(&["short", &to, "--count", "5000"]);
    let seen = last_line(&mesh.b.place.launch("probes", &probes).finish(PATIENCE * 6)?)?;
    ensure!(seen["failed"] == 0, "probes of the node were refused: {seen}");
    ensure!(
        mesh.b.metric("meshd_bpf_events_total", &["passed_host_client"])? >= 5000,
        "they did not pass as such"
    );
    must_serve(&mesh)
}

/// Cgroups that canaries made.
fn canary_cgroups(ground: &Ground) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(ground.cgroup())?.flatten();
    let canary = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().contains("canary"));
    Ok(entries.map(|entry| entry.path()).filter(canary).collect())
}

fn a_canary_killed_midway_leaves_nothing_after_the_next_start(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.a.canary = true;
    mesh.configure()?;
    mesh.a.launch()?;
    let limit = std::time::Instant::now() + PATIENCE;
    while canary_cgroups(ground)?.is_empty() {
        ensure!(std::time::Instant::now() < limit, "no canary was seen: {}", mesh.a.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    mesh.a.kill()?;
    let left = mesh.a.runtime_dir().join("canary");
    ensure!(
        !canary_cgroups(ground)?.is_empty() && left.exists(),
        "nothing was left: this test would prove nothing"
    );
    mesh.start()?;
    let groups = canary_cgroups(ground)?;
    ensure!(groups.is_empty(), "cgroups left: {groups:?}");
    ensure!(!left.exists(), "{} is left", left.display());
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&*left.to_string_lossy()), "its mount is left");
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)
}

fn a_canary_that_fails_stops_the_start_and_opens_nothing(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    mesh.a.kill()?;
    let foreign = Foreign::attach(ground.cgroup(), &["refuse_connect"])?;
    mesh.a.canary = true;
    mesh.configure()?;
    mesh.a.launch()?;
    let meshd = mesh.a.meshd()?;
    wait_until(PATIENCE * 2, "meshd to give up", || Ok(!meshd.is_running()))?;
    let said = mesh.a.log();
    ensure!(said.contains("connect redirect") && said.contains("not permitted"), "{said}");
    ensure!(foreign.count(Count::Connects)? > 0, "the neighbour had no hand in it");
    drop(foreign);
    ensure!(canary_cgroups(ground)?.is_empty(), "the canary's cgroup is left");
    // What the killed daemon had captured is still refused, and nobody can wait for it in meshd's place.
    let squat = crate::it::peer::command_line(&["serve", "127.0.0.1:15001"]);
    let said = mesh.client.launch("squatter", &squat).finish(PATIENCE)?.failed()?;
    ensure!(said.contains("in use"), "{said}");
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--wait-ms", "2000"])?;
    ensure!(is_unserved(&seen), "after a failed start: {seen}");
    mesh.a.start()?;
    must_serve(&mesh)
}
