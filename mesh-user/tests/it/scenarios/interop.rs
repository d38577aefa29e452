//! Peers of other makes: OpenSSL without any mesh around it, Envoy as Istio runs it. What both sides proved is read
//! in both sides' own words.

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::it::envoy;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, is_unserved, probe, serve};
use crate::it::nodefile::Workload;
use crate::it::pki::{self, Claim, Files, Keys};
use crate::it::process::{Finished, PATIENCE, Program, wait_until};
use crate::it::programs;

pub(super) const STORIES: &[Story] = stories![
    EveryRelay 90:
        openssl_clients_are_served_in_every_suite,
        openssl_servers_are_reached_in_every_suite;
    Daemon 90:
        what_no_mesh_may_speak_is_refused_and_named,
        servers_that_speak_less_are_not_reached;
    Envoy 90:
        an_envoy_sidecar_as_server_is_reached,
        an_envoy_sidecar_as_client_is_served;
];

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
const OUTSIDER: &str = "spiffe://cluster.local/ns/shop/sa/outsider";

/// Options that leave one suite, the certificate's key, and how the access log names the outcome.
type Suite = (&'static str, Keys, &'static str, &'static str);

const TLS13_AES128: Suite =
    ("-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256", Keys::Ecdsa, "TLSv1.3", "TLS13_AES_128_GCM_SHA256");
const TLS13_AES256: Suite =
    ("-tls1_3 -ciphersuites TLS_AES_256_GCM_SHA384", Keys::Rsa, "TLSv1.3", "TLS13_AES_256_GCM_SHA384");
const TLS13_CHACHA: Suite = (
    "-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256",
    Keys::Ecdsa,
    "TLSv1.3",
    "TLS13_CHACHA20_POLY1305_SHA256",
);
const TLS12_AES128: Suite = (
    "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256",
    Keys::Ecdsa,
    "TLSv1.2",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
);
const TLS12_AES256: Suite = (
    "-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384",
    Keys::Ecdsa,
    "TLSv1.2",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
);
const TLS12_RSA_AES128: Suite = (
    "-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256",
    Keys::Rsa,
    "TLSv1.2",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
);
const TLS12_RSA_AES256: Suite = (
    "-tls1_2 -cipher ECDHE-RSA-AES256-GCM-SHA384",
    Keys::Rsa,
    "TLSv1.2",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
);

/// A key of each kind with the same identity.
struct Both {
    ecdsa: Files,
    rsa: Files,
}

impl Both {
    fn of(mesh: &Mesh, ground: &Ground, spiffe_id: &str) -> anyhow::Result<Self> {
        let issue = |keys, name| {
            pki::issued_by_mesh_for(keys, &mesh.a.ca_dir(), &Claim::of(spiffe_id), ground.dir(), name)
        };
        Ok(Self { ecdsa: issue(Keys::Ecdsa, "ecdsa")?, rsa: issue(Keys::Rsa, "rsa")? })
    }

    fn get(&self, keys: Keys) -> String {
        let files = if keys == Keys::Rsa { &self.rsa } else { &self.ecdsa };
        format!("-cert {} -key {}", files.chain.display(), files.key.display())
    }
}

/// openssl in the outsider's pod says the marker to the server's port and hears what the server answers. It believes
/// only the mesh's root.
fn s_client(mesh: &Mesh, options: &str) -> anyhow::Result<Finished> {
    let (to, root) = (mesh.server.at(7000), mesh.a.ca_dir().join("ca.crt"));
    let script = format!(
        "printf {MARKER} | exec timeout 20 openssl s_client -connect {to} -noservername -quiet \
         -verify_return_error -CAfile {} {options}",
        root.display()
    );
    mesh.outsider.launch("s_client", &["sh", "-c", &script]).finish(PATIENCE * 2)
}

/// The last line about this cipher, which the connection's end writes.
fn logged(node: &crate::it::daemon::Node, cipher: &str, version: &str) -> anyhow::Result<Value> {
    let line = node.wait_access_log(cipher, |line| line["tls_cipher"] == cipher)?;
    ensure!(line["tls_version"] == version && line["verdict"] == "allow", "{line}");
    Ok(line)
}

fn openssl_clients_are_served_in_every_suite(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--truth"])?;
    let identity = Both::of(&mesh, ground, CLIENT)?;
    // The server's own key is ECDSA, whatever the client's is.
    let suites = [TLS13_AES128, TLS13_AES256, TLS13_CHACHA, TLS12_AES128, TLS12_AES256];
    let alpn = ["-alpn istio", "-alpn meshd/1", "", "-alpn istio-peer-exchange,istio", "-alpn h2,istio"];
    mesh.watched("openssl", || {
        for ((options, keys, version, cipher), alpn) in suites.into_iter().zip(alpn) {
            let options = format!("{} {options} {alpn}", identity.get(keys));
            let seen = s_client(&mesh, &options)?;
            ensure!(seen.stdout.contains("\"accepted\""), "{options}: {seen:?}{}", mesh.b.log());
            let line = logged(&mesh.b, cipher, version)?;
            ensure!(line["peer_spiffe_id"] == CLIENT, "{line}");
            ensure!(line["relay"] == ground.relay().as_str(), "{line}");
        }
        let swapped = format!("{} -tls1_2", identity.get(Keys::Rsa));
        let seen = s_client(&mesh, &swapped)?;
        ensure!(seen.stdout.contains("\"accepted\""), "an RSA client in TLS 1.2: {seen:?}");
        Ok(())
    })?;
    Ok(())
}

/// openssl in the outsider's pod, which is a workload without any daemon: it says every line backwards.
fn s_server(mesh: &Mesh, port: u16, options: &str) -> anyhow::Result<Program> {
    let root = mesh.a.ca_dir().join("ca.crt");
    let script = format!(
        "exec openssl s_server -accept {port} -rev -Verify 3 -verify_return_error -CAfile {} {options}",
        root.display()
    );
    let program = mesh.outsider.launch("s_server", &["sh", "-c", &script]).start()?;
    programs::listening(&mesh.outsider, port)?;
    Ok(program)
}

/// A strict mesh that knows the outsider as a workload somewhere else.
fn mesh_with_stranger(ground: &Ground) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::given(ground)?;
    let stranger = Workload::pod(&mesh.outsider, "elsewhere");
    mesh.workloads.push(stranger);
    mesh.start()?;
    Ok(mesh)
}

