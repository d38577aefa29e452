//! Envoy as a sidecar of another mesh: the configuration Istio would give it for plain TCP, with certificates from
//! files. It lies in a virtual environment under `target`, put there by set-up.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::netns::Place;
use super::pki::Files;
use super::process::{PATIENCE, Program, wait_until};

/// What Istio's sidecars offer on outbound TCP, and match on inbound (pilot/pkg/networking/util, pilot/pkg/model).
pub(crate) const CLIENT_ALPN: &str = "[istio-peer-exchange, istio]";
/// What they accept themselves on inbound TCP.
pub(crate) const SERVER_ALPN: &str = "[istio-peer-exchange, h2, http/1.1]";

/// The executable, if set-up has put it where it belongs.
pub(crate) fn executable() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MESHD_TEST_ENVOY") {
        return Some(path.into());
    }
    // target/release or target/debug
    let target = super::daemon::bin_dir().parent()?.to_owned();
    let path = target.join("tools/envoy/bin/envoy");
    path.exists().then_some(path)
}

const TLS_INSPECTOR: &str = "    listener_filters:
    - name: envoy.filters.listener.tls_inspector
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector
";

/// Who an Envoy is, and whom it believes.
pub(crate) struct Identity<'a> {
    pub(crate) files: &'a Files,
    pub(crate) trust: &'a Path,
    /// The one SPIFFE ID the peer must prove.
    pub(crate) peer: &'a str,
}

/// Listens for mTLS on `listen` and hands the plaintext to `to`.
pub(crate) fn server(
    place: &Place,
    identity: &Identity<'_>,
    listen: u16,
    to: SocketAddr,
) -> anyhow::Result<Program> {
    let tls =
        transport_socket("DownstreamTlsContext", "require_client_certificate: true", identity, SERVER_ALPN);
    let chain =
        format!("filter_chain_match: {{ application_protocols: [istio, istio-peer-exchange] }}\n{tls}");
    start(place, listen, &chain, to, "")
}

/// Listens in plaintext on `listen` and speaks mTLS to `to`.
pub(crate) fn client(
    place: &Place,
    identity: &Identity<'_>,
    listen: u16,
    to: SocketAddr,
) -> anyhow::Result<Program> {
    let sni = "sni: outbound_.7000_._.server.shop.svc.cluster.local";
    let tls = transport_socket("UpstreamTlsContext", sni, identity, CLIENT_ALPN);
    start(place, listen, "", to, &tls)
}

fn transport_socket(context: &str, setting: &str, identity: &Identity<'_>, alpn: &str) -> String {
    format!(
        "transport_socket:\n\
         \x20 name: envoy.transport_sockets.tls\n\
         \x20 typed_config:\n\
         \x20   \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}\n\
         \x20   {setting}\n{}",
        common_tls(identity, alpn, 4)
    )
}

fn common_tls(identity: &Identity<'_>, alpn: &str, indent: usize) -> String {
    let Identity { files, trust, peer } = identity;
    let text = format!(
        "common_tls_context:\n\
         \x20 alpn_protocols: {alpn}\n\
         \x20 tls_params: {{ tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3 }}\n\
         \x20 tls_certificates:\n\
         \x20 - certificate_chain: {{ filename: {} }}\n\
         \x20   private_key: {{ filename: {} }}\n\
         \x20 validation_context:\n\
         \x20   trusted_ca: {{ filename: {} }}\n\
         \x20   match_typed_subject_alt_names:\n\
         \x20   - {{ san_type: URI, matcher: {{ exact: \"{peer}\" }} }}\n",
        files.chain.display(),
        files.key.display(),
        trust.display(),
    );
    indented(&text, indent)
}

fn indented(text: &str, by: usize) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "{:by$}{line}", "");
        all
    })
}

fn start(place: &Place, listen: u16, chain: &str, to: SocketAddr, upstream: &str) -> anyhow::Result<Program> {
    let envoy = executable().context("no Envoy: cargo xtask test installs it")?;
    let dir = place.dir().join(format!("{}-envoy-{listen}", place.name));
    fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    let admin = listen + 20_000;
    // Only where the client's offer decides; it drops a plaintext client that has already sent its FIN.
    let filters = if chain.is_empty() { "" } else { TLS_INSPECTOR };
    let config = format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}\n\
         static_resources:\n\
         \x20 listeners:\n\
         \x20 - name: in\n\
         \x20   address: {{ socket_address: {{ address: 0.0.0.0, port_value: {listen} }} }}\n\
         {filters}\
         \x20   filter_chains:\n\
         \x20   - filters:\n\
         \x20     - name: envoy.filters.network.tcp_proxy\n\
         \x20       typed_config:\n\
         \x20         \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n\
         \x20         stat_prefix: story\n\
         \x20         cluster: out\n\
         \x20         access_log:\n\
         \x20         - name: envoy.access_loggers.stdout\n\
         \x20           typed_config:\n\
         \x20             \"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog\n\
         \x20             log_format:\n\
         \x20               json_format:\n\
         \x20                 client: \"%DOWNSTREAM_PEER_URI_SAN%\"\n\
         \x20                 server: \"%UPSTREAM_PEER_URI_SAN%\"\n\
         \x20                 version: \"%DOWNSTREAM_TLS_VERSION%\"\n\
         \x20                 flags: \"%RESPONSE_FLAGS%\"\n\
         {}\
         \x20 clusters:\n\
         \x20 - name: out\n\
         \x20   type: STATIC\n\
         \x20   connect_timeout: 20s\n\
         \x20   load_assignment:\n\
         \x20     cluster_name: out\n\
         \x20     endpoints:\n\
         \x20     - lb_endpoints:\n\
         \x20       - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}\n\
         {}",
        indented(chain, 6),
        to.ip(),
        to.port(),
        indented(upstream, 4),
    );
    launch(place, &envoy, &dir, admin, &config)
}

/// An Envoy of a configuration of one's own, with its admin endpoint on `admin`; what it says is in a file called `name`.
pub(crate) fn run(place: &Place, name: &str, admin: u16, config: &Value) -> anyhow::Result<Program> {
    let envoy = executable().context("no Envoy: cargo xtask test installs it")?;
    let dir = place.dir().join(format!("{}-{name}", place.name));
    fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    let mut config = config.clone();
    config["admin"] =
        json!({ "address": { "socket_address": { "address": "127.0.0.1", "port_value": admin } } });
    launch(place, &envoy, &dir, admin, &config.to_string())
}

fn launch(place: &Place, envoy: &Path, dir: &Path, admin: u16, config: &str) -> anyhow::Result<Program> {
    let file = dir.join("envoy.yaml");
    fs::write(&file, config)?;
    let argv = [
        &envoy.to_string_lossy(),
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "-c",
        &file.to_string_lossy(),
    ]
    .map(str::to_owned);
    let mut program = place.launch("envoy", &argv).start()?;
    // Until its workers run, what it listens on is reset.
    let stats = format!("http://127.0.0.1:{admin}/stats?filter=workers_started");
    wait_until(PATIENCE, "Envoy to be ready", || {
        ensure!(program.is_running(), "Envoy ended: {}", program.stderr());
        Ok(place.run(&["curl", "-s", &stats])?.stdout.contains("workers_started: 1"))
    })?;
    Ok(program)
}
