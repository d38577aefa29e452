//! The agent as its pod has it (deploy/kubernetes): the capabilities of its manifest and no others, no new privileges, a mount
//! and a cgroup namespace of its own, hooks pinned in the host's bpffs. And without each of those capabilities.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::it::daemon::{Node, bin_dir};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kube;
use crate::it::mesh::STRICT;
use crate::it::netns::{Place, Wire};
use crate::it::nodefile::{Selector, Workload, node_file};
use crate::it::process::{Finished, PATIENCE, Program, wait_until};
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    Daemon 120:
        an_agent_with_its_manifests_capabilities_serves_survives_and_is_cleaned_up,
        without_any_one_of_its_capabilities_an_agent_is_no_agent;
];

const SERVED: u16 = 8080;
const NOBODY: u16 = 8099;

/// Of the container that the manifest in `file` describes, as setpriv(1) writes them.
fn capabilities(file: &str, containers: &str) -> anyhow::Result<Vec<String>> {
    let file = kube::manifests().join(file);
    let manifest: Value = serde_saphyr::from_str(&fs::read_to_string(&file)?)?;
    let context = &manifest["spec"]["template"]["spec"][containers][0]["securityContext"];
    ensure!(context["capabilities"]["drop"] == json!(["ALL"]), "{context}");
    ensure!(context["allowPrivilegeEscalation"] == false && context["privileged"] == false, "{context}");
    let added = context["capabilities"]["add"].as_array().context("no capabilities")?;
    Ok(added.iter().filter_map(Value::as_str).map(str::to_lowercase).collect())
}

/// A node with a client and a server, and no agent yet.
struct Scene {
    node: Node,
    client: Place,
    server: Place,
    /// Stands for /sys/fs/bpf.
    bpffs: PathBuf,
    _nginx: Program,
    /// Another user's process in the client's pod: by it the agent finds the pod's namespace.
    _sleeper: Program,
}

impl Scene {
    fn given(ground: &Ground) -> anyhow::Result<Self> {
        let mut wire = Wire::lay(ground)?;
        let [host, client, server] = wire.plug(["host", "client", "server"])?;
        let node = Node::new(ground, host)?;
        let sleeper = client.launch("sleep", &["sleep", "600"]).with_user("nobody").start()?;
        let pid = sleeper.pid();
        wait_until(PATIENCE, "the client's process", || {
            Ok(fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "sleep")
        })?;
        let mut workloads = [Workload::pod(&client, &node.name), Workload::pod(&server, &node.name)];
        workloads[0].selector = Selector::Netns(format!("/proc/{pid}/ns/net").into());
        node.set_policies(STRICT)?;
        let mut file = node_file(&node, &workloads, &[]);
        file["shutdown"] = json!({ "hooks": "keep" });
        node.configure(&file)?;
        let bpffs = ground.dir().join("bpffs");
        fs::create_dir(&bpffs)?;
        node.place.run(&["mount", "-t", "bpf", "bpf", &bpffs.to_string_lossy()])?.succeeded()?;
        let nginx = programs::nginx(&server, SERVED, "a page")?;
        Ok(Self { node, client, server, bpffs, _nginx: nginx, _sleeper: sleeper })
    }

    /// The command as a container of the pod runs it.
    fn contained(&self, capabilities: &[String], command: &[&str]) -> Vec<String> {
        let (run, pins, cgroup) =
            (self.node.runtime_dir(), self.bpffs.join("meshd"), self.node.capture_cgroup());
        let (run, pins, cgroup) = (run.display(), pins.display(), cgroup.display());
        let mounts = format!(
            "mkdir -p {pins} {run}/bpf && mount --bind {pins} {run}/bpf \
             && mount --bind {cgroup} {cgroup} && mount -o remount,bind,ro {cgroup} && exec setpriv \"$@\""
        );
        let bounding =
            capabilities.iter().fold("--bounding-set=-all".to_owned(), |all, one| format!("{all},+{one}"));
        let own = ["unshare", "--mount", "--cgroup", "--propagation", "private", "sh", "-c", &mounts, "sh"];
        let privileges = [bounding.as_str(), "--inh-caps=-all", "--no-new-privs", "--"];
        [own.as_slice(), &privileges, command].concat().into_iter().map(str::to_owned).collect()
    }

    fn start(&self, capabilities: &[String]) -> anyhow::Result<Program> {
        let (meshd, config) = (bin_dir().join("meshd"), self.node.config_file());
        let command = [&*meshd.to_string_lossy(), "run", "--config", &config.to_string_lossy()];
        self.node.place.launch("agent", &self.contained(capabilities, &command)).start()
    }

    fn curl(&self, more: &[&str], port: u16) -> anyhow::Result<Finished> {
        let url = format!("http://{}/", self.server.at(port));
        self.client.run(&[["curl", "-sS", "--max-time", "10"].as_slice(), more, &[&url]].concat())
    }

