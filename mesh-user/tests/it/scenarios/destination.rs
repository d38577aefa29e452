//! `DestinationRule`: TLS to servers themselves, plaintext, or the mesh's own, as the rule about a host says. What a rule
//! cannot have done is done not at all.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::mesh::{
    MARKER, Mesh, PERMISSIVE, STRICT, is_unserved, last_line, probe, serve, start_probe, wait_event,
};
use crate::it::netns::Place;
use crate::it::process::{PATIENCE, Program, wait_until};
use crate::it::programs::{self, folder, listening, open_to_all};

pub(super) const STORIES: &[Story] = stories![
    Daemon 120:
        simple_reaches_an_nginx_outside_the_mesh_in_tls,
        simple_that_cannot_be_had_sends_not_a_byte,
        simple_reaches_a_meshed_server_that_speaks_tls_itself,
        mutual_proves_the_client_to_redis_and_to_openssl,
        disable_is_plaintext_to_permissive_and_nothing_to_strict,
        istio_mutual_takes_only_the_rules_names,
        a_rule_that_comes_cuts_what_it_does_not_allow,
        a_server_that_the_rule_does_not_vouch_for_any_more_is_cut;
];

const HOST: &str = "api.example.com";
const VIRTUAL: &str = "10.96.0.10";

/// Files of an authority, of a server and of a client that it vouches for, and of a stranger's authority.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn make(ground: &Ground) -> anyhow::Result<Self> {
        let files = Self { dir: ground.dir().join("tls") };
        std::fs::create_dir(&files.dir)?;
        let issuer = authority(&files.path("ca.crt"))?;
        authority(&files.path("stranger.crt"))?;
        files.issue(&issuer, "server", HOST, ExtendedKeyUsagePurpose::ServerAuth)?;
        files.issue(&issuer, "client", "client", ExtendedKeyUsagePurpose::ClientAuth)?;
        open_to_all(&files.dir)?;
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn issue(
        &self,
        issuer: &Issuer<'_, KeyPair>,
        name: &str,
        dns: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([dns.to_owned()])?;
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, issuer)?;
        std::fs::write(self.path(&format!("{name}.crt")), certificate.pem())?;
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }
}

fn authority(file: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // OpenSSL takes a leaf whose issuer has its own name for a self-signed one.
    params.distinguished_name.push(DnType::CommonName, "an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    std::fs::write(file, params.self_signed(&key)?.pem())?;
    Ok(Issuer::new(params, key))
}

/// A rule of namespace `shop` about a host, with this `tls`.
fn rule(host: &str, tls: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: tls, namespace: shop }}\n\
         spec: {{ host: {host}, trafficPolicy: {{ tls: {{ {tls} }} }} }}\n"
    )
}

/// A strict mesh whose clients know the outsider by a name: its ports, and the server's own.
fn mesh_with_outside(ground: &Ground, ports: &[(u16, u16)]) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::given(ground)?;
    let ports: Vec<_> = ports.iter().map(|(port, own)| json!({ "port": port, "targetPort": own })).collect();
    let outside = json!([{ "host": HOST, "addresses": [mesh.outsider.v4], "ports": ports }]);
    mesh.a.settings.insert("externalServices".to_owned(), outside);
    mesh.start()?;
    Ok(mesh)
}

/// Puts policies into force on node a, before this returns.
fn in_force(mesh: &Mesh, yaml: &str) -> anyhow::Result<()> {
    mesh.policies(yaml)?;
    for node in [&mesh.a, &mesh.b] {
        node.ctl(&["reload"])?.succeeded()?;
    }
    Ok(())
}

/// nginx that speaks only TLS.
fn nginx_with_tls(place: &Place, port: u16, files: &Files) -> anyhow::Result<Program> {
    let dir = folder(place, "nginx-tls")?;
    let (here, tls) = (dir.display(), files.dir.display());
    std::fs::write(dir.join("index.html"), MARKER)?;
    let config = format!(
        "daemon off; worker_processes 1; pid {here}/pid; error_log {here}/error.log;\n\
         events {{ }}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fcgi;\n\
           uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n\
           server {{ listen {port} ssl; ssl_certificate {tls}/server.crt; ssl_certificate_key {tls}/server.key; ssl_protocols TLSv1.3;\n\
             add_header X-Name $ssl_server_name; root {here}; try_files $uri /index.html =404; }}\n\
         }}\n"
    );
    let (conf, log) = (dir.join("nginx.conf"), dir.join("error.log"));
    std::fs::write(&conf, config)?;
    open_to_all(&dir)?;
    let argv = ["nginx", "-e", &log.to_string_lossy(), "-c", &conf.to_string_lossy()].map(str::to_owned);
    let program = place.launch("nginx-tls", &argv).start()?;
    listening(place, port)?;
    Ok(program)
}

