//! A `connect` that tells the truth: it succeeds when the far side is proven, and fails as it would have failed
//! without meshd.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::it::daemon::Node;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, ONLY_CLIENT, STRICT, accepted, last_line, must_serve, probe, serve, serve_at, start_probe,
};
use crate::it::nodefile::Workload;
use crate::it::peer;
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    EveryRelay 120:
        a_held_connect_is_completed_when_the_far_side_is_proven;
    Daemon 120:
        a_stopped_server_is_connection_refused,
        a_host_that_is_not_there_is_unreachable,
        a_server_that_cannot_prove_itself_refuses_the_connect,
        a_connect_that_policy_denies_is_told_so,
        a_client_of_two_families_falls_back_to_the_other,
        a_connect_given_up_leaves_nothing_behind,
        many_connects_wait_together_and_all_succeed,
        a_connect_that_finds_the_ring_full_is_told_again,
        workloads_that_race_each_get_their_own_verdict,
        a_held_connect_outlives_its_daemon_without_plaintext,
        the_form_is_named_and_its_hook_goes_with_it;
];

fn holding(ground: &Ground) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::given(ground)?;
    hold(&mut mesh.a);
    mesh.start()?;
    Ok(mesh)
}

fn hold(node: &mut Node) {
    node.capture.insert("form".into(), "hold".into());
}

/// The server's meshd stops answering: what connects waits.
fn pause(mesh: &mut Mesh, signal: Signal) -> anyhow::Result<()> {
    mesh.b.meshd()?.signal(signal)
}

fn a_held_connect_is_completed_when_the_far_side_is_proven(ground: &Ground) -> anyhow::Result<()> {
    let mesh = holding(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    mesh.watched("held", || {
        for to in [mesh.server.at(7000), mesh.server.at6(7000)] {
            for way in [&[][..], &["--nonblocking"], &["--fastopen"]] {
                let options = [&["--send", MARKER, "--shutdown"], way].concat();
                let seen = probe(&mesh.client, to, &options)?;
                ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{to} {way:?}: {seen}");
            }
        }
        Ok(())
    })?;
    let line = mesh.a.wait_access_log("a held connect", |line| line["direction"] == "outbound")?;
    ensure!(line["capture_form"] == "hold", "{line}");
    mesh.must_have_relayed_by(ground.relay())
}

fn a_stopped_server_is_connection_refused(ground: &Ground) -> anyhow::Result<()> {
    let mesh = holding(ground)?;
    let _other = serve(&mesh.server, 7000, &["--echo"])?;
    for (to, running) in
        [(mesh.server.at(7999), mesh.server.at(7000)), (mesh.server.at6(7999), mesh.server.at6(7000))]
    {
        let seen = probe(&mesh.client, to, &["--send", MARKER])?;
        ensure!(seen["connect"] == "refused", "{to}: {seen}");
        let again = ["--send", MARKER, "--shutdown", "--after-refusal-by", &to.to_string()];
        let seen = probe(&mesh.client, running, &again)?;
        ensure!(seen["text"] == MARKER, "the same socket, after a refusal: {seen}");
    }
    let (host, port) = (mesh.server.v4.to_string(), "7999");
    let url = format!("http://{host}:{port}/");
    let curl = mesh.client.run(&["curl", "-sS", "--max-time", "20", &url])?;
    ensure!(curl.status.code() == Some(7), "curl ended with {:?}: {}", curl.status, curl.stderr);
    let redis = mesh.client.run(&["redis-cli", "-h", &host, "-p", port, "ping"])?;
    ensure!(redis.stderr.contains("Connection refused"), "{}{}", redis.stdout, redis.stderr);
    let psql = mesh.client.run(&["psql", "-h", &host, "-p", port, "-U", "nobody", "-c", "select 1"])?;
    ensure!(psql.stderr.contains("Connection refused"), "{}{}", psql.stdout, psql.stderr);
    Ok(())
}

fn a_host_that_is_not_there_is_unreachable(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    hold(&mut mesh.a);
    // Nobody answers for this address on the wire.
    let absent: IpAddr = "10.201.0.99".parse()?;
    let mut pod = Workload::pod(&mesh.server, "node-c");
    (pod.name, pod.addresses) = ("absent".to_owned(), vec![absent]);
    mesh.workloads.push(pod);
    mesh.start()?;
    let seen = probe(&mesh.client, (absent, 7000).into(), &["--send", MARKER])?;
    ensure!(seen["connect"] == "host unreachable", "{seen}");
    Ok(())
}

fn a_server_that_cannot_prove_itself_refuses_the_connect(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = holding(ground)?;
    // No meshd there: a plaintext server at a meshed destination.
    mesh.b.stop()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    mesh.watched("unproven", || {
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER])?;
        ensure!(seen["connect"] == "refused", "{seen}");
        Ok(())
    })?;
    Ok(())
}

