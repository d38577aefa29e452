//! meshd as an operator runs it: a daemon per node, one trust, STRICT and one `AuthorizationPolicy`.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Relay, Tools, world::World};
use crate::stage::{Ground, Place, Running, wait_until};

/// The default of `limits.destinations`.
const DESTINATIONS: u32 = 65_536;

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: STRICT } }
---
";

/// One client for any connection.
const ONLY_CLIENT: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: only-client, namespace: bench }
spec:
  selector: { matchLabels: { app: server } }
  action: ALLOW
  rules:
  - from: [ { source: { principals: [ cluster.local/ns/bench/sa/client ] } } ]
";

/// The same client, and rules about requests; `envoy.rs` has them as pilot writes them.
const REQUESTS: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: no-admin, namespace: bench }
spec:
  selector: { matchLabels: { app: server } }
  action: DENY
  rules:
  - to: [ { operation: { paths: [ /admin/* ] } } ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: only-client, namespace: bench }
spec:
  selector: { matchLabels: { app: server } }
  action: ALLOW
  rules:
  - from: [ { source: { principals: [ cluster.local/ns/bench/sa/client ] } } ]
    to: [ { operation: { methods: [ POST ], paths: [ /orders ] } } ]
  - from: [ { source: { principals: [ cluster.local/ns/bench/sa/client ] } } ]
    to: [ { operation: { methods: [ GET, HEAD ], paths: [ /1k, /16k ] } } ]
    when: [ { key: 'request.headers[x-team]', values: [ shop ] } ]
";

/// What tells one of our subjects from another.
pub(super) struct Settings {
    pub(super) relay: Relay,
    /// Capture's.
    pub(super) form: &'static str,
    /// Both workloads on the first node, by the kernel path.
    pub(super) same_node: bool,
    /// Workloads of the mesh beside the client and the server.
    pub(super) crowd: u32,
    /// Rules about requests.
    pub(super) reads_requests: bool,
}

impl Settings {
    pub(super) fn of(relay: Relay) -> Self {
        Self { relay, form: "auto", same_node: false, crowd: 0, reads_requests: false }
    }
}

impl Relay {
    fn as_str(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Ktls => "ktls",
            Self::KtlsSplice => "ktls-splice",
        }
    }
}

fn nodes(ground: &Ground) -> [&Place; 2] {
    [&ground.node_a, &ground.node_b]
}

fn folder(ground: &Ground, node: &Place) -> PathBuf {
    ground.dir().join(&node.name)
}

fn node_file(ground: &Ground, node: &Place) -> PathBuf {
    folder(ground, node).join("node.yaml")
}

/// Writes both nodes' files and gives them one trust.
pub(super) fn prepare(ground: &Ground, settings: &Settings, tools: &Tools) -> Result<()> {
    let crowd = World::of(settings.crowd);
    for node in nodes(ground) {
        let dir = folder(ground, node);
        fs::create_dir_all(dir.join("policies"))?;
        // The daemon refuses state that others may read.
        fs::DirBuilder::new().mode(0o700).create(dir.join("state"))?;
        let rules = if settings.reads_requests { REQUESTS } else { ONLY_CLIENT };
        fs::write(dir.join("policies/bench.yaml"), format!("{STRICT}{rules}"))?;
        fs::write(dir.join("policies/crowd.yaml"), &crowd.policies)?;
        fs::write(node_file(ground, node), format!("{}\n", configuration(ground, node, settings, &crowd)))?;
    }
    // The first start of a daemon makes the root; the second node gets an intermediate of it.
    let mut first = launch(ground, &ground.node_a, tools)?;
    wait_ready(ground, &ground.node_a, tools, &mut first)?;
    let (root, out) = (node_file(ground, &ground.node_a), folder(ground, &ground.node_b).join("state/ca"));
    let trust = ["ca", "intermediate", "--config", &root.to_string_lossy(), "--out", &out.to_string_lossy()];
    ctl(ground, &ground.node_a, tools, &trust).map(drop)
}

fn configuration(ground: &Ground, node: &Place, settings: &Settings, crowd: &World) -> Value {
    let workload = |place: &Place| {
        json!({
            "name": place.name, "namespace": "bench", "serviceAccount": place.name,
            "labels": { "app": place.name }, "addresses": [place.address],
        })
    };
    let (mut here, mut there) = (workload(&ground.client), workload(&ground.server));
    let (mut own, mut other) = (&ground.client, "node-b");
    if node.name == other {
        (here, there, own, other) = (there, here, &ground.server, "node-a");
    }
    here["selector"] = json!({ "netns": own.netns() });
    let (mut local, mut elsewhere): (Vec<_>, Vec<_>) = (vec![here], crowd.remote_workloads.iter().collect());
    if settings.same_node {
        there["selector"] = json!({ "netns": ground.server.netns() });
        local.push(there);
    } else {
        there["node"] = json!(other);
        elsewhere.insert(0, &there);
    }
    let dir = folder(ground, node);
    json!({
        "node": node.name,
        "stateDir": dir.join("state"), "runtimeDir": dir.join("run"), "policiesDir": dir.join("policies"),
        "capture": { "cgroup": ground.cgroup(), "form": settings.form },
        "relay": settings.relay.as_str(),
        "sameNode": if settings.same_node { "kernel" } else { "tls" },
        "workloads": local,
        "remoteWorkloads": elsewhere,
        "services": crowd.services,
        // None of the meshes writes one here.
        "accessLog": { "format": "off" },
        "limits": { "concurrentHandshakes": 4096, "destinations": DESTINATIONS.max(settings.crowd * 2) },
        "log": "warn",
    })
}

/// Starts these nodes' daemons.
pub(super) fn start(ground: &Ground, nodes: &[&Place], tools: &Tools) -> Result<Vec<Running>> {
    let mut daemons = nodes.iter().map(|node| launch(ground, node, tools)).collect::<Result<Vec<_>>>()?;
    for (node, daemon) in nodes.iter().zip(&mut daemons) {
        wait_ready(ground, node, tools, daemon)?;
    }
    Ok(daemons)
}

fn launch(ground: &Ground, node: &Place, tools: &Tools) -> Result<Running> {
    let (meshd, config) = (tools.bin_dir.join("meshd"), node_file(ground, node));
    let argv = [&*meshd.to_string_lossy(), "run", "--config", &*config.to_string_lossy()];
    ground.start(node, &format!("meshd-{}", node.name), &argv, None)
}

fn wait_ready(ground: &Ground, node: &Place, tools: &Tools, daemon: &mut Running) -> Result<()> {
    wait_until(&format!("meshd of {} to be ready", node.name), || {
        daemon.must_run()?;
        Ok(ctl(ground, node, tools, &["status"]).is_ok())
    })
}

fn ctl(ground: &Ground, node: &Place, tools: &Tools, args: &[&str]) -> Result<String> {
    let (meshctl, run) = (tools.bin_dir.join("meshctl"), folder(ground, node).join("run"));
    let mut line = vec![path(&meshctl)?, "--runtime-dir", path(&run)?];
    line.extend(args);
    node.run(&line)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

/// What the first node's daemon has proven of kernel TLS.
pub(super) fn kernel_relays(ground: &Ground, tools: &Tools) -> Result<(Vec<Relay>, Vec<String>)> {
    let said = ctl(ground, &ground.node_a, tools, &["-o", "json", "check"])?;
    let rows: Vec<Value> = serde_json::from_str(&said).context("meshctl check printed something else")?;
    let (mut relays, mut missing) = (Vec::new(), Vec::new());
    for (relay, needs) in [(Relay::Ktls, "kernel TLS"), (Relay::KtlsSplice, "kernel TLS splice")] {
        let row = rows.iter().find(|row| row["name"] == needs);
        match row {
            Some(row) if row["proven"] == true => relays.push(relay),
            _ => {
                let why = row.and_then(|row| row["detail"].as_str()).unwrap_or("not spoken of");
                missing.push(format!("without meshd's relay {}: {needs}: {why}", relay.as_str()));
            }
        }
    }
    Ok((relays, missing))
}
