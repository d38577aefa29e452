//! The file of `meshd ca`: whose authority it is, where it listens, who may ask. Its types, its schema and what the types
//! alone cannot say; reads that one file and nothing else.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ConfigError, MetricsConfig,
    yaml::{self, Problem},
};
use crate::identity::{SpiffeId, SpiffeIdError, TrustDomain};

/// Shorter ones would be renewed all the time.
const MIN_LIFETIME_SECONDS: u64 = 60;

/// The configuration file of `meshd ca`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorityConfig {
    /// Whose identities it issues.
    pub trust_domain: TrustDomain,
    /// Keys and state. Mode 0700; replicas on one machine share it.
    #[serde(default = "default_directory")]
    pub directory: PathBuf,
    /// Admin socket and lock; each replica has its own.
    #[serde(default = "default_runtime_dir")]
    pub runtime_dir: PathBuf,
    /// Addresses and ports that serve gRPC over TLS 1.3.
    #[serde(default = "default_listen")]
    pub listen: Vec<SocketAddr>,
    /// Names in the service's own certificate, which clients look for, such as `istiod.istio-system.svc`.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// How long a certificate lives when its request does not say.
    #[serde(default = "default_lifetime")]
    pub svid_lifetime_seconds: u64,
    /// The longest life that a request may ask for.
    #[serde(default = "default_lifetime")]
    pub max_svid_lifetime_seconds: u64,
    /// Where Istio's files `root-cert.pem`, `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem` are, where they are not in `directory`. The folder may be read-only.
    #[serde(default)]
    pub plugged_in: Option<PathBuf>,
    /// Certificates are valid that long before they are issued, for clocks that are slow.
    #[serde(default = "default_backdate")]
    pub backdate_seconds: u64,
    /// The keys that are certified.
    #[serde(default = "default_key_kinds")]
    pub key_kinds: Vec<KeyKind>,
    /// The longest RSA key that is certified; bits.
    #[serde(default = "default_max_rsa_bits")]
    pub max_rsa_bits: u32,
    /// Its own root signs through an intermediate, which can be rotated and revoked without telling anybody.
    #[serde(default = "default_true")]
    pub intermediates: bool,
    /// Life of the roots that it makes.
    #[serde(default = "default_root_days")]
    pub root_lifetime_days: u32,
    /// Life of the intermediates that it makes.
    #[serde(default = "default_intermediate_days")]
    pub intermediate_lifetime_days: u32,
    /// How it changes its own keys.
    #[serde(default)]
    pub rotation: RotationConfig,
    /// Life of a revocation list; the next one comes at half of it.
    #[serde(default = "default_lifetime")]
    pub revocation_list_lifetime_seconds: u64,
    /// Callers on this machine, over a Unix socket.
    #[serde(default)]
    pub unix_socket: Option<UnixSocketConfig>,
    /// Callers with service-account tokens of a Kubernetes cluster.
    #[serde(default)]
    pub kubernetes: Option<KubernetesConfig>,
    /// What runs on which node, where Kubernetes does not say: whose certificates a node's agent may ask for.
    #[serde(default)]
    pub nodes: Vec<NodeConfig>,
    /// One-time tokens with which nodes without Kubernetes become known.
    #[serde(default)]
    pub join_tokens: JoinTokenConfig,
    /// The record of everything that was issued or refused.
    #[serde(default)]
    pub audit: AuditConfig,
    /// Bounds on memory, time and counts.
    #[serde(default)]
    pub limits: AuthorityLimits,
    /// Metrics over TCP; the admin socket always has them.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// Filter for the service's own log, in `tracing` syntax.
    #[serde(default = "super::types::default_log")]
    pub log: String,
}

/// A kind of key that certificates are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum KeyKind {
    /// ECDSA on P-256.
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    /// ECDSA on P-384.
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384,
    /// Ed25519.
    #[serde(rename = "ed25519")]
    Ed25519,
    /// RSA of 2048 bits or more.
    #[serde(rename = "rsa")]
    Rsa,
}

/// How the CA changes its own keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RotationConfig {
    /// Rotations begin by themselves in the last third of an authority's life, and go on when that is safe.
    pub automatic: bool,
    /// A new root is in the bundles for at least so long before it signs.
    pub propagation_seconds: u64,
    /// A node that has acknowledged nothing for so long does not hold a rotation up.
    pub watch_window_seconds: u64,
    /// A key signs JWT-SVIDs for so long before another one is made.
    pub jwt_key_days: u32,
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self { automatic: true, propagation_seconds: 3600, watch_window_seconds: 86_400, jwt_key_days: 30 }
    }
}

