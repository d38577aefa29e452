//! The shape of the node's file. Field names in the file are camelCase; unknown ones are refused.
//! Nothing here reads a file or checks one field against another: that is `validate`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    extension_providers::ExtensionProvider, federation::FederationConfig, kubernetes::ClusterConfig,
    selector::Selector,
};
use crate::identity::{IdentityTemplate, MadeOf, SpiffeId, TemplateError, TrustDomain, WorkloadFacts};
use std::collections::BTreeMap;

/// Names the node where its file does not.
pub const NODE_VARIABLE: &str = "MESHD_NODE";

/// The node's configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// This node's name in logs and metrics. None: what the environment variable `MESHD_NODE` says.
    #[serde(default = "node_of_environment")]
    pub node: String,
    /// Trust domain of every workload in this file.
    #[serde(default = "default_trust_domain")]
    pub trust_domain: TrustDomain,
    /// Other trust domains that name the same workloads, accepted for peers and for principals in policies.
    #[serde(default)]
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// How workloads' SPIFFE IDs are made.
    #[serde(default)]
    pub identity: IdentityConfig,
    /// The cluster that this file's workloads run in: Istio's `source_cluster` and `destination_cluster` labels.
    #[serde(default = "default_cluster_name")]
    pub cluster_name: String,
    /// Policies in this namespace apply to the whole mesh.
    #[serde(default = "default_root_namespace")]
    pub root_namespace: String,
    /// What survives a restart: the embedded CA's files; of a CA elsewhere the node's own certificate and the last known trust. Mode 0700.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Admin socket, lock, pinned eBPF objects.
    #[serde(default = "default_runtime_dir")]
    pub runtime_dir: PathBuf,
    /// Folder of Istio documents, `*.yaml` and `*.yml`. One that is named here must exist at start.
    #[serde(default = "default_policies_dir")]
    pub policies_dir: PathBuf,
    /// How connections are captured.
    #[serde(default)]
    pub capture: CaptureConfig,
    /// Which relay carries the bytes after the handshake.
    #[serde(default)]
    pub relay: RelayChoice,
    /// How workloads of this node reach each other.
    #[serde(default)]
    pub same_node: SameNode,
    /// Who issues the SVIDs of this node's workloads.
    #[serde(default)]
    pub ca: CaConfig,
    /// The SPIFFE Workload API, for workloads that want their SVIDs themselves.
    #[serde(default)]
    pub workload_api: WorkloadApiConfig,
    /// Roots of other trust domains.
    #[serde(default)]
    pub trust_bundles: Vec<TrustBundleFile>,
    /// Certificates that authorities have taken back, in files that are read again when they change.
    #[serde(default)]
    pub revocation_lists: Vec<RevocationListFile>,
    /// Trust domains other than this mesh's own, by bundle endpoint.
    #[serde(default)]
    pub federation: FederationConfig,
    /// How the keys of token issuers are fetched, for `RequestAuthentication`.
    #[serde(default)]
    pub jwks: JwksConfig,
    /// What is made of a request's path before rules look at it, as Istio's `meshConfig.pathNormalization`.
    #[serde(default)]
    pub path_normalization: PathNormalizationConfig,
    /// Whose `X-Forwarded-For` says who the original client of a request is, for `remoteIpBlocks` and `remote.ip`.
    #[serde(default)]
    pub forwarded_for: ForwardedForConfig,
    /// What is remembered of connections and requests, for `meshctl policy impact` and `lint`.
    #[serde(default)]
    pub observation: ObservationConfig,
    /// External authorizers for `CUSTOM` policies, written as in Istio's `meshConfig.extensionProviders`.
    #[serde(default)]
    pub extension_providers: Vec<ExtensionProvider>,
    /// Kubernetes as the source of workloads, services and policies.
    #[serde(default)]
    pub kubernetes: ClusterConfig,
    /// Workloads on this node.
    #[serde(default)]
    pub workloads: Vec<WorkloadConfig>,
    /// Workloads that another node's meshd serves.
    #[serde(default)]
    pub remote_workloads: Vec<RemoteWorkloadConfig>,
    /// Virtual addresses in front of workloads.
    #[serde(default)]
    pub services: Vec<ServiceConfig>,
    /// Servers outside the mesh that a `DestinationRule` may be about.
    #[serde(default)]
    pub external_services: Vec<ExternalServiceConfig>,
    /// Bounds on memory, time and counts.
    #[serde(default)]
    pub limits: Limits,
    /// The access log, on standard error.
    #[serde(default)]
    pub access_log: AccessLogConfig,
    /// Metrics over TCP; the admin socket always has them.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// Filter for meshd's own log, in `tracing` syntax.
    #[serde(default = "default_log")]
    pub log: String,
    /// What stays behind at an orderly stop.
    #[serde(default)]
    pub shutdown: ShutdownConfig,
}

