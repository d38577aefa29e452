//! What agents and CA may ask of the API server is what they do ask: its own audit log is the judge. And what they do for it:
//! endpoints of a cluster without slices, statuses that another agent goes on writing.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use super::cluster_ca::{Given, LEASE, SYSTEM, given_with};
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::kube::node;
use crate::it::kube_audit::AuditLog;
use crate::it::mesh::{MARKER, probe, serve};
use crate::it::process::{PATIENCE, wait_until};
use crate::it::roles::granted;

pub(super) const STORIES: &[Story] = stories![
    Kubernetes 300:
        every_permission_of_the_deployed_roles_is_used_and_no_other_is_asked_for;
];

/// In the mesh, and without pods.
const POLICED: &str = "policed";
const SERVICE: &str = "10.96.0.50:80";
/// By when an agent looks again whether another one writes statuses.
const STATUS_LEASE_LOOK: Duration = Duration::from_secs(40);
const NO_SLICES: &str = "--runtime-config=discovery.k8s.io/v1beta1=false";

fn policy(group: &str, kind: &str, spec: &Value) -> Value {
    json!({ "apiVersion": format!("{group}/v1"), "kind": kind,
        "metadata": { "name": kind.to_lowercase(), "namespace": POLICED }, "spec": spec })
}

/// One of each kind; the first of them is wrong in a way that a schema does not see.
fn policies(block: &str) -> Vec<Value> {
    let security = "security.istio.io";
    let nonsense = json!({ "rules": [ { "from": [ { "source": { "ipBlocks": [block] } } ] } ] });
    let settings = json!({ "host": "web.shop.svc.cluster.local", "trafficPolicy": { "tls": { "mode": "ISTIO_MUTUAL" } } });
    vec![
        policy(security, "AuthorizationPolicy", &nonsense),
        policy(security, "PeerAuthentication", &json!({ "mtls": { "mode": "STRICT" } })),
        policy(
            security,
            "RequestAuthentication",
            &json!({ "selector": { "matchLabels": { "app": "nobody" } },
            "jwtRules": [ { "issuer": "https://issuer.test", "jwks": "{\"keys\":[]}" } ] }),
        ),
        policy("networking.istio.io", "DestinationRule", &settings),
    ]
}

impl Given {
    /// Both agents ask the API server, with their deployed account.
    fn watch(&mut self) -> anyhow::Result<()> {
        let file = self.cluster.agents()?;
        for agent in [&mut self.mesh.a, &mut self.mesh.b] {
            agent.settings.insert("kubernetes".into(), json!({ "enabled": true, "kubeconfig": file }));
        }
        self.mesh.configure()
    }

    /// Whether the client reaches the server by a service that only the API server tells of.
    fn wait_service(&self) -> anyhow::Result<()> {
        wait_until(PATIENCE, "the service to lead to the server", || {
            let send = ["--send", MARKER, "--shutdown", "--wait-ms", "2000"];
            let seen = probe(&self.mesh.client, SERVICE.parse()?, &send);
            Ok(seen.is_ok_and(|seen| seen["text"] == MARKER))
        })
    }

    /// What a jsonpath finds in the policy of a kind.
    fn look(&self, kind: &str, path: &str) -> String {
        let path = format!("jsonpath={{{path}}}");
        let said = self.cluster.kubectl(&["-n", POLICED, "get", kind, &kind.to_lowercase(), "-o", &path]);
        said.unwrap_or_default()
    }

    fn leader(&self) -> String {
        let path = "jsonpath={.spec.holderIdentity}";
        let said = self.cluster.kubectl(&["-n", SYSTEM, "get", "lease", "meshd-status", "-o", path]);
        said.unwrap_or_default()
    }

    /// Until the newest version of each policy has a status of that version.
    fn wait_statuses(&self) -> anyhow::Result<()> {
        for kind in ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "DestinationRule"]
        {
            wait_until(PATIENCE, &format!("the status of {kind}"), || {
                let newest = self.look(kind, ".metadata.generation");
                let path = ".status.conditions[?(@.type==\"meshd.io/Accepted\")].observedGeneration";
                Ok(!newest.is_empty() && self.look(kind, path) == newest)
            })?;
        }
        Ok(())
    }

    fn role(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        let said = self.cluster.kubectl(&["-n", SYSTEM, "get", kind, name, "-o", "json"])?;
        Ok(serde_json::from_str(&said)?)
    }

    fn secrets(&self) -> anyhow::Result<usize> {
        let said = self.cluster.kubectl(&[
            "-n",
            SYSTEM,
            "get",
            "secrets",
            "-l",
            "meshd.io/ca-state",
            "-o",
            "name",
        ])?;
        Ok(said.lines().count())
    }
}

