//! meshd, the per-node mesh daemon. Parses arguments; everything else is in the library.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// The per-node mesh daemon: identities and mutual TLS for unmodified programs.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
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
}

fn main() -> ExitCode {
    let Command::Run { config } = Arguments::parse().command;
    match mesh_user::daemon::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshd: {error}");
            ExitCode::FAILURE
        }
    }
}
