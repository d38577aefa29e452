//! What arrives at an enrolled server's port and must not pass: certificates that prove nothing, bytes that are no
//! TLS, handshakes that never end, endings that hide a loss. openssl plays the attacker, with real signatures.

pub(super) mod crowds;
pub(super) mod resources;

use anyhow::ensure;

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{MARKER, Mesh, accepted, probe, serve, start_probe, wait_event};
use crate::it::pki::{self, Claim, Files};
use crate::it::process::{Launch, PATIENCE};

pub(super) const STORIES: &[Story] = stories![
    Daemon 90:
        a_certificate_of_the_mesh_is_believed_wherever_it_comes_from,
        certificates_that_prove_nothing_are_refused,
        a_client_without_a_certificate_is_refused,
        garbage_instead_of_a_client_hello_is_refused,
        a_stalled_handshake_is_ended_and_blocks_nobody,
        a_tls_version_that_is_too_old_is_refused;
    EveryRelay 60:
        a_truncated_connection_reaches_the_server_as_reset;
];

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// openssl speaking to the server's port from the outsider's pod; it says the marker and then listens.
fn s_client(mesh: &Mesh, files: Option<&Files>, options: &str) -> Launch {
    let identity = files.map_or(String::new(), |files| {
        format!("-cert {} -key {}", files.chain.display(), files.key.display())
    });
    let to = mesh.server.at(7000);
    let script = format!(
        "printf {MARKER} | exec timeout 20 openssl s_client -connect {to} -noservername -quiet -alpn meshd/1 {identity} {options}"
    );
    mesh.outsider.launch("s_client", &["sh", "-c", &script])
}

/// Whether the marker went to the server and came back through this certificate.
fn is_served(mesh: &Mesh, files: Option<&Files>, options: &str) -> anyhow::Result<bool> {
    let finished = s_client(mesh, files, options).finish(PATIENCE * 2)?;
    Ok(finished.stdout.contains("\"accepted\""))
}

fn a_certificate_of_the_mesh_is_believed_wherever_it_comes_from(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--truth"])?;
    let files = pki::issued_by_mesh(&mesh.a.ca_dir(), &Claim::of(CLIENT), ground.dir(), "good")?;
    ensure!(is_served(&mesh, Some(&files), "")?, "TLS 1.3: {}", mesh.b.log());
    ensure!(is_served(&mesh, Some(&files), "-tls1_2")?, "TLS 1.2: {}", mesh.b.log());
    ensure!(is_served(&mesh, Some(&files), "-alpn istio")?, "ALPN istio: {}", mesh.b.log());
    let line = mesh.b.wait_access_log("the identity", |line| line["verdict"] == "allow")?;
    ensure!(line["peer_spiffe_id"] == CLIENT, "{line}");
    Ok(())
}

fn certificates_that_prove_nothing_are_refused(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--truth"])?;
    let (ca, dir) = (mesh.a.ca_dir(), ground.dir());
    let mut two_names = Claim::of(CLIENT);
    two_names.uris.push("spiffe://cluster.local/ns/shop/sa/server".to_owned());
    let mut no_name = Claim::of(CLIENT);
    no_name.uris.clear();
    let cases = [
        ("expired", pki::issued_by_mesh(&ca, &Claim::of(CLIENT).expired(), dir, "expired")?),
        (
            "a foreign trust domain",
            pki::issued_by_mesh(&ca, &Claim::of("spiffe://evil.example/ns/shop/sa/client"), dir, "foreign")?,
        ),
        ("no SPIFFE ID", pki::issued_by_mesh(&ca, &no_name, dir, "nameless")?),
        ("two SPIFFE IDs", pki::issued_by_mesh(&ca, &two_names, dir, "two")?),
        (
            "no SPIFFE URI",
            pki::issued_by_mesh(&ca, &Claim::of("https://cluster.local/ns/shop/sa/client"), dir, "https")?,
        ),
        ("self-signed", pki::self_signed(&Claim::of(CLIENT), dir, "self")?),
        ("a stranger's CA", pki::issued_by_stranger(&Claim::of(CLIENT), dir, "stranger")?),
    ];
    for (what, files) in &cases {
        for version in ["-tls1_3", "-tls1_2"] {
            ensure!(!is_served(&mesh, Some(files), version)?, "{what} was served ({version})");
        }
    }
    ensure!(!server.stdout().contains("\"accepted\""), "the server was reached: {}", server.stdout());
    let failures = mesh.b.metric("meshd_handshakes_total", &["result=\"failure\""])?;
    ensure!(failures >= 14, "{failures} failed handshakes counted");
    Ok(())
}

