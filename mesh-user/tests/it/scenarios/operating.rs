//! What an operator sees: meshctl, the access log, the metrics.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{Mesh, is_unserved, last_line, probe, serve, start_probe, wait_event};
use crate::it::pki;
use crate::it::process::PATIENCE;

pub(super) const STORIES: &[Story] = stories![
    Daemon 60:
        the_second_connection_resumes_the_session,
        metrics_carry_istios_names_and_labels,
        a_revoked_certificate_loses_its_connections_and_gets_no_new_one,
        nodes_with_authorities_in_istios_files_believe_each_other,
        metrics_are_served_over_tcp_where_the_file_says_so,
        meshctl_shows_workloads_connections_and_certificates,
        check_names_each_capability_in_a_table_and_in_json;
    EveryRelay 60:
        connections_show_peer_relay_and_bytes_while_they_live,
];

fn exchange(mesh: &Mesh) -> anyhow::Result<()> {
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
    ensure!(seen["text"] == "hello" && seen["ended"] == "eof", "{seen}");
    Ok(())
}

fn the_second_connection_resumes_the_session(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    exchange(&mesh)?;
    let first = mesh.b.wait_access_log("the first", |line| line["direction"] == "inbound")?;
    ensure!(first["resumed"] == false, "{first}");
    exchange(&mesh)?;
    for node in [&mesh.a, &mesh.b] {
        let second = node.wait_access_log("a resumed one", |line| line["resumed"] == true)?;
        ensure!(second["peer_spiffe_id"].is_string(), "the identity was not kept: {second}");
    }
    Ok(())
}

