//! The lint level: formatting, clippy and licences. Each check counts as one test.

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Result;

use crate::{
    command::{command, follow, step},
    deny, ebpf,
    libtest::Summary,
    paths,
    report::{self, Level},
    setup,
};

/// `cargo xtask lint`.
pub(crate) fn run_alone() -> Result<ExitCode> {
    setup::for_tests()?;
    ebpf::build()?;
    let levels = [run()];
    println!("{}", report::render(&levels));
    Ok(if report::failures(&levels) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every check; the eBPF object is built already (mesh-user embeds it).
pub(crate) fn run() -> Level {
    let started = Instant::now();
    let mut summary = Summary::default();
    check(&mut summary, "rustfmt", &mut cargo(["fmt", "--all", "--check"]));
    // The profile is the tests' own, so that dependencies are compiled once.
    let clippy = ["clippy", "--release", "--all-targets", "--", "-Dwarnings"];
    check(&mut summary, "clippy", &mut cargo(clippy));
    match ebpf::lint() {
        Ok((name, mut command)) => check_silence(&mut summary, name, &mut command),
        Err(error) => summary.fail("clippy mesh-ebpf", &format!("{error:#}")),
    }
    match deny::ensure() {
        // Advisories change without any change here; they are a release's check, not a commit's.
        Ok(deny) => check(
            &mut summary,
            "cargo deny",
            command(deny, ["check", "licenses", "bans", "sources"]).current_dir(paths::workspace()),
        ),
        Err(error) => summary.skip("cargo deny", &format!("{error:#}")),
    }
    Level { name: "lint".to_owned(), summary, took: started.elapsed(), kernel: None }
}

fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut cargo = command(paths::cargo(), args);
    cargo.current_dir(paths::workspace());
    cargo
}

fn check(summary: &mut Summary, name: &str, command: &mut Command) {
    judge(summary, name, command, |_| true);
}

/// For a compiler that cannot be told to deny warnings: any warning fails the check.
fn check_silence(summary: &mut Summary, name: &str, command: &mut Command) {
    judge(summary, name, command, |complaint| !complaint.lines().any(|line| line.starts_with("warning")));
}

fn judge(summary: &mut Summary, name: &str, command: &mut Command, is_good: fn(&str) -> bool) {
    step(name);
    let mut said = String::new();
    match follow(command, |line| said.push_str(line)) {
        Ok(ended) if ended.ended_well && is_good(&ended.complaint) => summary.passed += 1,
        Ok(ended) => summary.fail(name, &(said + &ended.complaint)),
        Err(error) => summary.fail(name, &format!("{error:#}")),
    }
}
