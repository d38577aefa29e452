//! The documents of the admin API, shared by the daemon and meshctl. Fields are only ever added; times are
//! Unix seconds, durations and sizes carry their unit in the name. None can hold a key or a payload.

use serde::{Deserialize, Serialize};

use crate::telemetry::{Direction, RelayKind};

/// Version in the paths, `/v1/...`.
pub const API_VERSION: &str = "v1";

/// `GET /v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// meshd's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// Process id.
    pub pid: u32,
    /// Kernel release.
    pub kernel: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Whether connections are captured and served.
    pub ready: bool,
    /// What keeps it from being ready, or degrades it; one sentence each.
    pub problems: Vec<String>,
    /// The capture form in use.
    pub capture_form: String,
    /// The relay kind that new connections take.
    pub relay: String,
    /// Enrolled workloads on this node.
    pub workloads: u64,
    /// Live connections.
    pub connections: u64,
    /// Policy documents in force.
    pub policies: u64,
    /// When the configuration in force was read.
    pub config_loaded_unix_s: u64,
    /// Why the last reload was refused; empty when it was accepted.
    pub last_reload_error: String,
    /// Use of each BPF map.
    pub bpf_maps: Vec<BpfMapRow>,
    /// The API server as a source; none: the node's file is all there is.
    pub kubernetes: Option<KubernetesRow>,
}

/// Kubernetes as a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubernetesRow {
    /// Kinds of which nothing whole was heard yet.
    pub missing: Vec<String>,
    /// What is watched.
    pub watches: Vec<WatchRow>,
    /// Pods of this node that are to be enrolled and cannot be yet, and why.
    pub waiting: Vec<String>,
    /// Pods of this node that are left alone although labels would enrol them: they share the host's network namespace.
    pub host_network: Vec<String>,
    /// Policy documents whose newest version is not in force.
    pub rejected: Vec<String>,
    /// Times that something new was made of what the API server says.
    pub rebuilds: u64,
    /// How long that took the last time.
    pub last_rebuild_ms: u64,
}

/// A watch of the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchRow {
    /// The plural of the kind.
    pub kind: String,
    /// Objects that are known.
    pub objects: u64,
    /// Since when they may be old; none: they are as the API server says.
    pub stale_since_unix_s: Option<u64>,
    /// Why.
    pub trouble: String,
    /// Times that it failed, since the start.
    pub failures: u64,
}

/// Use of one BPF map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BpfMapRow {
    /// The map's name.
    pub map: String,
    /// Entries now.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// One element of `GET /v1/workloads`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadRow {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its identity.
    pub spiffe_id: String,
    /// The node it lives on.
    pub node: String,
    /// Whether that is this node.
    pub local: bool,
    /// How it is selected, for example `netns /run/netns/web`; empty for remote ones.
    pub selector: String,
    /// The addresses it answers on.
    pub addresses: Vec<String>,
    /// `enrolled`, `waiting: ...`, `failed: ...`, or `remote`.
    pub state: String,
    /// Peer authentication mode of the workload, ports aside.
    pub mode: Mode,
    /// Live connections; 0 for remote ones.
    pub connections: u64,
}

/// Peer authentication mode in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// TLS is demanded.
    Strict,
    /// TLS and plaintext are accepted.
    Permissive,
    /// TLS is not used.
    Disable,
    /// Not decided on this node.
    #[default]
    Unset,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Strict => "STRICT",
            Self::Permissive => "PERMISSIVE",
            Self::Disable => "DISABLE",
            Self::Unset => "UNSET",
        })
    }
}

/// `GET /v1/connections?limit=N`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionList {
    /// Live connections in all.
    pub total: u64,
    /// The first `limit` of them.
    pub connections: Vec<ConnectionRow>,
}

/// One live connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRow {
    /// Unique in this process.
    pub id: u64,
    /// Seen from the enrolled workload.
    pub direction: Direction,
    /// The enrolled workload, `namespace/name`.
    pub workload: String,
    /// Client address.
    pub source: String,
    /// Server address.
    pub destination: String,
    /// Where the application wanted to go, where that differs.
    #[serde(default)]
    pub original_destination: Option<String>,
    /// The other workload, `namespace/name`, where known.
    #[serde(default)]
    pub peer: Option<String>,
    /// The identity the peer proved; none for plaintext.
    #[serde(default)]
    pub peer_spiffe_id: Option<String>,
    /// The identity proven for the workload.
    #[serde(default)]
    pub own_spiffe_id: Option<String>,
    /// `handshaking`, `relaying`, `half-closed`, `draining`.
    pub state: String,
    /// Relay kind.
    pub relay: RelayKind,
    /// Capture form.
    pub capture_form: String,
    /// TLS version and cipher suite, where there is TLS.
    #[serde(default)]
    pub tls: Option<String>,
    /// Whether the session was resumed.
    #[serde(default)]
    pub resumed: bool,
    /// Application bytes from server to client; none on the kernel path, whose bytes are known at the end.
    pub bytes_sent: Option<u64>,
    /// Application bytes from client to server.
    pub bytes_received: Option<u64>,
    /// Age.
    pub age_ms: u64,
    /// Time since the last byte; none on the kernel path.
    #[serde(default)]
    pub idle_ms: Option<u64>,
}