fn every_permission_of_the_deployed_roles_is_used_and_no_other_is_asked_for(
    ground: &Ground,
) -> anyhow::Result<()> {
    let audit = AuditLog::new(ground.dir())?;
    let mut flags = audit.flags();
    flags.push(NO_SLICES.to_owned());
    let mut given = given_with(ground, flags)?;
    given.cluster.deploy("create", &["crds"])?;
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" },
        "spec": { "clusterIP": "10.96.0.50", "ports": [ { "name": "tcp", "port": 80, "targetPort": 7000 } ] } });
    let endpoints = json!({ "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": "web", "namespace": "shop" },
        "subsets": [ { "addresses": [ { "ip": given.mesh.server.v4 } ], "ports": [ { "name": "tcp", "port": 7000 } ] } ] });
    let policed = json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": POLICED, "labels": { "meshd.io/dataplane": "enabled" } } });
    given.cluster.apply(&[node("node-a"), node("node-b"), service, endpoints, policed])?;
    let state = |identity: &str| json!({ "state": { "namespace": SYSTEM, "identity": identity, "leaseSeconds": LEASE } });
    let mut first = given.replica(ground, "ca-0", &state("ca-0"))?;
    first.start()?;
    given.equip(ground)?;
    given.watch()?;
    given.mesh.a.start()?;
    given.mesh.b.start()?;
    let _server = serve(&given.mesh.server, 7000, &["--echo"])?;
    given.wait_service()?;
    // Rejected twice: one event that counts.
    for block in ["everywhere", "somewhere"] {
        given.cluster.apply(&policies(block))?;
        given.wait_statuses()?;
    }
    // The CA's state outgrows its head; whoever leads next writes it anew and takes the old away.
    while given.secrets()? < 2 {
        for _ in 0..32 {
            first.ctl(&["token", "create", "--node", "node-a"])?;
        }
    }
    first.kill()?;
    let mut second = given.replica(ground, "ca-1", &state("ca-1"))?;
    second.launch()?;
    second.wait_ready(Duration::from_secs(3 * LEASE))?;
    // The agent that writes statuses stops, and the other one goes on at its next look.
    let led = given.leader();
    let mesh = &mut given.mesh;
    let agent = if led == mesh.a.name { &mut mesh.a } else { &mut mesh.b };
    ensure!(agent.name == led, "nobody of ours writes statuses: {led}");
    agent.stop()?;
    wait_until(STATUS_LEASE_LOOK + PATIENCE, "the other agent to write statuses", || {
        Ok(!given.leader().is_empty() && given.leader() != led)
    })?;
    given.cluster.apply(&policies("nowhere"))?;
    given.wait_statuses()?;
    // The cluster is upgraded, and has slices now.
    given.cluster.stop_api_server()?;
    given.cluster.flags.retain(|flag| flag != NO_SLICES);
    given.cluster.start_api_server()?;
    let slice = json!({ "apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "web-1", "namespace": "shop", "labels": { "kubernetes.io/service-name": "web" } },
        "endpoints": [ { "addresses": [given.mesh.server.v4], "conditions": { "ready": true } } ],
        "ports": [ { "name": "tcp", "port": 7000, "protocol": "TCP" } ] });
    given.cluster.apply(&[slice])?;
    let mesh = &mut given.mesh;
    for agent in [&mut mesh.a, &mut mesh.b] {
        if agent.name != led {
            agent.stop()?;
        }
        agent.start()?;
    }
    given.wait_service()?;
    // A watch in which nothing happens is in the log once it ends.
    given.mesh.a.stop()?;
    given.mesh.b.stop()?;
    second.kill()?;
    for account in ["meshd", "meshd-ca"] {
        let mut all = granted(&given.role("clusterrole", account)?);
        all.extend(granted(&given.role("role", account)?));
        let mut unused = all.clone();
        let waited = wait_until(PATIENCE, "the audit log", || {
            unused = audit.unused(account, &all);
            Ok(unused.is_empty())
        });
        ensure!(waited.is_ok(), "{account} never used {unused:#?}");
        let refused = audit.refused(account, &all);
        ensure!(refused.is_empty(), "{account} asked for what its roles do not grant: {refused:#?}");
    }
    Ok(())
}
