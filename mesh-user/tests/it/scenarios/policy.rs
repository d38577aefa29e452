//! Authorization by proven identity, for new connections and for those that live when the policy changes.

use anyhow::ensure;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, ONLY_CLIENT, PERMISSIVE, STRICT, accepted, is_unserved, json_lines, last_line, probe,
    serve, start_probe, wait_event,
};
use crate::it::process::PATIENCE;

pub(super) const STORIES: &[Story] = stories![
    EveryRelay 60:
        a_policy_change_cuts_a_live_connection_and_spares_the_allowed_one;
    Daemon 60:
        an_allowed_caller_passes_and_another_is_refused,
        plaintext_has_no_principal_and_is_refused_where_one_is_asked_for,
        a_deny_rule_on_a_port_leaves_other_ports_alone,
        a_server_with_another_identity_than_expected_gets_no_data,
        explain_says_what_happens_and_which_rule_says_so,
];

fn strict_and_only_client() -> String {
    format!("{STRICT}{ONLY_CLIENT}")
}

fn an_allowed_caller_passes_and_another_is_refused(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &strict_and_only_client())?;
    let server = serve(&mesh.server, 7000, &["--banner", MARKER, "--echo"])?;
    mesh.watched("policy", || {
        let allowed = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
        ensure!(allowed["received"] == 2 * MARKER.len() && allowed["ended"] == "eof", "{allowed}");
        let denied = probe(&mesh.other, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
        ensure!(is_unserved(&denied), "{denied}");
        Ok(())
    })?;
    let accepted = accepted(&server);
    ensure!(accepted == 1, "the server saw {accepted} connections");
    let line = mesh.b.wait_access_log("the denial", |line| line["verdict"] == "deny")?;
    ensure!(line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/other", "{line}");
    ensure!(!line["rule"].is_null(), "no reason given: {line}");
    ensure!(mesh.b.metric("meshd_denials_total", &[])? >= 1, "no denial counted");
    Ok(())
}

fn plaintext_has_no_principal_and_is_refused_where_one_is_asked_for(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &format!("{PERMISSIVE}{ONLY_CLIENT}"))?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let seen = probe(&mesh.outsider, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(is_unserved(&seen), "{seen}");
    ensure!(!server.stdout().contains("accepted"), "{}", server.stdout());
    Ok(())
}

fn a_deny_rule_on_a_port_leaves_other_ports_alone(ground: &Ground) -> anyhow::Result<()> {
    let deny = "
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: { name: no-admin-port, namespace: shop }
spec:
  action: DENY
  rules:
  - to: [ { operation: { ports: [ \"7001\" ] } } ]
";
    let mesh = Mesh::with_policies(ground, &format!("{STRICT}{deny}"))?;
    let _open = serve(&mesh.server, 7000, &["--echo"])?;
    let _denied = serve(&mesh.server, 7001, &["--echo"])?;
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(seen["text"] == "x", "{seen}");
    let seen = probe(&mesh.client, mesh.server.at(7001), &["--send", "x", "--shutdown"])?;
    ensure!(is_unserved(&seen), "{seen}");
    Ok(())
}

fn a_policy_change_cuts_a_live_connection_and_spares_the_allowed_one(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let wait = ground.scale().of("15000", "90000");
    let cut = start_probe(&mesh.other, mesh.server.at(7000), &["--send", "first", "--wait-ms", wait])?;
    let spared = start_probe(&mesh.client, mesh.server.at(7000), &["--send", "first", "--wait-ms", wait])?;
    for place in [&mesh.other, &mesh.client] {
        let host = place.v4.to_string();
        wait_event(&server, &place.name, |event| {
            event["peer"].as_str().is_some_and(|peer| peer.contains(&host))
        })?;
    }
    mesh.policies(&strict_and_only_client())?;
    let seen = last_line(&cut.finish(PATIENCE * 4)?)?;
    ensure!(seen["ended"] == "reset" && seen["text"] == "first", "the other's connection: {seen}");
    let line = mesh.b.wait_access_log("the cut", |line| {
        line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/other"
            && line["response_flags"] == "POLICY_CHANGED"
    })?;
    ensure!(line["verdict"] == "deny", "{line}");
    ensure!(line["error"].as_str().is_some_and(|why| why.contains("policy")), "it does not say why: {line}");
    let seen = last_line(&spared.finish(PATIENCE * 4)?)?;
    ensure!(seen["ended"] == "open" && seen["text"] == "first", "the allowed connection: {seen}");
    Ok(())
}

fn a_server_with_another_identity_than_expected_gets_no_data(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    // Node b's daemon now runs another workload at the server's address than node a was told.
    let mut workloads = mesh.workloads.clone();
    "impostor".clone_into(&mut workloads[2].service_account);
    mesh.b.stop()?;
    mesh.b.configure(&crate::it::nodefile::node_file(&mesh.b, &workloads, &[]))?;
    mesh.b.start()?;
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER])?;
    ensure!(is_unserved(&seen), "{seen}");
    ensure!(
        !json_lines(&server.stdout()).iter().any(|event| event["received"].as_u64() > Some(0)),
        "data arrived"
    );
    Ok(())
}

fn explain_says_what_happens_and_which_rule_says_so(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::with_policies(ground, &strict_and_only_client())?;
    let explain =
        |from: &str| mesh.b.ctl_json(&["policy", "explain", "--from", from, "--to", "shop/server:7000"]);
    let allowed = explain("shop/client")?;
    let by = allowed["decided_by"].as_str().unwrap_or_default();
    ensure!(allowed["allowed"] == true && by.contains("only-client"), "{allowed}");
    let denied = explain("shop/other")?;
    ensure!(denied["allowed"] == false && denied["mode"] == "STRICT", "{denied}");
    Ok(())
}
