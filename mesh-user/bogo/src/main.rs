//! The shim between `BoringSSL`'s TLS test runner (`BoGo`) and meshd. The runner plays the peer, this program meshd: its
//! TLS contexts, verifier, limits and userspace relay are the daemon's own, none of them changed or replaced. In their
//! place the runner's certificates are: `-certify FOLDER` makes them SVIDs of an authority that the shim believes.
//!
//! Its command line is the one of `BoringSSL`'s own shim (`ssl/test/test_config.cc`). It ends with 0 when all went well, 1
//! when a connection failed, and 89 for what meshd does not have: the runner counts that test as unimplemented.

mod certificates;
mod connection;
mod options;

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};

use options::Options;

/// What the runner takes for "unimplemented".
const UNIMPLEMENTED: u8 = 89;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ended = match &arguments[..] {
        // The runner asks before it begins: there is no handshake that is split over two processes.
        [flag] if flag == "-is-handshaker-supported" => {
            println!("No");
            Ok(())
        }
        [flag, folder] if flag == "-certify" => certificates::certify(Path::new(folder)),
        _ => match Options::read(&arguments) {
            Ok(options) => run(&options),
            Err(unknown) => {
                eprintln!("{unknown} is not implemented");
                return ExitCode::from(UNIMPLEMENTED);
            }
        },
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The first connection, then those that may resume it.
fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let meshd = connection::Meshd::new(options)?;
    runtime.block_on(async {
        for number in 0..=options.resume_count {
            let connection = meshd.connection(options, number > 0).await;
            connection.with_context(|| format!("connection {number}"))?;
        }
        Ok(())
    })
}
