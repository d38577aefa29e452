//! A node that runs out of something: files, or room for its log and its state. New work is refused, what lives lives
//! on, and all is well again when there is more.

use anyhow::ensure;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, is_unserved, must_serve, probe, serve};
use crate::it::peer;
use crate::it::process::{PATIENCE, wait_until};

pub(in super::super) const STORIES: &[Story] = stories![
    Daemon 120:
        without_descriptors_new_connections_fail_and_old_ones_live,
        a_full_disk_stops_no_traffic,
        state_that_cannot_be_written_is_named;
];

fn without_descriptors_new_connections_fail_and_old_ones_live(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let patience = ground.scale().of(1500, 15_000);
    mesh.limits = serde_json::json!({ "handshakeTimeoutMs": patience, "connectTimeoutMs": patience });
    // In the other form a connection waits in the listener's queue until it can be accepted.
    mesh.a.capture.insert("form".into(), "hold".into());
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let to = mesh.server.at(7000).to_string();
    let release = ground.dir().join("release").to_string_lossy().into_owned();
    let mut living = mesh
        .client
        .launch("living", &peer::command_line(&["idle", &to, "--count", "3", "--until", &release]))
        .start()?;
    living.wait_to_say("holding", PATIENCE)?;
    for node in [&mesh.b, &mesh.a] {
        let enough = node.descriptor_limit()?;
        // The lowest free number is above all that are open.
        node.limit_descriptors(3)?;
        mesh.watched(&node.name, || {
            for turn in 0..4 {
                let options = ["--send", MARKER, "--shutdown", "--wait-ms", "60000"];
                let seen = probe(&mesh.client, mesh.server.at(7000), &options)?;
                // Sockets that were made ahead last for one.
                let is_last = turn == 0 && seen["text"] == MARKER;
                ensure!(is_last || is_unserved(&seen), "{} has no files, and served {seen}", node.name);
            }
            node.limit_descriptors(enough)?;
            must_serve(&mesh)
        })?;
    }
    std::fs::write(&release, "")?;
    let said = living.finish(PATIENCE * 2)?.succeeded()?;
    ensure!(said.contains("all alive"), "{said}");
    Ok(())
}

fn a_full_disk_stops_no_traffic(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    for node in [&mut mesh.a, &mut mesh.b] {
        // Whatever is written there meets ENOSPC.
        node.stderr = Some("/dev/full");
        node.settings.insert("log".into(), "debug".into());
    }
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    for _ in 0..3 {
        must_serve(&mesh)?;
    }
    let refused = probe(&mesh.outsider, mesh.server.at(7000), &["--send", "knock knock"])?;
    ensure!(is_unserved(&refused), "{refused}");
    for (node, lines) in [(&mut mesh.a, 3), (&mut mesh.b, 4)] {
        let lost = || node.metric("meshd_access_log_lines_total", &["result=\"dropped\""]);
        wait_until(PATIENCE, &format!("{lines} lines counted as lost"), || Ok(lost()? >= lines))?;
        node.ctl(&["status"])?.succeeded()?;
        node.stop()?.succeeded()?;
    }
    Ok(())
}

fn state_that_cannot_be_written_is_named(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.configure()?;
    let state = mesh.a.state_dir().to_string_lossy().into_owned();
    // One page. The ground's removal unmounts it.
    let mount = |options: &str| {
        mesh.a.place.run(&["mount", "-t", "tmpfs", "-o", options, "tmpfs", &state])?.succeeded()
    };
    mount("size=4k,mode=0700")?;
    mesh.a.launch()?;
    let meshd = mesh.a.meshd()?;
    wait_until(PATIENCE, "meshd to give up", || Ok(!meshd.is_running()))?;
    let said = mesh.a.log();
    let is_named = said.contains("No space left") || said.contains("disk is full");
    ensure!(is_named && said.contains(&state), "{said}");
    mesh.a.place.run(&["mount", "-o", "remount,size=1m", &state])?.succeeded()?;
    mesh.a.start()?;
    mesh.b.join_trust_of(&mesh.a)?;
    mesh.b.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    must_serve(&mesh)
}
