//! Two meshes, each with a trust domain and a CA of its own, that learn each other's roots from bundle endpoints: the one
//! that knows its partner by its SVID, the other by a certificate of the web's.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::daemon::Node;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, STRICT, probe, serve};
use crate::it::nodefile::{Selector, Workload};
use crate::it::process::wait_until;
use crate::it::{pki, programs};

pub(super) const STORIES: &[Story] = stories![
    Daemon 120:
        two_meshes_believe_each_other_by_their_bundle_endpoints,
        a_partners_root_rotates_and_no_connection_fails;
    Daemon 60:
        a_unit_of_systemd_proves_the_identity_that_a_template_makes;
];

const A: &str = "shop.example";
const B: &str = "partner.example";
const PORT: u16 = 8443;
/// Bundles are asked for every five seconds; on a busy machine some rounds later they are there.
const ROUNDS: Duration = Duration::from_secs(40);

/// Only `client` of the other mesh.
const ONLY_FOREIGN_CLIENT: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: only-client, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  action: ALLOW
  rules:
  - from: [ { source: { principals: [ shop.example/ns/shop/sa/client ] } } ]
";

/// As the other mesh lists it.
fn foreign(workload: &Workload, domain: &str) -> Value {
    let mut entry = workload.remote();
    entry["spiffeId"] =
        json!(format!("spiffe://{domain}/ns/{}/sa/{}", workload.namespace, workload.service_account));
    entry
}

/// Node a is one mesh and node b the other. Each has its CA, neither knows the other yet.
fn two_meshes(ground: &Ground) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::given(ground)?;
    let of = |mesh: &Mesh, node: &str, domain: &str| -> Value {
        mesh.workloads.iter().filter(|w| w.node == node).map(|w| foreign(w, domain)).collect()
    };
    let (theirs, ours) = (of(&mesh, "node-b", B), of(&mesh, "node-a", A));
    for (node, domain) in [(&mut mesh.a, A), (&mut mesh.b, B)] {
        node.settings.insert("trustDomain".into(), json!(domain));
        node.settings.insert("remoteWorkloads".into(), json!([]));
    }
    // A CA is made at the first start, before there is anybody to be federated with.
    mesh.configure()?;
    for node in [&mut mesh.a, &mut mesh.b] {
        node.start()?;
        node.stop()?;
    }
    mesh.a.settings.insert("remoteWorkloads".into(), theirs);
    mesh.b.settings.insert("remoteWorkloads".into(), ours);
    Ok(mesh)
}

/// Each fetches the other's bundle: a knows b by its SVID, b knows a by a certificate of the web's.
fn federate(mesh: &mut Mesh, ground: &Ground, endpoint_of_b: &str) -> anyhow::Result<()> {
    let config = mesh.b.config_file();
    let said = mesh.b.ctl(&["ca", "bundle", "--config", &config.to_string_lossy(), "--format", "spiffe"])?;
    let begin_with = ground.dir().join("partner.json");
    fs::write(&begin_with, said.succeeded()?)?;
    let url = |node: &Node| format!("https://{}/", node.place.at(PORT));
    let listen = format!("0.0.0.0:{PORT}");
    let web = pki::web_server(&mesh.a.place.v4.to_string(), ground.dir(), "endpoint")?;
    let (of_a, of_b) = (url(&mesh.a), url(&mesh.b));
    mesh.a.settings.insert(
        "federation".into(),
        json!({
            "trustDomains": [ {
                "trustDomain": B, "bundleEndpoint": of_b, "profile": "https_spiffe",
                "endpointSpiffeId": endpoint_of_b, "bundleFile": begin_with,
            } ],
            "listen": listen, "profile": "https_web", "certificateFile": web.chain, "keyFile": web.key,
            "refreshHintSeconds": 5,
        }),
    );
    mesh.b.settings.insert(
        "federation".into(),
        json!({
            "trustDomains": [ { "trustDomain": A, "bundleEndpoint": of_a, "profile": "https_web" } ],
            "extraRoots": [web.chain], "listen": listen, "refreshHintSeconds": 5,
        }),
    );
    mesh.configure()
}

/// Roots of `domain` that the node believes.
fn roots(node: &Node, domain: &str) -> anyhow::Result<usize> {
    let certs = node.ctl_json(&["certs"])?;
    let is_root = |row: &&Value| row["kind"] == "root" && row["subject"] == domain;
    Ok(certs.as_array().into_iter().flatten().filter(is_root).count())
}

fn wait_for_roots(node: &Node, domain: &str, count: usize) -> anyhow::Result<()> {
    wait_until(ROUNDS, &format!("{} to believe {count} roots of {domain}", node.name), || {
        Ok(roots(node, domain)? == count)
    })
    .with_context(|| node.log())
}

fn curl(mesh: &Mesh) -> anyhow::Result<()> {
    let url = format!("http://{}/", mesh.server.at(8080));
    let said = mesh.client.run(&["curl", "-sS", "--max-time", "10", &url])?.succeeded();
    let said = said.with_context(|| format!("{}{}", mesh.a.log(), mesh.b.log()))?;
    ensure!(said.contains(MARKER), "{said}");
    Ok(())
}