fn a_connect_that_policy_denies_is_told_so(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.policies(&format!("{STRICT}{ONLY_CLIENT}"))?;
    hold(&mut mesh.a);
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    for (setting, error) in [("refused", "refused"), ("unreachable", "host unreachable")] {
        mesh.a.stop()?;
        mesh.a.capture.insert("denied".into(), setting.into());
        mesh.configure()?;
        mesh.a.start()?;
        for to in [mesh.server.at(7000), mesh.server.at6(7000)] {
            let seen = probe(&mesh.other, to, &["--send", MARKER])?;
            ensure!(seen["connect"] == error, "{to} when {setting}: {seen}");
        }
        let denied = |line: &Value| line["response_flags"] == "DENY" && line["verdict"] == "deny";
        mesh.a.wait_access_log("the denial", denied)?;
        mesh.b.wait_access_log("the denial", denied)?;
    }
    must_serve(&mesh)?;
    let count = accepted(&server);
    ensure!(count == 1, "a denied client got through: {}", server.stdout());
    Ok(())
}

fn a_client_of_two_families_falls_back_to_the_other(ground: &Ground) -> anyhow::Result<()> {
    let mesh = holding(ground)?;
    let page = "HTTP/1.0 200 OK\r\n\r\nfell back";
    let _server = serve_at(&mesh.server, "0.0.0.0:7000", &["--banner", page, "--shutdown-first"])?;
    let resolve = format!("dual.test:7000:[{}],{}", mesh.server.v6, mesh.server.v4);
    let curl = ["curl", "-sS", "--max-time", "20", "--resolve", &resolve, "http://dual.test:7000/"];
    let said = mesh.client.run(&curl)?.succeeded()?;
    ensure!(said == "fell back", "{said}");
    Ok(())
}