fn a_revoked_certificate_loses_its_connections_and_gets_no_new_one(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let live = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--wait-ms", "60000"])?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    let serial = mesh.a.serial_of("/sa/client")?;
    let list = mesh.b.ca_dir().join("ca-crl.pem");
    fs::write(&list, pki::revocation_list(&mesh.a.ca_dir(), &serial)?)?;
    let seen = last_line(&live.finish(PATIENCE * 2)?)?;
    ensure!(seen["text"] == "hello" && seen["ended"] == "reset", "the live connection was not reset: {seen}");
    let told = mesh.b.wait_access_log("why", |line| line["response_flags"] == "POLICY_CHANGED")?;
    ensure!(told.to_string().contains("revocation list"), "{told}");
    let again = probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
    ensure!(is_unserved(&again), "a revoked certificate was believed: {again}");
    let other = probe(&mesh.other, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
    ensure!(other["text"] == "hello", "a certificate that nobody revoked is refused: {other}");
    // A bad list changes nothing, and is told.
    fs::write(&list, "no list")?;
    let refused = mesh.b.ctl(&["reload"])?.failed()?;
    ensure!(refused.contains("ca-crl.pem"), "{refused}");
    let again = probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
    ensure!(is_unserved(&again), "a bad list let the revoked in: {again}");
    Ok(())
}

fn nodes_with_authorities_in_istios_files_believe_each_other(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    pki::plugged_in([&mesh.a.ca_dir(), &mesh.b.ca_dir()])?;
    mesh.configure()?;
    mesh.a.start()?;
    mesh.b.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    exchange(&mesh)?;
    let inbound = mesh.b.wait_access_log("the connection", |line| line["direction"] == "inbound")?;
    ensure!(inbound["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/client", "{inbound}");
    // A third authority's files under the same names are a stranger's.
    mesh.a.stop()?;
    let stranger = ground.dir().join("stranger");
    pki::plugged_in([&mesh.a.ca_dir(), &stranger])?;
    mesh.a.start()?;
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
    ensure!(is_unserved(&seen), "a client of another root was believed: {seen}");
    Ok(())
}

fn metrics_carry_istios_names_and_labels(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let mut remote = mesh.workloads[0].remote();
    remote["clusterName"] = json!("west");
    mesh.b.settings.insert("remoteWorkloads".into(), json!([remote]));
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    exchange(&mesh)?;
    mesh.b.wait_access_log("the connection", |line| line["direction"] == "inbound")?;
    let labels = [
        "reporter=\"destination\"",
        "source_cluster=\"west\"",
        "destination_cluster=\"Kubernetes\"",
        "source_workload=\"client\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "destination_workload=\"server\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/server\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    for name in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
        ensure!(mesh.b.metric(name, &labels)? == 1, "{name}: {}", mesh.b.metrics()?);
    }
    for name in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
        ensure!(mesh.b.metric(name, &labels)? == 5, "{name}: {}", mesh.b.metrics()?);
    }
    ensure!(
        mesh.a.metric("istio_tcp_connections_opened_total", &["reporter=\"source\""])? == 1,
        "the source's side"
    );
    let expiry = mesh.b.metric("meshd_svid_expiry_seconds", &["sa/server"])?;
    ensure!(expiry > 0, "no certificate expiry: {}", mesh.b.metrics()?);
    Ok(())
}

fn metrics_are_served_over_tcp_where_the_file_says_so(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let at = mesh.a.place.at(15020);
    mesh.a.settings.insert("metrics".into(), json!({ "listen": at }));
    mesh.start()?;
    // What a scraper beyond the node's own machine sees: the status, then the answer.
    let ask = |method: &str, address: std::net::SocketAddr, path: &str| {
        let url = format!("http://{address}{path}");
        let argv = ["curl", "-sS", "--max-time", "10", "-X", method, "-w", "\n%{http_code}", &url];
        mesh.outsider.run(&argv)
    };
    let page = ask("GET", at, "/metrics")?.succeeded()?;
    ensure!(page.contains("meshd_build_info{") && page.ends_with("# EOF\n\n200"), "{page}");
    for (method, path) in [("GET", "/v1/status"), ("POST", "/v1/reload"), ("GET", "/healthz/ready")] {
        let said = ask(method, at, path)?.succeeded()?;
        ensure!(said.ends_with("\n404"), "{method} {path}: {said}");
    }
    let said = ask("POST", at, "/metrics")?.succeeded()?;
    ensure!(said.ends_with("\n405"), "{said}");
    let unset = ask("GET", mesh.b.place.at(15020), "/metrics")?.failed()?;
    ensure!(unset.contains("curl: (7)"), "node b serves too: {unset}");
    Ok(())
}

fn connections_show_peer_relay_and_bytes_while_they_live(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let wait = ground.scale().of("5000", "40000");
    let _live = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "hello", "--wait-ms", wait])?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    let shown = mesh.b.ctl_json(&["connections"])?.to_string();
    ensure!(shown.contains("spiffe://cluster.local/ns/shop/sa/client"), "{shown}");
    ensure!(shown.contains(&format!("\"{}\"", ground.relay())), "{shown}");
    let table = mesh.b.ctl(&["connections"])?.succeeded()?;
    ensure!(table.contains("sa/client") && table.contains(ground.relay().as_str()), "{table}");
    Ok(())
}

fn meshctl_shows_workloads_connections_and_certificates(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    mesh.a.ctl(&["status"])?.succeeded()?;
    let workloads = mesh.a.ctl_json(&["workloads"])?.to_string();
    for name in ["client", "other"] {
        ensure!(workloads.contains(&format!("\"{name}\"")), "{name} is missing: {workloads}");
    }
    let certificates = mesh.a.ctl_json(&["certs"])?.to_string();
    let own = mesh.workloads.first().context("the client")?.spiffe_id();
    ensure!(certificates.contains(&own), "{certificates}");
    Ok(())
}

fn check_names_each_capability_in_a_table_and_in_json(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.a.canary = true;
    mesh.start()?;
    let json = mesh.a.ctl_json(&["check"])?.to_string();
    let table = mesh.a.ctl(&["check"])?.succeeded()?;
    for capability in ["kernel TLS", "kernel TLS splice", "kernel TLS rekey"] {
        ensure!(json.contains(capability), "{capability} is not in {json}");
        ensure!(table.contains(capability), "{capability} is not in {table}");
    }
    Ok(())
}
