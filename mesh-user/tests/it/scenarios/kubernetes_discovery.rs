//! Kubernetes as the source of the world, from a real API server: what labels, services and policies change while programs
//! run, and that nothing is lost when the server is away.
//!
//! Node a asks the API server. The pods it hears of run on node b, whose meshd has them from its file.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kube::{Cluster, ISSUER, node};
use crate::it::kube_front::{Front, Mood};
use crate::it::mesh::{MARKER, Mesh, PERMISSIVE, is_unserved, probe, serve, start_probe, wait_event};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Kubernetes 180:
        a_labelled_namespace_is_meshed_and_its_services_lead_to_its_pods,
        policies_of_the_api_server_are_enforced_and_told_what_became_of_them,
        what_the_api_server_said_last_stays_while_it_is_away,
        a_busy_a_slow_and_a_forgetful_api_server_are_followed_all_the_same;
];

/// The cast of [`Mesh`], node a with an API server and none of the others in its file.
struct Ready {
    mesh: Mesh,
    cluster: Cluster,
}

impl Ready {
    fn given(ground: &Ground) -> anyhow::Result<Self> {
        let mut mesh = Mesh::given(ground)?;
        mesh.policies(PERMISSIVE)?;
        let [api] = mesh.pods.wire.plug(["api"])?;
        let cluster = Cluster::start(&api)?;
        cluster.apply(&[
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }),
            account("server"),
            node("node-a"),
        ])?;
        let kubeconfig = cluster.admin();
        mesh.a.settings.insert("kubernetes".into(), json!({ "enabled": true, "kubeconfig": kubeconfig }));
        mesh.a.settings.insert("remoteWorkloads".into(), json!([]));
        Ok(Self { mesh, cluster })
    }

    /// The server's pod, as a kubelet of node b would have it.
    fn run_server(&self) -> anyhow::Result<()> {
        let mut pod = json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "server", "namespace": "shop", "labels": { "app": "server" } } });
        pod["spec"] = json!({
            "serviceAccountName": "server", "automountServiceAccountToken": false, "nodeName": "node-b",
            "containers": [ { "name": "c", "image": "x" } ],
        });
        self.cluster.apply(&[pod])?;
        let server = &self.mesh.server;
        let ips = [json!({ "ip": server.v4 }), json!({ "ip": server.v6 })];
        self.set_status(
            "/api/v1/namespaces/shop/pods/server/status",
            &json!({ "status": {
            "phase": "Running", "podIP": server.v4, "podIPs": ips,
        } }),
        )
    }

    /// Patches a status as a controller does; kubectl of this age has no `--subresource` for an old server.
    fn set_status(&self, at: &str, patch: &Value) -> anyhow::Result<()> {
        let file = self.mesh.pods.wire.dir().join("status.json");
        let old = self.cluster.kubectl(&["get", "--raw", at])?;
        let mut object: Value = serde_json::from_str(&old)?;
        for (field, value) in patch["status"].as_object().context("a status")? {
            object["status"][field.as_str()] = value.clone();
        }
        std::fs::write(&file, object.to_string())?;
        self.cluster.kubectl(&["replace", "--raw", at, "-f", &file.to_string_lossy()]).map(|_| ())
    }

    fn label(&self, label: &str) -> anyhow::Result<()> {
        self.cluster.kubectl(&["label", "--overwrite", "namespace", "shop", label]).map(|_| ())
    }

    /// Waits until node a knows the workload, or no longer does.
    fn wait_known(&self, known: bool) -> anyhow::Result<()> {
        wait_until(PATIENCE, &format!("node a to know the server: {known}"), || {
            let rows = self.mesh.a.ctl_json(&["workloads"])?;
            Ok(rows.as_array().into_iter().flatten().any(|row| row["name"] == "server") == known)
        })
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.mesh.start()
    }
}

fn account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": "shop" } })
}

fn slice(server: &Place) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "web-1", "namespace": "shop", "labels": { "kubernetes.io/service-name": "web" } },
        "endpoints": [ { "addresses": [server.v4], "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "namespace": "shop", "name": "server" } } ],
        "ports": [ { "name": "tcp", "port": 7000, "protocol": "TCP" } ],
    })
}

