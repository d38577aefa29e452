//! Go's TLS without any mesh around it, as client of a meshed server and as server of a meshed client.

use std::path::PathBuf;

use anyhow::ensure;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, probe, serve};
use crate::it::nodefile::Workload;
use crate::it::pki::{self, Claim};
use crate::it::process::PATIENCE;
use crate::it::{programs, scripts};

pub(super) const STORIES: &[Story] = stories![
    Daemon 90:
        a_go_client_is_served,
        a_go_server_is_reached;
];

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const OUTSIDER: &str = "spiffe://cluster.local/ns/shop/sa/outsider";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
/// Go had no extended master secret before 1.21, without which meshd speaks no TLS 1.2: so with 1.3.
const ALPN: [&str; 2] = ["meshd/1", "istio"];

/// Arguments of the program but for the first two.
fn options(mesh: &Mesh, ground: &Ground, own: &str, peer: &str) -> anyhow::Result<Vec<String>> {
    let files = pki::issued_by_mesh(&mesh.a.ca_dir(), &Claim::of(own), ground.dir(), "go")?;
    let root: PathBuf = mesh.a.ca_dir().join("ca.crt");
    let paths = [files.chain, files.key, root].map(|path| path.to_string_lossy().into_owned());
    Ok(paths.into_iter().chain([peer.to_owned()]).collect())
}

fn a_go_client_is_served(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let program = scripts::compiled("mtls")?.display().to_string();
    let own = options(&mesh, ground, CLIENT, SERVER)?.join(" ");
    let to = mesh.server.at(7000);
    mesh.watched("go", || {
        for alpn in ALPN {
            let script = format!("echo {MARKER} | exec {program} client {to} {own} {alpn}");
            let seen = mesh.outsider.launch("mtls", &["sh", "-c", &script]).finish(PATIENCE)?;
            ensure!(seen.stdout.trim() == MARKER, "{alpn}: {seen:?} {}", mesh.b.log());
        }
        let script = format!("echo {MARKER} | exec {program} client {to} {own} h2");
        let seen = mesh.outsider.launch("mtls", &["sh", "-c", &script]).finish(PATIENCE)?;
        ensure!(seen.stderr.contains("no application protocol"), "{seen:?}");
        Ok(())
    })?;
    let line = mesh.b.wait_access_log("Go's connection", |line| line["tls_version"] == "TLSv1.3")?;
    ensure!(line["peer_spiffe_id"] == CLIENT && line["verdict"] == "allow", "{line}");
    Ok(())
}

fn a_go_server_is_reached(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let stranger = Workload::pod(&mesh.outsider, "elsewhere");
    mesh.workloads.push(stranger);
    mesh.start()?;
    let program = scripts::compiled("mtls")?.display().to_string();
    let own = options(&mesh, ground, OUTSIDER, CLIENT)?.join(" ");
    let tap = mesh.watched("go", || {
        for (port, alpn) in (7000..).zip(ALPN) {
            let script = format!("exec {program} server 0.0.0.0:{port} {own} {alpn}");
            let server = mesh.outsider.launch("mtls", &["sh", "-c", &script]).start()?;
            programs::listening(&mesh.outsider, port)?;
            let line = format!("{MARKER}\n");
            let options = ["--send", &line, "--wait-ms", "500"];
            let seen = probe(&mesh.client, mesh.outsider.at(port), &options)?;
            ensure!(seen["text"] == line, "{alpn}: {seen} {} {}", server.stderr(), mesh.a.log());
        }
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.outsider.at(7000))
}
