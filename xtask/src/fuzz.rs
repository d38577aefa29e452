//! `cargo xtask fuzz`: every target first over its corpus, then for some seconds over inputs of its own making.
//! What a run finds, good or bad, lies under target/fuzz: nothing is ever written into the source tree.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    command::{self, command, follow, note, step},
    ebpf,
    libtest::Summary,
    paths,
    report::{self, Level},
    setup,
};

/// For the level of `cargo xtask test`.
const SECONDS_IN_TESTS: u64 = 2;
/// One input may take so long: most take microseconds, and the machine may be busy.
const INPUT_LIMIT_S: u32 = 60;
const MEMORY_LIMIT_MB: u32 = 2048;

#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Only this target (default: all, in turn)
    target: Option<String>,
    /// How long each target makes inputs of its own; 0: only the corpora
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
}

/// `cargo xtask fuzz`.
pub(crate) fn run_alone(args: &FuzzArgs) -> Result<ExitCode> {
    let mut chosen = targets()?;
    if let Some(wanted) = &args.target {
        let known = chosen.join(", ");
        chosen.retain(|target| target == wanted);
        if chosen.is_empty() {
            bail!("no fuzz target {wanted:?}; there are {known}");
        }
    }
    setup::for_tests()?;
    ebpf::build()?;
    let levels = [level_of(&chosen, args.seconds)];
    println!("{}", report::render(&levels));
    Ok(if report::failures(&levels) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The level of `cargo xtask test`; the eBPF object is built already (mesh-user embeds it).
pub(crate) fn level() -> Level {
    match targets() {
        Ok(targets) => level_of(&targets, SECONDS_IN_TESTS),
        Err(error) => Level::broken("fuzz", &format!("{error:#}"), std::time::Duration::ZERO),
    }
}

fn level_of(targets: &[String], seconds: u64) -> Level {
    let started = Instant::now();
    step("fuzz targets (build)");
    let built = Instant::now();
    if let Err(error) = build(targets) {
        return Level::broken("fuzz", &format!("{error:#}"), started.elapsed());
    }
    note(&format!("built in {:.1} s", built.elapsed().as_secs_f64()));
    step(&format!("fuzz targets: the corpora, then {seconds} s each"));
    let mut summary = Summary::default();
    for name in targets {
        match Target::new(name) {
            Ok(target) => target.run(seconds, &mut summary),
            Err(error) => summary.fail(name, &format!("{error:#}")),
        }
    }
    Level { name: "fuzz".to_owned(), summary, took: started.elapsed(), kernel: None }
}

fn source() -> PathBuf {
    paths::workspace().join("mesh-user/fuzz")
}

/// Their names, which are those of their files.
fn targets() -> Result<Vec<String>> {
    let folder = source().join("fuzz_targets");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = files.flatten().filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

/// By cargo itself: cargo-fuzz compiles every dependency anew. As one of all members, so that dependencies have the
/// features that the tests' builds have given them.
fn build(targets: &[String]) -> Result<()> {
    let mut cargo = command(paths::cargo(), ["build", "--release", "--workspace", "--exclude", "mesh-ebpf"]);
    cargo.args(targets.iter().flat_map(|target| ["--bin", target]));
    cargo.env("RUSTC_WORKSPACE_WRAPPER", source().join("rustc-with-coverage.sh"));
    let ended = follow(cargo.current_dir(paths::workspace()), |_| ())?;
    if !ended.ended_well {
        bail!("cannot build the fuzz targets:\n{}", ended.complaint);
    }
    Ok(())
}

/// A built target and its folders.
struct Target<'a> {
    name: &'a str,
    program: PathBuf,
    /// Committed; only read.
    corpus: PathBuf,
    /// What earlier runs on this machine found worth keeping.
    found: PathBuf,
    crashes: PathBuf,
}

impl<'a> Target<'a> {
    fn new(name: &'a str) -> Result<Self> {
        let target = paths::target()?;
        let folder = |kind: &str| -> Result<PathBuf> {
            let folder = target.join("fuzz").join(kind).join(name);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            Ok(folder)
        };
        Ok(Self {
            name,
            program: target.join("release").join(name),
            corpus: source().join("corpus").join(name),
            found: folder("found")?,
            crashes: folder("crashes")?,
        })
    }

    fn run(&self, seconds: u64, summary: &mut Summary) {
        let mut replay = self.command();
        replay.arg("-runs=0").arg(&self.corpus);
        if self.judge("corpus", &mut replay, summary).is_none() || seconds == 0 {
            return;
        }
        let mut search = self.command();
        search.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
        let dictionary = source().join("dictionaries").join(format!("{}.dict", self.name));
        if dictionary.is_file() {
            search.arg(format!("-dict={}", dictionary.display()));
        }
        search.args([&self.found, &self.corpus]);
        if let Some(said) = self.judge("search", &mut search, summary) {
            let figure = |name: &str| statistic(&said, name).unwrap_or_default();
            note(&format!(
                "{:<20} {:>9} inputs, {:>7} a second, {:>5} kept",
                self.name,
                figure("number_of_executed_units"),
                figure("average_exec_per_sec"),
                figure("new_units_added")
            ));
        }
    }

    fn command(&self) -> Command {
        let mut target = command(&self.program, ["-verbosity=0"]);
        target.arg(format!("-artifact_prefix={}/", self.crashes.display()));
        target.arg(format!("-timeout={INPUT_LIMIT_S}")).arg(format!("-rss_limit_mb={MEMORY_LIMIT_MB}"));
        target.current_dir(paths::workspace());
        target
    }

    /// What it said, if nothing was found.
    fn judge(&self, part: &str, command: &mut Command, summary: &mut Summary) -> Option<String> {
        let name = format!("{}: {part}", self.name);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => {
                summary.fail(&name, &format!("`{}` cannot be started: {error}", command::line(command)));
                return None;
            }
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            summary.passed += 1;
            return Some(said);
        }
        note(&format!("{name}: FAILED"));
        summary.fail(&name, &format!("{}\n{}", said.trim(), self.how_to_repeat(&said)));
        None
    }

    fn how_to_repeat(&self, said: &str) -> String {
        match crash(said) {
            Some(input) => format!("the input: {input}\nonce more: {} {input}", self.program.display()),
            None => format!("{} ended without naming an input", self.program.display()),
        }
    }
}

/// The file that libFuzzer wrote the input to.
fn crash(said: &str) -> Option<&str> {
    said.lines().rev().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()))
}

/// `stat::average_exec_per_sec:     12345`
fn statistic<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    said.lines()
        .find_map(|line| Some(line.strip_prefix("stat::")?.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_and_the_figures_are_read_off_what_libfuzzer_says() {
        let said = "==1== ERROR: libFuzzer: deadly signal\nartifact_prefix='/t/'; Test unit written to /t/crash-1\nBase64: \n";
        assert_eq!(crash(said), Some("/t/crash-1"));
        assert_eq!(crash("Done 5 runs\n"), None);
        let said = "stat::number_of_executed_units: 12\nstat::average_exec_per_sec:     6\n";
        assert_eq!(statistic(said, "average_exec_per_sec"), Some("6"));
    }

    #[test]
    fn every_target_is_built_and_has_a_corpus() {
        let manifest = fs::read_to_string(source().join("Cargo.toml")).unwrap();
        let targets = targets().unwrap();
        assert!(!targets.is_empty());
        for target in &targets {
            assert!(manifest.contains(&format!("name = \"{target}\"\n")), "{target} is not in Cargo.toml");
            let seeds = fs::read_dir(source().join("corpus").join(target)).map_or(0, Iterator::count);
            assert!((1..=24).contains(&seeds), "{target} has {seeds} seeds");
        }
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
    }
}
