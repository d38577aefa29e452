//! Attackers who are many: what they hold is bounded, what they leave behind is nothing, and others are served.

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::json;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{Mesh, accepted, must_serve, serve, start_probe};
use crate::it::peer;
use crate::it::process::{PATIENCE, wait_until};

pub(in super::super) const STORIES: &[Story] = stories![
    Daemon 120:
        handshakes_that_never_end_keep_nobody_else_waiting,
        silent_connections_keep_nobody_else_out,
        connections_that_ended_leave_nothing_behind;
];

/// As many as the machine's limit on open files lets one process have.
fn crowd(ground: &Ground) -> anyhow::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(ground.scale().of(10_000, 300).min(hard / 2))
}

fn handshakes_that_never_end_keep_nobody_else_waiting(ground: &Ground) -> anyhow::Result<()> {
    const PER_SECOND: i64 = 50;
    let mut mesh = Mesh::given(ground)?;
    // Long enough for all of them to be there at once.
    mesh.limits = json!({ "handshakeTimeoutMs": ground.scale().of(10_000, 60_000) });
    mesh.b.settings.insert("accessLog".into(), json!({ "format": "json", "perSecond": PER_SECOND }));
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    // What the first connections page in and count for ever is none of the crowd's.
    must_serve(&mesh)?;
    let (files, rss, series) = (mesh.b.descriptors()?, mesh.b.rss_kib()?, mesh.b.metrics()?.lines().count());
    let (to, count) = (mesh.server.at(7000).to_string(), crowd(ground)?);
    let release = ground.dir().join("release").to_string_lossy().into_owned();
    let options = ["half-open", &to, "--count", &count.to_string(), "--until", &release];
    let mut crowd = mesh.outsider.launch("crowd", &peer::command_line(&options)).start()?;
    crowd.wait_to_say("holding", PATIENCE * 4)?;
    let there = usize::try_from(count)?;
    wait_until(PATIENCE, "meshd to have accepted them", || {
        Ok(mesh.b.descriptors()? > files + there * 9 / 10)
    })?;
    must_serve(&mesh)?;
    must_serve(&mesh)?;
    let still = mesh.b.descriptors()?;
    ensure!(still > files + there * 9 / 10, "they were over before the others were served: {still}");
    let grown = mesh.b.rss_kib()?.saturating_sub(rss);
    println!("{grown} KiB for {count} handshakes that have begun");
    // 2 MiB: what the allocator takes ahead, which tells where they are few.
    ensure!(grown <= 20 * count + 2048, "{grown} KiB for {count} handshakes that have begun");
    std::fs::write(&release, "")?;
    crowd.finish(PATIENCE)?.succeeded()?;
    wait_until(PATIENCE * 2, "meshd to let go of them", || Ok(mesh.b.descriptors()? < files + 50))?;
    ensure!(accepted(&server) == 3, "the server saw {} connections", accepted(&server));
    let more = mesh.b.metrics()?.lines().count().saturating_sub(series);
    println!("{count} strangers made {more} series");
    ensure!(more < 100, "{count} strangers made {more} series");
    if !ground.scale().is_vm() {
        let lines = i64::try_from(mesh.b.access_log().len())?;
        let suppressed = mesh.b.metric("meshd_access_log_lines_total", &["result=\"suppressed\""])?;
        ensure!(
            lines < i64::try_from(count)? / 2 && suppressed > 0,
            "{lines} lines, {suppressed} suppressed"
        );
    }
    must_serve(&mesh)
}

fn silent_connections_keep_nobody_else_out(ground: &Ground) -> anyhow::Result<()> {
    const LIMIT: usize = 64;
    let mut mesh = Mesh::given(ground)?;
    mesh.limits = json!({ "connections": LIMIT, "handshakeTimeoutMs": 60_000 });
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let to = mesh.server.at(7000);
    let mut silent: Vec<_> = (0..LIMIT / 2)
        .map(|_| start_probe(&mesh.outsider, to, &["--wait-ms", "30000"]))
        .collect::<anyhow::Result<_>>()?;
    wait_until(PATIENCE, "meshd to have refused what is beyond its share", || {
        let refused = mesh.b.access_log().iter().filter(|line| line["response_flags"] == "LIMIT").count();
        Ok(refused == LIMIT / 4)
    })?;
    let mut still_silent = || silent.iter_mut().map(|probe| usize::from(probe.is_running())).sum::<usize>();
    wait_until(PATIENCE, "the refused to be gone", || Ok(still_silent() <= LIMIT / 4))?;
    must_serve(&mesh)?;
    let left = still_silent();
    ensure!(left == LIMIT / 4, "{left} are silent still");
    Ok(())
}

fn connections_that_ended_leave_nothing_behind(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo", "--quiet"])?;
    // So that the ends of its own earlier connections leave the client a port.
    mesh.client.run(&["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"])?.succeeded()?;
    let (to, (count, more)) = (mesh.server.at(7000).to_string(), ground.scale().load(2000, 60));
    let come_and_go = || -> anyhow::Result<()> {
        let short = peer::command_line(&["short", &to, "--count", &count.to_string(), "--threads", "8"]);
        let seen =
            crate::it::mesh::last_line(&mesh.client.launch("short", &short).finish(PATIENCE * 10 + more)?)?;
        ensure!(seen["failed"] == 0, "{seen}");
        Ok(())
    };
    let files = [mesh.a.descriptors()?, mesh.b.descriptors()?];
    // Pools, caches and the allocator are filled by the first round.
    come_and_go()?;
    let rss = [mesh.a.rss_kib()?, mesh.b.rss_kib()?];
    come_and_go()?;
    for ((node, files), rss) in [&mesh.a, &mesh.b].into_iter().zip(files).zip(rss) {
        wait_until(PATIENCE, "all descriptors to be closed", || Ok(node.descriptors()? <= files + 8))
            .with_context(|| format!("{} had {files}, has {}", node.name, node.descriptors().unwrap_or(0)))?;
        let grown = node.rss_kib()?.saturating_sub(rss);
        println!("{}: {rss} KiB after {count} connections, {grown} KiB more after as many again", node.name);
        ensure!(grown <= 4096, "{} grew by {grown} KiB for {count} connections", node.name);
    }
    Ok(())
}