fn curl(mesh: &Mesh, url: &str) -> anyhow::Result<crate::it::process::Finished> {
    mesh.client.run(&["curl", "-sS", "-i", "--max-time", "20", url])
}

fn outbound(mesh: &Mesh, what: &str, is_it: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    mesh.a.wait_access_log(what, |line| line["direction"] == "outbound" && is_it(line))
}

fn simple_reaches_an_nginx_outside_the_mesh_in_tls(ground: &Ground) -> anyhow::Result<()> {
    let (mesh, files) = (mesh_with_outside(ground, &[(80, 8443)])?, Files::make(ground)?);
    let _nginx = nginx_with_tls(&mesh.outsider, 8443, &files)?;
    let tls = format!("mode: SIMPLE, caCertificates: {}", files.path("ca.crt").display());
    in_force(&mesh, &format!("{STRICT}{}", rule("'*.example.com'", &tls)))?;
    let url = format!("http://{}/?{MARKER}", mesh.outsider.v4);
    let tap = mesh.watched("simple", || {
        let said = curl(&mesh, &url)?.succeeded()?;
        ensure!(said.contains(MARKER) && said.contains(&format!("X-Name: {HOST}")), "curl said {said:?}");
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.outsider.at(8443))?;
    let line = outbound(&mesh, "TLS to nginx", |line| line["tls_mode"] == "SIMPLE")?;
    ensure!(line["rule"] == "DestinationRule shop/tls" && line["relay"] == "userspace", "{line}");
    ensure!(
        line["service"] == HOST && line["verdict"] == "allow" && line["tls_version"] == "TLSv1.3",
        "{line}"
    );
    ensure!(line["peer_spiffe_id"].is_null() && line["own_spiffe_id"].is_null(), "{line}");
    Ok(())
}

fn simple_that_cannot_be_had_sends_not_a_byte(ground: &Ground) -> anyhow::Result<()> {
    let (mesh, files) = (mesh_with_outside(ground, &[(80, 8443)])?, Files::make(ground)?);
    let _nginx = nginx_with_tls(&mesh.outsider, 8443, &files)?;
    let (ca, stranger) = (files.path("ca.crt"), files.path("stranger.crt"));
    let (ca, stranger, gone) = (ca.display(), stranger.display(), files.path("gone.crt"));
    let url = format!("http://{}/?{MARKER}", mesh.outsider.v4);
    let capture = mesh.pods.capture("refused")?;
    for (tls, why) in [
        (format!("mode: SIMPLE, caCertificates: {stranger}"), "no path to an authority"),
        ("mode: SIMPLE".to_owned(), "no path to an authority"),
        (format!("mode: SIMPLE, caCertificates: {ca}, subjectAltNames: [b.example.com]"), "b.example.com"),
        (format!("mode: SIMPLE, caCertificates: {ca}, sni: c.example.com"), "c.example.com"),
        (format!("mode: SIMPLE, caCertificates: {}", gone.display()), "gone.crt: cannot be read"),
        ("mode: SIMPLE, credentialName: secret".to_owned(), "Kubernetes secret"),
        ("mode: ISTIO_MUTUAL".to_owned(), "nobody outside the mesh"),
    ] {
        in_force(&mesh, &format!("{STRICT}{}", rule(HOST, &tls)))?;
        curl(&mesh, &url)?.failed()?;
        let line = outbound(&mesh, why, |line| line["error"].as_str().is_some_and(|e| e.contains(why)))?;
        ensure!(line["verdict"] == "deny" && line["response_flags"] == "TLS_FAILURE", "{tls}: {line}");
        if why.contains("cannot be read") || why.contains("Kubernetes") {
            let listed = mesh.a.ctl(&["policies"])?.succeeded()?;
            let unbroken = listed.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(unbroken.contains("connections are refused"), "{listed}");
        }
    }
    let tap = capture.stop()?;
    tap.must_not_show(MARKER)?;
    // The file comes: it is read without a word from anybody.
    std::fs::copy(files.path("ca.crt"), &gone)?;
    in_force(
        &mesh,
        &format!("{STRICT}{}", rule(HOST, &format!("mode: SIMPLE, caCertificates: {}", gone.display()))),
    )?;
    ensure!(curl(&mesh, &url)?.succeeded()?.contains(MARKER), "the file is there");
    std::fs::remove_file(&gone)?;
    outbound_until_refused(&mesh, &url)
}

/// A file that a rule names is watched.
fn outbound_until_refused(mesh: &Mesh, url: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE * 2, "a rule whose file has gone to refuse", || {
        Ok(!curl(mesh, url)?.status.success())
    })
}

