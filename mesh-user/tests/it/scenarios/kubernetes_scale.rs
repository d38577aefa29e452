//! A cluster of many pods, services and nodes, objects only, on a real API server: how long an agent takes to know all of it,
//! and how much memory. `MESHD_TEST_OBJECTS` is how many pods; services are a fifth, nodes a twentieth of them.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::fleet::Service;
use crate::it::daemon::{Node, rss_kib};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kube::{self, Cluster};
use crate::it::kube_api::{Made, create_all};
use crate::it::netns::Wire;
use crate::it::nodefile::node_file;
use crate::it::process::{PATIENCE, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Kubernetes 600:
        an_agent_knows_all_of_a_large_cluster_and_follows_its_changes;
];

const NAMESPACES: usize = 10;
/// What an agent may take whatever it knows, and for each pod; far above what is measured, so that only growth fails.
const MOST_KIB: u64 = 120_000;
const MOST_KIB_PER_POD: u64 = 12;

fn namespace(pod: usize) -> String {
    format!("many-{}", pod % NAMESPACES)
}

fn address(number: usize) -> String {
    format!("10.{}.{}.{}", 100 + number / 65_536, number / 256 % 256, number % 256)
}

fn named(kind: &str, version: &str, namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name, "namespace": namespace } })
}

fn a_pod(number: usize, nodes: usize) -> Made {
    let namespace = namespace(number);
    let mut object = named("Pod", "v1", &namespace, &format!("pod-{number}"));
    object["metadata"]["labels"] =
        json!({ "app": format!("app-{}", number / 5), "pod-template-hash": "5d59d67564" });
    object["spec"] = json!({
        "serviceAccountName": "web", "automountServiceAccountToken": false,
        "nodeName": format!("node-{}", number % nodes),
        "containers": [ { "name": "main", "image": "registry.example/app:1",
            "env": [ { "name": "SOMETHING", "value": "that an agent need not keep" } ] } ],
    });
    let ip = address(number);
    let status = json!({ "phase": "Running", "podIP": ip, "podIPs": [ { "ip": ip } ],
        "conditions": [ { "type": "Ready", "status": "True" } ] });
    Made { path: format!("/api/v1/namespaces/{namespace}/pods"), object, status: Some(status) }
}