fn openssl_servers_are_reached_in_every_suite(ground: &Ground) -> anyhow::Result<()> {
    let mesh = mesh_with_stranger(ground)?;
    let identity = Both::of(&mesh, ground, OUTSIDER)?;
    let suites = [
        TLS13_AES128,
        TLS13_AES256,
        TLS13_CHACHA,
        TLS12_AES128,
        TLS12_AES256,
        TLS12_RSA_AES128,
        TLS12_RSA_AES256,
    ];
    let alpn = ["-alpn istio", "-alpn meshd/1", "", "", "-alpn istio", "", "-alpn meshd/1"];
    let tap = mesh.watched("openssl", || {
        for (port, ((options, keys, version, cipher), alpn)) in (7000..).zip(suites.into_iter().zip(alpn)) {
            let options = format!("{} {options} {alpn}", identity.get(keys));
            let server = s_server(&mesh, port, &options)?;
            let line = format!("{MARKER}\n");
            let seen = probe(
                &mesh.client,
                mesh.outsider.at(port),
                &["--send", &line, "--shutdown", "--wait-ms", "20000"],
            )?;
            let backwards: String = MARKER.chars().rev().collect();
            ensure!(
                seen["text"].as_str().is_some_and(|text| text.contains(&backwards)),
                "{options}: {seen} {} {}",
                server.stderr(),
                mesh.a.log()
            );
            let line = logged(&mesh.a, cipher, version)?;
            ensure!(line["peer_spiffe_id"] == OUTSIDER, "{line}");
            ensure!(line["relay"] == ground.relay().as_str(), "{line}");
        }
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.outsider.at(7000))
}

fn what_no_mesh_may_speak_is_refused_and_named(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--truth"])?;
    let identity = Both::of(&mesh, ground, CLIENT)?.get(Keys::Ecdsa);
    let cases = [
        ("-alpn h2", "alpn", "no application protocol"),
        ("-alpn istio-peer-exchange", "alpn", "no application protocol"),
        ("-tls1_1 -cipher ALL:@SECLEVEL=0", "tls_version", "handshake failure"),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA", "cipher_suite", "handshake failure"),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA256", "cipher_suite", "handshake failure"),
        ("-tls1_2 -cipher AES128-GCM-SHA256", "key_exchange", "handshake failure"),
    ];
    for (nth, (options, cause, alert)) in (1..).zip(cases) {
        let before = mesh.b.metric("meshd_handshakes_total", &[&format!("cause=\"{cause}\"")])?;
        let seen = s_client(&mesh, &format!("{identity} {options}"))?;
        ensure!(!seen.stdout.contains("\"accepted\""), "served with {options}");
        ensure!(seen.stderr.contains(alert), "{options}: no alert {alert:?} in {}", seen.stderr);
        let counted = || mesh.b.metric("meshd_handshakes_total", &[&format!("cause=\"{cause}\"")]);
        wait_until(PATIENCE, &format!("{cause} counted"), || Ok(counted()? == before + 1))?;
        let refused = || {
            mesh.b
                .access_log()
                .into_iter()
                .filter(|line| line["response_flags"] == "TLS_FAILURE")
                .collect::<Vec<_>>()
        };
        wait_until(PATIENCE, &format!("line {nth}"), || Ok(refused().len() == nth))?;
        let line = refused().pop().context("it was there")?;
        ensure!(line["error"].as_str().is_some_and(|text| text.contains("in common")), "{line}");
    }
    ensure!(!server.stdout().contains("\"accepted\""), "{}", server.stdout());
    Ok(())
}

