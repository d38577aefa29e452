//! A cluster's life on two nodes: an API server with its controllers, kubelets that obey it, real programs in pods, and a
//! meshd on each node that knows nothing but what the API server says, with the permissions that are deployed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::it::capture::Capture;
use crate::it::daemon::Node;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kube::{Cluster, node};
use crate::it::kubelet::Kubelet;
use crate::it::kubelets::{KubeletNode, Kubelets, settings};
use crate::it::mesh::{MARKER, STRICT, is_unserved, last_line, probe, start_probe};
use crate::it::netns::{Place, Wire};
use crate::it::nodefile::node_file;
use crate::it::peer;
use crate::it::process::{PATIENCE, Program, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Kubernetes 240:
        a_label_meshes_live_programs_and_its_removal_lets_them_go,
        a_rolling_update_under_load_fails_no_request,
        a_client_of_a_service_with_affinity_keeps_its_endpoint;
    Kubernetes 900:
        pods_that_come_and_go_leave_nothing;
];

const SERVER_PORT: u16 = 7000;
const SERVICE: &str = "10.96.0.50:80";
const LABEL: &str = "meshd.io/dataplane";

struct Cast {
    kubelets: Kubelets,
    a: Node,
    b: Node,
    outsider: Place,
    cluster: Cluster,
    _controllers: Program,
}

impl Cast {
    /// A cluster of two nodes with a meshd each, STRICT, and a namespace `shop` that is not in the mesh yet.
    fn given(ground: &Ground) -> anyhow::Result<Self> {
        let mut wire = Wire::lay(ground)?;
        let [api, outsider, a, b] = wire.plug(["api", "outsider", "node-a", "node-b"])?;
        let cluster = Cluster::start(&api)?;
        cluster.deploy("apply", &["namespace.yaml", "agent-access.yaml"])?;
        cluster.deploy("create", &["crds"])?;
        let shop = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } });
        cluster.apply(&[node("node-a"), node("node-b"), shop])?;
        for name in ["web", "client"] {
            cluster.kubectl(&["-n", "shop", "create", "serviceaccount", name])?;
        }
        let controllers = cluster.start_controllers()?;
        let file = cluster.agents()?;
        let mut nodes = Vec::new();
        let mut agents = Vec::new();
        for place in [a, b] {
            let mut kubelet = Kubelet::new(ground, &place.name)?;
            kubelet.start_runtime()?;
            let mut agent = Node::new(ground, place.clone())?;
            agent.settings.insert("kubernetes".into(), settings(&kubelet, &file));
            agent.set_policies(STRICT)?;
            nodes.push(KubeletNode { place, kubelet });
            agents.push(agent);
        }
        let (Some(b), Some(a)) = (agents.pop(), agents.pop()) else { unreachable!("two were pushed") };
        let kubelets = Kubelets::start(wire, &cluster, nodes);
        let mut cast = Self { kubelets, a, b, outsider, cluster, _controllers: controllers };
        for agent in [&cast.a, &cast.b] {
            agent.configure(&node_file(agent, &[], &[]))?;
        }
        cast.a.start()?;
        cast.b.join_trust_of(&cast.a)?;
        cast.b.start()?;
        Ok(cast)
    }

    fn label(&self, label: &str) -> anyhow::Result<()> {
        self.cluster.kubectl(&["label", "--overwrite", "namespace", "shop", label]).map(|_| ())
    }

    /// A Deployment and its Service at [`SERVICE`], all of it ready.
    fn serve(&self, deployment: &Value) -> anyhow::Result<()> {
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "clusterIP": "10.96.0.50", "selector": { "app": "web" },
                "ports": [ { "name": "tcp", "port": 80, "targetPort": SERVER_PORT } ] } });
        self.cluster.apply(&[service, deployment.clone()])?;
        self.rolled_out()
    }

    fn rolled_out(&self) -> anyhow::Result<()> {
        let said =
            self.cluster.kubectl(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=90s"]);
        self.kubelets.healthy()?;
        said.map(|_| ())
    }

    /// A pod of namespace `shop` on `node` that runs `command`; where it runs.
    fn run(&self, name: &str, node: &str, account: &str, command: &[String]) -> anyhow::Result<Place> {
        self.cluster.apply(&[pod(name, node, account, command)])?;
        let mut place = None;
        wait_until(PATIENCE, &format!("pod {name} to run"), || {
            place = self.kubelets.place("shop", name).ok();
            self.kubelets.healthy()?;
            Ok(place.is_some())
        })?;
        place.context("it runs")
    }

    /// Names of the Deployment's pods.
    fn pods(&self) -> anyhow::Result<Vec<String>> {
        let jsonpath = "jsonpath={.items[*].metadata.name}";
        let said = self.cluster.kubectl(&["-n", "shop", "get", "pods", "-l", "app=web", "-o", jsonpath])?;
        Ok(said.split_whitespace().map(str::to_owned).collect())
    }

    fn capture(&self, name: &str) -> anyhow::Result<Capture> {
        Capture::start(&self.kubelets.wire(), name)
    }
}