fn a_client_without_a_certificate_is_refused(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--truth"])?;
    for version in ["-tls1_3", "-tls1_2"] {
        ensure!(!is_served(&mesh, None, version)?, "served without a certificate ({version})");
    }
    ensure!(!server.stdout().contains("\"accepted\""), "{}", server.stdout());
    Ok(())
}

fn a_tls_version_that_is_too_old_is_refused(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let _server = serve(&mesh.server, 7000, &["--truth"])?;
    let files = pki::issued_by_mesh(&mesh.a.ca_dir(), &Claim::of(CLIENT), ground.dir(), "good")?;
    for options in [
        "-tls1_1 -cipher ALL:@SECLEVEL=0",
        "-tls1_2 -cipher AES128-GCM-SHA256",
        "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA",
    ] {
        ensure!(!is_served(&mesh, Some(&files), options)?, "served with {options}");
    }
    Ok(())
}

fn garbage_instead_of_a_client_hello_is_refused(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &["--banner", MARKER, "--echo"])?;
    let almost_tls = "\u{16}\u{3}\u{1}garbage that begins as a record";
    for garbage in ["\r\n\r\n", "SSH-2.0-x\r\n", almost_tls, &"z".repeat(100_000)] {
        let seen = probe(
            &mesh.outsider,
            mesh.server.at(7000),
            &["--send", garbage, "--shutdown", "--wait-ms", "20000"],
        )?;
        // A TLS alert may answer; the server's banner may not.
        ensure!(!seen["text"].as_str().unwrap_or_default().contains("MARKER"), "{seen}");
        ensure!(seen["ended"] != "open", "left open: {seen}");
    }
    ensure!(!server.stdout().contains("\"accepted\""), "{}", server.stdout());
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(seen["ended"] == "eof", "honest clients suffer: {seen}");
    Ok(())
}

fn a_stalled_handshake_is_ended_and_blocks_nobody(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.limits = serde_json::json!({ "handshakeTimeoutMs": 1500 });
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--echo"])?;
    let begun_record = "\u{16}\u{3}\u{1}";
    let wait = ["--send", begun_record, "--wait-ms", "60000"];
    let stalled: Vec<_> = (0..20)
        .map(|_| start_probe(&mesh.outsider, mesh.server.at(7000), &wait))
        .collect::<anyhow::Result<_>>()?;
    let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", "x", "--shutdown"])?;
    ensure!(seen["text"] == "x", "an honest client waits behind them: {seen}");
    for program in stalled {
        let seen = crate::it::mesh::last_line(&program.finish(PATIENCE * 2)?)?;
        ensure!(seen["ended"] != "open" && seen["ms"].as_u64() > Some(1000), "{seen}");
    }
    let accepted = accepted(&server);
    ensure!(accepted == 1, "the server saw {accepted} connections");
    Ok(())
}

fn a_truncated_connection_reaches_the_server_as_reset(ground: &Ground) -> anyhow::Result<()> {
    let mesh = Mesh::strict(ground)?;
    let server = serve(&mesh.server, 7000, &[])?;
    let files = pki::issued_by_mesh(&mesh.a.ca_dir(), &Claim::of(CLIENT), ground.dir(), "good")?;
    let mut client = s_client(&mesh, Some(&files), "").start()?;
    wait_event(&server, "the client", |event| event["event"] == "accepted")?;
    // The marker is through before the end: nothing but the end is judged.
    std::thread::sleep(std::time::Duration::from_millis(ground.scale().of(300, 3_000)));
    // A killed openssl sends FIN without close_notify.
    client.kill_hard()?;
    let ended = wait_event(&server, "the end", |event| event["event"] == "ended")?;
    ensure!(ended["ended"] == "reset", "truncation was taken for an end: {ended}");
    Ok(())
}