fn two_meshes_believe_each_other_by_their_bundle_endpoints(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = two_meshes(ground)?;
    mesh.policies(&format!("{STRICT}{ONLY_FOREIGN_CLIENT}"))?;
    federate(&mut mesh, ground, &format!("spiffe://{B}/spiffe-bundle-endpoint"))?;
    mesh.b.start()?;
    mesh.a.start()?;
    wait_for_roots(&mesh.b, A, 1)?;
    let _nginx = programs::nginx(&mesh.server, 8080, MARKER)?;
    let tap = mesh.watched("federated", || curl(&mesh))?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.server.at(8080))?;
    let line = mesh.b.wait_access_log("the client of the other mesh", |line| {
        line["peer_spiffe_id"] == "spiffe://shop.example/ns/shop/sa/client" && line["verdict"] == "allow"
    })?;
    ensure!(line["own_spiffe_id"] == "spiffe://partner.example/ns/shop/sa/server", "{line}");
    let url = format!("http://{}/", mesh.server.at(8080));
    mesh.other.run(&["curl", "-sS", "--max-time", "10", &url])?.failed()?;
    mesh.b.wait_access_log("the other client", |line| {
        line["peer_spiffe_id"] == "spiffe://shop.example/ns/shop/sa/other" && line["verdict"] == "deny"
    })?;

    // An endpoint that cannot prove who a wants to hear: what was fetched before stays in force, over a restart.
    mesh.a.stop()?;
    federate(&mut mesh, ground, &format!("spiffe://{B}/ns/shop/sa/somebody-else"))?;
    mesh.a.start()?;
    wait_until(ROUNDS, "a to say that it hears somebody else", || {
        let status = mesh.a.ctl_json(&["status"])?;
        let problems = status["problems"].to_string();
        Ok(problems.contains("may not serve") && problems.contains(B))
    })
    .with_context(|| mesh.a.log())?;
    curl(&mesh)
}

fn a_partners_root_rotates_and_no_connection_fails(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = two_meshes(ground)?;
    federate(&mut mesh, ground, &format!("spiffe://{B}/spiffe-bundle-endpoint"))?;
    mesh.b.start()?;
    mesh.a.start()?;
    wait_for_roots(&mesh.b, A, 1)?;
    let _nginx = programs::nginx(&mesh.server, 8080, MARKER)?;
    curl(&mesh)?;
    let rotate = |more: &[&str]| {
        let mut arguments = vec!["ca", "rotate", "root", "--embedded"];
        arguments.extend(more);
        mesh.b.ctl(&arguments)
    };
    let signed_by = || -> anyhow::Result<Value> {
        let status = mesh.b.ctl_json(&["ca", "status", "--embedded"])?;
        let authorities = status["keys"]["authorities"].as_array().cloned().unwrap_or_default();
        let signs = authorities.iter().find(|one| one["signs"] == true);
        Ok(signs.context("no authority signs")?["serial"].clone())
    };
    let old = signed_by()?;
    rotate(&[])?.succeeded()?;
    wait_for_roots(&mesh.a, B, 2)?;
    curl(&mesh).context("both are told")?;
    // Who does not acknowledge has an hour.
    let why = rotate(&["--advance"])?.failed()?;
    ensure!(why.contains("propagat") || why.contains("until"), "{why}");
    rotate(&["--advance", "--force"])?.succeeded()?;
    ensure!(signed_by()? != old, "the old root signs");
    // The new one's SVIDs are in use at once, and believed by who has fetched both.
    for _ in 0..20 {
        curl(&mesh).context("the new one signs")?;
    }
    let why = rotate(&["--advance"])?.failed()?;
    ensure!(!why.is_empty(), "the old root was withdrawn while its SVIDs may be in use");
    rotate(&["--advance", "--force"])?.succeeded()?;
    wait_for_roots(&mesh.a, B, 1).context("the old one is withdrawn")?;
    curl(&mesh).context("the old one is withdrawn")
}

fn a_unit_of_systemd_proves_the_identity_that_a_template_makes(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let group = ground.cgroup().join("system.slice/batch.service");
    let batch = mesh.a.place.in_cgroup(&group)?;
    let mut workload = Workload::pod(&batch, "node-a");
    workload.name = "batch".into();
    workload.selector = Selector::Unit("batch.service".into());
    workload.spiffe_id = Some("spiffe://{{trustDomain}}/unit/{{unit}}".into());
    mesh.workloads.push(workload);
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let is_batch = |line: &Value| line["peer_spiffe_id"] == "spiffe://cluster.local/unit/batch.service";
    let speak = |place| -> anyhow::Result<bool> {
        let seen = probe(place, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
        Ok(seen["text"] == MARKER && seen["ended"] == "eof")
    };
    let tap = mesh.watched("unit", || {
        ensure!(speak(&batch)?, "{}", mesh.a.log());
        Ok(())
    })?;
    tap.must_be_tls_between(batch.v4.into(), mesh.server.at(7000))?;
    mesh.b.wait_access_log("the unit's identity", is_batch)?;
    ensure!(!speak(&mesh.a.place)?, "a program beside it passed as it");
    // A restarted unit has another cgroup of the same name.
    crate::it::cgroup::kill(&group)?;
    crate::it::cgroup::remove(&group);
    let batch = mesh.a.place.in_cgroup(&group)?;
    wait_until(ROUNDS, "the unit's new cgroup to be followed", || speak(&batch))
}