/// One element of `GET /v1/certs`: an SVID, the certificate that signs them, or a root of a trust bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertRow {
    /// `svid`, `ca` or `root`.
    pub kind: String,
    /// SPIFFE ID, or the trust domain of a root.
    pub subject: String,
    /// Serial number, hex; empty for `ca`.
    pub serial: String,
    /// Start of validity; 0 for `ca`.
    pub not_before_unix_s: i64,
    /// End of validity.
    pub not_after_unix_s: i64,
    /// `valid`, `expired`, `not yet valid`, `renewal failing: ...`, `valid, ends soon: ...`.
    pub state: String,
}

/// One element of `GET /v1/policies`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyRow {
    /// Document kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `mesh`, `namespace` or `workload`.
    pub scope: String,
    /// The action or mode, for example `ALLOW`, `STRICT`.
    pub action: String,
    /// Local workloads it applies to.
    pub workloads: u64,
    /// What of it is not enforced and why; one sentence each.
    pub not_enforced: Vec<String>,
    /// Documents of its level that it competes with, and which counts.
    pub conflicts: Vec<String>,
}

/// One element of `GET /v1/check`: a capability of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckRow {
    /// Its name.
    pub name: String,
    /// Whether it was proven by doing.
    pub proven: bool,
    /// Whether meshd cannot work without it.
    pub required: bool,
    /// What it means to have it or not.
    pub meaning: String,
    /// What was seen.
    pub detail: String,
}

/// `GET /v1/policy/explain`: would this connection be allowed, and what said so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// Whether the connection would be allowed.
    pub allowed: bool,
    /// The rule or reason that decided, for example `shop/allow-web rule 0`.
    pub decided_by: String,
    /// Client, `namespace/name`, address or SPIFFE ID.
    pub source: String,
    /// The client's identity; none means plaintext.
    pub source_spiffe_id: Option<String>,
    /// Server, `namespace/name`.
    pub destination: String,
    /// Address and port of the server that was decided for.
    pub destination_address: String,
    /// The identity that the server must prove.
    pub destination_spiffe_id: Option<String>,
    /// Peer authentication mode of the port.
    pub mode: Mode,
    /// The document that set the mode; empty for the default.
    pub mode_set_by: String,
    /// Whether the wire would carry TLS.
    pub tls: bool,
    /// How the decision came about, in order.
    pub steps: Vec<String>,
    /// What was asked about a request; none: a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<ExplainedRequest>,
    /// Rules of AUDIT policies that match.
    pub audit: Vec<String>,
    /// What dry-run policies would do; none: there are none.
    pub dry_run: Option<String>,
}

/// A request that was decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainedRequest {
    /// Its method.
    pub method: String,
    /// As rules see it, without its query.
    pub path: String,
    /// As rules see it.
    pub host: String,
    /// What became of its token, in words; empty where requests are not read.
    pub token: String,
    /// `iss/sub` of the token that was believed.
    pub principal: Option<String>,
    /// What meshd answers; none: the request goes on to the application.
    pub status: Option<u16>,
}

/// One element of `GET /v1/jwks`: a place that keys of a token issuer are fetched from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JwksRow {
    /// A key set, or an issuer's discovery document.
    pub url: String,
    /// Keys in use.
    pub keys: u64,
    /// Keys of the set that are not used.
    pub skipped: u64,
    /// When the keys were last had; none: never.
    pub fetched_unix_s: Option<u64>,
    /// Until they are fetched again; none: now.
    pub next_in_s: Option<u64>,
    /// Fetches that failed since the last that did not.
    pub failures: u64,
    /// Why the last fetch failed; empty: it did not.
    pub last_error: String,
}

/// `POST /v1/reload`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadReport {
    /// Whether anything differs from before.
    pub changed: bool,
    /// Enrolled workloads after it.
    pub workloads: u64,
    /// Policy documents after it.
    pub policies: u64,
    /// Live connections closed because they are no longer allowed.
    pub connections_closed: u64,
    /// What was noticed and does not stop the reload.
    pub warnings: Vec<String>,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What happened and what to do.
    pub error: String,
}