/// One file for many nodes, as a `ConfigMap` is: the pod's own node comes by its environment.
fn node_of_environment() -> String {
    std::env::var(NODE_VARIABLE).unwrap_or_default()
}

impl Config {
    /// The embedded CA's folder: `ca.directory`, else `<stateDir>/ca`.
    pub fn ca_directory(&self) -> PathBuf {
        self.ca.directory.clone().unwrap_or_else(|| self.state_dir.join("ca"))
    }

    /// Where the keys of JWT-SVIDs are: with the CA that this node made, also where another one, whose folder may be
    /// read-only, signs its certificates.
    pub fn jwt_directory(&self) -> PathBuf {
        self.state_dir.join("ca")
    }

    /// The Workload API's socket: `workloadApi.socket`, else in a folder of its own beside the runtime directory, which
    /// only root may enter.
    pub fn workload_api_socket(&self) -> PathBuf {
        self.workload_api.socket.clone().unwrap_or_else(|| {
            let mut folder = self.runtime_dir.clone().into_os_string();
            folder.push("-workload");
            PathBuf::from(folder).join("workload.sock")
        })
    }
}

/// How workloads' SPIFFE IDs are made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IdentityConfig {
    /// Of workloads without a `spiffeId`. Filled in: `{{trustDomain}}`, `{{namespace}}`, `{{name}}`, `{{serviceAccount}}`, `{{gcpName}}`, `{{gcpProject}}`, `{{user}}`, `{{unit}}`, `{{label "NAME"}}`.
    pub template: IdentityTemplate,
}

/// How connections are captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CaptureConfig {
    /// The cgroup whose sockets the hooks see; none: the root of the cgroup2 mount.
    pub cgroup: Option<PathBuf>,
    /// How outbound connections are taken.
    pub form: CaptureForm,
    /// What a `connect` that waits is told when policy denies it.
    pub denied: DeniedConnect,
    /// What TCP capture cannot see of a STRICT workload: UDP, ping, raw sockets, SCTP and the like.
    pub uncaptured: Uncaptured,
    /// Loopback port of the outbound listener inside each workload's namespace.
    pub outbound_port: u16,
    /// Port of the inbound listener inside each workload's namespace.
    pub inbound_port: u16,
    /// Prove at every start that capture works, before anything is captured; without it nothing is proven.
    pub canary: bool,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            cgroup: None,
            form: CaptureForm::Auto,
            denied: DeniedConnect::Refused,
            uncaptured: Uncaptured::Pass,
            outbound_port: 15001,
            inbound_port: 15006,
            canary: true,
        }
    }
}

/// How outbound connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureForm {
    /// The best form that the canary proves on this kernel.
    #[default]
    Auto,
    /// A loopback listener in the workload's namespace: a `connect` succeeds before the far side is known.
    Listener,
    /// The application's `connect` waits until the far side is proven, or is told why not.
    Hold,
}

/// The error of a `connect` that policy denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeniedConnect {
    /// `ECONNREFUSED`: as if nobody served there.
    #[default]
    Refused,
    /// `EHOSTUNREACH`: as a firewall would say, which clients tell from a stopped server.
    Unreachable,
}

/// What happens to traffic of a STRICT workload that TCP capture cannot see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Uncaptured {
    /// It passes as without meshd: DNS and QUIC to the outside are UDP, and forbidding them is network policy's work.
    #[default]
    Pass,
    /// To meshed destinations nothing goes past meshd, and no datagram socket is served on a port of its own choice.
    Refuse,
}

/// Which relay carries the bytes after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RelayChoice {
    /// Chosen by what the kernel proves at start.
    #[default]
    Auto,
    /// rustls encrypts.
    Userspace,
    /// Kernel TLS, copy loop.
    Ktls,
    /// Kernel TLS, pipe.
    KtlsSplice,
}

/// How two workloads of one node reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SameNode {
    /// As workloads of two nodes do.
    #[default]
    Tls,
    /// From socket to socket, in plaintext that never leaves the kernel, where both workloads have a namespace of their own, both say so, and policy allows the pair.
    Kernel,
}

