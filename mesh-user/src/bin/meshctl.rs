//! meshctl, the operator's tool for meshd: asks the daemon over its admin socket, and does what needs no
//! daemon (validate, explain and lint from files, clean up) by itself. It never shows a key or a token.
//!
//! Exit codes: 0 success; 1 failure (`check`: a required capability is missing; `policy lint`: something was
//! found); 2 wrong usage; 3 `policy explain` said deny.

#[path = "meshctl/args.rs"]
mod args;
#[path = "meshctl/authority.rs"]
mod authority;
#[path = "meshctl/bugreport.rs"]
mod bugreport;
#[path = "meshctl/ca_keys.rs"]
mod ca_keys;
#[path = "meshctl/install.rs"]
mod install;
#[path = "meshctl/nodes.rs"]
mod nodes;
#[path = "meshctl/offline.rs"]
mod offline;
#[path = "meshctl/online.rs"]
mod online;
#[path = "meshctl/policy.rs"]
mod policy;
#[path = "meshctl/render.rs"]
mod render;
#[path = "meshctl/render_policy.rs"]
mod render_policy;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use args::{Arguments, CaCommand, Command, ConfigCommand};

/// `policy explain` said deny.
const EXIT_DENIED: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            // The reader went away (`meshctl ... | head`): nothing is wrong and nobody reads the message.
            let closed =
                error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
            if !closed {
                let _unwritable = writeln!(io::stderr(), "meshctl: {}", chain(&error));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let format = arguments.output;
    match &arguments.command {
        Command::Config(ConfigCommand::Validate { file, policies }) => {
            let report = offline::validate(file, policies.as_deref())?;
            render::validation(&mut out, format, &report)?;
        }
        Command::Config(ConfigCommand::Schema) => {
            writeln!(out, "{:#}", offline::schema())?;
        }
        Command::Cleanup { folder } => {
            offline::cleanup(&arguments.runtime_dir, folder)?;
            render::done(&mut out, format, "removed everything that meshd had attached or pinned")?;
        }
        Command::Install(install) => out.write_all(install::manifests(install)?.as_bytes())?,
        Command::Uninstall { namespace } => writeln!(out, "{}", install::uninstall(namespace)?)?,
        Command::Bugreport { out: folder, config } => {
            bugreport::run(&arguments.runtime_dir, config, folder.as_deref(), &mut out)?;
        }
        Command::Nodes { kubeconfig, namespace } => {
            return nodes::run(kubeconfig.as_deref(), namespace, format, &mut out);
        }
        Command::CanaryPeer(part) => part.play()?,
        Command::Ca(CaCommand::Intermediate { config, out: folder }) => {
            offline::issue_intermediate(config, folder)?;
            let text = format!("wrote ca.crt, intermediate.crt and intermediate.key to {}", folder.display());
            render::done(&mut out, format, &text)?;
        }
        Command::Ca(CaCommand::Bundle { config, format }) => {
            writeln!(out, "{}", offline::bundle(config, *format)?)?;
        }
        Command::Ca(command) => authority::run(command, &arguments.runtime_dir, format, &mut out)?,
        Command::Policy(command) => {
            if let Some(code) = policy::offline(arguments, command, &mut out)? {
                return Ok(code);
            }
            return online::run(arguments, &mut out);
        }
        _ => return online::run(arguments, &mut out),
    }
    Ok(ExitCode::SUCCESS)
}

fn verdict_code(allowed: bool) -> ExitCode {
    if allowed { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DENIED) }
}

/// The error and its causes, without those that a message above has said already.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match () {
        () if text.is_empty() => cause,
        () if text.contains(&cause) => text,
        () => format!("{text}: {cause}"),
    })
}
