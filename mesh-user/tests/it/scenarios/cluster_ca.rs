//! The fleet's CA in Kubernetes: a real API server reviews tokens, says what runs where, and keeps the CA's keys and state for
//! whichever replica leads. `meshd ca` has the rights of its deployment and no others.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::fleet::{Service, under_traffic, write_secret};
use crate::it::daemon::Node;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kube::{Cluster, ISSUER};
use crate::it::mesh::{Mesh, last_line, probe, serve, start_probe, wait_event};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Kubernetes 240:
        nodes_get_by_bound_tokens_what_runs_on_them_and_nothing_else,
        tokens_that_prove_nothing_are_refused_and_the_audit_says_why,
        another_replica_goes_on_within_the_lease_and_no_certificate_or_root_is_lost;
];

const PORT: u16 = 15012;
pub(super) const SYSTEM: &str = "meshd-system";
const AUDIENCE: &str = "meshd-ca";
/// Of the Lease, in seconds.
pub(super) const LEASE: u64 = 6;
/// An agent whose workload is refused asks again within this, give or take.
const ASKED_AGAIN: Duration = Duration::from_secs(60);

pub(super) struct Given {
    pub(super) mesh: Mesh,
    pub(super) cluster: Cluster,
    ca: Place,
}

fn object(api: &str, kind: &str, namespace: &str, name: &str, more: &Value) -> Value {
    let mut object = json!({
        "apiVersion": api, "kind": kind, "metadata": { "name": name, "namespace": namespace },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

fn pod(namespace: &str, name: &str, account: &str, node: &str) -> Value {
    let spec = json!({ "spec": {
        "serviceAccountName": account, "automountServiceAccountToken": false, "nodeName": node,
        "terminationGracePeriodSeconds": 0, "containers": [ { "name": "c", "image": "x" } ],
    } });
    object("v1", "Pod", namespace, name, &spec)
}

/// The API server with everybody's pods but `other`'s, and nodes that do not run yet.
fn given(ground: &Ground) -> anyhow::Result<Given> {
    given_with(ground, Vec::new())
}

/// The same, the API server with `flags` too.
pub(super) fn given_with(ground: &Ground, flags: Vec<String>) -> anyhow::Result<Given> {
    let mut mesh = Mesh::given(ground)?;
    let [api, ca] = mesh.pods.wire.plug(["api", "ca"])?;
    let cluster = Cluster::start_with(&api, flags)?;
    cluster.deploy("apply", &["namespace.yaml", "agent-access.yaml", "ca-access.yaml"])?;
    let account = |namespace: &str, name: &str| object("v1", "ServiceAccount", namespace, name, &json!({}));
    let shop = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } });
    let mut objects = vec![shop];
    objects.extend(["client", "other", "server"].map(|name| account("shop", name)));
    objects.extend([
        pod("shop", "client-1", "client", "node-a"),
        pod("shop", "server-1", "server", "node-b"),
        pod(SYSTEM, "agent-node-a", "meshd", "node-a"),
        pod(SYSTEM, "agent-node-b", "meshd", "node-b"),
        pod(SYSTEM, "meshd-ca-0", "meshd-ca", "node-b"),
    ]);
    cluster.apply(&objects)?;
    Ok(Given { mesh, cluster, ca })
}