/// A service and the slice that leads to its five pods.
fn a_service(number: usize) -> [Made; 2] {
    // Of the first of its pods.
    let namespace = namespace(number * 5);
    let name = format!("app-{number}");
    let mut service = named("Service", "v1", &namespace, &name);
    service["spec"] = json!({ "clusterIP": format!("10.96.{}.{}", 1 + number / 250, 1 + number % 250),
        "ports": [ { "name": "tcp", "port": 80, "targetPort": 8080 } ] });
    let mut slice = named("EndpointSlice", "discovery.k8s.io/v1beta1", &namespace, &name);
    slice["metadata"]["labels"] = json!({ "kubernetes.io/service-name": name });
    slice["addressType"] = json!("IPv4");
    slice["ports"] = json!([ { "name": "tcp", "port": 8080, "protocol": "TCP" } ]);
    let pods = number * 5..number * 5 + 5;
    slice["endpoints"] = pods
        .map(|pod| {
            json!({ "addresses": [address(pod)], "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "namespace": self::namespace(pod), "name": format!("pod-{pod}") } })
        })
        .collect();
    let services = format!("/api/v1/namespaces/{namespace}/services");
    let slices = format!("/apis/discovery.k8s.io/v1beta1/namespaces/{namespace}/endpointslices");
    [
        Made { path: services, object: service, status: None },
        Made { path: slices, object: slice, status: None },
    ]
}

fn an_agent_knows_all_of_a_large_cluster_and_follows_its_changes(ground: &Ground) -> anyhow::Result<()> {
    let pods: usize = std::env::var("MESHD_TEST_OBJECTS").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let (services, nodes) = (pods / 5, (pods / 20).max(1));
    let mut wire = Wire::lay(ground)?;
    let [api, place, ca] = wire.plug(["api", "node-0", "ca"])?;
    let cluster = Cluster::start(&api)?;
    let mut first = Vec::new();
    for number in 0..NAMESPACES {
        let name = namespace(number);
        first.push(json!({ "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": { "meshd.io/dataplane": "enabled" } } }));
        first.push(named("ServiceAccount", "v1", &name, "web"));
    }
    cluster.apply(&first)?;
    let begun = Instant::now();
    let node = |number: usize| {
        let object = kube::node(&format!("node-{number}"));
        Made { path: "/api/v1/nodes".into(), object, status: None }
    };
    create_all(&cluster, (0..nodes).map(node).collect())?;
    create_all(&cluster, (0..pods).map(|number| a_pod(number, nodes)).collect())?;
    create_all(&cluster, (0..services).flat_map(a_service).collect())?;
    eprintln!("{pods} pods, {services} services, {nodes} nodes made in {:?}", begun.elapsed());

    let mut agent = Node::new(ground, place)?;
    let mut file = node_file(&agent, &[], &[]);
    file["kubernetes"] = json!({ "enabled": true, "kubeconfig": cluster.admin() });
    agent.configure(&file)?;
    agent.launch()?;
    let begun = Instant::now();
    agent.wait_ready()?;
    let ready = begun.elapsed();
    // Those of this node wait to be found by no runtime, and are no workloads yet.
    let remote = pods - pods.div_ceil(nodes);
    let count = |agent: &Node| -> anyhow::Result<usize> {
        Ok(agent.ctl_json(&["workloads"])?.as_array().map_or(0, Vec::len))
    };
    ensure!(count(&agent)? == remote, "{} workloads of {remote} are known", count(&agent)?);
    let status = agent.ctl_json(&["status"])?;
    let objects = status["kubernetes"]["watches"].as_array().cloned().unwrap_or_default();
    let of = |kind: &str| objects.iter().find(|w| w["kind"] == kind).map(|w| w["objects"].as_u64());
    ensure!(
        of("pods") == Some(Some(pods as u64)) && of("services").flatten() > Some(services as u64),
        "{status}"
    );
    let memory = agent.rss_kib()?;
    // One change.
    let (name, space) = ("pod-1", namespace(1));
    let begun = Instant::now();
    cluster.kubectl(&["-n", &space, "label", "pod", name, "meshd.io/dataplane=disabled"])?;
    wait_until(PATIENCE, "one change to be known", || Ok(count(&agent)? == remote - 1))?;
    let changed = begun.elapsed();
    let rebuild = agent.ctl_json(&["status"])?["kubernetes"]["last_rebuild_ms"].clone();
    // A whole namespace.
    let leaves = (0..pods).filter(|pod| *pod % nodes != 0 && pod % NAMESPACES == 2).count();
    let begun = Instant::now();
    cluster.kubectl(&["label", "--overwrite", "namespace", &namespace(2), "meshd.io/dataplane=disabled"])?;
    wait_until(PATIENCE, "a namespace's change to be known", || Ok(count(&agent)? == remote - 1 - leaves))?;
    eprintln!(
        "ready {ready:?} after its start; {memory} KiB resident; one change known after {changed:?} (rebuilt in {rebuild} ms), \
         a namespace after {:?}; in the end {} KiB",
        begun.elapsed(),
        agent.rss_kib()?
    );
    let most = MOST_KIB + MOST_KIB_PER_POD * u64::try_from(pods)?;
    ensure!(memory < most, "{memory} KiB for {pods} pods, more than {most}");
    agent.stop()?.succeeded().context("the agent ends well")?;

    // The CA, which knows what runs where.
    let dir = ground.dir().join("ca");
    fs::create_dir(&dir)?;
    let file = json!({
        "trustDomain": "cluster.local", "directory": dir.join("state"), "runtimeDir": dir.join("run"),
        "listen": [ca.at(15012)], "dnsNames": ["meshd-ca.meshd-system.svc"],
        "kubernetes": { "kubeconfig": cluster.admin(), "audiences": ["meshd-ca"], "nodeAgents": ["meshd-system/meshd"],
            "placement": true },
    });
    fs::write(dir.join("ca.yaml"), file.to_string())?;
    let mut service = Service { place: ca, dir, prefix: Vec::new(), program: None };
    let begun = Instant::now();
    service.start()?;
    let program = service.program.as_mut().context("the CA runs")?;
    program.wait_to_say("pods are known", PATIENCE)?;
    let told = program.stdout() + &program.stderr();
    ensure!(told.contains(&format!("pods={pods}")), "the CA does not know {pods} pods: {told}");
    let memory = rss_kib(program.pid())?;
    eprintln!("the CA knows them {:?} after its start; {memory} KiB resident", begun.elapsed());
    ensure!(memory < most, "the CA takes {memory} KiB for {pods} pods, more than {most}");
    Ok(())
}