/// The Unix socket for callers on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UnixSocketConfig {
    /// Where it lies.
    pub path: PathBuf,
    /// This machine's name: a caller over the socket is the agent of this node.
    pub node: String,
    /// Users who are that agent beside root.
    #[serde(default)]
    pub uids: Vec<u32>,
}

/// Which tokens of a Kubernetes cluster are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubernetesConfig {
    /// How its API server is reached; none: as a pod is told by its service account.
    pub kubeconfig: Option<PathBuf>,
    /// A token must be meant for one of these.
    pub audiences: Vec<String>,
    /// Service accounts, as `namespace/name`, that ask for the workloads of the node which their pod runs on.
    pub node_agents: Vec<String>,
    /// What runs on which node is watched (pods of all namespaces), beside what `nodes` says.
    pub placement: bool,
    /// Keys and state are kept in Secrets, and one of several replicas, elected by a Lease, is the CA. None: on disk only.
    pub state: Option<SharedStateConfig>,
    /// A `ConfigMap` with the trusted roots, for agents that start. None: not written.
    pub roots: Option<RootsConfig>,
}

/// Keys and state in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SharedStateConfig {
    /// Namespace of the Secrets and the Lease; whoever reads its Secrets is the CA. None: that of the service's own pod.
    pub namespace: Option<String>,
    /// Name of the Secret that the others follow from.
    pub secret: String,
    /// Name of the Lease.
    pub lease: String,
    /// This replica's name in the Lease; none: the machine's name, which is the pod's.
    pub identity: Option<String>,
    /// How long a leader is believed in that says nothing more.
    pub lease_seconds: u32,
}

impl Default for SharedStateConfig {
    fn default() -> Self {
        Self {
            namespace: None,
            secret: "meshd-ca-state".to_owned(),
            lease: "meshd-ca".to_owned(),
            identity: None,
            lease_seconds: 15,
        }
    }
}

/// Where the trusted roots are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RootsConfig {
    /// Name of the `ConfigMap`; its key is `root-cert.pem`.
    pub config_map: String,
    /// Namespaces that get it. Empty: that of the service's own pod.
    pub namespaces: Vec<String>,
}

impl Default for RootsConfig {
    fn default() -> Self {
        Self { config_map: "meshd-ca-root".to_owned(), namespaces: Vec::new() }
    }
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            audiences: vec!["istio-ca".to_owned()],
            node_agents: vec!["istio-system/ztunnel".to_owned(), "meshd-system/meshd".to_owned()],
            placement: false,
            state: None,
            roots: None,
        }
    }
}

/// A node and what runs there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeConfig {
    /// As in its join token.
    pub name: String,
    /// SPIFFE IDs; one may end in `/*`, which stands for everything below.
    pub identities: Vec<IdentityPattern>,
}

/// A SPIFFE ID, or everything below one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct IdentityPattern {
    id: SpiffeId,
    below: bool,
}

impl IdentityPattern {
    /// Whether `id` is meant.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if !self.below {
            return self.id == *id;
        }
        let rest = id.path().strip_prefix(self.id.path());
        self.id.trust_domain() == id.trust_domain() && rest.is_some_and(|rest| rest.starts_with('/'))
    }

    /// In which trust domain it lies.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.id.trust_domain()
    }
}

impl FromStr for IdentityPattern {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        match text.strip_suffix("/*") {
            Some(id) => Ok(Self { id: id.parse()?, below: true }),
            None => Ok(Self { id: text.parse()?, below: false }),
        }
    }
}

impl TryFrom<String> for IdentityPattern {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, SpiffeIdError> {
        text.parse()
    }
}

impl From<IdentityPattern> for String {
    fn from(pattern: IdentityPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.id, if self.below { "/*" } else { "" })
    }
}

/// One-time tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct JoinTokenConfig {
    /// How long one counts when `meshctl ca token create` does not say.
    pub ttl_seconds: u64,
    /// The longest that it may say.
    pub max_ttl_seconds: u64,
}

impl Default for JoinTokenConfig {
    fn default() -> Self {
        Self { ttl_seconds: 3600, max_ttl_seconds: 7 * 86_400 }
    }
}

