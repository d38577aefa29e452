//! The kubelets of a cluster's nodes, which obey the API server: a pod that is bound to a node gets a sandbox there, its
//! init containers and then its containers run as programs, its probe is asked from the node, and its status says what became of
//! it. A pod that names no node is bound to the nodes in turn, since no scheduler is here.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::kube::Cluster;
use super::kube_api::{Api, Reach};
use super::kubelet::{Kubelet, Pod};
use super::netns::{Place, Wire};
use super::process::{Program, enter};

/// How often they look.
const TICK: Duration = Duration::from_millis(50);
const PROBE_EVERY: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A node with its kubelet.
pub(crate) struct KubeletNode {
    pub(crate) place: Place,
    pub(crate) kubelet: Kubelet,
}

/// All of them, on a thread of their own.
pub(crate) struct Kubelets {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    wire: Mutex<Wire>,
    /// Pods that run, by namespace and name.
    running: Mutex<BTreeMap<(String, String), Place>>,
    /// Probes that passed.
    probes: AtomicU64,
    trouble: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kubelets {
    /// Begins to obey `cluster`.
    pub(crate) fn start(wire: Wire, cluster: &Cluster, nodes: Vec<KubeletNode>) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            wire: Mutex::new(wire),
            running: Mutex::default(),
            probes: AtomicU64::new(0),
            trouble: Mutex::default(),
        });
        let (reach, told) = (Reach::of(cluster), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let obeyed = std::panic::catch_unwind(AssertUnwindSafe(|| obey(&reach, nodes, &told)));
            let trouble = match obeyed {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "they panicked".to_owned(),
            };
            eprintln!("kubelets: {trouble}");
            lock(&told.trouble).get_or_insert(trouble);
        });
        Self { shared, thread: Some(thread) }
    }

    /// The wire that pods are plugged into.
    pub(crate) fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.shared.wire)
    }

    /// Where a pod's containers run, once they do.
    pub(crate) fn place(&self, namespace: &str, name: &str) -> anyhow::Result<Place> {
        self.healthy()?;
        let running = lock(&self.shared.running);
        running
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
            .with_context(|| format!("no pod {name} runs"))
    }

    /// Pods whose containers run.
    pub(crate) fn running(&self) -> usize {
        lock(&self.shared.running).len()
    }

    /// Probes that have passed so far.
    pub(crate) fn probes(&self) -> u64 {
        self.shared.probes.load(Ordering::Relaxed)
    }

    /// Fails when they could not go on.
    pub(crate) fn healthy(&self) -> anyhow::Result<()> {
        let trouble = lock(&self.shared.trouble).clone();
        ensure!(trouble.is_none(), "the kubelets gave up: {}", trouble.unwrap_or_default());
        Ok(())
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn obey(reach: &Reach, nodes: Vec<KubeletNode>, shared: &Arc<Shared>) -> anyhow::Result<()> {
    reach.within(async |api| {
        let mut cluster = Obedient { api, nodes, runs: BTreeMap::new(), bound: 0, shared };
        while !shared.stop.load(Ordering::Relaxed) {
            // The API server may be away.
            if let Ok(pods) = cluster.api.get("/api/v1/pods").await {
                cluster.look(pods["items"].as_array().map(Vec::as_slice).unwrap_or_default()).await?;
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    })
}

struct Obedient<'a> {
    api: Api,
    nodes: Vec<KubeletNode>,
    /// By UID.
    runs: BTreeMap<String, Run>,
    bound: usize,
    shared: &'a Arc<Shared>,
}

/// A pod of one node.
struct Run {
    key: (String, String),
    node: usize,
    /// None: it has ended, and its sandbox is gone.
    pod: Option<Pod>,
    place: Place,
    host_network: bool,
    spec: Value,
    stage: Stage,
    probe: Option<Arc<AtomicBool>>,
    /// As it was written last.
    told: Value,
}

enum Stage {
    /// Which init container is next, or runs.
    Init(usize, Option<Program>),
    Containers(Vec<Program>),
    /// All containers have ended, well or not.
    Over(bool),
    /// Until when what still runs may end by itself.
    Ending {
        until: Instant,
        before: Option<Program>,
        containers: Vec<Program>,
        told: bool,
    },
}

impl Obedient<'_> {
    async fn look(&mut self, pods: &[Value]) -> anyhow::Result<()> {
        for pod in pods {
            let (meta, spec) = (&pod["metadata"], &pod["spec"]);
            let uid = text(&meta["uid"]);
            let is_leaving = !meta["deletionTimestamp"].is_null();
            let node = text(&spec["nodeName"]);
            if node.is_empty() && !is_leaving {
                self.bind(pod).await;
                continue;
            }
            let Some(node) = self.nodes.iter().position(|known| known.place.name == node) else { continue };
            if !self.runs.contains_key(&uid) {
                if is_leaving {
                    self.forget(pod).await;
                    continue;
                }
                let run = self.begin(pod, node)?;
                self.runs.insert(uid.clone(), run);
            }
            let Some(run) = self.runs.get_mut(&uid) else { continue };
            if is_leaving && !matches!(run.stage, Stage::Ending { .. }) {
                run.end(meta["deletionGracePeriodSeconds"].as_u64().unwrap_or(30), self.shared)?;
            }
            run.go_on(&self.nodes[node].place, self.shared)?;
            let ended = if matches!(run.stage, Stage::Over(_)) { run.pod.take() } else { None };
            let status = run.status(&self.nodes[node].place);
            if run.told != status {
                let (namespace, name) = &run.key;
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
                // One that is gone by now is seen at the next look.
                if self.api.patch(&path, &status).await.is_ok() {
                    run.told = status;
                }
            }
            let is_over = run.is_over();
            if let Some(pod) = ended {
                self.remove_sandbox(node, pod)?;
            }
            if is_over {
                if let Some(run) = self.runs.remove(&uid) {
                    self.remove(run)?;
                }
                self.forget(pod).await;
            }
        }
        // Deleted by force.
        let gone: Vec<_> = self
            .runs
            .keys()
            .filter(|uid| !pods.iter().any(|pod| text(&pod["metadata"]["uid"]) == **uid))
            .cloned()
            .collect();
        for uid in gone {
            if let Some(run) = self.runs.remove(&uid) {
                self.remove(run)?;
            }
        }
        Ok(())
    }

    async fn bind(&mut self, pod: &Value) {
        let node = &self.nodes[self.bound % self.nodes.len()].place.name;
        self.bound += 1;
        let meta = &pod["metadata"];
        let (namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
        let _ = self.api.send(http::Method::POST, &path, &binding).await;
    }

    fn begin(&mut self, pod: &Value, node: usize) -> anyhow::Result<Run> {
        let (meta, spec) = (&pod["metadata"], pod["spec"].clone());
        let (namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
        let KubeletNode { place, kubelet } = &mut self.nodes[node];
        let host = (spec["hostNetwork"] == true).then_some(&*place);
        let pod = kubelet.make_named(
            &mut lock(&self.shared.wire),
            (&namespace, &name),
            &text(&meta["uid"]),
            host,
        )?;
        kubelet.tell(&pod);
        Ok(Run {
            key: (namespace, name),
            node,
            place: pod.place.clone(),
            host_network: pod.host_network,
            pod: Some(pod),
            spec,
            stage: Stage::Init(0, None),
            probe: None,
            told: Value::Null,
        })
    }

    /// Has the API server forget a pod of which nothing is left.
    async fn forget(&self, pod: &Value) {
        let meta = &pod["metadata"];
        let path = format!("/api/v1/namespaces/{}/pods/{}", text(&meta["namespace"]), text(&meta["name"]));
        let now = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0,
            "preconditions": { "uid": meta["uid"] } });
        let _ = self.api.send(http::Method::DELETE, &path, &now).await;
    }

    fn remove(&mut self, run: Run) -> anyhow::Result<()> {
        lock(&self.shared.running).remove(&run.key);
        let Run { node, pod, stage, .. } = run;
        drop(stage);
        pod.map_or(Ok(()), |pod| self.remove_sandbox(node, pod))
    }

    fn remove_sandbox(&mut self, node: usize, pod: Pod) -> anyhow::Result<()> {
        let (place, is_own) = (pod.place.clone(), !pod.host_network);
        self.nodes[node].kubelet.delete(pod)?;
        if is_own {
            lock(&self.shared.wire).unplug(&place);
        }
        Ok(())
    }
}

impl Run {
    fn containers(&self, kind: &str) -> Vec<Value> {
        self.spec[kind].as_array().cloned().unwrap_or_default()
    }

    fn start(&self, container: &Value) -> anyhow::Result<Program> {
        let words = |name: &str| container[name].as_array().cloned().unwrap_or_default();
        let argv: Vec<String> = [words("command"), words("args")].concat().iter().map(text).collect();
        self.place.launch(&text(&container["name"]), &argv).start()
    }

    fn go_on(&mut self, node: &Place, shared: &Arc<Shared>) -> anyhow::Result<()> {
        let next = match &mut self.stage {
            Stage::Init(index, running) => {
                let ended = running.as_mut().map(Program::ended).transpose()?.flatten();
                let is_over = ended.is_some_and(|status| status.success());
                let is_idle = running.is_none() || ended.is_some();
                let index = *index + usize::from(is_over);
                if !is_idle {
                    return Ok(());
                }
                match self.containers("initContainers").get(index) {
                    Some(container) => Stage::Init(index, Some(self.start(container)?)),
                    None => self.run_containers(node, shared)?,
                }
            }
            Stage::Containers(programs) => {
                let mut well = true;
                let mut all = true;
                for program in programs {
                    match program.ended()? {
                        Some(status) => well &= status.success(),
                        None => all = false,
                    }
                }
                match (all, text(&self.spec["restartPolicy"]).as_str()) {
                    (false, _) => return Ok(()),
                    (true, "Never") => {
                        lock(&shared.running).remove(&self.key);
                        Stage::Over(well)
                    }
                    (true, _) => self.run_containers(node, shared)?,
                }
            }
            Stage::Over(_) => return Ok(()),
            Stage::Ending { until, before, containers, told } => {
                let waits = before.as_mut().is_some_and(Program::is_running) && Instant::now() < *until;
                if !waits && !*told {
                    *told = true;
                    for program in containers {
                        let _ = program.signal(Signal::SIGTERM);
                    }
                }
                return Ok(());
            }
        };
        self.stage = next;
        Ok(())
    }

    fn run_containers(&mut self, node: &Place, shared: &Arc<Shared>) -> anyhow::Result<Stage> {
        let containers = self.containers("containers");
        let programs = containers.iter().map(|c| self.start(c)).collect::<anyhow::Result<Vec<_>>>()?;
        lock(&shared.running).insert(self.key.clone(), self.place.clone());
        let probed = containers.iter().find(|container| container["readinessProbe"].is_object());
        if let (Some(container), None) = (probed, &self.probe) {
            self.probe = Some(probe(&container["readinessProbe"], &self.place, node, shared));
        }
        Ok(Stage::Containers(programs))
    }

    /// Begins its end: what the pod wants done before, SIGTERM, and after `grace_s` no more patience.
    fn end(&mut self, grace_s: u64, shared: &Shared) -> anyhow::Result<()> {
        lock(&shared.running).remove(&self.key);
        let stage = std::mem::replace(&mut self.stage, Stage::Over(true));
        let containers = match stage {
            Stage::Init(_, running) => running.into_iter().collect(),
            Stage::Containers(programs) => programs,
            Stage::Over(_) | Stage::Ending { .. } => Vec::new(),
        };
        let hook =
            self.spec.pointer("/containers/0/lifecycle/preStop/exec/command").and_then(Value::as_array);
        let hook = hook.filter(|_| !containers.is_empty());
        let before = hook.map(|argv| {
            let argv: Vec<String> = argv.iter().map(text).collect();
            self.place.launch("pre-stop", &argv).start()
        });
        let until = Instant::now() + Duration::from_secs(grace_s);
        self.stage = Stage::Ending { until, before: before.transpose()?, containers, told: false };
        Ok(())
    }

    /// Whether nothing of it runs any more, or nothing may.
    fn is_over(&mut self) -> bool {
        match &mut self.stage {
            Stage::Ending { until, containers, told, .. } => {
                let runs = containers.iter_mut().any(Program::is_running);
                *told && !runs || Instant::now() > *until
            }
            _ => false,
        }
    }

    fn status(&self, node: &Place) -> Value {
        let (phase, runs) = match &self.stage {
            Stage::Init(..) => ("Pending", false),
            Stage::Containers(_) | Stage::Ending { .. } => ("Running", true),
            Stage::Over(true) => ("Succeeded", false),
            Stage::Over(false) => ("Failed", false),
        };
        let is_ready = runs && self.probe.as_ref().is_none_or(|probe| probe.load(Ordering::Relaxed));
        let word = |is: bool| if is { "True" } else { "False" };
        let condition = |kind: &str, is: bool| json!({ "type": kind, "status": word(is) });
        let place = &self.place;
        let mut addresses = vec![json!({ "ip": place.v4 }), json!({ "ip": place.v6 })];
        if self.host_network {
            addresses.truncate(1);
        }
        json!({ "status": {
            "phase": phase, "hostIP": node.v4, "podIP": place.v4, "podIPs": addresses,
            "conditions": [condition("PodScheduled", true), condition("Initialized", runs),
                condition("ContainersReady", is_ready), condition("Ready", is_ready)],
        } })
    }
}

/// Asks a pod from its node, again and again until nobody wants to know; the last answer.
fn probe(probe: &Value, pod: &Place, node: &Place, shared: &Arc<Shared>) -> Arc<AtomicBool> {
    let answer = Arc::new(AtomicBool::new(false));
    let port = probe.pointer("/tcpSocket/port").or_else(|| probe.pointer("/httpGet/port"));
    let port = port.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
    let path = probe.pointer("/httpGet/path").map(text);
    let (to, netns, shared, last) =
        (pod.at(port), node.netns_path(), Arc::clone(shared), Arc::downgrade(&answer));
    std::thread::spawn(move || {
        if enter(&netns).is_err() {
            return;
        }
        while let Some(last) = last.upgrade().filter(|_| !shared.stop.load(Ordering::Relaxed)) {
            let passed = ask(to, path.as_deref()).is_ok();
            last.store(passed, Ordering::Relaxed);
            shared.probes.fetch_add(u64::from(passed), Ordering::Relaxed);
            drop(last);
            std::thread::sleep(PROBE_EVERY);
        }
    });
    answer
}

fn ask(to: SocketAddr, path: Option<&str>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PROBE_TIMEOUT)?;
    let Some(path) = path else { return Ok(()) };
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: probe\r\nUser-Agent: kube-probe/1.20\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(answer.ends_with(b" 200"), "the probe was answered otherwise");
    Ok(())
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Where the kubelets' files are, as the nodes' files say it; for [`Kubelets::start`].
pub(crate) fn settings(kubelet: &Kubelet, kubeconfig: &Path) -> Value {
    let mut settings = kubelet.settings();
    settings["enabled"] = json!(true);
    settings["kubeconfig"] = json!(kubeconfig);
    settings
}
