//! `GnuTLS` without any mesh around it, as client of a meshed server and as server of a meshed client.

use anyhow::ensure;

use crate::it::daemon::Node;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, probe, serve};
use crate::it::nodefile::Workload;
use crate::it::pki::{self, Claim, Files, Keys};
use crate::it::process::PATIENCE;
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    Daemon 90:
        a_gnutls_client_is_served,
        a_gnutls_server_is_reached;
];

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const OUTSIDER: &str = "spiffe://cluster.local/ns/shop/sa/outsider";

/// What `GnuTLS` is to offer, and what the access log calls the outcome.
const DIALECTS: [(&str, &str, Keys, &str); 3] = [
    (
        "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM",
        "--alpn=meshd/1",
        Keys::Ecdsa,
        "TLS13_AES_128_GCM_SHA256",
    ),
    (
        "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305",
        "--alpn=istio",
        Keys::Rsa,
        "TLS13_CHACHA20_POLY1305_SHA256",
    ),
    (
        "NORMAL:-VERS-ALL:+VERS-TLS1.2:-CIPHER-ALL:+AES-256-GCM",
        "--alpn=istio",
        Keys::Ecdsa,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    ),
];

fn identity(mesh: &Mesh, ground: &Ground, id: &str, keys: Keys) -> anyhow::Result<Files> {
    let name = if keys == Keys::Rsa { "rsa" } else { "ecdsa" };
    pki::issued_by_mesh_for(keys, &mesh.a.ca_dir(), &Claim::of(id), ground.dir(), name)
}

fn options(mesh: &Mesh, files: &Files, (priority, alpn, ..): (&str, &str, Keys, &str)) -> String {
    format!(
        "--x509certfile={} --x509keyfile={} --x509cafile={} {alpn} --priority='{priority}'",
        files.chain.display(),
        files.key.display(),
        mesh.a.ca_dir().join("ca.crt").display()
    )
}

fn must_be_logged(node: &Node, peer: &str, cipher: &str) -> anyhow::Result<()> {
    let line = node.wait_access_log(cipher, |line| line["tls_cipher"] == cipher)?;
    ensure!(line["peer_spiffe_id"] == peer && line["verdict"] == "allow", "{line}");
    Ok(())
}

fn a_gnutls_client_is_served(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--truth"])?;
    let (address, pause) = (mesh.server.v4, ground.scale().of("0.5", "10"));
    mesh.watched("gnutls", || {
        for dialect in DIALECTS {
            let files = identity(&mesh, ground, CLIENT, dialect.2)?;
            // It looks for a host's name in certificates; the chain it verifies all the same, and says so.
            let script = format!(
                "(printf {MARKER}; sleep {pause}) | exec timeout 20 gnutls-cli --insecure --disable-sni -p 7000 {} {address}",
                options(&mesh, &files, dialect)
            );
            let seen = mesh.outsider.launch("gnutls-cli", &["sh", "-c", &script]).finish(PATIENCE * 2)?;
            ensure!(seen.stdout.contains("\"accepted\""), "{}: {seen:?}{}", dialect.0, mesh.b.log());
            ensure!(!seen.stdout.contains("issuer is unknown"), "it does not believe our server: {seen:?}");
            must_be_logged(&mesh.b, CLIENT, dialect.3)?;
        }
        Ok(())
    })?;
    Ok(())
}

fn a_gnutls_server_is_reached(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    let stranger = Workload::pod(&mesh.outsider, "elsewhere");
    mesh.workloads.push(stranger);
    mesh.start()?;
    // It echoes a line and waits for the next.
    let wait_ms = ground.scale().of("500", "10000");
    let tap = mesh.watched("gnutls", || {
        for (port, dialect) in (7000..).zip(DIALECTS) {
            let files = identity(&mesh, ground, OUTSIDER, dialect.2)?;
            let script = format!(
                "exec gnutls-serv --echo --require-client-cert --verify-client-cert -p {port} {}",
                options(&mesh, &files, dialect)
            );
            let server = mesh.outsider.launch("gnutls-serv", &["sh", "-c", &script]).start()?;
            programs::listening(&mesh.outsider, port)?;
            let line = format!("{MARKER}\n");
            let seen = probe(&mesh.client, mesh.outsider.at(port), &["--send", &line, "--wait-ms", wait_ms])?;
            ensure!(seen["text"] == line, "{}: {seen} {} {}", dialect.0, server.stderr(), mesh.a.log());
            must_be_logged(&mesh.a, OUTSIDER, dialect.3)?;
        }
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.outsider.at(7000))
}