/// The record of what was issued and refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuditConfig {
    /// The file that gets the lines, mode 0600, opened anew at SIGHUP; none: standard error.
    pub file: Option<PathBuf>,
    /// Refusals written per second; those above are counted. What is issued is always written.
    pub refusals_per_second: u32,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { file: None, refusals_per_second: 200 }
    }
}

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorityLimits {
    /// Connections at once; more are closed at accept.
    pub connections: u32,
    /// Connections at once from one address.
    pub connections_per_address: u32,
    /// Requests at once on one connection.
    pub streams: u32,
    /// Requests at once, those that watch trust not counted.
    pub requests: u32,
    /// Agents that watch trust at once.
    pub watchers: u32,
    /// Longest message of a request, in bytes.
    pub message_bytes: u32,
    /// Longest headers of a request, in bytes.
    pub header_bytes: u32,
    /// Time for a TLS handshake.
    pub handshake_timeout_ms: u64,
    /// Time for a request, from its headers to its answer.
    pub request_timeout_ms: u64,
    /// A connection without a request is closed after this time.
    pub idle_timeout_ms: u64,
    /// A connection is asked to end after this time, so that its caller is looked at anew.
    pub connection_age_ms: u64,
    /// Requests per second of one caller.
    pub caller_per_second: u32,
    /// How many of them may come at once.
    pub caller_burst: u32,
    /// Requests per second from one address, before anybody looks who asks.
    pub address_per_second: u32,
    /// How many of them may come at once.
    pub address_burst: u32,
    /// Requests per second of all callers together.
    pub requests_per_second: u32,
    /// Callers and addresses whose rate is remembered; all those above share one.
    pub remembered_callers: u32,
}

impl Default for AuthorityLimits {
    fn default() -> Self {
        Self {
            connections: 8192,
            connections_per_address: 256,
            streams: 128,
            requests: 512,
            watchers: 8192,
            message_bytes: 64 * 1024,
            header_bytes: 32 * 1024,
            handshake_timeout_ms: 10_000,
            request_timeout_ms: 15_000,
            idle_timeout_ms: 300_000,
            connection_age_ms: 3_600_000,
            caller_per_second: 200,
            caller_burst: 2000,
            address_per_second: 1000,
            address_burst: 4000,
            requests_per_second: 4000,
            remembered_callers: 65_536,
        }
    }
}

impl AuthorityLimits {
    /// Time for a TLS handshake.
    pub fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    /// Time for a request.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// Time without a request.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    /// Age at which a connection is asked to end.
    pub fn connection_age(&self) -> Duration {
        Duration::from_millis(self.connection_age_ms)
    }
}

fn default_directory() -> PathBuf {
    "/var/lib/meshd-ca".into()
}

fn default_runtime_dir() -> PathBuf {
    "/run/meshd-ca".into()
}

fn default_listen() -> Vec<SocketAddr> {
    vec![SocketAddr::new(IpAddr::from([0_u16; 8]), 15012)]
}

fn default_lifetime() -> u64 {
    86_400
}

fn default_backdate() -> u64 {
    60
}

fn default_key_kinds() -> Vec<KeyKind> {
    vec![KeyKind::EcdsaP256, KeyKind::EcdsaP384, KeyKind::Ed25519, KeyKind::Rsa]
}

fn default_max_rsa_bits() -> u32 {
    4096
}

fn default_true() -> bool {
    true
}

fn default_root_days() -> u32 {
    3650
}

fn default_intermediate_days() -> u32 {
    365
}