fn servers_that_speak_less_are_not_reached(ground: &Ground) -> anyhow::Result<()> {
    let mesh = mesh_with_stranger(ground)?;
    let identity = Both::of(&mesh, ground, OUTSIDER)?;
    let other = Both {
        ecdsa: pki::issued_by_mesh(&mesh.a.ca_dir(), &Claim::of(SERVER), ground.dir(), "other")?,
        rsa: pki::issued_by_stranger(&Claim::of(OUTSIDER), ground.dir(), "stranger")?,
    };
    let (right, wrong, stranger) = (identity.get(Keys::Ecdsa), other.get(Keys::Ecdsa), other.get(Keys::Rsa));
    let cases = [
        format!("{right} -tls1_1 -cipher ALL:@SECLEVEL=0"),
        format!("{right} -tls1_2 -cipher ECDHE-ECDSA-AES128-SHA"),
        format!("{wrong} -tls1_3"),
        format!("{wrong} -tls1_2"),
        format!("{stranger} -tls1_3"),
    ];
    for (port, options) in (7000..).zip(&cases) {
        let _server = s_server(&mesh, port, options)?;
        let seen = probe(&mesh.client, mesh.outsider.at(port), &["--send", MARKER, "--shutdown"])?;
        ensure!(is_unserved(&seen), "{options}: {seen}");
        let line = mesh.a.wait_access_log("the refusal", |line| {
            line["destination"]["address"] == mesh.outsider.at(port).to_string()
        })?;
        ensure!(line["verdict"] == "deny" && !line["error"].is_null(), "{options}: {line}");
    }
    Ok(())
}

