//! meshd, the per-node mesh daemon. Parses arguments; everything else is in the library.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use mesh_user::capture::canary;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The per-node mesh daemon: identities and mutual TLS for unmodified programs.
#[derive(Debug, Parser)]
#[command(name = "meshd", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT; SIGHUP reads configuration and policies again.
    Run {
        /// The node's file (YAML); `meshctl config schema` prints its schema.
        #[arg(long, default_value = "/etc/meshd/node.yaml")]
        config: PathBuf,
    },
    /// Run the certificate authority that a fleet's agents ask, until SIGTERM or SIGINT.
    Ca {
        /// Its file (YAML); `meshctl ca config-schema` prints the schema.
        #[arg(long, default_value = "/etc/meshd/ca.yaml")]
        config: PathBuf,
    },
    /// The canary's child; started by meshd itself.
    #[command(name = canary::PEER_COMMAND, hide = true)]
    CanaryPeer(canary::PeerPart),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config } => mesh_user::daemon::run(&config).map_err(|error| error.to_string()),
        Command::Ca { config } => {
            mesh_user::daemon::run_authority(&config).map_err(|error| error.to_string())
        }
        Command::CanaryPeer(part) => part.play().map_err(|error| error.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshd: {error}");
            ExitCode::FAILURE
        }
    }
}