fn pod(name: &str, node: &str, account: &str, command: &[String]) -> Value {
    let mut pod = json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": name } } });
    pod["spec"] = template(account, command);
    pod["spec"]["nodeName"] = json!(node);
    pod
}

/// A pod's specification.
fn template(account: &str, command: &[String]) -> Value {
    json!({ "serviceAccountName": account, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 5,
        "containers": [ { "name": "main", "image": "x", "command": command } ] })
}

fn idle() -> Vec<String> {
    ["sleep", "infinity"].map(str::to_owned).into()
}

fn echo() -> Vec<String> {
    peer::command_line(&["serve", &format!("[::]:{SERVER_PORT}"), "--echo"])
}

/// `replicas` servers with a readiness probe, spread over the nodes unless one is named.
fn deployment(replicas: usize, node: Option<&str>, command: &[String]) -> Value {
    let mut spec = template("web", command);
    if let Some(node) = node {
        spec["nodeName"] = json!(node);
    }
    spec["containers"][0]["readinessProbe"] = json!({ "tcpSocket": { "port": SERVER_PORT } });
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web", "namespace": "shop" },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": spec } } })
}

/// Whether a probe between the two is served, and whether what it said could be read on the wire.
fn asks(cast: &Cast, from: &Place, to: std::net::SocketAddr) -> anyhow::Result<(bool, bool)> {
    let capture = cast.capture("asks")?;
    let seen = probe(from, to, &["--send", MARKER, "--shutdown", "--wait-ms", "3000"])?;
    let is_readable = capture.stop()?.must_not_show(MARKER).is_err();
    ensure!(seen["text"] == MARKER || is_unserved(&seen), "{seen}");
    Ok((seen["text"] == MARKER, is_readable))
}