/// Who issues the SVIDs of this node's workloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CaConfig {
    /// Who issues SVIDs: a CA in this process, `meshd ca`, istiod, or a SPIFFE Workload API.
    pub provider: CaProvider,
    /// Holds `ca.crt` and `ca.key`, or `ca.crt`, `intermediate.crt` and `intermediate.key`, or the files of Istio's secret `cacerts`. None: `<stateDir>/ca`.
    pub directory: Option<PathBuf>,
    /// Life of an SVID; renewed at about half of it. A CA elsewhere may give less.
    pub svid_lifetime_seconds: u64,
    /// Where the CA is: `host:port`, or of `meshd-ca` on this machine `unix:/run/meshd-ca/agents.sock`; of `workload-api` its socket, `unix:///run/spire/agent.sock`.
    pub address: Option<String>,
    /// Who the CA's server must prove to be: a DNS name, an address, or a SPIFFE ID. None: the host of `ca.address`.
    pub server_name: Option<String>,
    /// PEM roots that the CA's server is believed by, beside what it has told; with `istiod` the trust domain's own.
    pub roots_file: Option<PathBuf>,
    /// The service-account token shown to istiod, or to `meshd-ca` instead of joining, read anew each time.
    pub token_file: Option<PathBuf>,
    /// A one-time token of `meshctl ca token create`, for the node's first start; mode 0600.
    pub join_token_file: Option<PathBuf>,
    /// Istio's name of the cluster, told to istiod.
    pub cluster_id: String,
}

/// Who issues SVIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CaProvider {
    /// A CA in this process, its key in `ca.directory`.
    #[default]
    Embedded,
    /// `meshd ca`.
    MeshdCa,
    /// Istio's.
    Istiod,
    /// A SPIFFE Workload API, such as SPIRE's agent.
    WorkloadApi,
}

impl Default for CaConfig {
    fn default() -> Self {
        Self {
            provider: CaProvider::Embedded,
            directory: None,
            svid_lifetime_seconds: 86_400,
            address: None,
            server_name: None,
            roots_file: None,
            token_file: None,
            join_token_file: None,
            cluster_id: "Kubernetes".to_owned(),
        }
    }
}

/// The SPIFFE Workload API.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadApiConfig {
    /// Whether it is served. Whoever can reach the socket gets the SVIDs, keys included, of the workloads that it is.
    pub enabled: bool,
    /// The Unix socket. None: `<runtimeDir>-workload/workload.sock`.
    pub socket: Option<PathBuf>,
}

/// Revocation lists of a trust domain's authorities, as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevocationListFile {
    /// Whose they are. None: this node's own.
    #[serde(default)]
    pub trust_domain: Option<TrustDomain>,
    /// PEM (`BEGIN X509 CRL`), one list of each authority.
    pub file: PathBuf,
}

/// Roots of another trust domain, as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustBundleFile {
    /// Whose roots they are.
    pub trust_domain: TrustDomain,
    /// PEM, or a bundle as SPIFFE writes it (JSON).
    pub file: PathBuf,
}

/// How the keys of token issuers are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct JwksConfig {
    /// CIDR blocks that keys may be fetched from although they are loopback, link-local, the node's own addresses, or a cloud's metadata service.
    #[schemars(with = "Vec<String>")]
    pub allow_addresses: Vec<IpNet>,
    /// PEM bundles of authorities that are believed beside the system's.
    pub extra_roots: Vec<PathBuf>,
}

/// Whose `X-Forwarded-For` is believed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ForwardedForConfig {
    /// Clients that are believed, written as in `source.principals`: proven by mTLS, such as an ingress gateway.
    pub trusted_principals: Vec<String>,
    /// Addresses at the right of the header that are proxies in front of them: Istio's `numTrustedProxies`.
    pub num_trusted_proxies: u8,
}

/// Istio's `meshConfig.pathNormalization`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PathNormalizationConfig {
    /// How far it goes; `DEFAULT` is `BASE`.
    pub normalization: PathNormalization,
}

/// `MeshConfig.ProxyPathNormalization.NormalizationType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalization {
    /// As `BASE`.
    #[default]
    Default,
    /// Nothing is changed.
    None,
    /// `\` to `/`, dot segments resolved, unreserved characters decoded.
    Base,
    /// And runs of slashes become one.
    MergeSlashes,
    /// And before all of it `%2F` and `%5C` are decoded.
    DecodeAndMergeSlashes,
}

/// What is remembered of connections and requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ObservationConfig {
    /// Different connections and requests that are remembered, for an hour, each of bounded length; 0: none.
    pub entries: u32,
}

impl Default for ObservationConfig {
    fn default() -> Self {
        Self { entries: 4096 }
    }
}

