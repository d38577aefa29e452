//! The daemon's own comings and goings: kill, restart, clean stop, clean-up, reload, two daemons side by side.

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

use crate::it::ground::{Ground, NETNS_DIR};
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, ONLY_CLIENT, STRICT, is_unserved, last_line, must_serve, probe, serve, start_probe,
    wait_event,
};
use crate::it::nodefile::{Workload, node_file};
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    EveryRelay 90:
        after_kill_nine_no_plaintext_passes_and_a_restart_serves_again;
    Daemon 90:
        a_clean_stop_removes_everything,
        cleanup_removes_what_a_killed_daemon_left,
        a_bad_file_on_reload_keeps_the_old_configuration,
        a_reload_enrols_a_new_workload_and_keeps_connections,
        a_reload_says_how_many_connections_it_closed,
        a_reload_that_does_not_fit_the_maps_is_refused_and_told,
        a_broken_policy_file_keeps_the_old_policies,
        two_daemons_do_not_touch_each_others_workloads,
        a_second_daemon_on_the_same_runtime_folder_is_refused,
];

/// Enrolled clients and outsiders get nothing, and nothing of it can be read on the wire.
fn must_be_closed(mesh: &Mesh, name: &str) -> anyhow::Result<()> {
    mesh.watched(name, || {
        // An outsider's own plaintext is its own affair, as long as nobody answers it.
        for (place, says) in [(&mesh.client, MARKER), (&mesh.outsider, "knock knock")] {
            let options = ["--send", says, "--wait-ms", "3000"];
            let seen = probe(place, mesh.server.at(7000), &options)?;
            ensure!(is_unserved(&seen), "{} was served: {seen}", place.name);
            ensure!(seen["connect"] != "ok" || seen["ended"] != "eof", "{}: a clean end: {seen}", place.name);
        }
        Ok(())
    })
    .map(drop)
}

fn after_kill_nine_no_plaintext_passes_and_a_restart_serves_again(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    // A connection that lives while its daemons die.
    let live = start_probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--wait-ms", "4000"])?;
    let capture = mesh.capture("killing")?;
    mesh.b.kill()?;
    must_be_closed(&mesh, "server-side-dead")?;
    mesh.a.kill()?;
    must_be_closed(&mesh, "both-dead")?;
    live.finish(PATIENCE)?;
    capture.stop()?.must_not_show(MARKER)?;
    mesh.b.start()?;
    must_be_closed(&mesh, "client-side-dead")?;
    mesh.a.start()?;
    must_serve(&mesh)
}

/// eBPF programs on the story's cgroup and on its namespaces.
fn hooks(mesh: &Mesh, ground: &Ground) -> anyhow::Result<Vec<String>> {
    let bpftool = |args: &[&str]| -> anyhow::Result<serde_json::Value> {
        let mut argv = vec!["bpftool", "-j"];
        argv.extend(args);
        let said = mesh.outsider.run(&argv)?.succeeded()?;
        serde_json::from_str(if said.trim().is_empty() { "[]" } else { &said }).with_context(|| said.clone())
    };
    let cgroup = ground.cgroup().to_string_lossy().into_owned();
    let mut found: Vec<String> = Vec::new();
    for program in bpftool(&["cgroup", "show", &cgroup])?.as_array().into_iter().flatten() {
        found.push(format!("on the cgroup: {program}"));
    }
    let own: Vec<u64> = std::fs::read_dir(NETNS_DIR)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{}-", ground.tag())))
        .filter_map(|entry| std::os::linux::fs::MetadataExt::st_ino(&entry.path().metadata().ok()?).into())
        .collect();
    for link in bpftool(&["link", "show"])?.as_array().into_iter().flatten() {
        if link["type"] == "netns" && link["netns_ino"].as_u64().is_some_and(|inode| own.contains(&inode)) {
            found.push(format!("on a namespace: {link}"));
        }
    }
    Ok(found)
}

