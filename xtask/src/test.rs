//! `cargo xtask test`: lint, unit, fuzz, `BoGo`, integration on this machine's kernel, then the same integration binary in a
//! virtual machine per kernel, and systemd's unit in one more. A level that cannot run is skipped with its reason; one that says nothing failed.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    TestArgs, bogo,
    command::{command, follow, note, step},
    ebpf, envoy, fuzz, helm, host,
    kernels::{self, Series},
    kube,
    libtest::Summary,
    lint, machines, openid, paths,
    report::{self, Level},
    setup, spiffe, story_programs,
    verdicts::{ANY_KERNEL, Verdicts},
};

const INTEGRATION: &str = "integration";
/// The relay's cases for every kind that the kernel offers.
const RELAY: &str = "relay_kernel";

/// The test binaries that run on every kernel.
pub(crate) struct Binaries {
    pub(crate) integration: PathBuf,
    pub(crate) relay: PathBuf,
}

impl Binaries {
    /// Where meshd and meshctl are: the executables are `<target>/<profile>/deps/integration-<hash>`.
    pub(crate) fn programs(&self) -> &Path {
        self.integration.ancestors().nth(2).unwrap_or(&self.integration)
    }
}

pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    if !host::is_root() {
        bail!("the tests create network namespaces and load eBPF programs: run them as root");
    }
    setup::for_tests()?;
    envoy::ensure();
    helm::ensure();
    openid::ensure();
    spiffe::ensure();
    story_programs::ensure();
    kube::ensure();
    ebpf::build()?;
    let mut levels = Vec::new();
    if args.filter.is_none() {
        finish(&mut levels, lint::run());
    }
    finish(&mut levels, unit(args));
    if args.filter.is_none() {
        finish(&mut levels, fuzz::level());
        finish(&mut levels, bogo::level());
    }
    match binaries() {
        Ok(binaries) => {
            finish(&mut levels, native(&binaries, args));
            levels.extend(machines::run(&binaries, &chosen_kernels(args), args));
        }
        Err(error) => {
            finish(&mut levels, Level::broken("integration", &format!("{error:#}"), Duration::ZERO));
        }
    }
    if let Err(error) = Verdicts::keep(&levels) {
        note(&format!("{error:#}"));
    }
    println!("\n{}", report::render(&levels));
    Ok(if report::failures(&levels) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen_kernels(args: &TestArgs) -> Vec<Series> {
    match (args.quick, args.kernel.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => kernels::ALL.to_vec(),
        (false, false) => args.kernel.clone(),
    }
}

fn finish(levels: &mut Vec<Level>, level: Level) {
    note(&level.line());
    levels.push(level);
}

/// Everything that is no integration test: libraries, programs, other test files, doc tests.
fn unit(args: &TestArgs) -> Level {
    step("unit tests");
    let started = Instant::now();
    let mut summary = Summary::default();
    let mut main = cargo_test();
    main.args(["--lib", "--bins"]);
    main.args(other_test_files().into_iter().flat_map(|name| ["--test".to_owned(), name]));
    let mut doc = cargo_test();
    doc.arg("--doc");
    for (what, command) in [("unit tests", &mut main), ("doc tests", &mut doc)] {
        filter_last(command, args);
        run_tests(command, what, &mut summary);
    }
    let kernel = Some(ANY_KERNEL.to_owned());
    Level { name: "unit".to_owned(), summary, took: started.elapsed(), kernel }
}

/// Always for all default members, as clippy: for some of them cargo would unite other features of what they
/// depend on, and build that once more.
fn cargo_test() -> Command {
    let mut cargo = command(paths::cargo(), ["test", "--release", "--no-fail-fast"]);
    cargo.current_dir(paths::workspace());
    cargo
}

fn filter_last(command: &mut Command, args: &TestArgs) {
    command.args(args.filter.iter().flat_map(|filter| ["--", filter]));
}

/// mesh-user's test files but those that run on every kernel, which have levels of their own.
fn other_test_files() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(paths::workspace().join("mesh-user/tests")) else {
        return Vec::new();
    };
    let rust_files = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let names = rust_files.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    let mut names: Vec<String> =
        names.filter(|name| ![INTEGRATION, RELAY].contains(&name.as_str())).collect();
    names.sort();
    names
}

fn native(binaries: &Binaries, args: &TestArgs) -> Level {
    step("integration tests on this machine's kernel");
    let started = Instant::now();
    let mut summary = Summary::default();
    for (what, binary) in [("relay tests", &binaries.relay), ("integration tests", &binaries.integration)] {
        let mut tests = command(binary, &args.filter);
        let tests = tests.current_dir(paths::workspace()).env_remove("MESHD_TEST_CGROUP");
        run_tests(tests.env("PATH", paths::search_path()), what, &mut summary);
    }
    Level {
        name: "integration native".to_owned(),
        summary,
        took: started.elapsed(),
        kernel: host::kernel_series(),
    }
}

/// Runs a program that prints like libtest, showing and counting its lines.
fn run_tests(command: &mut Command, what: &str, total: &mut Summary) {
    let mut summary = Summary::default();
    match follow(command, |line| summary.read(line)) {
        Ok(ended) => summary.close(ended.ended_well, what, &ended.complaint),
        Err(error) => summary.fail(what, &format!("{error:#}")),
    }
    total.add(summary);
}

/// Builds the tests that run in virtual machines and finds the executables in cargo's messages.
fn binaries() -> Result<Binaries> {
    step("integration tests (build)");
    let mut cargo = cargo_test();
    cargo.args(["--test", INTEGRATION, "--test", RELAY, "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics");
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cannot build the integration tests");
    }
    // meshd and meshctl, which the tests start, are built beside the tests by cargo itself.
    let messages = String::from_utf8_lossy(&output.stdout);
    let built = |name| executable(&messages, name).with_context(|| format!("cargo built no test {name}"));
    Ok(Binaries { integration: built(INTEGRATION)?, relay: built(RELAY)? })
}

fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let is_ours = |message: &Message| message.target.as_ref().is_some_and(|target| target.name == name);
    messages.filter(is_ours).find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_binary_is_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"meshd"},"executable":"/t/meshd"}
{"reason":"compiler-artifact","target":{"name":"integration"},"executable":"/t/deps/integration-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, INTEGRATION), Some("/t/deps/integration-1".into()));
        assert_eq!(executable("{\"reason\":\"build-finished\"}", INTEGRATION), None);
    }
}