/// A workload on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadConfig {
    /// Unique in its namespace.
    pub name: String,
    /// Part of its identity.
    pub namespace: String,
    /// Part of its identity.
    #[serde(default = "default_service_account")]
    pub service_account: String,
    /// Its SPIFFE ID, or a template of it; none: as `identity.template` says for all.
    #[serde(default)]
    pub spiffe_id: Option<IdentityTemplate>,
    /// What policies and services select by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Which programs on this node it is.
    pub selector: Selector,
    /// The addresses it answers on; with a cgroup or user selector others may have other ports of them.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// For cgroup and user selectors: the ports it listens on. Empty there: outbound only.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// How it reaches others of this node, and they it; none: as `sameNode` says for all.
    #[serde(default)]
    pub same_node: Option<SameNode>,
    /// Inbound connections to these ports are left alone.
    #[serde(default)]
    pub exclude_inbound_ports: Vec<u16>,
    /// Outbound connections to these ports are left alone.
    #[serde(default)]
    pub exclude_outbound_ports: Vec<u16>,
}

/// A workload that another node's meshd serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoteWorkloadConfig {
    /// Unique in its namespace.
    pub name: String,
    /// Part of its identity.
    pub namespace: String,
    /// Part of its identity.
    #[serde(default = "default_service_account")]
    pub service_account: String,
    /// Its SPIFFE ID, or a template of it, as on its own node, also one of another trust domain; none: as `identity.template` says for all.
    #[serde(default)]
    pub spiffe_id: Option<IdentityTemplate>,
    /// The user that selects it on its own node, where a template asks for that.
    #[serde(default)]
    pub user: Option<String>,
    /// The systemd unit that selects it on its own node, where a template asks for that.
    #[serde(default)]
    pub unit: Option<String>,
    /// What services select by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The addresses it answers on; with `ports` others may have other ports of them.
    pub addresses: Vec<IpAddr>,
    /// The only ports its meshd captures; empty: all.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Ports that its meshd leaves alone.
    #[serde(default)]
    pub exclude_inbound_ports: Vec<u16>,
    /// The node it runs on.
    #[serde(default)]
    pub node: String,
    /// The cluster it runs in; none: `clusterName`.
    #[serde(default)]
    pub cluster_name: Option<String>,
}

impl WorkloadConfig {
    /// Its SPIFFE ID, and what that was made of.
    ///
    /// # Errors
    /// When what is known of it makes none of the mesh's own.
    pub fn identity(&self, config: &Config) -> Result<(SpiffeId, MadeOf), TemplateError> {
        let facts = WorkloadFacts {
            trust_domain: &config.trust_domain,
            namespace: &self.namespace,
            name: &self.name,
            service_account: &self.service_account,
            user: self.selector.user(),
            unit: self.selector.unit(),
            labels: &self.labels,
        };
        self.spiffe_id.as_ref().unwrap_or(&config.identity.template).fill(&facts, |_| false)
    }
}

impl RemoteWorkloadConfig {
    /// Its SPIFFE ID, which may be of another trust domain, and what that was made of.
    ///
    /// # Errors
    /// When what is known of it makes none that could be believed.
    pub fn identity(&self, config: &Config) -> Result<(SpiffeId, MadeOf), TemplateError> {
        let facts = WorkloadFacts {
            trust_domain: &config.trust_domain,
            namespace: &self.namespace,
            name: &self.name,
            service_account: &self.service_account,
            user: self.user.as_deref(),
            unit: self.unit.as_deref(),
            labels: &self.labels,
        };
        let is_believed = |domain: &TrustDomain| {
            config.trust_bundles.iter().any(|bundle| bundle.trust_domain == *domain)
                || config.federation.trust_domains.iter().any(|other| other.trust_domain == *domain)
        };
        self.spiffe_id.as_ref().unwrap_or(&config.identity.template).fill(&facts, is_believed)
    }
}

/// A virtual address in front of workloads of its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceConfig {
    /// Unique in its namespace.
    pub name: String,
    /// Where its workloads are.
    pub namespace: String,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports it answers on.
    pub ports: Vec<ServicePort>,
    /// Labels that its workloads carry.
    pub selector: BTreeMap<String, String>,
}

/// A server outside the mesh, known by name: what Istio writes as a `ServiceEntry` with addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalServiceConfig {
    /// Its DNS name.
    pub host: String,
    /// Where rules about it are looked for, besides the client's namespace and the root's.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports that applications connect to; `targetPort` is the server's own.
    pub ports: Vec<ServicePort>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// What applications connect to.
    pub port: u16,
    /// The server's own; none: the same.
    #[serde(default)]
    pub target_port: Option<u16>,
    /// For people.
    #[serde(default)]
    pub name: Option<String>,
}

