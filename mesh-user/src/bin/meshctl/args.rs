//! meshctl's command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Operate meshd, the per-node mesh daemon.
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    max_term_width = 110,
    after_help = "\
Exit codes: 0 success; 1 failure (check: a required capability is missing; policy lint: something was found); \
2 wrong usage; 3 policy explain: deny."
)]
pub(crate) struct Arguments {
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Output,
    /// The daemon's runtimeDir.
    #[arg(long, global = true, env = "MESHD_RUNTIME_DIR", default_value = "/run/meshd", value_name = "DIR")]
    pub(crate) runtime_dir: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// The admin API's documents.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The daemon in a few figures; exits 1 when it is not ready.
    Status {
        /// Ask only whether it answers, ready or not.
        #[arg(long)]
        live: bool,
    },
    /// Every node's agent by a Kubernetes API server; exits 1 when one of them is not ready.
    Nodes {
        /// How the API server is reached; without it as kubectl does.
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// Where the agents run.
        #[arg(short, long, default_value = mesh_user::admin::nodes::DEFAULT_NAMESPACE, value_name = "NAME")]
        namespace: String,
    },
    /// Workloads: identity, addresses, state, mode.
    Workloads,
    /// Live connections: peers, relay kind, bytes, age.
    Connections {
        /// List again every second until interrupted.
        #[arg(short, long)]
        watch: bool,
        /// At most this many.
        #[arg(long, default_value_t = 1000, value_name = "N")]
        limit: usize,
    },
    /// SVIDs and roots with their validity.
    Certs,
    /// Policy documents in force, what of them is not enforced, and which count where several compete.
    Policies,
    /// Where keys of token issuers are fetched from, and how that goes.
    Jwks,
    /// Questions about policy.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What this node was proven to be able to do; exits 1 when something required is missing. Where no meshd runs, it tries (as root).
    Check {
        /// Where no meshd runs: the cgroup to try capture on, instead of the root of the tree.
        #[arg(long, value_name = "DIR")]
        cgroup: Option<PathBuf>,
    },
    /// What somebody needs who is to help: status, documents, certificates without keys, kernel, hooks, log. Holds no secret.
    Bugreport {
        /// The folder to write; without it all goes to standard output, for `kubectl exec`.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// The node's file, where it is not the one that meshd is usually started with.
        #[arg(long, default_value = "/etc/meshd/node.yaml", value_name = "FILE")]
        config: PathBuf,
    },
    /// Prints the manifests for Kubernetes, for kubectl to apply.
    Install(InstallArguments),
    /// Says how meshd is taken out of a cluster, in order.
    Uninstall {
        /// Where the agents run.
        #[arg(short, long, default_value = mesh_user::admin::nodes::DEFAULT_NAMESPACE, value_name = "NAME")]
        namespace: String,
    },
    /// The node's file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Reads configuration and policies again; live connections stay unless no longer allowed.
    Reload,
    /// Removes all that a dead meshd left attached or pinned. Refused while meshd runs.
    Cleanup {
        /// An empty folder to remove too, such as the one of a bpffs that was mounted for pins; may be repeated.
        #[arg(long, value_name = "DIR")]
        folder: Vec<PathBuf>,
    },
    /// The certificate authority: the embedded one's files, and the service `meshd ca`.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Metrics in `OpenMetrics` text.
    Metrics,
    /// The canary's child; started by `check` itself.
    #[command(name = mesh_user::capture::canary::PEER_COMMAND, hide = true)]
    CanaryPeer(mesh_user::capture::canary::PeerPart),
}

/// Of `install`.
#[derive(Debug, clap::Args)]
pub(crate) struct InstallArguments {
    /// Print, and write nothing to a cluster: the only way there is.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Which manifests.
    #[arg(long, value_enum, default_value_t = InstallPart::Mesh)]
    pub(crate) part: InstallPart,
    /// The image of meshd.
    #[arg(long, default_value = crate::install::IMAGE, value_name = "IMAGE")]
    pub(crate) image: String,
    /// Where the agents and the CA run.
    #[arg(short, long, default_value = mesh_user::admin::nodes::DEFAULT_NAMESPACE, value_name = "NAME")]
    pub(crate) namespace: String,
    /// The mesh's trust domain.
    #[arg(long, default_value = "cluster.local", value_name = "NAME")]
    pub(crate) trust_domain: String,
    /// Replicas of the CA.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9), value_name = "N")]
    pub(crate) ca_replicas: u8,
}