fn nothing_is_left(mesh: &Mesh, ground: &Ground) -> anyhow::Result<()> {
    let hooks = hooks(mesh, ground)?;
    ensure!(hooks.is_empty(), "hooks left: {hooks:#?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let dir = ground.dir().to_string_lossy().into_owned();
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains(&dir)).collect();
    ensure!(left.is_empty(), "mounts left: {left:?}");
    for node in [&mesh.a, &mesh.b] {
        ensure!(!node.runtime_dir().join("admin.sock").exists(), "{}'s admin socket is left", node.name);
    }
    Ok(())
}

fn a_clean_stop_removes_everything(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    ensure!(
        !hooks(&mesh, ground)?.is_empty(),
        "no hooks found while meshd runs: this test would prove nothing"
    );
    mesh.a.stop()?.succeeded()?;
    mesh.b.stop()?.succeeded()?;
    nothing_is_left(&mesh, ground)?;
    // Programs are back on the plain network, as before meshd came.
    let seen = probe(&mesh.outsider, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(seen["text"] == "x", "{seen}");
    Ok(())
}

fn cleanup_removes_what_a_killed_daemon_left(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    mesh.a.kill()?;
    mesh.b.kill()?;
    ensure!(!hooks(&mesh, ground)?.is_empty(), "nothing was left to clean up: a killed daemon failed open");
    for node in [&mesh.a, &mesh.b] {
        node.ctl(&["cleanup"])?.succeeded()?;
    }
    nothing_is_left(&mesh, ground)
}

fn a_bad_file_on_reload_keeps_the_old_configuration(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    mesh.b.configure_with_text("node: node-b\nworkload: []\n")?;
    mesh.b.meshd()?.signal(Signal::SIGHUP)?;
    wait_until(PATIENCE, "the failed reload to be counted", || {
        Ok(mesh.b.metric("meshd_config_last_reload_success", &[])? == 0)
    })?;
    must_serve(&mesh)?;
    ensure!(
        mesh.b.log().contains("workloads"),
        "the log does not name the nearest known key: {}",
        mesh.b.log()
    );
    let said = mesh.b.ctl(&["config", "validate", &mesh.b.config_file().to_string_lossy()])?.failed()?;
    ensure!(said.contains("workloads") && said.contains('2'), "no line or no hint: {said}");
    mesh.configure()?;
    mesh.b.meshd()?.signal(Signal::SIGHUP)?;
    wait_until(PATIENCE, "the good file to be taken", || {
        Ok(mesh.b.metric("meshd_config_last_reload_success", &[])? == 1)
    })
}

fn a_broken_policy_file_keeps_the_old_policies(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    mesh.policies(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nspec: { mtls: { mode: OFF } }\n",
    )?;
    wait_until(PATIENCE, "the failed reload to be counted", || {
        Ok(mesh.b.metric("meshd_config_last_reload_success", &[])? == 0)
    })?;
    let seen = probe(&mesh.outsider, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(is_unserved(&seen), "STRICT was lost: {seen}");
    must_serve(&mesh)
}

fn a_reload_enrols_a_new_workload_and_keeps_connections(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let wait = ground.scale().of("8000", "60000");
    let live = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "first", "--wait-ms", wait])?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    let newcomer = Workload::pod(&mesh.outsider, "node-a");
    mesh.workloads.push(newcomer);
    mesh.configure()?;
    wait_until(PATIENCE, "the outsider to be let in", || {
        let seen =
            probe(&mesh.outsider, mesh.server.at(7000), &["--send", "x", "--shutdown", "--wait-ms", "2000"])?;
        Ok(seen["text"] == "x")
    })?;
    mesh.a.wait_access_log("the newcomer's identity", |line| {
        line["own_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/outsider"
    })?;
    let seen = last_line(&live.finish(PATIENCE * 4)?)?;
    ensure!(seen["ended"] == "open" && seen["text"] == "first", "the reload cost a connection: {seen}");
    Ok(())
}

fn a_reload_says_how_many_connections_it_closed(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    // A change behind a link is no event: nobody but the reload of this story looks there soon.
    let policies = ground.dir().join("behind-a-link");
    std::fs::write(&policies, STRICT)?;
    std::fs::remove_file(mesh.b.policies_dir().join("story.yaml"))?;
    std::os::unix::fs::symlink(&policies, mesh.b.policies_dir().join("linked.yaml"))?;
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let options = ["--send", "first", "--wait-ms", "60000"];
    let cut = start_probe(&mesh.other, mesh.server.at(7000), &options)?;
    let host = mesh.other.v4.to_string();
    wait_event(&server, "the other", |event| event["peer"].to_string().contains(&host))?;
    must_serve(&mesh)?;
    let before = mesh.b.metric("meshd_config_reloads_total", &["success"])?;
    let nothing = mesh.b.ctl_json(&["reload"])?;
    ensure!(nothing["changed"] == false && nothing["connections_closed"] == 0, "{nothing}");
    std::fs::write(&policies, format!("{STRICT}{ONLY_CLIENT}"))?;
    let told = mesh.b.ctl_json(&["reload"])?;
    ensure!(told["changed"] == true && told["connections_closed"] == 1, "{told}");
    let seen = last_line(&cut.finish(PATIENCE)?)?;
    ensure!(seen["ended"] == "reset", "{seen}");
    let counted = mesh.b.metric("meshd_config_reloads_total", &["success"])? - before;
    ensure!(counted == 1, "{counted} reloads counted when the answer is there");
    must_serve(&mesh)
}

fn a_reload_that_does_not_fit_the_maps_is_refused_and_told(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    // Six addresses of workloads, and two to spare.
    mesh.limits = serde_json::json!({ "destinations": 8 });
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    for last in 1..=3 {
        mesh.service(&format!("s{last}"), &format!("10.96.0.{last}"), 80, 7000, "server");
    }
    mesh.configure()?;
    let said = mesh.a.ctl(&["reload"])?.failed()?;
    ensure!(said.contains("limits.destinations") && said.contains("limit of 8"), "{said}");
    let status = mesh.a.ctl_json(&["status"])?;
    let shown = status["last_reload_error"].as_str().unwrap_or_default();
    ensure!(shown.contains("limits.destinations"), "{status}");
    ensure!(mesh.a.metric("meshd_config_last_reload_success", &[])? == 0, "no metric shows it");
    // What was in force still is.
    must_serve(&mesh)?;
    mesh.services.truncate(1);
    mesh.configure()?;
    mesh.a.ctl(&["reload"])?.succeeded()?;
    let status = mesh.a.ctl_json(&["status"])?;
    ensure!(status["last_reload_error"] == "", "{status}");
    let seen = probe(&mesh.client, "10.96.0.1:80".parse()?, &["--send", MARKER, "--shutdown"])?;
    ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
    Ok(())
}

fn two_daemons_do_not_touch_each_others_workloads(ground: &Ground) -> anyhow::Result<()> {
    // Both attach to the same cgroup: the story's.
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    mesh.a.stop()?.succeeded()?;
    let seen = probe(&mesh.outsider, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(is_unserved(&seen), "node b's server lost its guard when node a stopped: {seen}");
    mesh.a.start()?;
    must_serve(&mesh)?;
    let outbound = mesh.b.access_log().into_iter().filter(|line| line["direction"] == "outbound").count();
    ensure!(outbound == 0, "node b captured node a's client");
    Ok(())
}

fn a_second_daemon_on_the_same_runtime_folder_is_refused(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let meshd = crate::it::daemon::bin_dir().join("meshd");
    let config = mesh.a.config_file();
    let argv = [meshd.to_string_lossy(), "run".into(), "--config".into(), config.to_string_lossy()];
    let said = mesh.a.place.launch("second", &argv).finish(PATIENCE)?.failed()?;
    ensure!(!said.is_empty(), "it does not say why");
    ensure!(node_file(&mesh.a, &mesh.workloads, &[])["node"] == "node-a", "the file is node a's");
    must_serve(&mesh)
}
