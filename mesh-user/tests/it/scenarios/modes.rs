//! Peer authentication: who may speak plaintext to an enrolled server, and that nobody else may.

use anyhow::ensure;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, PERMISSIVE, STRICT, is_unserved, json_lines, probe, serve};

pub(super) const STORIES: &[Story] = stories![
    Daemon 60:
        an_outsider_in_plaintext_is_refused_by_strict,
        an_outsider_in_plaintext_is_served_by_permissive,
        a_server_that_speaks_first_serves_outsiders_under_permissive,
        an_enrolled_client_speaks_tls_under_permissive,
        a_port_that_is_disabled_takes_plaintext_while_others_do_not,
        a_probe_from_the_nodes_own_namespace_passes_strict,
        an_excluded_port_is_left_alone,
];

fn an_outsider_in_plaintext_is_refused_by_strict(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--banner", MARKER, "--echo"])?;
    for to in [mesh.server.at(7000), mesh.server.at6(7000)] {
        let seen = probe(&mesh.outsider, to, &["--send", "GET / HTTP/1.0\r\n\r\n"])?;
        ensure!(is_unserved(&seen), "served in plaintext: {seen}");
        ensure!(seen["ended"] != "open", "left open: {seen}");
    }
    ensure!(
        json_lines(&server.stdout()).iter().all(|event| event["event"] != "accepted"),
        "{}",
        server.stdout()
    );
    let line = mesh.b.wait_access_log("the refusal", |line| line["verdict"] == "deny")?;
    ensure!(line["response_flags"] == "DENY" && line["rule"] == "STRICT: plaintext", "{line}");
    ensure!(line["peer_spiffe_id"].is_null(), "plaintext has no identity: {line}");
    Ok(())
}

fn an_outsider_in_plaintext_is_served_by_permissive(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, PERMISSIVE)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    for to in [mesh.server.at(7000), mesh.server.at6(7000)] {
        let seen = probe(&mesh.outsider, to, &["--send", MARKER, "--shutdown"])?;
        ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
    }
    Ok(())
}

fn a_server_that_speaks_first_serves_outsiders_under_permissive(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, PERMISSIVE)?;
    let _server = serve(&mesh.server, 7000, &["--banner", "220 welcome", "--shutdown-first"])?;
    let seen = probe(&mesh.outsider, mesh.server.at(7000), &["--wait-ms", "20000"])?;
    ensure!(seen["text"] == "220 welcome", "{seen}");
    let limit_ms = ground.scale().of(2_000, 20_000);
    ensure!(seen["ms"].as_u64().is_some_and(|ms| ms < limit_ms), "a silent client was kept waiting: {seen}");
    Ok(())
}

fn an_enrolled_client_speaks_tls_under_permissive(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, PERMISSIVE)?;
    let _server = serve(&mesh.server, 7000, &["--banner", MARKER, "--echo"])?;
    let tap = mesh.watched("permissive", || {
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
        ensure!(seen["ended"] == "eof" && seen["received"] == 2 * MARKER.len(), "{seen}");
        let limit_ms = ground.scale().of(400, 20_000);
        ensure!(seen["ms"].as_u64().is_some_and(|ms| ms < limit_ms), "waited for a sniffing timeout: {seen}");
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.server.at(7000))
}

fn a_port_that_is_disabled_takes_plaintext_while_others_do_not(ground: &Ground) -> anyhow::Result<()> {
    let port_level = "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: server, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  mtls: { mode: STRICT }
  portLevelMtls: { 7000: { mode: DISABLE } }
";
    let mesh = Mesh::with_policies(ground, &format!("{STRICT}{port_level}"))?;
    let _open = serve(&mesh.server, 7000, &["--echo"])?;
    let _closed = serve(&mesh.server, 7001, &["--echo"])?;
    let seen = probe(&mesh.outsider, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(seen["text"] == "x" && seen["ended"] == "eof", "{seen}");
    let seen = probe(&mesh.outsider, mesh.server.at(7001), &["--send", "x", "--shutdown"])?;
    ensure!(is_unserved(&seen), "{seen}");
    Ok(())
}

fn a_probe_from_the_nodes_own_namespace_passes_strict(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let seen = probe(&mesh.b.place, mesh.server.at(7000), &["--send", "healthy?", "--shutdown"])?;
    ensure!(seen["text"] == "healthy?" && seen["ended"] == "eof", "{seen}");
    // Another node's namespace is not this pod's host.
    let seen = probe(&mesh.a.place, mesh.server.at(7000), &["--send", "healthy?", "--shutdown"])?;
    ensure!(is_unserved(&seen), "{seen}");
    Ok(())
}

fn an_excluded_port_is_left_alone(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.workloads[2].exclude_inbound_ports = vec![9100];
    mesh.start()?;
    let _metrics = serve(&mesh.server, 9100, &["--echo"])?;
    let seen = probe(&mesh.outsider, mesh.server.at(9100), &["--send", "x", "--shutdown"])?;
    ensure!(seen["text"] == "x" && seen["ended"] == "eof", "{seen}");
    Ok(())
}