/// Manifests that are applied together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InstallPart {
    /// Istio's kinds, where the cluster does not have them.
    Crds,
    /// Agents and CA.
    Mesh,
    /// Scraping, alerts and dashboard.
    Monitoring,
    /// What takes the agents' hooks away, after the agents.
    Cleanup,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Would a connection, or a request, be allowed, and which rule says so? Exits 3 for deny.
    Explain(ExplainArguments),
    /// What in policy documents bites, with file and line, and what to do. Exits 1 when something does.
    Lint {
        /// A file of documents that are new or changed, or a folder of all there are to be; without it: those in force.
        #[arg(value_name = "FILE|DIR")]
        path: Option<PathBuf>,
        /// Look with this node's file instead of asking the daemon; what the daemon has seen of traffic is then not known.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// What documents would have done to the connections and requests of the last hour.
    Impact {
        /// A file of documents that are new or changed, or a folder of all there are to be.
        #[arg(value_name = "FILE|DIR")]
        path: PathBuf,
    },
}

/// Of `policy explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArguments {
    /// The client: SPIFFE ID, namespace/name, or IP address.
    #[arg(long, value_name = "WHO")]
    pub(crate) from: String,
    /// The server: namespace/name:port or address:port; a service's name or address will do.
    #[arg(long, value_name = "WHERE")]
    pub(crate) to: String,
    /// A request is asked about, with this method; GET where another of its parts is given.
    #[arg(long, help_heading = "Request")]
    pub(crate) method: Option<String>,
    /// Its path, with the query if there is one; / unless given.
    #[arg(long, help_heading = "Request")]
    pub(crate) path: Option<String>,
    /// Its Host or :authority; the server's address and port unless given.
    #[arg(long, help_heading = "Request")]
    pub(crate) host: Option<String>,
    /// One of its headers; may be repeated.
    #[arg(long, value_name = "NAME: VALUE", help_heading = "Request")]
    pub(crate) header: Vec<String>,
    /// A file with its token, or - for standard input; sent where the server's documents look for one.
    #[arg(long, value_name = "FILE|-", help_heading = "Request")]
    pub(crate) token: Option<PathBuf>,
    /// Claims that count as those of a token that was believed.
    #[arg(long, value_name = "JSON", conflicts_with = "token", help_heading = "Request")]
    pub(crate) claims: Option<String>,
    /// Decide from this node's file instead of asking the daemon; keys from a jwksUri are not fetched.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// With --config: the policies folder, instead of the file's policiesDir.
    #[arg(long, value_name = "DIR", requires = "config")]
    pub(crate) policies: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Checks a node's file and its policies; errors carry line and column.
    Validate {
        /// The node's file.
        file: PathBuf,
        /// The policies folder, instead of the file's policiesDir.
        #[arg(long, value_name = "DIR")]
        policies: Option<PathBuf>,
    },
    /// The node's file as JSON schema.
    Schema,
}

