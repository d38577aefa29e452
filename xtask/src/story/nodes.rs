//! Two nodes with a meshd each, as an operator sets them up: a file, a folder of policies, one trust.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cast::Cast;
use super::speech::Speech;
use super::stage::{Place, Running, Stage, wait_for};

/// Mesh-wide STRICT.
const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: STRICT } }
";

/// Lines of a daemon's log shown when the story fails.
const LAST_LINES: usize = 12;

/// Both nodes.
pub(super) struct Nodes {
    pub(super) a: Node,
    pub(super) b: Node,
}

/// One node.
pub(super) struct Node {
    place: Place,
    dir: PathBuf,
    meshctl: PathBuf,
    meshd: Option<Running>,
}

impl Nodes {
    /// Starts the first node, which makes the root of trust, then the second with an intermediate of it.
    pub(super) fn start(stage: &Stage, bin_dir: &Path, cast: &Cast, speech: &Speech) -> Result<Self> {
        speech.title("meshd enters: one daemon per node, no sidecar, no iptables, nothing restarted");
        let mut a = Node::new(stage, bin_dir, "node-a", 2)?;
        let mut b = Node::new(stage, bin_dir, "node-b", 3)?;
        for node in [&a, &b] {
            node.configure(stage, cast)?;
        }
        a.start(stage, bin_dir, speech)?;
        let (root, out) = (a.dir.join("node.yaml"), b.dir.join("state/ca"));
        let trust =
            ["ca", "intermediate", "--config", &root.to_string_lossy(), "--out", &out.to_string_lossy()];
        let said = a.ctl(stage, &trust)?;
        ensure!(said.0, "the second node's intermediate: {}", said.1);
        b.start(stage, bin_dir, speech)?;
        let nodes = Self { a, b };
        nodes.set_policies("")?;
        Ok(nodes)
    }

    /// STRICT and `more`, on both nodes; they notice by themselves.
    pub(super) fn set_policies(&self, more: &str) -> Result<()> {
        for node in [&self.a, &self.b] {
            node.write_policies(more)?;
        }
        Ok(())
    }
}

impl Node {
    fn new(stage: &Stage, bin_dir: &Path, name: &'static str, host: u8) -> Result<Self> {
        let place = stage.place(name, host)?;
        let dir = stage.dir().join(name);
        fs::create_dir_all(dir.join("policies"))?;
        fs::DirBuilder::new().mode(0o700).create(dir.join("state"))?;
        let node = Self { place, dir, meshctl: bin_dir.join("meshctl"), meshd: None };
        node.write_policies("")?;
        Ok(node)
    }

    fn write_policies(&self, more: &str) -> Result<()> {
        let fresh = self.dir.join("policies/fresh");
        fs::write(&fresh, format!("{STRICT}{more}"))?;
        fs::rename(fresh, self.dir.join("policies/demo.yaml")).context("writing policies")
    }

    fn configure(&self, stage: &Stage, cast: &Cast) -> Result<()> {
        let workload = |place: &Place| {
            json!({
                "name": place.name, "namespace": "shop", "serviceAccount": place.name,
                "labels": { "app": place.name }, "addresses": [place.address],
            })
        };
        let with = |mut value: Value, key: &str, more: Value| {
            value[key] = more;
            value
        };
        let local = |place: &&Place| with(workload(place), "selector", json!({ "netns": place.netns() }));
        let other = if self.place.name == "node-a" { "node-b" } else { "node-a" };
        let remote = |place: &&Place| with(workload(place), "node", json!(other));
        let (clients, servers) = ([&cast.frontend, &cast.reports], [&cast.web, &cast.db]);
        let (here, there) = if other == "node-b" { (clients, servers) } else { (servers, clients) };
        let config = json!({
            "node": self.place.name,
            "stateDir": self.dir.join("state"),
            "runtimeDir": self.dir.join("run"),
            "policiesDir": self.dir.join("policies"),
            "capture": { "cgroup": stage.cgroup() },
            "workloads": here.iter().map(local).collect::<Vec<_>>(),
            "remoteWorkloads": there.iter().map(remote).collect::<Vec<_>>(),
        });
        fs::write(self.dir.join("node.yaml"), format!("{config:#}\n")).context("writing the node's file")
    }

    fn start(&mut self, stage: &Stage, bin_dir: &Path, speech: &Speech) -> Result<()> {
        let (meshd, config) = (bin_dir.join("meshd"), self.dir.join("node.yaml"));
        speech.command(self.place.name, "meshd run --config node.yaml");
        let argv = [meshd.to_string_lossy(), "run".into(), "--config".into(), config.to_string_lossy()];
        let argv: Vec<&str> = argv.iter().map(AsRef::as_ref).collect();
        let mut running = stage.start(&self.place, &format!("meshd-{}", self.place.name), &argv)?;
        wait_for(&format!("meshd of {} to be ready", self.place.name), || {
            let ended = running.child.try_wait()?;
            ensure!(ended.is_none(), "meshd of {} ended: {}", self.place.name, running.said());
            Ok(self.ctl(stage, &["status"])?.0)
        })?;
        self.meshd = Some(running);
        Ok(())
    }

    /// Runs meshctl: whether it succeeded, and what it said.
    pub(super) fn ctl(&self, stage: &Stage, args: &[&str]) -> Result<(bool, String)> {
        let (meshctl, run) = (self.meshctl.to_string_lossy(), self.dir.join("run"));
        let run = run.to_string_lossy();
        let mut line = vec![meshctl.as_ref(), "--runtime-dir", run.as_ref()];
        line.extend(args);
        let output = stage.run(&self.place, &line)?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Waits for an access-log line that `is_it` knows.
    pub(super) fn wait_access_log(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut found = None;
        wait_for(&format!("the access log to show {what}"), || {
            let log = self.meshd.as_ref().map(Running::said).unwrap_or_default();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            found = lines.filter(|line| line.get("verdict").is_some()).find(&is_it);
            Ok(found.is_some())
        })
        .with_context(|| format!("{}'s log ends:\n{}", self.name(), self.last_lines()))?;
        found.context("the line was found")
    }

    /// The end of the daemon's log, for a failure.
    fn last_lines(&self) -> String {
        let log = self.meshd.as_ref().map(Running::said).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    pub(super) fn name(&self) -> &'static str {
        self.place.name
    }
}
