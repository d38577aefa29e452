//! `cargo xtask bogo`: `BoringSSL`'s TLS test runner (`BoGo`) against meshd's handshake and userspace relay, as
//! `mesh-user/bogo` puts them in front of it. Everything lies under target/bogo.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    bogo_runner,
    command::{self, command, follow, note, output, step},
    ebpf,
    libtest::Summary,
    paths,
    report::{self, Level},
    setup,
};

const NAME: &str = "bogo";
const UNIMPLEMENTED: &str = "it wants of the shim what meshd has not, or does not tell";
const DISABLED: &str = "mesh-user/bogo/config.json says why";
/// A shim waits for the runner, and the runner for it, more than it computes.
const WORKERS_PER_CORE: usize = 2;
/// A build that reads none of the runner's flags would leave everything unimplemented.
const FEWEST_PASSED: u64 = 500;

#[derive(Args)]
pub(crate) struct BogoArgs {
    /// Only tests of this name; `*` stands for any text, `;` between several (default: all)
    test: Option<String>,
}

/// `cargo xtask bogo`.
pub(crate) fn run_alone(args: &BogoArgs) -> Result<ExitCode> {
    setup::for_tests()?;
    ebpf::build()?;
    let levels = [level_of(args.test.as_deref())];
    println!("{}", report::render(&levels));
    Ok(if report::failures(&levels) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The level of `cargo xtask test`; the eBPF object is built already (mesh-user embeds it).
pub(crate) fn level() -> Level {
    level_of(None)
}

fn level_of(test: Option<&str>) -> Level {
    let started = Instant::now();
    match run(test) {
        Ok(summary) => Level { name: NAME.to_owned(), summary, took: started.elapsed(), kernel: None },
        Err(error) => Level::broken(NAME, &format!("{error:#}"), started.elapsed()),
    }
}

fn run(test: Option<&str>) -> Result<Summary> {
    let runner = bogo_runner::ensure()?;
    step("BoringSSL's test runner: the shim (build)");
    build_shim()?;
    let shim = paths::target()?.join("release/bogo_shim");
    output(command(&shim, ["-certify"]).arg(&runner.folder)).context("cannot certify the runner's keys")?;
    step("BoringSSL's test runner against meshd");
    let workers = std::thread::available_parallelism().map_or(1, usize::from) * WORKERS_PER_CORE;
    let mut tests = command(&runner.program, ["-pipe", "-allow-unimplemented", "-loose-errors"]);
    tests.arg("-shim-path").arg(&shim).arg("-shim-config").arg(source().join("config.json"));
    tests.arg("-num-workers").arg(workers.to_string());
    tests.args(test.iter().flat_map(|test| ["-test", test]));
    let said = all_it_says(tests.current_dir(&runner.folder))?;
    let summary = read(&said);
    if test.is_none() && summary.passed < FEWEST_PASSED {
        bail!("only {} tests passed:\n{}", summary.passed, last_lines(&said));
    }
    if summary.passed + summary.failed + summary.skipped == 0 {
        bail!("no test ran:\n{}", last_lines(&said));
    }
    let count = |reason| summary.skips.iter().filter(|skip| skip.reason == reason).count();
    note(&format!(
        "{} passed, {} failed, {} unimplemented, {} disabled",
        summary.passed,
        summary.failed,
        count(UNIMPLEMENTED),
        count(DISABLED)
    ));
    Ok(summary)
}

fn source() -> PathBuf {
    paths::workspace().join("mesh-user/bogo")
}

fn build_shim() -> Result<()> {
    // With a test, so that features of what tests depend on are united, as for `cargo test`: else all of mesh-user is compiled
    // once more.
    let mut cargo = command(paths::cargo(), ["build", "--release", "--bin", "bogo_shim", "--test", "layers"]);
    let ended = follow(cargo.current_dir(paths::workspace()), |_| ())?;
    if !ended.ended_well {
        bail!("cannot build the shim:\n{}", ended.complaint);
    }
    Ok(())
}

/// Its exit code says nothing that its lines do not.
fn all_it_says(tests: &mut Command) -> Result<String> {
    let ended = tests.output().with_context(|| format!("cannot start `{}`", command::line(tests)))?;
    let said = [ended.stdout, ended.stderr].concat();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn last_lines(said: &str) -> String {
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// `PASSED (name)`, `UNIMPLEMENTED (name)`, `DISABLED (name)`, and `FAILED (name)` with what was wrong in the lines
/// that follow.
fn read(said: &str) -> Summary {
    let mut summary = Summary::default();
    let mut failed: Option<(&str, String)> = None;
    for line in said.lines() {
        let verdict =
            line.split_once(" (").and_then(|(verdict, name)| Some((verdict, name.strip_suffix(')')?)));
        let Some((verdict @ ("PASSED" | "FAILED" | "UNIMPLEMENTED" | "DISABLED"), name)) = verdict else {
            if let Some((_, text)) = &mut failed {
                text.push_str(line);
                text.push('\n');
            }
            continue;
        };
        if let Some((name, text)) = failed.take() {
            summary.fail(name, &text);
        }
        match verdict {
            "PASSED" => summary.passed += 1,
            "FAILED" => failed = Some((name, String::new())),
            "UNIMPLEMENTED" => summary.skip(name, UNIMPLEMENTED),
            _ => summary.skip(name, DISABLED),
        }
    }
    if let Some((name, text)) = failed {
        summary.fail(name, &text);
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_and_a_failure_keeps_what_it_said() {
        let said = "PASSED (A)\nFAILED (B-TLS13)\nunexpected failure: local error 'EOF'\n\nstderr:\nx (y)\n\
                    UNIMPLEMENTED (C)\nDISABLED (D)\nFAILED (E)\nbad error\n\n";
        let summary = read(said);
        assert_eq!((summary.passed, summary.failed, summary.skipped), (1, 2, 2));
        assert_eq!(summary.failures[0].name, "B-TLS13");
        assert_eq!(summary.failures[0].text, "unexpected failure: local error 'EOF'\n\nstderr:\nx (y)\n");
        assert_eq!(summary.failures[1].text, "bad error\n\n");
        assert_eq!(summary.skips[1].reason, DISABLED);
    }

    #[test]
    fn every_disabled_test_has_its_reason() {
        let config = std::fs::read_to_string(source().join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let disabled = config["DisabledTests"].as_object().unwrap();
        assert!(!disabled.is_empty());
        assert!(disabled.values().all(|reason| reason.as_str().is_some_and(|reason| reason.len() > 5)));
    }

    #[test]
    fn the_end_of_a_long_text_is_its_last_lines() {
        let long: Vec<String> = (1..=30).map(|number| number.to_string()).collect();
        assert!(last_lines(&long.join("\n")).starts_with("11\n") && last_lines("one") == "one");
    }
}