fn a_labelled_namespace_is_meshed_and_its_services_lead_to_its_pods(ground: &Ground) -> anyhow::Result<()> {
    let mut ready = Ready::given(ground)?;
    ready.run_server()?;
    ready.start()?;
    let _server = serve(&ready.mesh.server, 7000, &["--echo"])?;
    let to = ready.mesh.server.at(7000);
    ready.wait_known(false)?;
    ready.label("meshd.io/dataplane=enabled")?;
    ready.wait_known(true)?;
    let tap = ready.mesh.watched("labelled", || {
        let seen = probe(&ready.mesh.client, to, &["--send", MARKER, "--shutdown"])?;
        ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
        Ok(())
    })?;
    tap.must_be_tls_between(ready.mesh.client.v4.into(), to)?;
    // A service whose address only meshd leads anywhere.
    ready.cluster.apply(&[
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "clusterIP": "10.96.0.50", "selector": { "app": "server" },
                "ports": [ { "name": "tcp", "port": 80, "targetPort": 7000 } ] } }),
        slice(&ready.mesh.server),
    ])?;
    wait_until(PATIENCE, "the service to lead to the server", || {
        let seen = probe(
            &ready.mesh.client,
            "10.96.0.50:80".parse()?,
            &["--send", MARKER, "--shutdown", "--wait-ms", "2000"],
        );
        Ok(seen.is_ok_and(|seen| seen["text"] == MARKER))
    })?;
    ready.mesh.a.wait_access_log("the service by its name", |line| {
        line["service"] == "web.shop.svc.cluster.local"
            && line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/server"
    })?;
    // A pod's own label counts for more.
    ready.cluster.kubectl(&["-n", "shop", "label", "pod", "server", "meshd.io/dataplane=disabled"])?;
    ready.wait_known(false)?;
    ready.cluster.kubectl(&["-n", "shop", "label", "pod", "server", "meshd.io/dataplane-"])?;
    ready.wait_known(true)?;
    ready.cluster.kubectl(&["-n", "shop", "delete", "pod", "server", "--grace-period=0", "--force"])?;
    ready.wait_known(false)
}

/// As much of Istio's as the API server needs to keep documents and their status.
fn policies_crd() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "authorizationpolicies.security.istio.io" },
        "spec": {
            "group": "security.istio.io", "scope": "Namespaced",
            "names": { "kind": "AuthorizationPolicy", "plural": "authorizationpolicies", "listKind": "AuthorizationPolicyList", "singular": "authorizationpolicy" },
            "versions": [ { "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } } ],
        },
    })
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": "shop" }, "spec": spec })
}