fn simple_reaches_a_meshed_server_that_speaks_tls_itself(ground: &Ground) -> anyhow::Result<()> {
    let (mut mesh, files) = (Mesh::given(ground)?, Files::make(ground)?);
    mesh.service("web", VIRTUAL, 80, 8443, "server");
    let ca = files.path("ca.crt");
    let tls = format!("mode: SIMPLE, caCertificates: {}, sni: {HOST}", ca.display());
    mesh.policies(&format!("{PERMISSIVE}{}", rule("web", &tls)))?;
    mesh.start()?;
    let _nginx = nginx_with_tls(&mesh.server, 8443, &files)?;
    let url = format!("http://{VIRTUAL}/?{MARKER}");
    let tap = mesh.watched("meshed", || {
        let said = curl(&mesh, &url)?.succeeded()?;
        ensure!(said.contains(MARKER) && said.contains(&format!("X-Name: {HOST}")), "curl said {said:?}");
        Ok(())
    })?;
    tap.must_be_tls_between(mesh.client.v4.into(), mesh.server.at(8443))?;
    let line = mesh.b.wait_access_log("what passes", |line| line["direction"] == "inbound")?;
    ensure!(line["peer_spiffe_id"].is_null() && line["relay"] == "plaintext", "{line}");
    // STRICT wants a certificate of the mesh, which SIMPLE does not show.
    in_force(&mesh, &format!("{STRICT}{}", rule("web", &tls)))?;
    mesh.watched("strict", || curl(&mesh, &url)?.failed().map(drop))?;
    Ok(())
}

fn mutual_proves_the_client_to_redis_and_to_openssl(ground: &Ground) -> anyhow::Result<()> {
    let (mesh, files) = (mesh_with_outside(ground, &[(6379, 6380), (7000, 7443)])?, Files::make(ground)?);
    let at = |name: &str| files.path(name).to_string_lossy().into_owned();
    let (ca, cert, key) = (at("ca.crt"), at("server.crt"), at("server.key"));
    let dir = folder(&mesh.outsider, "redis-tls")?;
    let redis = format!(
        "exec redis-server --port 0 --tls-port 6380 --tls-cert-file {cert} --tls-key-file {key} \
         --tls-ca-cert-file {ca} --tls-auth-clients yes --bind 0.0.0.0 --protected-mode no --save '' --dir {}",
        dir.display()
    );
    let mut redis = mesh.outsider.launch("redis-tls", &["sh", "-c", &redis]).start()?;
    redis.wait_to_say("Ready to accept connections", PATIENCE)?;
    let server = format!(
        "exec openssl s_server -accept 7443 -rev -Verify 1 -verify_return_error -CAfile {ca} -cert {cert} -key {key} -tls1_2"
    );
    let _server = mesh.outsider.launch("s_server", &["sh", "-c", &server]).start()?;
    programs::listening(&mesh.outsider, 7443)?;
    let mutual = format!(
        "mode: MUTUAL, caCertificates: {ca}, clientCertificate: {}, privateKey: {}",
        at("client.crt"),
        at("client.key")
    );
    in_force(&mesh, &format!("{STRICT}{}", rule(HOST, &mutual)))?;
    let host = mesh.outsider.v4.to_string();
    let redis_cli = |args: &[&str]| {
        let mut argv = vec!["timeout", "20", "redis-cli", "-h", &host];
        argv.extend(args);
        mesh.client.run(&argv)
    };
    let line = format!("{MARKER}\n");
    mesh.watched("mutual", || {
        ensure!(redis_cli(&["set", "key", MARKER])?.succeeded()?.contains("OK"), "redis did not store it");
        ensure!(redis_cli(&["get", "key"])?.succeeded()?.contains(MARKER), "redis did not answer");
        let seen = probe(&mesh.client, mesh.outsider.at(7000), &["--send", &line, "--wait-ms", "3000"])?;
        let backwards: String = MARKER.chars().rev().collect();
        ensure!(seen["text"].as_str().is_some_and(|text| text.contains(&backwards)), "{seen}");
        Ok(())
    })?;
    let logged = outbound(&mesh, "TLS 1.2", |line| line["tls_version"] == "TLSv1.2")?;
    ensure!(logged["tls_mode"] == "MUTUAL" && logged["relay"] == "userspace", "{logged}");
    // Without the client's certificate both refuse.
    in_force(&mesh, &format!("{STRICT}{}", rule(HOST, &format!("mode: SIMPLE, caCertificates: {ca}"))))?;
    mesh.watched("no certificate", || {
        let said = redis_cli(&["get", "key"])?;
        ensure!(!said.stdout.contains(MARKER), "redis served a client without a certificate: {said:?}");
        let seen = probe(&mesh.client, mesh.outsider.at(7000), &["--send", &line, "--wait-ms", "3000"])?;
        ensure!(is_unserved(&seen), "{seen}");
        Ok(())
    })?;
    Ok(())
}

