//! The cast most stories share: `client` and `other` on node a, `server` on node b, an `outsider` that no mesh knows,
//! and a strict mesh. A story changes what it needs before it starts the daemons.

use serde_json::{Value, json};

use super::capture::Capture;
use super::daemon::Node;
use super::ground::Ground;
use super::netns::{Place, Wire};
use super::nodefile::{Workload, node_file};
use super::peer;
use super::process::{Finished, PATIENCE, Program, wait_until};

/// Mesh-wide STRICT.
pub(crate) const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: STRICT } }
";

/// Mesh-wide PERMISSIVE.
pub(crate) const PERMISSIVE: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: PERMISSIVE } }
";

/// Only `client` may reach `server`.
pub(crate) const ONLY_CLIENT: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: only-client, namespace: shop }
spec:
  selector: { matchLabels: { app: server } }
  action: ALLOW
  rules:
  - from: [ { source: { principals: [ cluster.local/ns/shop/sa/client ] } } ]
";

/// Pods and wire, nobody's daemon: what any mesh is put between.
pub(crate) struct Pods {
    pub(crate) wire: Wire,
    pub(crate) client: Place,
    pub(crate) other: Place,
    pub(crate) server: Place,
    pub(crate) outsider: Place,
}

impl Pods {
    pub(crate) fn given(ground: &Ground) -> anyhow::Result<Self> {
        let mut wire = Wire::lay(ground)?;
        Ok(Self {
            client: wire.plug("client")?,
            other: wire.plug("other")?,
            server: wire.plug("server")?,
            outsider: wire.plug("outsider")?,
            wire,
        })
    }

    pub(crate) fn capture(&self, name: &str) -> anyhow::Result<Capture> {
        Capture::start(&self.wire, name)
    }
}

/// The cast with two nodes.
pub(crate) struct Mesh {
    pub(crate) pods: Pods,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) services: Vec<Value>,
}

impl std::ops::Deref for Mesh {
    type Target = Pods;

    fn deref(&self) -> &Pods {
        &self.pods
    }
}

impl Mesh {
    /// Everything but running daemons, strict.
    pub(crate) fn given(ground: &Ground) -> anyhow::Result<Self> {
        let mut pods = Pods::given(ground)?;
        let a = Node::new(ground, pods.wire.plug("node-a")?)?;
        let b = Node::new(ground, pods.wire.plug("node-b")?)?;
        let workloads = vec![
            Workload::pod(&pods.client, "node-a"),
            Workload::pod(&pods.other, "node-a"),
            Workload::pod(&pods.server, "node-b"),
        ];
        let mesh = Self { pods, a, b, workloads, services: Vec::new() };
        mesh.policies(STRICT)?;
        Ok(mesh)
    }

    /// A running strict mesh.
    pub(crate) fn strict(ground: &Ground) -> anyhow::Result<Self> {
        let mut mesh = Self::given(ground)?;
        mesh.start()?;
        Ok(mesh)
    }

    /// A running mesh with other policies.
    pub(crate) fn with_policies(ground: &Ground, yaml: &str) -> anyhow::Result<Self> {
        let mut mesh = Self::given(ground)?;
        mesh.policies(yaml)?;
        mesh.start()?;
        Ok(mesh)
    }

    /// The same policies on both nodes.
    pub(crate) fn policies(&self, yaml: &str) -> anyhow::Result<()> {
        self.a.set_policies(yaml)?;
        self.b.set_policies(yaml)
    }

    /// Adds a service of TCP `port` in namespace `shop`, led to the workload labelled `app`.
    pub(crate) fn service(&mut self, name: &str, address: &str, port: u16, target_port: u16, app: &str) {
        self.services.push(json!({
            "name": name, "namespace": "shop", "addresses": [address], "selector": { "app": app },
            "ports": [ { "port": port, "targetPort": target_port, "name": "tcp" } ],
        }));
    }

    /// Writes both nodes' files.
    pub(crate) fn configure(&self) -> anyhow::Result<()> {
        for node in [&self.a, &self.b] {
            node.configure(&node_file(node, &self.workloads, &self.services))?;
        }
        Ok(())
    }

    /// Starts node a, which makes the root, then node b with an intermediate of it.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        self.configure()?;
        self.a.start()?;
        self.b.join_trust_of(&self.a)?;
        self.b.start()
    }

    /// Waits until both nodes decide as `wanted` says for `from` reaching the server's port, by asking them.
    pub(crate) fn wait_applied(&self, from: &Place, port: u16, wanted_to_pass: bool) -> anyhow::Result<()> {
        wait_until(PATIENCE, &format!("policy to say {wanted_to_pass} for {}", from.name), || {
            let seen = probe(from, self.server.at(port), &["--send", "?", "--shutdown", "--wait-ms", "2000"])?;
            Ok((seen["ended"] == "eof" && seen["connect"] == "ok") == wanted_to_pass)
        })
    }
}

/// Starts a peer that listens in `place`.
pub(crate) fn serve(place: &Place, port: u16, options: &[&str]) -> anyhow::Result<Program> {
    serve_at(place, &format!("[::]:{port}"), options)
}

/// The same on an address.
pub(crate) fn serve_at(place: &Place, at: &str, options: &[&str]) -> anyhow::Result<Program> {
    let mut args = vec!["serve", at];
    args.extend(options);
    let mut program = place.launch("serve", &peer::argv(&args)).start()?;
    program.wait_to_say("listening", PATIENCE)?;
    Ok(program)
}

/// Runs one probe to its end and returns what it saw.
pub(crate) fn probe(place: &Place, to: std::net::SocketAddr, options: &[&str]) -> anyhow::Result<Value> {
    last_line(&start_probe(place, to, options)?.finish(PATIENCE * 2)?)
}

/// Starts a probe that is still talking when this returns.
pub(crate) fn start_probe(place: &Place, to: std::net::SocketAddr, options: &[&str]) -> anyhow::Result<Program> {
    let to = to.to_string();
    let mut args = vec!["probe", &to];
    args.extend(options);
    place.launch("probe", &peer::argv(&args)).start()
}

/// The last JSON line of a peer that ended well.
pub(crate) fn last_line(finished: &Finished) -> anyhow::Result<Value> {
    anyhow::ensure!(finished.status.success(), "{} failed: {}{}", finished.label, finished.stdout, finished.stderr);
    json_lines(&finished.stdout).pop().ok_or_else(|| anyhow::anyhow!("{} said nothing", finished.label))
}

/// All JSON lines of a peer's output.
pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits until a listening peer has seen an event that `is_it` knows.
pub(crate) fn wait_event(server: &Program, what: &str, is_it: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let mut found = None;
    wait_until(PATIENCE, &format!("the server to see {what}"), || {
        found = json_lines(&server.stdout()).into_iter().find(&is_it);
        Ok(found.is_some())
    })
    .map_err(|error| error.context(server.stdout()))?;
    found.ok_or_else(|| anyhow::anyhow!("the event was found"))
}
