//! The harness judged by itself, without any daemon: that the judge finds a marker when it is there is what makes
//! "the marker was not seen" worth anything. Also that every real program works over plain TCP here.

use anyhow::ensure;
use serde_json::Value;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::judge::Wiretap;
use crate::it::mesh::{MARKER, Pods, last_line, probe, serve, start_probe, wait_event};
use crate::it::process::PATIENCE;
use crate::it::{peer, programs};

pub(super) const STORIES: &[Story] = stories![
    NoDaemon 60:
        without_meshd_the_marker_is_seen_on_the_wire,
        a_marker_split_over_segments_is_found,
        plain_tcp_is_not_taken_for_tls,
        a_flow_of_an_outsider_is_noticed,
        a_probe_tells_refusal_reset_and_eof_apart,
        the_ground_is_removed_with_everything_on_it;
    NoDaemon 120:
        real_servers_run_over_plain_tcp,
        peers_carry_bulk_and_many_over_plain_tcp,
];

fn without_meshd_the_marker_is_seen_on_the_wire(ground: &Ground) -> anyhow::Result<()> {
    let pods = Pods::given(ground)?;
    let _nginx = programs::nginx(&pods.server, 8080, MARKER)?;
    for (to, name) in [(pods.server.at(8080), "v4"), (pods.server.at6(8080), "v6")] {
        let capture = pods.capture(name)?;
        let page =
            pods.client.run(&["curl", "-sS", "--max-time", "10", &format!("http://{to}/")])?.succeeded()?;
        ensure!(page.contains(MARKER), "curl got {page:?}");
        let tap = capture.stop()?;
        ensure!(tap.find(MARKER.as_bytes()).is_some(), "the judge is blind on {name}: {}", tap.summary());
        ensure!(tap.must_not_show(MARKER).is_err(), "the judge does not condemn plaintext");
    }
    Ok(())
}

fn a_marker_split_over_segments_is_found(ground: &Ground) -> anyhow::Result<()> {
    let pods = Pods::given(ground)?;
    // A small MTU cuts the marker into many segments.
    pods.client.run(&["ip", "link", "set", "eth0", "mtu", "1280"])?.succeeded()?;
    pods.client
        .run(&["ip", "route", "change", "10.201.0.0/24", "dev", "eth0", "advmss", "88"])?
        .succeeded()?;
    pods.server
        .run(&["ip", "route", "change", "10.201.0.0/24", "dev", "eth0", "advmss", "88"])?
        .succeeded()?;
    let _server = serve(&pods.server, 7000, &[])?;
    let capture = pods.capture("split")?;
    let long = format!("{}{MARKER}{}", "a".repeat(80), MARKER.repeat(20));
    probe(&pods.client, pods.server.at(7000), &["--send", &long, "--shutdown"])?;
    let tap = capture.stop()?;
    ensure!(tap.find(long.as_bytes()).is_some(), "the stream was not put together: {}", tap.summary());
    Ok(())
}

fn plain_tcp_is_not_taken_for_tls(ground: &Ground) -> anyhow::Result<()> {
    let pods = Pods::given(ground)?;
    let _server = serve(&pods.server, 7000, &["--echo"])?;
    let capture = pods.capture("plain")?;
    probe(&pods.client, pods.server.at(7000), &["--send", MARKER, "--shutdown"])?;
    let tap: Wiretap = capture.stop()?;
    let judged = tap.must_be_tls_between(pods.client.v4.into(), pods.server.at(7000));
    ensure!(judged.is_err(), "plaintext passed for TLS records");
    Ok(())
}

fn a_flow_of_an_outsider_is_noticed(ground: &Ground) -> anyhow::Result<()> {
    let pods = Pods::given(ground)?;
    let _server = serve(&pods.server, 7000, &["--echo"])?;
    let capture = pods.capture("outsider")?;
    probe(&pods.client, pods.server.at(7000), &["--send", "x", "--shutdown"])?;
    probe(&pods.outsider, pods.server.at(7000), &["--send", "x", "--shutdown"])?;
    let tap = capture.stop()?;
    let (client, server, outsider) = (pods.client.v4.into(), pods.server.v4.into(), pods.outsider.v4.into());
    ensure!(tap.must_only_join(&[(client, server)]).is_err(), "the outsider's flow was overlooked");
    tap.must_only_join(&[(client, server), (outsider, server)])
}

