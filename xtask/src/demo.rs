//! The demo's set-up: everything built, and a way to run a command on this machine or in a virtual machine.

use std::{ffi::OsStr, io::IsTerminal, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    command::{self, note},
    host,
    kernels::{self, Kernel, Series},
    paths,
    process::dying_with_us,
    setup, vm,
};

/// Longer than the demo takes on an emulated kernel.
const VM_LIMIT: Duration = Duration::from_secs(900);

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// On this machine's own kernel, even where it has no kernel TLS
    #[arg(long, conflicts_with = "vm")]
    host: bool,
    /// In a virtual machine with this kernel: 6.1, 6.12 or 7.3
    #[arg(long, value_name = "KERNEL", value_parser = kernels::parse_series)]
    vm: Option<Series>,
}

/// Where the demo runs.
pub(crate) enum Place {
    Host,
    Vm(Box<Kernel>),
}

/// What the demo works with.
pub(crate) struct Paths {
    /// The folder of meshd and meshctl.
    pub(crate) bin_dir: PathBuf,
}

pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    if !host::is_root() {
        bail!("the demo creates network namespaces and loads eBPF programs: run it as root");
    }
    let place = place(args)?;
    let paths = prepare(&place)?;
    let story = std::env::current_exe().context("cannot find this program's own file")?;
    let mut words = vec![
        story.display().to_string(),
        "story".into(),
        "--bin-dir".into(),
        paths.bin_dir.display().to_string(),
    ];
    let no_colour = std::env::var_os("NO_COLOR");
    if speaks_in_colour(std::io::stdout().is_terminal(), no_colour.as_deref()) {
        words.push("--colour".into());
    }
    place.run(&words)?;
    Ok(ExitCode::SUCCESS)
}

/// Colours on a terminal, unless `NO_COLOR` says no (no-color.org: set and not empty).
fn speaks_in_colour(on_terminal: bool, no_colour: Option<&OsStr>) -> bool {
    on_terminal && no_colour.is_none_or(OsStr::is_empty)
}

/// Does all set-up for a place and builds meshd.
pub(crate) fn prepare(place: &Place) -> Result<Paths> {
    setup::for_tests()?;
    setup::build()?;
    match place {
        Place::Host => note("on this machine's own kernel"),
        Place::Vm(kernel) => note(&format!("in a virtual machine with kernel {}", kernel.release)),
    }
    Ok(Paths { bin_dir: paths::target()?.join("release") })
}

impl Place {
    /// Runs a command there with our own output; fails when it does.
    pub(crate) fn run(&self, words: &[String]) -> Result<()> {
        let Some((program, args)) = words.split_first() else { bail!("no command to run") };
        match self {
            Self::Host => command::run(dying_with_us(program).args(args)),
            Self::Vm(kernel) => {
                note("booting it");
                let guest = vm::Guest {
                    kernel,
                    command: words.to_vec(),
                    env: Vec::new(),
                    timeout: VM_LIMIT,
                    clock: vm::Clock::Time,
                };
                let outcome = guest.run(|line| println!("{line}"))?;
                if outcome.exit_code != 0 {
                    bail!(
                        "`{}` failed in the virtual machine (exit code {})",
                        words.join(" "),
                        outcome.exit_code
                    );
                }
                Ok(())
            }
        }
    }
}

/// As asked; else this machine where its kernel has TLS, else a virtual machine.
fn place(args: &DemoArgs) -> Result<Place> {
    match args.vm {
        Some(series) => Ok(Place::Vm(Box::new(setup::for_vm(series)?))),
        None if args.host || host::has_kernel_tls() => Ok(Place::Host),
        None => {
            note(
                "this machine's kernel has no TLS: using a virtual machine (--host shows the userspace relay here)",
            );
            Ok(Place::Vm(Box::new(setup::for_vm(Series::V6_12)?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_that_did_not_decline() {
        assert!(speaks_in_colour(true, None) && speaks_in_colour(true, Some(OsStr::new(""))));
        assert!(!speaks_in_colour(true, Some(OsStr::new("1"))) && !speaks_in_colour(false, None));
    }
}
