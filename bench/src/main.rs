//! The scenario harness: plain TCP, meshd and other meshes carry the same work between the same programs in one run,
//! and what it costs is read from the kernel. Started by `cargo xtask bench`. It changes nothing outside the
//! namespaces, the cgroup and the folder it makes, and takes those away however it ends.

#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests compare numbers that are exact in binary"))]

mod compare;
mod figures;
mod html;
mod load;
mod machine;
mod plan;
mod results;
mod run;
mod scenario;
mod stage;
mod subject;
mod syscalls;
mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Benchmarks of meshd against plain TCP and other meshes.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure, print a table, write `latest.json` and `report.html`
    Run(run::RunArgs),
    /// Show what differs between two results beyond their noise; fails when something got worse
    Compare {
        /// The earlier results
        before: PathBuf,
        /// The later ones
        after: PathBuf,
    },
    /// Write the report of results that are there
    Report {
        /// What `run` wrote
        results: PathBuf,
        /// The page
        html: PathBuf,
    },
    /// A client that makes load inside a namespace
    #[command(hide = true, subcommand)]
    Load(load::Client),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Run(args) => run::run(&args),
        Task::Compare { before, after } => compare_files(&before, &after),
        Task::Report { results, html } => {
            results::Results::read(&results).and_then(|results| html::write(&results, &html)).map(|()| true)
        }
        Task::Load(client) => client.run().map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare_files(before: &std::path::Path, after: &std::path::Path) -> Result<bool> {
    let (before, after) = (results::Results::read(before)?, results::Results::read(after)?);
    let comparison = compare::compare(&before, &after);
    println!("{}", table::comparison(&comparison));
    Ok(!comparison.changes.iter().any(|change| change.worse))
}
