//! Much data, many connections, and connections that do nothing.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::it::capture::Capture;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{Mesh, last_line, serve};
use crate::it::process::PATIENCE;
use crate::it::{peer, programs};

pub(super) const STORIES: &[Story] = stories![
    EveryRelay 180:
        a_gigabyte_each_way_at_once_arrives_unchanged,
        iperf3_runs_both_ways,
        ten_thousand_short_connections_all_succeed,
        two_thousand_idle_connections_stay_usable_and_cost_little;
    DaemonNatively 180:
        connections_outlive_the_worlds_that_they_were_judged_by;
];

fn a_gigabyte_each_way_at_once_arrives_unchanged(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let bytes = ground.scale().of(1_u64 << 30, 16 << 20).to_string();
    let at = mesh.server.at(7001);
    let serve = peer::command_line(&["bulk-serve", &at.to_string(), "--bytes", &bytes]);
    let mut server = mesh.server.launch("bulk", &serve).start()?;
    server.wait_to_say("listening", PATIENCE)?;
    let capture = Capture::start_of_bulk(&mesh.wire, "bulk")?;
    let probe = peer::command_line(&["bulk-probe", &at.to_string(), "--bytes", &bytes]);
    let seen = last_line(&mesh.client.launch("bulk", &probe).finish(Duration::from_secs(1500))?)
        .with_context(|| format!("the server said {}{}", server.stdout(), server.stderr()))?;
    ensure!(seen["ok"] == true, "{seen}");
    println!("{bytes} bytes each way at once by {} in {} ms", ground.relay(), seen["ms"]);
    let client = mesh.client.v4.into();
    capture.stop()?.must_only_join(&[(client, at.ip())])?;
    mesh.must_have_relayed_by(ground.relay())
}

fn iperf3_runs_both_ways(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _iperf3 = programs::iperf3(&mesh.server, 5201)?;
    // Of less, all may fit into the sockets on the way: the client has sent it, and ends before any has come.
    let (to, bytes) = (mesh.server.v4.to_string(), ground.scale().of("256M", "32M"));
    for direction in [&[][..], &["-R"]] {
        let mut argv = vec!["iperf3", "-c", &to, "-n", bytes, "-P", "2", "-J"];
        argv.extend(direction);
        let report: serde_json::Value = serde_json::from_str(&mesh.client.run(&argv)?.succeeded()?)?;
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().context("no rate")?;
        ensure!(rate > 0.0, "nothing was received");
        println!("iperf3 {direction:?} by {}: {:.2} Gbit/s", ground.relay(), rate / 1e9);
    }
    mesh.must_have_relayed_by(ground.relay())
}

fn ten_thousand_short_connections_all_succeed(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo", "--quiet"])?;
    let (to, count) = (mesh.server.at(7000).to_string(), ground.scale().of("10000", "500"));
    let short = peer::command_line(&["short", &to, "--count", count, "--threads", "16"]);
    let finished = mesh.client.launch("short", &short).finish(Duration::from_secs(1500))?;
    let seen = last_line(&finished)?;
    ensure!(seen["failed"] == 0, "{seen}: {}", finished.stderr);
    println!("{count} short connections by {} in {} ms", ground.relay(), seen["ms"]);
    mesh.must_have_relayed_by(ground.relay())
}

fn two_thousand_idle_connections_stay_usable_and_cost_little(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo", "--quiet"])?;
    let (to, count) = (mesh.server.at(7000).to_string(), ground.scale().of(2000_u64, 100));
    let before = (mesh.a.rss_kib()?, mesh.b.rss_kib()?);
    let release = ground.dir().join("release").to_string_lossy().into_owned();
    let idle = peer::command_line(&["idle", &to, "--count", &count.to_string(), "--until", &release]);
    let mut idle = mesh.client.launch("idle", &idle).start()?;
    idle.wait_to_say("holding", PATIENCE * 10)?;
    let after = (mesh.a.rss_kib()?, mesh.b.rss_kib()?);
    println!(
        "{count} idle connections by {}: outbound meshd {} -> {} KiB RSS, inbound meshd {} -> {} KiB",
        ground.relay(),
        before.0,
        after.0,
        before.1,
        after.1
    );
    std::fs::write(&release, "")?;
    idle.finish(PATIENCE * 4)?.succeeded()?;
    mesh.must_have_relayed_by(ground.relay())?;
    let each = (after.0.saturating_sub(before.0)).max(after.1.saturating_sub(before.1)) / count;
    // Two sockets' state, a TLS session and no buffers: a buffer per connection would show at once.
    ensure!(each <= 64, "{each} KiB for each idle connection");
    Ok(())
}

fn connections_outlive_the_worlds_that_they_were_judged_by(ground: &Ground) -> anyhow::Result<()> {
    const WORLDS: u16 = 8;
    const SERVICES: u32 = 20_000;
    let mut mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo", "--quiet"])?;
    let rss = |mesh: &Mesh| anyhow::Ok([mesh.a.rss_kib()?, mesh.b.rss_kib()?]);
    let small = rss(&mesh)?;
    for service in 0..SERVICES {
        let [_, high, middle, low] = service.to_be_bytes();
        let address = format!("10.{}.{middle}.{low}", 128 + high);
        mesh.service(&format!("service-{service}"), &address, 80, 7000, "server");
    }
    let release = ground.dir().join("release").to_string_lossy().into_owned();
    let (to, mut living, mut first) = (mesh.server.at(7000).to_string(), Vec::new(), None);
    for world in 0..WORLDS {
        mesh.service(&format!("newest-{world}"), &format!("10.120.0.{world}"), 80, 7000, "server");
        mesh.configure()?;
        for node in [&mesh.a, &mesh.b] {
            node.ctl(&["reload"])?.succeeded()?;
        }
        let idle = peer::command_line(&["idle", &to, "--count", "1", "--until", &release]);
        let mut idle = mesh.client.launch("idle", &idle).start()?;
        idle.wait_to_say("holding", PATIENCE)?;
        living.push(idle);
        // The second is made while the first is still there, as each one after it.
        if world == 1 {
            first = Some(rss(&mesh)?);
        }
    }
    let (first, last) = (first.context("no world")?, rss(&mesh)?);
    std::fs::write(&release, "")?;
    for idle in living {
        let said = idle.finish(PATIENCE * 2)?.succeeded()?;
        ensure!(said.contains("all alive"), "{said}");
    }
    for (node, at) in [(&mesh.a, 0), (&mesh.b, 1)] {
        let (two, more) = (first[at].saturating_sub(small[at]), last[at].saturating_sub(first[at]));
        println!(
            "{}: two worlds of {SERVICES} services took {two} KiB, {} more took {more} KiB",
            node.name,
            WORLDS - 2
        );
        ensure!(more < two + 2048, "{}: {more} KiB more, where two worlds took {two} KiB", node.name);
    }
    Ok(())
}