fn policies_of_the_api_server_are_enforced_and_told_what_became_of_them(
    ground: &Ground,
) -> anyhow::Result<()> {
    let mut ready = Ready::given(ground)?;
    // Now the server's node asks, and the client's has its file.
    ready.mesh.b.settings = std::mem::take(&mut ready.mesh.a.settings);
    ready.label("meshd.io/dataplane=enabled")?;
    ready.cluster.apply(&[node("node-b")])?;
    ready.mesh.b.settings.insert("remoteWorkloads".into(), json!([
        { "name": "client", "namespace": "shop", "serviceAccount": "client", "addresses": ready.mesh.client.addresses() },
        { "name": "other", "namespace": "shop", "serviceAccount": "other", "addresses": ready.mesh.other.addresses() },
    ]));
    ready.start()?;
    let _server = serve(&ready.mesh.server, 7000, &["--echo"])?;
    let to = ready.mesh.server.at(7000);
    let is_served = |from: &Place| -> anyhow::Result<bool> {
        let seen = probe(from, to, &["--send", MARKER, "--shutdown"])?;
        ensure!(seen["text"] == MARKER || is_unserved(&seen), "{seen}");
        Ok(seen["text"] == MARKER)
    };
    ensure!(is_served(&ready.mesh.other)?, "nothing forbids it yet");
    // The kind itself comes only now.
    ready.cluster.apply(&[policies_crd()])?;
    ready.cluster.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/authorizationpolicies.security.istio.io",
    ])?;
    let only_client = json!({ "action": "ALLOW", "rules": [ { "from": [ { "source": {
        "principals": ["cluster.local/ns/shop/sa/client"] } } ] } ] });
    ready.cluster.apply(&[policy("only", &only_client)])?;
    wait_until(PATIENCE, "the policy to be enforced", || Ok(!is_served(&ready.mesh.other)?))?;
    ensure!(is_served(&ready.mesh.client)?, "the policy allows it");
    let condition = |name: &str| -> anyhow::Result<Value> {
        let said =
            ready.cluster.kubectl(&["-n", "shop", "get", "authorizationpolicy", name, "-o", "json"])?;
        let object: Value = serde_json::from_str(&said)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.into_iter().find(|c| c["type"] == "meshd.io/Accepted").unwrap_or_default())
    };
    wait_until(PATIENCE, "the status to say so", || Ok(condition("only")?["status"] == "True"))?;
    // A bad one takes nothing away, neither the other nor its own last good version.
    let mut bad = only_client;
    bad["action"] = json!("NEVER");
    ready.cluster.apply(&[policy("only", &bad), policy("bad", &bad)])?;
    for name in ["only", "bad"] {
        wait_until(PATIENCE, "the status to say why not", || {
            let condition = condition(name)?;
            Ok(condition["status"] == "False"
                && condition["message"].as_str().is_some_and(|m| m.contains("NEVER")))
        })?;
    }
    ensure!(
        !is_served(&ready.mesh.other)? && is_served(&ready.mesh.client)?,
        "the last good version is in force"
    );
    wait_until(PATIENCE, "an event", || {
        Ok(ready.cluster.kubectl(&["-n", "shop", "get", "events"])?.contains("Rejected"))
    })?;
    let status = ready.mesh.b.ctl_json(&["status"])?;
    ensure!(status["kubernetes"]["rejected"].as_array().is_some_and(|r| r.len() == 2), "{status}");
    ready.cluster.kubectl(&["-n", "shop", "delete", "authorizationpolicy", "only", "bad"])?;
    wait_until(PATIENCE, "the policy to be gone", || is_served(&ready.mesh.other))
}

fn what_the_api_server_said_last_stays_while_it_is_away(ground: &Ground) -> anyhow::Result<()> {
    let mut ready = Ready::given(ground)?;
    ready.run_server()?;
    ready.label("meshd.io/dataplane=enabled")?;
    // Without an API server nothing is put into force.
    ready.cluster.stop_api_server()?;
    ready.mesh.configure()?;
    ready.mesh.a.launch()?;
    wait_until(PATIENCE, "meshd to say what it waits for", || {
        let status = ready.mesh.a.ctl_json(&["status"]);
        Ok(status
            .is_ok_and(|s| s["ready"] == false && s["kubernetes"]["missing"].to_string().contains("pods")))
    })?;
    ready.cluster.start_api_server()?;
    ready.mesh.a.wait_ready()?;
    ready.mesh.b.join_trust_of(&ready.mesh.a)?;
    ready.mesh.b.start()?;
    ready.wait_known(true)?;
    let server = serve(&ready.mesh.server, 7000, &["--echo"])?;
    let to = ready.mesh.server.at(7000);
    let mut live = start_probe(&ready.mesh.client, to, &["--send", MARKER, "--wait-ms", "120000"])?;
    wait_event(&server, "the connection", |event| event["event"] == "accepted")?;
    ready.cluster.stop_api_server()?;
    wait_until(PATIENCE, "meshd to say that it hears nothing", || {
        let status = ready.mesh.a.ctl_json(&["status"])?;
        let watches = status["kubernetes"]["watches"].as_array().cloned().unwrap_or_default();
        Ok(watches.iter().any(|w| w["kind"] == "pods" && w["stale_since_unix_s"].is_number()))
    })?;
    let tap = ready.mesh.watched("away", || {
        let seen = probe(&ready.mesh.client, to, &["--send", MARKER, "--shutdown"])?;
        ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
        Ok(())
    })?;
    tap.must_be_tls_between(ready.mesh.client.v4.into(), to)?;
    ready.cluster.start_api_server()?;
    wait_until(PATIENCE * 2, "meshd to hear all again", || {
        let status = ready.mesh.a.ctl_json(&["status"])?;
        let watches = status["kubernetes"]["watches"].as_array().cloned().unwrap_or_default();
        Ok(!watches.is_empty() && watches.iter().all(|w| w["stale_since_unix_s"].is_null()))
    })?;
    ensure!(live.is_running(), "the connection from before was cut: {}", live.stdout());
    // And what is new is heard.
    ready.label("meshd.io/dataplane=disabled")?;
    ready.wait_known(false)
}