/// What Envoy says about its first connection, at its end.
fn envoy_said(program: &Program) -> anyhow::Result<Value> {
    let mut line = None;
    wait_until(PATIENCE, "Envoy's access log", || {
        line = program.stdout().lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(line.is_some())
    })?;
    line.context("the line was found")
}

fn an_envoy_sidecar_as_server_is_reached(ground: &Ground) -> anyhow::Result<()> {
    let mesh = mesh_with_stranger(ground)?;
    let _app = serve(&mesh.outsider, 8000, &["--echo"])?;
    let trust = mesh.a.ca_dir().join("ca.crt");
    let both = Both::of(&mesh, ground, OUTSIDER)?;
    for (port, files) in [(7000, &both.rsa), (7001, &both.ecdsa)] {
        let identity = envoy::Identity { files, trust: &trust, peer: CLIENT };
        let sidecar = envoy::server(&mesh.outsider, &identity, port, "127.0.0.1:8000".parse()?)?;
        let tap = mesh.watched("envoy", || {
            let seen = probe(&mesh.client, mesh.outsider.at(port), &["--send", MARKER, "--shutdown"])?;
            ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen} {}", mesh.a.log());
            Ok(())
        })?;
        tap.must_be_tls_between(mesh.client.v4.into(), mesh.outsider.at(port))?;
        let said = envoy_said(&sidecar)?;
        ensure!(said["client"] == CLIENT && said["version"] == "TLSv1.3", "Envoy says {said}");
        // Another workload of the mesh is not the one this sidecar lets in.
        let seen = probe(&mesh.other, mesh.outsider.at(port), &["--send", MARKER, "--shutdown"])?;
        ensure!(is_unserved(&seen), "{seen}");
    }
    let line = mesh.a.wait_access_log("Envoy", |line| line["peer_spiffe_id"] == OUTSIDER)?;
    ensure!(line["verdict"] == "allow", "{line}");
    Ok(())
}

fn an_envoy_sidecar_as_client_is_served(ground: &Ground) -> anyhow::Result<()> {
    let mesh =
        Mesh::with_policies(ground, &format!("{}{}", crate::it::mesh::STRICT, crate::it::mesh::ONLY_CLIENT))?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let trust = mesh.a.ca_dir().join("ca.crt");
    let (allowed, denied) = (Both::of(&mesh, ground, CLIENT)?, "spiffe://cluster.local/ns/shop/sa/other");
    for (port, files) in [(9000, &allowed.rsa), (9001, &allowed.ecdsa)] {
        let identity = envoy::Identity { files, trust: &trust, peer: SERVER };
        let sidecar = envoy::client(&mesh.outsider, &identity, port, mesh.server.at(7000))?;
        let tap = mesh.watched("envoy", || {
            let to = format!("127.0.0.1:{port}").parse()?;
            let seen = probe(&mesh.outsider, to, &["--send", MARKER, "--shutdown"])?;
            ensure!(seen["text"] == MARKER && seen["ended"] == "eof", "{seen} {}", mesh.b.log());
            Ok(())
        })?;
        tap.must_be_tls_between(mesh.outsider.v4.into(), mesh.server.at(7000))?;
        let said = envoy_said(&sidecar)?;
        ensure!(said["server"] == SERVER, "Envoy says {said}");
    }
    let line = mesh.b.wait_access_log("the sidecar", |line| line["peer_spiffe_id"] == CLIENT)?;
    ensure!(line["verdict"] == "allow", "{line}");
    let files = pki::issued_by_mesh(&mesh.a.ca_dir(), &Claim::of(denied), ground.dir(), "denied")?;
    let identity = envoy::Identity { files: &files, trust: &trust, peer: SERVER };
    let _sidecar = envoy::client(&mesh.outsider, &identity, 9002, mesh.server.at(7000))?;
    let seen = probe(&mesh.outsider, "127.0.0.1:9002".parse()?, &["--send", MARKER, "--shutdown"])?;
    ensure!(is_unserved(&seen), "policy allows only {CLIENT}: {seen}");
    Ok(())
}