impl Given {
    /// A replica of the CA with a machine's folders of its own; `more` of its part about Kubernetes.
    pub(super) fn replica(&self, ground: &Ground, name: &str, more: &Value) -> anyhow::Result<Service> {
        let dir = ground.dir().join(name);
        fs::create_dir(&dir)?;
        let token = self.cluster.token(SYSTEM, "meshd-ca", ISSUER, Some("meshd-ca-0"))?;
        write_secret(&dir.join("kubeconfig"), &self.cluster.kubeconfig_of_token(&token).to_string())?;
        let mut kubernetes = json!({
            "kubeconfig": dir.join("kubeconfig"), "audiences": [AUDIENCE], "nodeAgents": [format!("{SYSTEM}/meshd")],
            "placement": true, "roots": { "namespaces": [SYSTEM] },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            kubernetes[key] = value.clone();
        }
        let file = json!({
            "trustDomain": "cluster.local", "directory": dir.join("state"), "runtimeDir": dir.join("run"),
            "listen": [self.ca.at(PORT)], "dnsNames": ["meshd-ca.meshd-system.svc"],
            "kubernetes": kubernetes, "audit": { "file": dir.join("audit") },
        });
        fs::write(dir.join("ca.yaml"), file.to_string())?;
        Ok(Service { place: self.ca.clone(), dir, prefix: Vec::new(), program: None })
    }

    /// Gives both nodes the roots of the `ConfigMap` and their agents' tokens.
    pub(super) fn equip(&mut self, ground: &Ground) -> anyhow::Result<()> {
        let roots = ground.dir().join("root-cert.pem");
        wait_until(PATIENCE, "the ConfigMap with the roots", || {
            let path = "jsonpath={.data.root-cert\\.pem}";
            let text = self.cluster.kubectl(&["-n", SYSTEM, "get", "configmap", "meshd-ca-root", "-o", path]);
            let text = text.unwrap_or_default();
            Ok(text.contains("BEGIN CERTIFICATE") && fs::write(&roots, text).is_ok())
        })?;
        for node in [&mut self.mesh.a, &mut self.mesh.b] {
            let token = ground.dir().join(format!("{}.token", node.name));
            let agent = format!("agent-{}", node.name);
            write_secret(&token, &self.cluster.token(SYSTEM, "meshd", AUDIENCE, Some(&agent))?)?;
            let ca = json!({
                "provider": "meshd-ca", "address": self.ca.at(PORT).to_string(),
                "serverName": "meshd-ca.meshd-system.svc", "rootsFile": roots, "tokenFile": token,
            });
            node.settings.insert("ca".into(), ca);
        }
        self.mesh.configure()
    }

    pub(super) fn greets(&self) -> anyhow::Result<()> {
        let seen = probe(&self.mesh.client, self.mesh.server.at(7000), &["--send", "hello", "--shutdown"])?;
        ensure!(seen["text"] == "hello", "{seen}{}{}", self.mesh.a.log(), self.mesh.b.log());
        Ok(())
    }
}

/// Lines of the audit.
fn audit(service: &Service) -> Vec<Value> {
    let text = fs::read_to_string(service.dir.join("audit")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits for a line after the first `before` ones.
fn wait_audit(
    service: &Service,
    before: usize,
    what: &str,
    is_it: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let mut found = None;
    wait_until(ASKED_AGAIN, &format!("the audit to tell of {what}"), || {
        found = audit(service).into_iter().skip(before).find(&is_it);
        Ok(found.is_some())
    })
    .with_context(|| format!("{:#?}", audit(service)))?;
    found.context("it was found")
}

fn has_certificate(node: &Node, account: &str) -> bool {
    node.serial_of(account).is_ok_and(|serial| !serial.is_empty())
}

fn nodes_get_by_bound_tokens_what_runs_on_them_and_nothing_else(ground: &Ground) -> anyhow::Result<()> {
    let mut given = given(ground)?;
    let mut service = given.replica(ground, "ca", &json!({}))?;
    service.start()?;
    given.equip(ground)?;
    given.mesh.a.start()?;
    given.mesh.b.start()?;
    let _server = serve(&given.mesh.server, 7000, &["--echo"])?;
    given.greets()?;
    let issued = wait_audit(&service, 0, "the client's certificate", |line| {
        line["outcome"] == "issued" && line["identity"] == "spiffe://cluster.local/ns/shop/sa/client"
    })?;
    ensure!(
        issued["caller"] == "system:serviceaccount:meshd-system:meshd"
            && issued["pod"] == "agent-node-a"
            && issued["node"] == "node-a"
            && issued["authentication"] == "kubernetes_token",
        "{issued}"
    );
    // Its node's file says that `other` is here; Kubernetes does not.
    let refused = wait_audit(&service, 0, "the workload that runs nowhere", |line| {
        line["outcome"] == "refused" && line["asked"] == "spiffe://cluster.local/ns/shop/sa/other"
    })?;
    ensure!(refused["reason"] == "not_allowed" && refused["node"] == "node-a", "{refused}");
    let before = audit(&service).len();
    given.cluster.apply(&[pod("shop", "other-1", "other", "node-b")])?;
    wait_audit(&service, before, "the workload of the other node", |line| {
        line["reason"] == "not_allowed" && line["asked"] == "spiffe://cluster.local/ns/shop/sa/other"
    })?;
    ensure!(!has_certificate(&given.mesh.a, "/sa/other"), "node a has what runs on node b");
    given.cluster.apply(&[pod("shop", "other-2", "other", "node-a")])?;
    wait_until(ASKED_AGAIN, "the certificate of what runs here now", || {
        Ok(has_certificate(&given.mesh.a, "/sa/other"))
    })?;
    // Without an API server what was issued goes on, and after it so does issuing.
    given.cluster.stop_api_server()?;
    given.greets()?;
    given.cluster.start_api_server()?;
    let before = audit(&service).len();
    given.mesh.b.stop()?;
    given.mesh.b.start()?;
    wait_audit(&service, before, "a certificate after the API server came back", |line| {
        line["outcome"] == "issued" && line["node"] == "node-b"
    })?;
    given.greets()?;
    let text = fs::read_to_string(service.dir.join("audit"))? + &service.program.context("it runs")?.stderr();
    ensure!(!text.contains("eyJhbGciOi"), "a token is in the log");
    Ok(())
}

fn tokens_that_prove_nothing_are_refused_and_the_audit_says_why(ground: &Ground) -> anyhow::Result<()> {
    let mut given = given(ground)?;
    let mut service = given.replica(ground, "ca", &json!({}))?;
    service.start()?;
    given.equip(ground)?;
    let cluster = &given.cluster;
    cluster.apply(&[pod(SYSTEM, "gone", "meshd", "node-a")])?;
    let of_gone = cluster.token(SYSTEM, "meshd", AUDIENCE, Some("gone"))?;
    cluster.kubectl(&["-n", SYSTEM, "delete", "pod", "gone", "--grace-period=0", "--force"])?;
    // Of the same name, and another one: what its predecessor's token proves is not its.
    cluster.apply(&[pod(SYSTEM, "gone", "meshd", "node-b")])?;
    let good = cluster.token(SYSTEM, "meshd", AUDIENCE, Some("agent-node-a"))?;
    let (head, rest) = good.split_once('.').context("a token has three parts")?;
    let (claims, signature) = rest.split_once('.').context("a token has three parts")?;
    let forged: String = signature.chars().rev().collect();
    let file = ground.dir().join("node-a.token");
    let mut started = false;
    for (what, token, reasons, pod) in [
        (
            "another audience",
            cluster.token(SYSTEM, "meshd", "vault", Some("agent-node-a"))?,
            &["bad_token", "wrong_audience"][..],
            None,
        ),
        ("no pod", cluster.token(SYSTEM, "meshd", AUDIENCE, None)?, &["unbound_token"], None),
        ("a deleted pod", of_gone, &["bad_token", "unknown_pod"], None),
        ("another issuer's key", format!("{head}.{claims}.{forged}"), &["bad_token"], None),
        (
            "a workload",
            cluster.token("shop", "server", AUDIENCE, Some("server-1"))?,
            &["not_allowed"],
            Some("server-1"),
        ),
        (
            "the other node's agent",
            cluster.token(SYSTEM, "meshd", AUDIENCE, Some("agent-node-b"))?,
            &["not_allowed"],
            Some("agent-node-b"),
        ),
    ] {
        // What is under way may still have the token before.
        let before = audit(&service).len() + usize::from(started);
        fs::write(&file, token)?;
        if !started {
            given.mesh.a.launch()?;
            started = true;
        }
        let line = wait_audit(&service, before, what, |line| {
            line["call"] == "CreateCertificate"
                && reasons.iter().any(|reason| line["reason"] == *reason)
                && pod.is_none_or(|pod| line["pod"] == pod)
        })?;
        ensure!(line["outcome"] == "refused", "{what}: {line}");
    }
    ensure!(!audit(&service).iter().any(|line| line["outcome"] == "issued"), "somebody got a certificate");
    fs::write(&file, good)?;
    wait_until(ASKED_AGAIN, "the certificate that the right token gets", || {
        Ok(has_certificate(&given.mesh.a, "/sa/client"))
    })
}

fn another_replica_goes_on_within_the_lease_and_no_certificate_or_root_is_lost(
    ground: &Ground,
) -> anyhow::Result<()> {
    let mut given = given(ground)?;
    let state = |identity: &str| json!({ "state": { "namespace": SYSTEM, "identity": identity, "leaseSeconds": LEASE } });
    let mut first = given.replica(ground, "ca-0", &state("ca-0"))?;
    let mut second = given.replica(ground, "ca-1", &state("ca-1"))?;
    first.start()?;
    second.launch()?;
    second.program.as_mut().context("it runs")?.wait_to_say("stands by", PATIENCE)?;
    given.equip(ground)?;
    given.mesh.a.start()?;
    given.mesh.b.start()?;
    let server = serve(&given.mesh.server, 7000, &["--echo"])?;
    let live = start_probe(
        &given.mesh.client,
        given.mesh.server.at(7000),
        &["--send", "hello", "--wait-ms", "170000"],
    )?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    let roots = first.in_stage("root", "active")?;
    let count = under_traffic(&given.mesh, || {
        let killed = Instant::now();
        first.kill()?;
        second.wait_ready(Duration::from_secs(3 * LEASE))?;
        let taken = killed.elapsed();
        eprintln!("from the kill of the leader to the other replica's first answer: {taken:?}");
        ensure!(second.in_stage("root", "active")? == roots && roots.len() == 1, "another root");
        // What died may come again, and stands by.
        first.launch()?;
        first.program.as_mut().context("it runs")?.wait_to_say("stands by", PATIENCE)?;
        // A node that starts now is served by the one that leads now.
        given.cluster.apply(&[pod("shop", "other-1", "other", "node-a")])?;
        wait_audit(&second, 0, "a certificate of the new leader", |line| {
            line["outcome"] == "issued" && line["asked"] == "spiffe://cluster.local/ns/shop/sa/other"
        })?;
        Ok(())
    })?;
    eprintln!("{count} connections while the leader changed, none failed");
    // The new leader knows of the certificate that the old one signed, and both nodes follow it.
    let serial = given.mesh.a.serial_of("/sa/client")?;
    let revoked: Value = serde_json::from_str(&second.ctl(&[
        "revoke",
        "--identity",
        "spiffe://cluster.local/ns/shop/sa/client",
        "-o",
        "json",
    ])?)?;
    ensure!(revoked.to_string().contains(&serial), "it is not in the register: {revoked}");
    let seen = last_line(&live.finish(PATIENCE)?)?;
    ensure!(seen["ended"] == "reset", "the live connection was not cut: {seen}");
    wait_until(PATIENCE, "another SVID", || Ok(given.mesh.a.serial_of("/sa/client")? != serial))?;
    wait_until(PATIENCE, "the new SVID to be believed", || Ok(given.greets().is_ok()))?;
    // An orderly stop gives the Lease back at once; the one that stood by has it all.
    second.program.as_mut().context("it runs")?.signal(nix::sys::signal::Signal::SIGTERM)?;
    first.wait_ready(Duration::from_secs(3 * LEASE))?;
    ensure!(first.in_stage("root", "active")? == roots, "another root");
    let listed = first.ctl(&["crl"])?;
    ensure!(listed.contains("BEGIN X509 CRL"), "the revocation is lost");
    given.greets()
}