fn a_connect_given_up_leaves_nothing_behind(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = holding(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    pause(&mut mesh, Signal::SIGSTOP)?;
    let url = format!("http://{}/", mesh.server.at(7000));
    let curl = mesh.client.run(&["curl", "-sS", "--connect-timeout", "2", &url])?;
    pause(&mut mesh, Signal::SIGCONT)?;
    ensure!(curl.status.code() == Some(28), "curl ended with {:?}: {}", curl.status, curl.stderr);
    let line = mesh.a.wait_access_log("the connect that was given up", |line| {
        line["error"].as_str().is_some_and(|error| error.contains("gave up"))
    })?;
    ensure!(line["bytes_sent"] == 0 && line["response_flags"] == "RESET", "{line}");
    nothing_is_left(&mesh.a)?;
    must_serve(&mesh)
}

/// Stops a node's meshd while so many connect at once; all must be served when it goes on.
fn served_after_a_stop(
    mesh: &mut Mesh,
    node: fn(&mut Mesh) -> &mut Node,
    count: &str,
) -> anyhow::Result<Value> {
    let to = mesh.server.at(7000).to_string();
    node(mesh).meshd()?.signal(Signal::SIGSTOP)?;
    let short = peer::command_line(&["short", &to, "--count", count, "--threads", count]);
    let waiting = mesh.client.launch("short", &short).start()?;
    std::thread::sleep(Duration::from_secs(2));
    node(mesh).meshd()?.signal(Signal::SIGCONT)?;
    let seen = last_line(&waiting.finish(PATIENCE * 4)?)?;
    ensure!(seen["failed"] == 0, "{seen}");
    Ok(seen)
}

fn nothing_is_left(node: &Node) -> anyhow::Result<()> {
    let left = node.ctl_json(&["connections"])?;
    ensure!(left["connections"].as_array().is_some_and(Vec::is_empty), "connections are left: {left}");
    Ok(())
}

fn many_connects_wait_together_and_all_succeed(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = holding(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo", "--quiet"])?;
    must_serve(&mesh)?;
    let count = ground.scale().of("1000", "40");
    let seen = served_after_a_stop(&mut mesh, |mesh| &mut mesh.b, count)?;
    println!("{count} connects held together were served in {} ms", seen["ms"]);
    Ok(())
}

fn a_connect_that_finds_the_ring_full_is_told_again(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    hold(&mut mesh.a);
    // A ring of one page, which holds some fifty.
    mesh.limits = json!({ "heldConnects": 16 });
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo", "--quiet"])?;
    must_serve(&mesh)?;
    served_after_a_stop(&mut mesh, |mesh| &mut mesh.a, "64")?;
    let full = mesh.a.metric("meshd_bpf_events_total", &["event=\"held_ring_full\""])?;
    ensure!(full > 0, "the ring held all of them");
    Ok(())
}

fn workloads_that_race_each_get_their_own_verdict(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.policies(&format!("{STRICT}{ONLY_CLIENT}"))?;
    hold(&mut mesh.a);
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    let before = accepted(&server);
    let to = mesh.server.at(7000).to_string();
    let (count, more) = ground.scale().load(2000, 60);
    let count = count.to_string();
    let short = peer::command_line(&["short", &to, "--count", &count, "--threads", "32"]);
    let racing = [&mesh.client, &mesh.other].map(|place| place.launch("short", &short).start());
    let mut failures = Vec::new();
    for racer in racing {
        let seen = last_line(&racer?.finish(PATIENCE * 30 + more)?)?;
        failures.push(seen["failed"].to_string());
        println!("{count} connects, {} failed, in {} ms", seen["failed"], seen["ms"]);
    }
    ensure!(failures == ["0", &count], "failures of the allowed and of the denied: {failures:?}");
    let more = accepted(&server) - before;
    ensure!(more.to_string() == count, "the server accepted {more}");
    nothing_is_left(&mesh.a)
}

fn a_held_connect_outlives_its_daemon_without_plaintext(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = holding(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    let tap = mesh.capture("killed")?;
    mesh.a.kill()?;
    let mut waiting = start_probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER])?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(waiting.is_running(), "nobody can have decided: {}", waiting.stdout());
    let before = accepted(&server);
    mesh.a.start()?;
    // The new daemon's programs do not know the old socket: its next SYN finds nobody.
    let seen = last_line(&waiting.finish(PATIENCE * 3)?)?;
    ensure!(seen["connect"] == "refused", "{seen}");
    ensure!(accepted(&server) == before, "{}", server.stdout());
    must_serve(&mesh)?;
    tap.stop()?.must_not_show(MARKER)
}

fn the_form_is_named_and_its_hook_goes_with_it(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    hold(&mut mesh.a);
    mesh.b.capture.insert("form".into(), "listener".into());
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)?;
    ensure!(mesh.a.ctl_json(&["status"])?["capture_form"] == "hold", "another form is in force");
    let hooks = |mesh: &Mesh| -> anyhow::Result<bool> {
        let cgroup = ground.cgroup().to_string_lossy().into_owned();
        let said = mesh.outsider.run(&["bpftool", "-j", "cgroup", "show", &cgroup])?.succeeded()?;
        let programs: Value = serde_json::from_str(&said).context("bpftool")?;
        Ok(programs.as_array().into_iter().flatten().any(|program| program["name"] == "hold_syn"))
    };
    ensure!(hooks(&mesh)?, "the hook is not there");
    mesh.a.kill()?;
    mesh.a.capture.insert("form".into(), "listener".into());
    mesh.configure()?;
    mesh.a.start()?;
    must_serve(&mesh)?;
    wait_until(PATIENCE, "the hook is gone", || Ok(!hooks(&mesh)?))
}