fn a_busy_a_slow_and_a_forgetful_api_server_are_followed_all_the_same(ground: &Ground) -> anyhow::Result<()> {
    let mut ready = Ready::given(ground)?;
    ready.run_server()?;
    ready.label("meshd.io/dataplane=enabled")?;
    let mut front = Front::of(&ready.cluster)?;
    // A token passes the proxy, which a client's certificate does not.
    let all = ["--clusterrole=cluster-admin", "--serviceaccount=shop:server"];
    ready.cluster.kubectl(&[["create", "clusterrolebinding", "all"].as_slice(), &all].concat())?;
    let token = ready.cluster.token("shop", "server", ISSUER, None)?;
    let mut kubeconfig = ready.cluster.kubeconfig_of_token(&token);
    kubeconfig["clusters"][0]["cluster"]["server"] = json!(front.url());
    let file = ground.dir().join("by-the-front.kubeconfig");
    std::fs::write(&file, kubeconfig.to_string())?;
    ready.mesh.a.settings.insert("kubernetes".into(), json!({ "enabled": true, "kubeconfig": file }));
    // Busy from the start: nothing is put into force, and the status says why.
    front.be(Mood::Busy)?;
    ready.mesh.configure()?;
    ready.mesh.a.launch()?;
    let watches = |ready: &Ready| -> Vec<Value> {
        let status = ready.mesh.a.ctl_json(&["status"]).unwrap_or_default();
        status["kubernetes"]["watches"].as_array().cloned().unwrap_or_default()
    };
    let is_stale = |ready: &Ready| {
        let pods = watches(ready).into_iter().find(|watch| watch["kind"] == "pods").unwrap_or_default();
        pods["stale_since_unix_s"].is_number().then(|| pods["trouble"].to_string())
    };
    wait_until(PATIENCE, "meshd to say that the API server is busy", || {
        Ok(is_stale(&ready).is_some_and(|trouble| trouble.contains("429 TooManyRequests: too many requests")))
    })?;
    front.be(Mood::Slow)?;
    wait_until(PATIENCE * 3, "meshd to have heard all of a slow API server", || {
        Ok(ready.mesh.a.wait_ready().is_ok())
    })?;
    ready.wait_known(true)?;
    ready.mesh.b.join_trust_of(&ready.mesh.a)?;
    ready.mesh.b.start()?;
    let _server = serve(&ready.mesh.server, 7000, &["--echo"])?;
    let to = ready.mesh.server.at(7000);
    let must_serve = |ready: &Ready, name: &str| -> anyhow::Result<()> {
        let tap = ready.mesh.watched(name, || {
            let seen = probe(&ready.mesh.client, to, &["--send", MARKER, "--shutdown"])?;
            ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
            Ok(())
        })?;
        tap.must_be_tls_between(ready.mesh.client.v4.into(), to)
    };
    must_serve(&ready, "slow")?;
    // It forgets: what meshd saw last is from before its start, and much has changed meanwhile.
    front.be(Mood::Busy)?;
    wait_until(PATIENCE, "meshd to hear nothing", || Ok(is_stale(&ready).is_some()))?;
    for round in 0..5 {
        ready.cluster.kubectl(&[
            "-n",
            "shop",
            "annotate",
            "--overwrite",
            "pod",
            "server",
            &format!("round={round}"),
        ])?;
    }
    ready.cluster.stop_api_server()?;
    ready.cluster.start_api_server()?;
    ready.cluster.kubectl(&["-n", "shop", "label", "pod", "server", "meshd.io/dataplane=disabled"])?;
    must_serve(&ready, "forgotten")?;
    ready.wait_known(true)?;
    front.be(Mood::Open)?;
    // 410 comes inside the answer to a watch; who was told so lists anew.
    front.wait_answered(200, "/api/v1/pods?&fieldSelector")?;
    ready.wait_known(false)?;
    wait_until(PATIENCE * 2, "meshd to hear all again", || {
        let watches = watches(&ready);
        Ok(!watches.is_empty() && watches.iter().all(|watch| watch["stale_since_unix_s"].is_null()))
    })
}