fn disable_is_plaintext_to_permissive_and_nothing_to_strict(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.service("echo", VIRTUAL, 7000, 7000, "server");
    let disable = rule("echo", "mode: DISABLE");
    mesh.policies(&format!("{PERMISSIVE}{disable}"))?;
    mesh.start()?;
    let server = serve(&mesh.server, 7000, &["--banner", "220 ", "--echo"])?;
    let to = format!("{VIRTUAL}:7000").parse()?;
    let capture = mesh.pods.capture("disable")?;
    let echoed = format!("220 {MARKER}");
    let seen = probe(&mesh.client, to, &["--send", MARKER, "--shutdown"])?;
    ensure!(seen["text"] == echoed && seen["ended"] == "eof", "{seen}");
    let tap = capture.stop()?;
    tap.find(MARKER.as_bytes()).context("DISABLE is plaintext, and it was not on the wire")?;
    let line = outbound(&mesh, "plaintext", |line| line["tls_mode"] == "DISABLE")?;
    ensure!(line["relay"] == "plaintext" && line["tls_version"].is_null(), "{line}");
    let asked = ["policy", "explain", "--from", "shop/client", "--to", "10.96.0.10:7000"];
    let explained = mesh.a.ctl_json(&asked)?;
    ensure!(explained["tls"] == false, "{explained}");
    ensure!(explained["steps"].to_string().contains("DestinationRule shop/tls: DISABLE"), "{explained}");
    // The server's own address has no name that a rule could be about.
    mesh.watched("by address", || {
        let seen = probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--shutdown"])?;
        ensure!(seen["text"] == echoed, "{seen}");
        Ok(())
    })?;
    // A client that waits for the server's first word gets it before a handshake would have timed out.
    let seen = probe(&mesh.client, to, &["--wait-ms", "5000"])?;
    ensure!(seen["text"] == "220 ", "{seen}");
    in_force(&mesh, &format!("{STRICT}{disable}"))?;
    mesh.watched("strict", || {
        let seen = probe(&mesh.client, to, &["--send", MARKER])?;
        ensure!(is_unserved(&seen), "{seen}");
        // Something has to be captured for the capture to prove anything.
        probe(&mesh.client, mesh.server.at(7000), &["--send", MARKER, "--shutdown"]).map(drop)
    })?;
    ensure!(crate::it::mesh::accepted(&server) == 4, "the server saw {}", server.stdout());
    Ok(())
}