/// How a trust bundle is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BundleFormat {
    /// Certificates between dashes.
    Pem,
    /// A JWK set.
    Spiffe,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Issues an intermediate for another node: copy the folder to that node's ca.directory.
    Intermediate {
        /// This node's file, which names the CA.
        #[arg(long, default_value = "/etc/meshd/node.yaml", value_name = "FILE")]
        config: PathBuf,
        /// The folder to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Prints the roots of this node's trust domain: for the other's `trustBundles`, or SPIRE's `bundle set`.
    Bundle {
        /// This node's file, which names the CA.
        #[arg(long, default_value = "/etc/meshd/node.yaml", value_name = "FILE")]
        config: PathBuf,
        /// PEM, or SPIFFE's own form, a JWK set.
        #[arg(long, value_enum, default_value_t = BundleFormat::Pem)]
        format: BundleFormat,
    },
    /// The service `meshd ca` in a few figures, its keys, and the nodes that follow them; of a node the embedded CA's keys.
    Status(CaService),
    /// Changes the CA's own key, one stage at a time: trusted before it signs, and the old one trusted until nothing of it is in use.
    Rotate {
        /// Which.
        #[arg(value_enum)]
        kind: RotateKind,
        /// Go one stage on instead of beginning, if that is safe.
        #[arg(long, conflicts_with_all = ["cancel"])]
        advance: bool,
        /// With --advance: even if it is not safe; certificates may then not be believed.
        #[arg(long, requires = "advance")]
        force: bool,
        /// Forget a new key that does not sign yet.
        #[arg(long)]
        cancel: bool,
        #[command(flatten)]
        service: CaService,
    },
    /// Takes certificates back: live connections end within seconds.
    Revoke {
        #[command(flatten)]
        what: RevokeArguments,
        /// Why, as in revocation lists.
        #[arg(long, value_enum, default_value_t = RevokeReason::Unspecified)]
        reason: RevokeReason,
        /// With --issuer: even if it signed the certificates of nodes, which need new join tokens then.
        #[arg(long, requires = "issuer")]
        force: bool,
        #[command(flatten)]
        service: CaService,
    },
    /// Lets an identity have certificates again that `revoke --block` took out of use.
    Unblock {
        /// A SPIFFE ID.
        identity: String,
        #[command(flatten)]
        service: CaService,
    },
    /// Prints the revocation lists (PEM, one of each authority) for verifiers that are no meshd.
    Crl(CaService),
    /// One-time tokens with which nodes become known to `meshd ca`.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Metrics of `meshd ca` in `OpenMetrics` text.
    Metrics(CaService),
    /// The file of `meshd ca` as JSON schema.
    ConfigSchema,
    /// Checks a file of `meshd ca`; errors carry line and column.
    ConfigValidate {
        /// The file.
        file: PathBuf,
    },
}

/// Which `meshd ca` is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct CaService {
    /// Its runtimeDir.
    #[arg(long, env = "MESHD_CA_RUNTIME_DIR", default_value = "/run/meshd-ca", value_name = "DIR")]
    pub(crate) ca_runtime_dir: PathBuf,
    /// Ask this node's meshd, whose CA is embedded, instead of `meshd ca`.
    #[arg(long)]
    pub(crate) embedded: bool,
}

/// A key of the CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RotateKind {
    /// What everybody believes.
    Root,
    /// What signs below it.
    Intermediate,
    /// What signs JWT-SVIDs.
    Jwt,
}

/// What to take back.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct RevokeArguments {
    /// A certificate by its serial number, hex.
    #[arg(long, value_name = "HEX")]
    pub(crate) serial: Option<String>,
    /// All certificates of a SPIFFE ID.
    #[arg(long, value_name = "SPIFFE-ID")]
    pub(crate) identity: Option<String>,
    /// All certificates of a SPIFFE ID, which gets no others until `unblock`.
    #[arg(long, value_name = "SPIFFE-ID")]
    pub(crate) block: Option<String>,
    /// An intermediate by its serial number, hex, and so all that it signed.
    #[arg(long, value_name = "HEX")]
    pub(crate) issuer: Option<String>,
}

/// RFC 5280 section 5.3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RevokeReason {
    /// Nobody says.
    Unspecified,
    /// Somebody else may have the key.
    KeyCompromise,
    /// Somebody else may have the authority's key.
    CaCompromise,
    /// The workload is another's now.
    AffiliationChanged,
    /// Another certificate is in its place.
    Superseded,
    /// The workload is no more.
    CessationOfOperation,
    /// It may not be that any more.
    PrivilegeWithdrawn,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes one and prints it: there is no other copy.
    Create {
        /// The node that it makes known.
        #[arg(long, value_name = "NAME")]
        node: String,
        /// How long it counts, in seconds; the configuration's joinTokens.ttlSeconds unless given.
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u64>,
        #[command(flatten)]
        service: CaService,
    },
    /// Tokens with their nodes, without their secrets.
    List(CaService),
    /// Takes one back that nobody has redeemed.
    Revoke {
        /// As `list` shows it.
        id: String,
        #[command(flatten)]
        service: CaService,
    },
}