fn a_label_meshes_live_programs_and_its_removal_lets_them_go(ground: &Ground) -> anyhow::Result<()> {
    let mut cast = Cast::given(ground)?;
    cast.serve(&deployment(1, Some("node-b"), &echo()))?;
    let client = cast.run("client", "node-a", "client", &idle())?;
    let name = cast.pods()?.pop().context("one pod")?;
    let server = cast.kubelets.place("shop", &name)?;
    let (to, to_v6) = (server.at(SERVER_PORT), server.at6(SERVER_PORT));
    let mut on_host = pod("on-host", "node-a", "client", &idle());
    on_host["spec"]["hostNetwork"] = json!(true);
    cast.cluster.apply(&[on_host])?;
    ensure!(asks(&cast, &client, to)? == (true, true), "nobody is in the mesh yet");
    ensure!(asks(&cast, &cast.outsider, to)? == (true, true), "nobody is in the mesh yet");
    let stays = ["--send", "from before", "--wait-ms", "100000"];
    let mut before = start_probe(&client, to, &stays)?;
    before.wait_to_say("connected", PATIENCE)?;

    let labelled = Instant::now();
    cast.label(&format!("{LABEL}=enabled"))?;
    wait_until(PATIENCE, "the client's connections to be meshed", || {
        probe(&client, to, &["--send", "x", "--shutdown", "--wait-ms", "2000"])?;
        Ok(cast.a.access_log().iter().any(|line| {
            line["verdict"] == "allow" && line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/web"
        }))
    })?;
    eprintln!("from kubectl label to a meshed connection: {:?}", labelled.elapsed());
    let capture = cast.capture("meshed")?;
    let seen = probe(&client, to, &["--send", MARKER, "--shutdown"])?;
    ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
    let tap = capture.stop()?;
    tap.must_not_show(MARKER)?;
    tap.must_be_tls_between(client.v4.into(), to)?;
    ensure!(asks(&cast, &client, to_v6)? == (true, false), "its other address is not meshed");
    // By its service's address too, and nobody else.
    ensure!(asks(&cast, &client, SERVICE.parse()?)? == (true, false), "the service does not lead to its pod");
    for to in [to, to_v6] {
        ensure!(!asks(&cast, &cast.outsider, to)?.0, "a stranger was served under STRICT");
    }
    // The node's probes pass all the same.
    let passed = cast.kubelets.probes();
    wait_until(PATIENCE, "the kubelet's probe to pass under STRICT", || {
        Ok(cast.kubelets.probes() > passed + 2)
    })?;
    cast.rolled_out()?;
    let status = cast.a.ctl_json(&["status"])?;
    ensure!(status["kubernetes"]["host_network"] == json!(["shop/on-host"]), "{status}");

    // An agent that dies and comes back.
    cast.a.kill()?;
    ensure!(!asks(&cast, &client, to)?.1, "readable while the agent was dead");
    cast.a.start()?;
    ensure!(asks(&cast, &client, to)? == (true, false), "after the agent's restart");
    ensure!(before.is_running(), "the connection from before was cut: {}", before.stdout());

    // A policy by kubectl.
    let deny = json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "nobody", "namespace": "shop" }, "spec": {} });
    cast.cluster.apply(&[deny])?;
    wait_until(PATIENCE, "the policy to be enforced", || Ok(!asks(&cast, &client, to)?.0))?;
    cast.cluster.kubectl(&["-n", "shop", "delete", "authorizationpolicy", "nobody"])?;
    wait_until(PATIENCE, "the policy to be gone", || Ok(asks(&cast, &client, to)?.0))?;

    let mut during = start_probe(&client, to, &stays)?;
    during.wait_to_say("connected", PATIENCE)?;
    let unlabelled = Instant::now();
    cast.label(&format!("{LABEL}-"))?;
    wait_until(PATIENCE, "the client to be let go", || Ok(asks(&cast, &client, to)? == (true, true)))?;
    eprintln!("from kubectl label to a plain connection: {:?}", unlabelled.elapsed());
    ensure!(asks(&cast, &cast.outsider, to)?.0, "the server takes nobody in any more");
    for (stood, name) in [(&mut before, "before"), (&mut during, "within the mesh")] {
        ensure!(stood.is_running(), "the connection from {name} was cut: {}", stood.stdout());
    }
    for agent in [&cast.a, &cast.b] {
        let held = std::fs::read_dir(agent.runtime_dir().join("pods"))?.count();
        ensure!(held == 0, "{} holds {held} namespaces of pods that are none of its", agent.name);
    }
    Ok(())
}

