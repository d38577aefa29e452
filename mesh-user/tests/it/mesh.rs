//! The cast most stories share: `client` and `other` on node a, `server` on node b, an `outsider` that no mesh knows,
//! and a strict mesh. A story changes what it needs before it starts the daemons.

use anyhow::ensure;
use serde_json::{Value, json};

use super::capture::Capture;
use super::daemon::Node;
use super::ground::Ground;
use super::judge::Wiretap;
use super::netns::{Place, Wire};
use super::nodefile::{Workload, node_file};
use super::peer;
use super::process::{Finished, PATIENCE, Program, wait_until};
use super::relay::Relay;

/// What no wire may show.
pub(crate) const MARKER: &str = "MARKER-7f3a91c2-readable";

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
        let [client, other, server, outsider] = wire.plug(["client", "other", "server", "outsider"])?;
        Ok(Self { wire, client, other, server, outsider })
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
    /// The `limits` of both nodes' files.
    pub(crate) limits: Value,
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
        let [a, b] = pods.wire.plug(["node-a", "node-b"])?;
        let (a, b) = (Node::new(ground, a)?, Node::new(ground, b)?);
        let workloads = vec![
            Workload::pod(&pods.client, "node-a"),
            Workload::pod(&pods.other, "node-a"),
            Workload::pod(&pods.server, "node-b"),
        ];
        let mesh = Self { pods, a, b, workloads, services: Vec::new(), limits: json!({}) };
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
            let mut file = node_file(node, &self.workloads, &self.services);
            file["limits"] = self.limits.clone();
            node.configure(&file)?;
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

    /// Captures the wire while `act` runs; the marker must not be readable in it.
    pub(crate) fn watched(
        &self,
        name: &str,
        act: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Wiretap> {
        let capture = self.pods.capture(name)?;
        act()?;
        let tap = capture.stop()?;
        tap.must_not_show(MARKER)?;
        Ok(tap)
    }

    /// Both daemons say that the story's relay carried a connection from `client` to `server`, and the kernels'
    /// counters agree.
    pub(crate) fn must_have_relayed_by(&self, relay: Relay) -> anyhow::Result<()> {
        for (node, direction) in [(&self.a, "outbound"), (&self.b, "inbound")] {
            node.wait_access_log(&format!("an {direction} connection by {relay}"), |line| {
                line["direction"] == direction
                    && line["relay"] == relay.as_str()
                    && line["verdict"] == "allow"
            })?;
        }
        if relay.is_kernel() {
            for place in [&self.client, &self.server] {
                let sent = tls_stat(place, "TlsTxSw")? + tls_stat(place, "TlsTxDevice")?;
                ensure!(
                    sent > 0,
                    "no socket in {} was given a TLS key, whatever the daemon says",
                    place.name
                );
            }
        }
        Ok(())
    }
}

/// A counter of the kernel's TLS in this place's namespace.
fn tls_stat(place: &Place, name: &str) -> anyhow::Result<u64> {
    let text = place.run(&["cat", "/proc/net/tls_stat"])?.succeeded()?;
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    Ok(line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0))
}

/// Whether a probe was refused: not one byte came back, and the end was no clean one.
pub(crate) fn is_unserved(seen: &Value) -> bool {
    seen["received"] == 0 && seen["ended"] != "eof" && seen["ended"] != "open"
}

/// How many connections a peer that serves has accepted.
pub(crate) fn accepted(server: &Program) -> usize {
    json_lines(&server.stdout()).iter().filter(|event| event["event"] == "accepted").count()
}

/// A probe of the server at port 7000 is answered in full.
pub(crate) fn must_serve(mesh: &Mesh) -> anyhow::Result<()> {
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
    ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen}");
    Ok(())
}

/// Starts a peer that listens in `place`.
pub(crate) fn serve(place: &Place, port: u16, options: &[&str]) -> anyhow::Result<Program> {
    serve_at(place, &format!("[::]:{port}"), options)
}

/// The same on an address.
pub(crate) fn serve_at(place: &Place, at: &str, options: &[&str]) -> anyhow::Result<Program> {
    let mut args = vec!["serve", at];
    args.extend(options);
    let mut program = place.launch("serve", &peer::command_line(&args)).start()?;
    program.wait_to_say("listening", PATIENCE)?;
    Ok(program)
}

/// Runs one probe to its end and returns what it saw.
pub(crate) fn probe(place: &Place, to: std::net::SocketAddr, options: &[&str]) -> anyhow::Result<Value> {
    last_line(&start_probe(place, to, options)?.finish(PATIENCE * 2)?)
}

/// Starts a probe that is still talking when this returns.
pub(crate) fn start_probe(
    place: &Place,
    to: std::net::SocketAddr,
    options: &[&str],
) -> anyhow::Result<Program> {
    let to = to.to_string();
    let mut args = vec!["probe", &to];
    args.extend(options);
    place.launch("probe", &peer::command_line(&args)).start()
}

/// The last JSON line of a peer that ended well.
pub(crate) fn last_line(finished: &Finished) -> anyhow::Result<Value> {
    anyhow::ensure!(
        finished.status.success(),
        "{} failed: {}{}",
        finished.label,
        finished.stdout,
        finished.stderr
    );
    json_lines(&finished.stdout).pop().ok_or_else(|| anyhow::anyhow!("{} said nothing", finished.label))
}

/// All JSON lines of a peer's output.
pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits until a listening peer has seen an event that `is_it` knows.
pub(crate) fn wait_event(
    server: &Program,
    what: &str,
    is_it: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let mut found = None;
    wait_until(PATIENCE, &format!("the server to see {what}"), || {
        found = json_lines(&server.stdout()).into_iter().find(&is_it);
        Ok(found.is_some())
    })
    .map_err(|error| error.context(server.stdout()))?;
    found.ok_or_else(|| anyhow::anyhow!("the event was found"))
}