impl AuthorityConfig {
    /// Reads, parses and validates the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is not YAML, has an unknown or missing field, or contradicts itself.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        super::load(path, Self::parse)
    }

    /// Parses and validates `text`; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let invalid = |problems| ConfigError::Invalid { file: name.to_owned(), problems };
        let config: Self = yaml::parse(text, 1).map_err(|problem| invalid(vec![problem]))?;
        let mut problems: Vec<_> =
            config.wrong().into_iter().map(|(path, what)| Problem::at(text, &path, what, None)).collect();
        problems.dedup();
        if problems.is_empty() { Ok(config) } else { Err(invalid(problems)) }
    }

    /// JSON schema of the file.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }

    /// Path and fault of everything that is wrong.
    fn wrong(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, path: &str, what: &str| {
            if !good {
                wrong.push((path.to_owned(), what.to_owned()));
            }
        };
        let served = !self.listen.is_empty() || self.unix_socket.is_some();
        check(served, "listen", "names no address, and there is no unixSocket: nobody could ask");
        for (i, address) in self.listen.iter().enumerate() {
            check(!self.listen[..i].contains(address), &format!("listen[{i}]"), "is listed twice");
        }
        for (i, name) in self.dns_names.iter().enumerate() {
            let good = rustls_pki_types::DnsName::try_from(name.as_str()).is_ok();
            check(good, &format!("dnsNames[{i}]"), "is no DNS name");
        }
        let short = format!("must be at least {MIN_LIFETIME_SECONDS}");
        check(self.svid_lifetime_seconds >= MIN_LIFETIME_SECONDS, "svidLifetimeSeconds", &short);
        let under = self.max_svid_lifetime_seconds >= self.svid_lifetime_seconds;
        check(under, "maxSvidLifetimeSeconds", "is less than svidLifetimeSeconds");
        if let Some(socket) = &self.unix_socket {
            check(socket.path.is_absolute(), "unixSocket.path", "give an absolute path");
            check(SpiffeId::is_segment(&socket.node), "unixSocket.node", NODE_NAME);
        }
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.check(&mut check);
            let shared = kubernetes.state.is_some() && self.plugged_in.is_some();
            let plugged = "cannot be with pluggedIn, whose keys the Secrets do not have";
            check(!shared, "kubernetes.state", plugged);
        }
        let days = self.rotation.jwt_key_days;
        check(days > 0, "rotation.jwtKeyDays", "must be at least 1; automatic: false switches rotation off");
        for (i, node) in self.nodes.iter().enumerate() {
            let path = format!("nodes[{i}].name");
            check(SpiffeId::is_segment(&node.name), &path, NODE_NAME);
            check(self.nodes[..i].iter().all(|other| other.name != node.name), &path, "is listed twice");
            for (j, pattern) in node.identities.iter().enumerate() {
                let own = *pattern.trust_domain() == self.trust_domain;
                check(own, &format!("nodes[{i}].identities[{j}]"), "is of another trust domain");
            }
        }
        let tokens = &self.join_tokens;
        check(tokens.ttl_seconds > 0, "joinTokens.ttlSeconds", "must be at least 1");
        let longest = tokens.max_ttl_seconds >= tokens.ttl_seconds;
        check(longest, "joinTokens.maxTtlSeconds", "is less than ttlSeconds");
        for (name, value) in self.limits.positive() {
            check(value > 0, &format!("limits.{name}"), "must be at least 1");
        }
        wrong
    }
}

impl KubernetesConfig {
    /// Tells `check` of each of its fields whether it is good, where it is, and what is wrong otherwise.
    fn check(&self, check: &mut impl FnMut(bool, &str, &str)) {
        let any = self.audiences.iter().all(|a| !a.is_empty()) && !self.audiences.is_empty();
        check(any, "kubernetes.audiences", "name at least one: a token for anybody proves nothing");
        for (i, account) in self.node_agents.iter().enumerate() {
            let good = account.split_once('/').is_some_and(|(namespace, name)| {
                SpiffeId::is_segment(namespace) && SpiffeId::is_segment(name)
            });
            check(good, &format!("kubernetes.nodeAgents[{i}]"), "write namespace/name");
        }
        if let Some(state) = &self.state {
            let path = |field: &str| format!("kubernetes.state.{field}");
            check(is_object_name(&state.secret), &path("secret"), OBJECT_NAME);
            check(is_object_name(&state.lease), &path("lease"), OBJECT_NAME);
            let namespace = state.namespace.as_deref().is_none_or(is_object_name);
            check(namespace, &path("namespace"), OBJECT_NAME);
            let long = (5..=3600).contains(&state.lease_seconds);
            check(long, &path("leaseSeconds"), "must be 5 to 3600");
        }
        if let Some(roots) = &self.roots {
            check(is_object_name(&roots.config_map), "kubernetes.roots.configMap", OBJECT_NAME);
            for (i, namespace) in roots.namespaces.iter().enumerate() {
                check(is_object_name(namespace), &format!("kubernetes.roots.namespaces[{i}]"), OBJECT_NAME);
            }
        }
    }
}

const OBJECT_NAME: &str = "is no name of a Kubernetes object: use lower-case letters, digits and '-'";

/// RFC 1123's label, with room for what is appended.
fn is_object_name(name: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inside)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

const NODE_NAME: &str = "is no node's name: use letters, digits, '.', '-', '_'";