fn a_rolling_update_under_load_fails_no_request(ground: &Ground) -> anyhow::Result<()> {
    let cast = Cast::given(ground)?;
    cast.label(&format!("{LABEL}=enabled"))?;
    let mut web = deployment(4, None, &echo());
    // As anybody does it whose clients must notice nothing: an endpoint serves on until clients have heard that it ends.
    let spec = &mut web["spec"]["template"]["spec"];
    spec["containers"][0]["lifecycle"] = json!({ "preStop": { "exec": { "command": ["sleep", "3"] } } });
    spec["terminationGracePeriodSeconds"] = json!(10);
    web["spec"]["strategy"] = json!({ "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
    cast.serve(&web)?;
    let client = cast.run("client", "node-a", "client", &idle())?;
    let to: std::net::SocketAddr = SERVICE.parse()?;
    wait_until(PATIENCE, "the service to be served", || {
        Ok(probe(&client, to, &["--send", MARKER, "--shutdown", "--wait-ms", "2000"])?["text"] == MARKER)
    })?;
    let old = cast.pods()?;
    let done = ground.dir().join("rolled-out");
    let (at, done_file) = (to.to_string(), done.to_string_lossy());
    let asking =
        peer::command_line(&["short", &at, "--until", &done_file, "--threads", "4", "--pause-ms", "5"]);
    let load = client.launch("load", &asking).start()?;
    let begun = Instant::now();
    cast.cluster.kubectl(&["-n", "shop", "rollout", "restart", "deployment/web"])?;
    cast.rolled_out()?;
    // And until the last of the old ones is gone.
    wait_until(PATIENCE, "the old pods to be gone", || {
        cast.kubelets.healthy()?;
        Ok(cast.pods()?.iter().all(|name| !old.contains(name)))
    })?;
    std::fs::write(&done, "")?;
    let finished = load.finish(PATIENCE * 2)?;
    let seen = last_line(&finished)?;
    eprintln!("a rolling update of 4 pods in {:?}: {seen}", begun.elapsed());
    ensure!(seen["failed"] == 0, "{seen}: {}", finished.stderr);
    ensure!(seen["count"].as_u64() > Some(200), "{seen}");
    for agent in [&cast.a, &cast.b] {
        let inbound = agent.access_log().iter().any(|line| {
            line["direction"] == "inbound"
                && line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/client"
        });
        ensure!(inbound, "none of the pods of {} was asked over mTLS", agent.name);
    }
    Ok(())
}

fn a_client_of_a_service_with_affinity_keeps_its_endpoint(ground: &Ground) -> anyhow::Result<()> {
    let cast = Cast::given(ground)?;
    cast.label(&format!("{LABEL}=enabled"))?;
    // It says whom it sees, and as whom.
    let truthful = peer::command_line(&["serve", &format!("[::]:{SERVER_PORT}"), "--truth"]);
    cast.serve(&deployment(3, None, &truthful))?;
    let client = cast.run("client", "node-a", "client", &idle())?;
    let served_by = || -> anyhow::Result<Option<String>> {
        let seen = probe(&client, SERVICE.parse()?, &["--wait-ms", "3000"])?;
        let truth: Value =
            serde_json::from_str(seen["text"].as_str().unwrap_or_default()).unwrap_or_default();
        ensure!(truth.is_null() || truth["peer"].to_string().contains(&client.v4.to_string()), "{truth}");
        Ok(truth["local"].as_str().map(str::to_owned))
    };
    wait_until(PATIENCE, "the service to be served", || Ok(served_by()?.is_some()))?;
    let many = |times: usize| -> anyhow::Result<BTreeSet<String>> {
        (0..times).map(|_| served_by()?.context("it was not served")).collect()
    };
    // Each alike by chance happens once in ten million.
    ensure!(many(16)?.len() > 1, "one endpoint is asked though nothing says so");
    let affine = json!({ "spec": { "sessionAffinity": "ClientIP" } }).to_string();
    cast.cluster.kubectl(&["-n", "shop", "patch", "service", "web", "--type=merge", "-p", &affine])?;
    wait_until(PATIENCE, "the client to keep its endpoint", || Ok(many(6)?.len() == 1))?;
    ensure!(many(10)?.len() == 1, "it does not keep it");
    Ok(())
}

/// What a node's agent holds for pods.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    namespaces: usize,
    descriptors: usize,
    workloads: usize,
    /// Of its metrics.
    series: usize,
}

fn held(agent: &Node) -> anyhow::Result<Held> {
    Ok(Held {
        namespaces: std::fs::read_dir(agent.runtime_dir().join("pods"))?.count(),
        descriptors: agent.descriptors()?,
        workloads: agent.ctl_json(&["workloads"])?.as_array().map_or(0, Vec::len),
        series: agent.metrics()?.lines().count(),
    })
}

fn pods_that_come_and_go_leave_nothing(ground: &Ground) -> anyhow::Result<()> {
    let cast = Cast::given(ground)?;
    cast.label(&format!("{LABEL}=enabled"))?;
    cast.serve(&deployment(1, Some("node-b"), &echo()))?;
    let name = cast.pods()?.pop().context("one pod")?;
    let to = cast.kubelets.place("shop", &name)?.at(SERVER_PORT).to_string();
    let asks = peer::command_line(&["short", &to, "--count", "1", "--threads", "1"]);
    let count = std::env::var("MESHD_TEST_PODS").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    // An init container, then a container that ends by itself, each of which asks the server.
    let mut spec = template("client", &asks);
    spec["initContainers"] = json!([{ "name": "first", "image": "x", "command": asks }]);
    spec["restartPolicy"] = json!("Never");
    let job = |completions: usize| {
        json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "jobs", "namespace": "shop" },
            "spec": { "completions": completions, "parallelism": 10, "backoffLimit": 0,
                "template": { "metadata": { "labels": { "app": "job" } }, "spec": spec.clone() } } })
    };
    let run = |completions: usize| -> anyhow::Result<()> {
        cast.cluster.apply(&[job(completions)])?;
        let limit = PATIENCE + Duration::from_secs(2) * u32::try_from(completions)?;
        wait_until(limit, "the jobs to be done", || {
            cast.kubelets.healthy()?;
            let said =
                cast.cluster.kubectl(&["-n", "shop", "get", "job", "jobs", "-o", "jsonpath={.status}"])?;
            ensure!(!said.contains("\"failed\""), "a job failed: {said}");
            std::thread::sleep(Duration::from_millis(300));
            Ok(said.contains(&format!("\"succeeded\":{completions}")))
        })?;
        cast.cluster.kubectl(&["-n", "shop", "delete", "job", "jobs", "--cascade=foreground"])?;
        wait_until(limit, "the jobs' pods to be gone", || Ok(cast.kubelets.running() == 1))
    };
    let settled = |agent: &Node, as_before: &Held| {
        let mut now = None;
        // A namespace is held for a moment after its pod (`runtime::links`).
        wait_until(PATIENCE, "the agents to hold no more than before", || {
            let seen = held(agent)?;
            let is_less = seen.namespaces <= as_before.namespaces
                && seen.workloads <= as_before.workloads
                && seen.series <= as_before.series
                && seen.descriptors <= as_before.descriptors;
            now = Some(seen);
            Ok(is_less)
        })
        .with_context(|| format!("{}: {now:?}, before {as_before:?}", agent.name))
    };
    // What is made once is made now.
    run(4)?;
    let capture = Capture::start_of_heads(&cast.kubelets.wire(), "jobs")?;
    let agents = [&cast.a, &cast.b];
    std::thread::sleep(Duration::from_secs(2));
    let before = [held(&cast.a)?, held(&cast.b)?];
    let memory = agents.map(|agent| agent.rss_kib().unwrap_or_default());
    let begun = Instant::now();
    run(count)?;
    let took = begun.elapsed();
    for (agent, before) in agents.iter().zip(&before) {
        settled(agent, before)?;
    }
    let after = agents.map(|agent| agent.rss_kib().unwrap_or_default());
    eprintln!("{count} pods in {took:?}; memory of the agents in KiB: {memory:?}, then {after:?}");
    capture.stop()?.must_not_show("short")?;
    let lines = cast.b.access_log();
    let served =
        lines.iter().filter(|line| line["direction"] == "inbound" && line["verdict"] == "allow").count();
    ensure!(served >= 2 * count, "only {served} of {} connections were meshed", 2 * count);
    Ok(())
}
