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
Exit codes: 0 success; 1 failure (check: a required capability is missing); 2 wrong usage; 3 policy explain: deny."
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
    Status,
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
    /// Policy documents in force, and what of them is not enforced.
    Policies,
    /// Questions about policy.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What this node was proven to be able to do; exits 1 when something required is missing.
    Check,
    /// The node's file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Reads configuration and policies again; live connections stay unless no longer allowed.
    Reload,
    /// Removes all that a dead meshd left attached or pinned. Refused while meshd runs.
    Cleanup,
    /// The embedded certificate authority.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Metrics in `OpenMetrics` text.
    Metrics,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Would a connection be allowed, and which rule says so? Exits 3 for deny.
    Explain {
        /// The client: SPIFFE ID, namespace/name, or IP address.
        #[arg(long, value_name = "WHO")]
        from: String,
        /// The server: namespace/name:port or address:port; a service's name or address will do.
        #[arg(long, value_name = "WHERE")]
        to: String,
        /// Decide from this node's file instead of asking the daemon.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// With --config: the policies folder, instead of the file's policiesDir.
        #[arg(long, value_name = "DIR", requires = "config")]
        policies: Option<PathBuf>,
    },
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
}