fn a_probe_tells_refusal_reset_and_eof_apart(ground: &Ground) -> anyhow::Result<()> {
    let pods = Pods::given(ground)?;
    let refused = probe(&pods.client, pods.server.at(7000), &[])?;
    ensure!(refused["connect"] == "refused", "{refused}");
    let server = serve(&pods.server, 7000, &["--banner", "hello", "--reply-kib", "4"])?;
    let eof = probe(&pods.client, pods.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(eof["ended"] == "eof" && eof["received"] == 5 + 4096, "{eof}");
    probe_that_resets(&pods)?;
    let ended = wait_event(&server, "a reset", |event| event["ended"] == "reset")?;
    ensure!(ended["received"] == 1, "{ended}");
    Ok(())
}

fn probe_that_resets(pods: &Pods) -> anyhow::Result<()> {
    let program = start_probe(&pods.client, pods.server.at(7000), &["--send", "x", "--reset"])?;
    program.finish(PATIENCE)?.succeeded().map(drop)
}

fn the_ground_is_removed_with_everything_on_it(ground: &Ground) -> anyhow::Result<()> {
    let inner = Ground::lay("inner", ground.relay())?;
    let tag = inner.tag().to_owned();
    let pods = Pods::given(&inner)?;
    let server = serve(&pods.server, 7000, &[])?;
    let (pid, group, dir) = (server.pid(), inner.cgroup().to_owned(), inner.dir().to_owned());
    // As after a panic in the midst: nobody stops the server.
    std::mem::forget(server);
    drop(inner);
    let names = std::fs::read_dir(crate::it::ground::NETNS_DIR)?.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with(&format!("{tag}-"))).collect();
    ensure!(left.is_empty(), "namespaces left: {left:?}");
    ensure!(!group.exists() && !dir.exists(), "cgroup or folder left");
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ensure!(state.is_empty() || state.contains(") Z"), "the server still runs: {state}");
    Ok(())
}

fn real_servers_run_over_plain_tcp(ground: &Ground) -> anyhow::Result<()> {
    let pods = Pods::given(ground)?;
    let to = pods.server.v4.to_string();
    let _redis = programs::redis(&pods.server, 6379)?;
    ensure!(pods.client.run(&["redis-cli", "-h", &to, "ping"])?.succeeded()?.contains("PONG"), "redis");
    let _postgres = programs::postgres(&pods.server, 5432)?;
    let answer =
        pods.client.run(&["psql", "-h", &to, "-U", "postgres", "-Atc", "select 6*7"])?.succeeded()?;
    ensure!(answer.trim() == "42", "psql said {answer:?}");
    let ssh = programs::sshd(&pods.server, 2222)?;
    let mut argv = vec!["ssh", "-p", "2222"];
    argv.extend(ssh.options.iter().map(String::as_str));
    let login = format!("root@{to}");
    argv.extend([login.as_str(), "echo", "inside"]);
    ensure!(pods.client.run(&argv)?.succeeded()?.contains("inside"), "ssh");
    let _iperf3 = programs::iperf3(&pods.server, 5201)?;
    pods.client.run(&["iperf3", "-c", &to, "-n", "1M"])?.succeeded()?;
    let _nginx = programs::nginx(&pods.server, 8080, MARKER)?;
    pods.client.run(&["h2load", "-n", "10", "-c", "1", &format!("http://{to}:8081/")])?.succeeded()?;
    pods.client.run(&["wrk", "-d", "1", "-c", "2", "-t", "1", &format!("http://{to}:8080/")])?.succeeded()?;
    Ok(())
}

fn peers_carry_bulk_and_many_over_plain_tcp(ground: &Ground) -> anyhow::Result<()> {
    let pods = Pods::given(ground)?;
    let bytes = (1_u64 << 24).to_string();
    let at = pods.server.at(7001).to_string();
    let mut bulk =
        pods.server.launch("bulk", &peer::command_line(&["bulk-serve", &at, "--bytes", &bytes])).start()?;
    bulk.wait_to_say("listening", PATIENCE)?;
    let probe = pods.client.launch("bulk", &peer::command_line(&["bulk-probe", &at, "--bytes", &bytes]));
    ensure!(last_line(&probe.finish(PATIENCE)?)?["ok"] == Value::Bool(true), "bulk");
    let _echo = serve(&pods.server, 7000, &["--echo", "--quiet"])?;
    let to = pods.server.at(7000).to_string();
    let short = pods
        .client
        .launch("short", &peer::command_line(&["short", &to, "--count", "200"]))
        .finish(PATIENCE)?;
    ensure!(last_line(&short)?["failed"] == 0, "{}", short.stderr);
    let release = ground.dir().join("release").to_string_lossy().into_owned();
    let idle = peer::command_line(&["idle", &to, "--count", "50", "--until", &release]);
    let mut idle = pods.client.launch("idle", &idle).start()?;
    idle.wait_to_say("holding", PATIENCE)?;
    std::fs::write(&release, "")?;
    idle.finish(PATIENCE)?.succeeded().map(drop)
}
