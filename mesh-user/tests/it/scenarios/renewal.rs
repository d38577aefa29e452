//! SVIDs from a CA elsewhere: renewed under traffic, over its absence, taken back while connections live.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::it::authority::Authority;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{Mesh, is_unserved, last_line, probe, serve, start_probe, wait_event};
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Daemon 120:
        renewals_of_seconds_and_a_ca_that_is_away_fail_no_connection,
        a_restart_without_the_ca_waits_for_it_and_says_so,
        a_revocation_told_by_the_ca_cuts_the_live_connection_and_renews_at_its_own_node;
];

/// Both nodes ask the story's authority; no clock skew is forgiven, so that an SVID that ended is noticed.
fn given(ground: &Ground, life: Duration) -> anyhow::Result<(Mesh, Authority)> {
    let mut authority = Authority::new(ground.dir(), life)?;
    authority.start()?;
    let mut mesh = Mesh::given(ground)?;
    mesh.limits = json!({ "clockSkewMs": 0, "handshakeTimeoutMs": 3000 });
    let ca = json!({ "provider": "meshd-ca", "address": authority.address() });
    for node in [&mut mesh.a, &mut mesh.b] {
        node.settings.insert("ca".into(), ca.clone());
    }
    mesh.configure()?;
    mesh.a.start()?;
    mesh.b.start()?;
    Ok((mesh, authority))
}

/// Connections one after another; none may fail.
fn traffic(mesh: &Mesh, until: Instant) -> anyhow::Result<u32> {
    let mut count = 0;
    while Instant::now() < until {
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
        ensure!(seen["text"] == "hello" && seen["ended"] == "eof", "connection {count} failed: {seen}");
        count += 1;
    }
    Ok(count)
}

fn renewals_of_seconds_and_a_ca_that_is_away_fail_no_connection(ground: &Ground) -> anyhow::Result<()> {
    let life = Duration::from_secs(12);
    let (mesh, mut authority) = given(ground, life)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let open = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--wait-ms", "60000"])?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    let first = authority.issued();
    // Away for longer than half a life, from when everything is new.
    authority.stop();
    let mut count = traffic(&mesh, Instant::now() + life * 7 / 12)?;
    let failing = mesh.a.ctl_json(&["status"])?.to_string();
    ensure!(failing.contains("renewal fails"), "{failing}");
    ensure!(mesh.a.metric("meshd_svid_source_up", &[])? == 0, "the metric says that the CA is there");
    authority.start()?;
    count += traffic(&mesh, Instant::now() + life * 3 / 2)?;
    let renewed = authority.issued() - first;
    // The node of the client has two identities, that of the server one.
    ensure!(renewed >= 2 * 3, "only {renewed} renewals: the story proves nothing");
    wait_until(PATIENCE, "the metric to say that the CA is back", || {
        Ok(mesh.a.metric("meshd_svid_source_up", &[])? == 1)
    })?;
    ensure!(count > 50, "only {count} connections");
    eprintln!("{count} connections over {renewed} renewals, none failed");
    let other = probe(&mesh.other, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
    ensure!(other["text"] == "hello", "{other}");
    // What was open when it all began is open still.
    let rows = mesh.a.ctl_json(&["connections"])?;
    ensure!(rows["total"] == 1, "the old connection is gone: {rows}");
    drop(open);
    Ok(())
}

fn a_restart_without_the_ca_waits_for_it_and_says_so(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, mut authority) = given(ground, Duration::from_secs(600))?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    traffic(&mesh, Instant::now() + Duration::from_millis(1))?;
    authority.stop();
    mesh.a.stop()?.succeeded()?;
    mesh.a.start()?;
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
    ensure!(is_unserved(&seen), "served without an SVID: {seen}");
    let told = mesh.a.wait_access_log("why", |line| {
        line["error"].as_str().is_some_and(|error| error.contains("has no SVID"))
    })?;
    ensure!(told.to_string().contains("cannot be reached"), "{told}");
    let status = mesh.a.ctl_json(&["status"])?.to_string();
    ensure!(status.contains("have no valid SVID") && status.contains("cannot be reached"), "{status}");
    // It is back: whoever waits in its handshake is served.
    let waiting = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
    authority.start()?;
    let _ = waiting.finish(PATIENCE * 2)?;
    wait_until(PATIENCE, "connections to be served again", || {
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
        Ok(seen["text"] == "hello")
    })
}

fn a_revocation_told_by_the_ca_cuts_the_live_connection_and_renews_at_its_own_node(
    ground: &Ground,
) -> anyhow::Result<()> {
    let (mesh, authority) = given(ground, Duration::from_secs(600))?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let live = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--wait-ms", "60000"])?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    let before = mesh.a.serial_of("/sa/client")?;
    let began = Instant::now();
    authority.revoke(&before)?;
    let seen = last_line(&live.finish(PATIENCE * 2)?)?;
    eprintln!("from the revocation to the cut: {:?}", began.elapsed());
    ensure!(seen["text"] == "hello" && seen["ended"] == "reset", "the live connection was not reset: {seen}");
    wait_until(PATIENCE, "the revoked SVID to be renewed", || Ok(mesh.a.serial_of("/sa/client")? != before))?;
    traffic(&mesh, Instant::now() + Duration::from_millis(1)).map(drop)
}
