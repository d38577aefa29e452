//! The lint level: formatting, clippy and licences. Each check counts as one test.

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Result;

use crate::{
    command::{command, note, step},
    ebpf,
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
        Err(error) => fail(&mut summary, &format!("clippy mesh-ebpf: {error:#}")),
    }
    if paths::find_program("cargo-deny").is_some() {
        // Advisories change without any change here; they are a release's check, not a commit's.
        check(&mut summary, "cargo deny", &mut cargo(["deny", "check", "licenses", "bans", "sources"]));
    } else {
        summary.skipped += 1;
        summary
            .skipped_names
            .push("cargo deny: not installed (cargo install cargo-deny --locked)".to_owned());
    }
    Level { name: "lint".to_owned(), summary, took: started.elapsed() }
}

fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut cargo = command(paths::cargo(), args);
    cargo.current_dir(paths::workspace());
    cargo
}

fn check(summary: &mut Summary, name: &str, command: &mut Command) {
    step(name);
    match command.status() {
        Ok(status) if status.success() => summary.passed += 1,
        Ok(status) => fail(summary, &format!("{name} ({status})")),
        Err(error) => fail(summary, &format!("{name}: cannot start it: {error}")),
    }
}

/// For a compiler that cannot be told to deny warnings: any warning fails the check.
fn check_silence(summary: &mut Summary, name: &str, command: &mut Command) {
    step(name);
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            eprint!("{said}");
            let warned = said.lines().any(|line| line.starts_with("warning"));
            if output.status.success() && !warned {
                summary.passed += 1;
            } else {
                fail(summary, &format!("{name} ({})", if warned { "there are some" } else { "it failed" }));
            }
        }
        Err(error) => fail(summary, &format!("{name}: cannot start it: {error}")),
    }
}

fn fail(summary: &mut Summary, what: &str) {
    note(what);
    summary.failed += 1;
    summary.failed_names.push(what.to_owned());
}
