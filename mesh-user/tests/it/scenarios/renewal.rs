//! SVIDs from a CA elsewhere: renewed under traffic, over its absence, taken back while connections live.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::it::authority::Authority;
use crate::it::faketime::WallClock;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, accepted, is_unserved, last_line, probe, serve, start_probe, wait_event,
};
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Daemon 120:
        renewals_of_seconds_and_a_ca_that_is_away_fail_no_connection,
        a_restart_without_the_ca_waits_for_it_and_says_so,
        a_revocation_told_by_the_ca_cuts_the_live_connection_and_renews_at_its_own_node,
        a_connection_outlives_the_certificates_that_it_began_with;
    FakeTime 120:
        a_nodes_clock_that_jumps_past_the_end_of_certificates_fails_closed_and_recovers;
];

/// For connections that have to be decided again.
const NO_7001: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: no-7001, namespace: shop }
spec: { action: DENY, rules: [ { to: [ { operation: { ports: [ \"7001\" ] } } ] } ] }
";

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

/// Certificates of a few seconds end while a connection stands, and everything is decided again: what was proven in its time
/// stays.
fn a_connection_outlives_the_certificates_that_it_began_with(ground: &Ground) -> anyhow::Result<()> {
    let life = Duration::from_secs(8);
    let (mesh, mut authority) = given(ground, life)?;
    let (server, other) = (serve(&mesh.server, 7000, &["--echo"])?, serve(&mesh.server, 7001, &["--echo"])?);
    let begin =
        |port| start_probe(&mesh.client, mesh.server.at(port), &["--send", "hello", "--wait-ms", "60000"]);
    let (open, denied) = (begin(7000)?, begin(7001)?);
    for server in [&server, &other] {
        wait_event(server, "the client", |event| event["event"] == "accepted")?;
    }
    let first = mesh.a.serial_of("/sa/client")?;
    authority.stop();
    // With the CA away nobody has a certificate that is valid any more.
    let hello = || probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"]);
    wait_until(life + PATIENCE, "the certificates to end", || Ok(is_unserved(&hello()?)))?;
    // Every live connection is decided again: that one of them is cut says that it was.
    mesh.b.set_policies(NO_7001)?;
    let seen = last_line(&denied.finish(PATIENCE)?)?;
    ensure!(seen["ended"] == "reset", "policy does not reach it: {seen}");
    let rows = mesh.b.ctl_json(&["connections"])?;
    ensure!(rows["total"] == 1, "the end of a certificate cut a live connection: {rows}");
    authority.start()?;
    wait_until(PATIENCE * 2, "the node to renew", || Ok(mesh.a.serial_of("/sa/client")? != first))?;
    wait_until(PATIENCE, "new connections", || Ok(hello()?["text"] == "hello"))?;
    let rows = mesh.a.ctl_json(&["connections"])?;
    ensure!(rows["total"] == 1, "the old connection is gone: {rows}");
    drop(open);
    Ok(())
}

/// The wall clock of the client's node is set; the server's node has the right time.
fn a_nodes_clock_that_jumps_past_the_end_of_certificates_fails_closed_and_recovers(
    ground: &Ground,
) -> anyhow::Result<()> {
    let clock = WallClock::new(ground.dir(), "a")?;
    let mut mesh = Mesh::given(ground)?;
    mesh.a.prefix = clock.prefix();
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let open = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--wait-ms", "110000"])?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    for seconds in [20, -20, 40, 0] {
        clock.set(seconds)?;
        traffic(&mesh, Instant::now() + Duration::from_secs(1))
            .map_err(|error| error.context(format!("the clock is {seconds} s off")))?;
    }
    // Certificates are of a day.
    clock.set(3 * 86_400)?;
    let hello = || probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"]);
    wait_until(PATIENCE, "the server's certificate to have ended for the client", || {
        Ok(is_unserved(&hello()?))
    })?;
    let before = accepted(&server);
    mesh.watched("ended", || {
        for _ in 0..5 {
            let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
            ensure!(is_unserved(&seen), "{seen}");
        }
        Ok(())
    })?;
    ensure!(accepted(&server) == before, "something reached the server's application");
    clock.set(0)?;
    wait_until(PATIENCE * 2, "connections to be served again", || Ok(hello()?["text"] == "hello"))?;
    traffic(&mesh, Instant::now() + Duration::from_secs(1))?;
    let rows = mesh.a.ctl_json(&["connections"])?;
    ensure!(rows["total"] == 1, "the connection that was open is gone: {rows}");
    drop(open);
    Ok(())
}