fn istio_mutual_takes_only_the_rules_names(ground: &Ground) -> anyhow::Result<()> {
    let mut mesh = Mesh::given(ground)?;
    mesh.service("echo", VIRTUAL, 7000, 7000, "server");
    mesh.start()?;
    let _server = serve(&mesh.server, 7000, &["--echo"])?;
    let to = format!("{VIRTUAL}:7000").parse()?;
    for (names, served) in [
        ("[spiffe://cluster.local/ns/shop/sa/other]", false),
        ("[spiffe://cluster.local/ns/shop/sa/other, spiffe://cluster.local/ns/shop/sa/server]", true),
        ("[echo.shop.svc.cluster.local]", false),
    ] {
        let tls = format!("mode: ISTIO_MUTUAL, subjectAltNames: {names}");
        in_force(&mesh, &format!("{STRICT}{}", rule("echo", &tls)))?;
        let seen = probe(&mesh.client, to, &["--send", MARKER, "--shutdown"])?;
        ensure!((seen["text"] == MARKER) == served && is_unserved(&seen) != served, "{names}: {seen}");
    }
    let line = outbound(&mesh, "the mesh's own", |line| line["verdict"] == "allow")?;
    ensure!(line["tls_mode"] == "ISTIO_MUTUAL", "{line}");
    ensure!(line["peer_spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/server", "{line}");
    let line = outbound(&mesh, "the refusal", |line| line["verdict"] == "deny")?;
    ensure!(line["error"].as_str().is_some_and(|e| e.contains("subjectAltNames")), "{line}");
    let asked = ["policy", "explain", "--from", "shop/client", "--to", "shop/echo:7000"];
    let explained = mesh.a.ctl_json(&asked)?;
    ensure!(explained["tls"] == true, "{explained}");
    ensure!(explained["steps"].to_string().contains("DestinationRule shop/tls: ISTIO_MUTUAL"), "{explained}");
    Ok(())
}

fn a_rule_that_comes_cuts_what_it_does_not_allow(ground: &Ground) -> anyhow::Result<()> {
    let (mesh, files) = (mesh_with_outside(ground, &[(7000, 7000)])?, Files::make(ground)?);
    let server = serve(&mesh.outsider, 7000, &["--echo"])?;
    let wait = ground.scale().of("15000", "90000");
    let probing = start_probe(&mesh.client, mesh.outsider.at(7000), &["--send", "first", "--wait-ms", wait])?;
    let host = mesh.client.v4.to_string();
    wait_event(&server, "the client", |event| {
        event["peer"].as_str().is_some_and(|peer| peer.contains(&host))
    })?;
    let tls = format!("mode: SIMPLE, caCertificates: {}", files.path("ca.crt").display());
    in_force(&mesh, &format!("{STRICT}{}", rule(HOST, &tls)))?;
    let seen = last_line(&probing.finish(PATIENCE * 4)?)?;
    ensure!(seen["ended"] == "reset" && seen["text"] == "first", "{seen}");
    let line = outbound(&mesh, "the cut", |line| line["response_flags"] == "POLICY_CHANGED")?;
    ensure!(line["rule"].as_str().is_some_and(|why| why.contains("TLS to the server itself")), "{line}");
    Ok(())
}

fn a_server_that_the_rule_does_not_vouch_for_any_more_is_cut(ground: &Ground) -> anyhow::Result<()> {
    let (mesh, files) = (mesh_with_outside(ground, &[(7000, 7443)])?, Files::make(ground)?);
    let (cert, key) = (files.path("server.crt"), files.path("server.key"));
    let server = format!(
        "exec openssl s_server -accept 7443 -rev -cert {} -key {} -tls1_3",
        cert.display(),
        key.display()
    );
    let _server = mesh.outsider.launch("s_server", &["sh", "-c", &server]).start()?;
    programs::listening(&mesh.outsider, 7443)?;
    let by = |authority: &str| {
        let tls = format!("mode: SIMPLE, caCertificates: {}", files.path(authority).display());
        in_force(&mesh, &format!("{STRICT}{}", rule(HOST, &tls)))
    };
    by("ca.crt")?;
    let wait = ground.scale().of("15000", "90000");
    let probing = start_probe(&mesh.client, mesh.outsider.at(7000), &["--send", "abc\n", "--wait-ms", wait])?;
    let carried = || Ok(mesh.a.ctl(&["-o", "json", "connections"])?.succeeded()?.contains("(SIMPLE)"));
    wait_until(PATIENCE, "the connection to be listed", carried)?;
    // What is still as the rule has it stays.
    in_force(
        &mesh,
        &format!(
            "{PERMISSIVE}{}",
            rule(HOST, &format!("mode: SIMPLE, caCertificates: {}", files.path("ca.crt").display()))
        ),
    )?;
    ensure!(carried()?, "it was cut without a reason: {}", mesh.a.log());
    by("stranger.crt")?;
    let seen = last_line(&probing.finish(PATIENCE * 4)?)?;
    ensure!(seen["ended"] == "reset" && seen["text"] == "cba\n", "{seen}");
    let line = outbound(&mesh, "the cut", |line| line["response_flags"] == "POLICY_CHANGED")?;
    ensure!(line["error"].as_str().is_some_and(|why| why.contains("no path to an authority")), "{line}");
    Ok(())
}