impl AuthorityLimits {
    /// All of them: 0 would let nobody in.
    fn positive(&self) -> [(&'static str, u64); 17] {
        [
            ("connections", self.connections.into()),
            ("connectionsPerAddress", self.connections_per_address.into()),
            ("streams", self.streams.into()),
            ("requests", self.requests.into()),
            ("watchers", self.watchers.into()),
            ("messageBytes", self.message_bytes.into()),
            ("headerBytes", self.header_bytes.into()),
            ("handshakeTimeoutMs", self.handshake_timeout_ms),
            ("requestTimeoutMs", self.request_timeout_ms),
            ("idleTimeoutMs", self.idle_timeout_ms),
            ("connectionAgeMs", self.connection_age_ms),
            ("callerPerSecond", self.caller_per_second.into()),
            ("callerBurst", self.caller_burst.into()),
            ("addressPerSecond", self.address_per_second.into()),
            ("addressBurst", self.address_burst.into()),
            ("requestsPerSecond", self.requests_per_second.into()),
            ("rememberedCallers", self.remembered_callers.into()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        AuthorityConfig::parse(text, "ca.yaml").unwrap_err().to_string()
    }

    #[test]
    fn keys_that_would_never_rest_are_refused() {
        let error = error("trustDomain: mesh.test\nrotation: { jwtKeyDays: 0 }\n");
        assert!(error.contains("ca.yaml:2") && error.contains("at least 1"), "{error}");
    }

    #[test]
    fn a_trust_domain_is_enough() {
        let config = AuthorityConfig::parse("trustDomain: cluster.local\n", "ca.yaml").unwrap();
        assert_eq!(config.listen, ["[::]:15012".parse().unwrap()]);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(AuthorityConfig::parse(&json, "ca.json").unwrap(), config);
    }

    #[test]
    fn a_wrong_file_says_where_and_what() {
        let td = "trustDomain: a.b\n";
        let node = |identities: &str| format!("{td}nodes: [{{ name: n, identities: [{identities}] }}]\n");
        for (text, place, what) in [
            ("listen: []\n".to_owned(), "ca.yaml:1:", "missing field \"trustDomain\""),
            (format!("{td}listens: []\n"), "ca.yaml:2:1: ", "did you mean \"listen\"?"),
            (format!("{td}listen: []\n"), "ca.yaml:2:", "nobody could ask"),
            (format!("{td}dnsNames: ['a b']\n"), "ca.yaml:2:", "no DNS name"),
            (format!("{td}maxSvidLifetimeSeconds: 60\n"), "ca.yaml:2:", "less than svidLifetimeSeconds"),
            (format!("{td}svidLifetimeSeconds: 5\n"), "ca.yaml:2:", "at least 60"),
            (format!("{td}unixSocket: {{ path: a, node: n }}\n"), "ca.yaml:2:", "absolute"),
            (format!("{td}unixSocket: {{ path: /a, node: a/b }}\n"), "ca.yaml:2:", "no node's name"),
            (format!("{td}kubernetes: {{ audiences: [] }}\n"), "ca.yaml:2:", "at least one"),
            (format!("{td}kubernetes: {{ nodeAgents: [x] }}\n"), "ca.yaml:2:", "namespace/name"),
            (format!("{td}kubernetes: {{ state: {{ secret: A }} }}\n"), "ca.yaml:2:", "lower-case"),
            (format!("{td}kubernetes: {{ state: {{ leaseSeconds: 1 }} }}\n"), "ca.yaml:2:", "5 to 3600"),
            (format!("{td}pluggedIn: /c\nkubernetes: {{ state: {{}} }}\n"), "ca.yaml:3:", "pluggedIn"),
            (format!("{td}kubernetes: {{ roots: {{ namespaces: ['a b'] }} }}\n"), "ca.yaml:2:", "lower-case"),
            (node("'spiffe://x.y/ns/a/*'"), "ca.yaml:2:", "another trust domain"),
            (node("'spiffe://a.b/ns/*/sa/x'"), "ca.yaml:2:", "segments"),
            (format!("{td}joinTokens: {{ maxTtlSeconds: 1 }}\n"), "ca.yaml:2:", "less than ttlSeconds"),
            (format!("{td}limits: {{ streams: 0 }}\n"), "ca.yaml:2:", "at least 1"),
        ] {
            let error = error(&text);
            assert!(error.starts_with(place) && error.contains(what), "{text} gave {error}");
        }
    }

    #[test]
    fn a_pattern_means_what_is_below_it_and_nothing_beside() {
        let pattern: IdentityPattern = "spiffe://a.b/ns/shop/*".parse().unwrap();
        for (id, meant) in [
            ("spiffe://a.b/ns/shop/sa/web", true),
            ("spiffe://a.b/ns/shop", false),
            ("spiffe://a.b/ns/shop2/sa/web", false),
            ("spiffe://a.c/ns/shop/sa/web", false),
        ] {
            assert_eq!(pattern.matches(&id.parse().unwrap()), meant, "{id}");
        }
        let exact: IdentityPattern = "spiffe://a.b/ns/shop/sa/web".parse().unwrap();
        assert!(exact.matches(&"spiffe://a.b/ns/shop/sa/web".parse().unwrap()));
        assert!(!exact.matches(&"spiffe://a.b/ns/shop/sa/web/x".parse().unwrap()));
        assert_eq!(pattern.to_string(), "spiffe://a.b/ns/shop/*");
    }
}