impl ServicePort {
    /// The workload's port.
    pub fn target(&self) -> u16 {
        self.target_port.unwrap_or(self.port)
    }
}

/// Bounds on memory, time and counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Workloads on this node.
    pub workloads: u32,
    /// Captured destinations.
    pub destinations: u32,
    /// Live connections; of those whose client has yet to say who it is, a quarter from one address, and 16 at least.
    pub connections: u32,
    /// Handshakes under way at once, in each direction; of those that come in, a quarter from one address.
    pub concurrent_handshakes: u32,
    /// Held connects that wait to be taken up; what is more is told again by TCP's own retransmission.
    pub held_connects: u32,
    /// A handshake takes at most this long.
    pub handshake_timeout_ms: u64,
    /// Connecting a leg takes at most this long.
    pub connect_timeout_ms: u64,
    /// A connection without a byte for this long is closed; 0: never, as without meshd.
    pub idle_timeout_ms: u64,
    /// How long PERMISSIVE waits for a first byte before it takes the client for plaintext.
    pub detect_timeout_ms: u64,
    /// Bytes held per connection before its handshake ends.
    pub pre_handshake_bytes: u32,
    /// Time for connections to end at an orderly stop.
    pub drain_time_ms: u64,
    /// A connection whose peer leaves data unacknowledged and says nothing for this long is closed; a peer that answers but does not read is waited for. 0: when the kernel gives up, after some 15 minutes.
    pub user_timeout_ms: u64,
    /// Idle time before keepalive probes.
    pub keepalive_idle_ms: u64,
    /// How far two nodes' clocks may differ when certificates are checked.
    pub clock_skew_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workloads: 1024,
            destinations: 65_536,
            connections: 65_536,
            concurrent_handshakes: 1024,
            held_connects: 4096,
            handshake_timeout_ms: 10_000,
            connect_timeout_ms: 10_000,
            idle_timeout_ms: 0,
            detect_timeout_ms: 500,
            pre_handshake_bytes: 65_536,
            drain_time_ms: 5_000,
            user_timeout_ms: 60_000,
            keepalive_idle_ms: 60_000,
            clock_skew_ms: 60_000,
        }
    }
}

/// Each limit in milliseconds as what it is.
macro_rules! durations {
    ($($field:ident => $name:ident),+ $(,)?) => {
        impl Limits {$(
            #[doc = concat!("The limit `", stringify!($field), "`.")]
            pub fn $name(&self) -> Duration {
                Duration::from_millis(self.$field)
            }
        )+}
    };
}

durations! {
    handshake_timeout_ms => handshake_timeout,
    connect_timeout_ms => connect_timeout,
    idle_timeout_ms => idle_timeout,
    detect_timeout_ms => detect_timeout,
    drain_time_ms => drain_time,
    user_timeout_ms => user_timeout,
    keepalive_idle_ms => keepalive_idle,
    clock_skew_ms => clock_skew,
}

/// The access log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// One line per connection, in this form.
    pub format: AccessLogFormat,
    /// Lines per second beyond which lines are counted, not written.
    pub per_second: u32,
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self { format: AccessLogFormat::Json, per_second: 1000 }
    }
}

/// Metrics over TCP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Address and port, in the node's own network namespace, that answer GET /metrics and nothing else (of `meshd ca` /healthz/ready and /healthz/live too); none: not served over TCP.
    pub listen: Option<SocketAddr>,
}

/// Form of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// For people.
    Text,
    /// None.
    Off,
}

/// What stays behind at an orderly stop.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ShutdownConfig {
    /// What happens to the eBPF hooks.
    pub hooks: ShutdownHooks,
}

/// What happens to the eBPF hooks at an orderly stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownHooks {
    /// Removed: workloads talk plaintext again.
    #[default]
    Remove,
    /// They stay and fail closed until the next start.
    Keep,
}

fn default_trust_domain() -> TrustDomain {
    TrustDomain::cluster_local()
}

fn default_cluster_name() -> String {
    "Kubernetes".to_owned()
}

fn default_root_namespace() -> String {
    "istio-system".to_owned()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/meshd".into()
}

fn default_runtime_dir() -> PathBuf {
    "/run/meshd".into()
}

/// Where policies lie unless the file says otherwise; it may be missing.
pub fn default_policies_dir() -> PathBuf {
    "/etc/meshd/policies".into()
}

fn default_namespace() -> String {
    "default".to_owned()
}

fn default_service_account() -> String {
    "default".to_owned()
}

pub(super) fn default_log() -> String {
    "info".to_owned()
}