    /// Whether it does all that an agent is for.
    fn works(&self, agent: &mut Program) -> anyhow::Result<()> {
        wait_until(PATIENCE, "the agent to be ready", || {
            ensure!(agent.is_running(), "it ended: {}", agent.stderr());
            Ok(self.node.ctl(&["status"])?.status.success())
        })?;
        let rows = self.node.ctl_json(&["workloads"])?;
        let rows = rows.as_array().context("no workloads")?;
        ensure!(rows.iter().all(|row| row["state"] == "enrolled"), "not all are enrolled: {rows:?}");
        ensure!(self.curl(&[], SERVED)?.succeeded()? == "a page", "another page");
        let privileged = ["--local-port", "900-950"];
        ensure!(self.curl(&privileged, SERVED)?.succeeded()? == "a page", "another page");
        wait_until(Duration::from_secs(5), "a proven client that kept its port", || {
            let log = agent.stderr();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let kept = |line: &Value| {
                let source = line["source"]["address"].as_str().unwrap_or_default();
                let port = source.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
                port.is_some_and(|port| port < 1024)
            };
            let mut inbound = lines.filter(|line| line["direction"] == "inbound");
            Ok(inbound.any(|line| line["peer_spiffe_id"].is_string() && kept(&line)))
        })?;
        // Else a connect to nobody succeeds, and is reset right after: too soon for curl to tell the difference.
        let form = &self.node.ctl_json(&["status"])?["capture_form"];
        ensure!(form == "hold", "connects are captured in the form {form}");
        let began = Instant::now();
        let refused = self.curl(&[], NOBODY)?;
        let elapsed = began.elapsed();
        // 7: could not connect.
        ensure!(refused.status.code() == Some(7), "no connection refused: {refused:?}");
        ensure!(elapsed < Duration::from_secs(5), "a refusal took {elapsed:?}");
        Ok(())
    }

    fn must_refuse(&self, when: &str) -> anyhow::Result<()> {
        let outcome = self.curl(&[], SERVED)?;
        ensure!(!outcome.status.success(), "{when} the server was reached: {}", outcome.stdout);
        Ok(())
    }
}

fn an_agent_with_its_manifests_capabilities_serves_survives_and_is_cleaned_up(
    ground: &Ground,
) -> anyhow::Result<()> {
    let scene = Scene::given(ground)?;
    let capabilities = self::capabilities("agent.yaml", "containers")?;
    let mut agent = scene.start(&capabilities)?;
    scene.works(&mut agent)?;
    let said = scene.node.ctl_json(&["check"])?;
    let below =
        said.as_array().into_iter().flatten().find(|row| row["name"] == "workloads below the capture root");
    ensure!(below.is_some_and(|row| row["proven"] == true), "from a cgroup namespace: {below:?}");
    // The container is gone, and its mounts; the hooks are not.
    agent.kill_hard()?;
    scene.must_refuse("after a crash")?;
    let mut agent = scene.start(&capabilities)?;
    scene.works(&mut agent).context("the next container")?;
    // As a rolling update ends it.
    agent.signal(Signal::SIGTERM)?;
    agent.finish(PATIENCE)?;
    scene.must_refuse("between two agents")?;
    let cleaner = self::capabilities("cleanup/cleanup.yaml", "initContainers")?;
    let (meshctl, run) = (bin_dir().join("meshctl"), scene.node.runtime_dir());
    let pins = scene.bpffs.join("meshd");
    let (meshctl, run, pins) = (meshctl.to_string_lossy(), run.to_string_lossy(), pins.to_string_lossy());
    let command = [&*meshctl, "--runtime-dir", &run, "cleanup", "--folder", &pins];
    let cleanup = scene.contained(&cleaner, &command);
    // It refuses while an agent runs.
    let mut agent = scene.start(&capabilities)?;
    scene.works(&mut agent).context("the last container")?;
    let told = scene.node.place.launch("early", &cleanup).start()?.finish(PATIENCE)?.failed()?;
    ensure!(told.contains("running"), "{told}");
    agent.kill_hard()?;
    scene.node.place.launch("cleanup", &cleanup).start()?.finish(PATIENCE)?.succeeded()?;
    ensure!(scene.curl(&[], SERVED)?.succeeded()? == "a page", "after clean-up the network is not as before");
    for left in [&*run, &*pins] {
        ensure!(!Path::new(left).exists(), "{left} is left: {:?}", fs::read_dir(left)?.collect::<Vec<_>>());
    }
    Ok(())
}

fn without_any_one_of_its_capabilities_an_agent_is_no_agent(ground: &Ground) -> anyhow::Result<()> {
    let scene = Scene::given(ground)?;
    let all = capabilities("agent.yaml", "containers")?;
    ensure!(all.len() >= 4, "{all:?}");
    for one in &all {
        let rest: Vec<String> = all.iter().filter(|other| *other != one).cloned().collect();
        let mut agent = scene.start(&rest)?;
        let outcome = scene.works(&mut agent);
        agent.kill_hard()?;
        let why =
            outcome.err().with_context(|| format!("{one} is not needed: take it out of the manifest"))?;
        println!("without {one}: {}", why.to_string().lines().next().unwrap_or_default());
    }
    Ok(())
}
