//! The levels that run in virtual machines. An emulated guest keeps little more than one of our processors busy, however
//! many it has of its own, so as many guests run at once as this machine has processors.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    TestArgs,
    command::{note, step},
    kernels::{Kernel, Series},
    kubelet,
    libtest::Summary,
    report::Level,
    setup, systemd,
    test::Binaries,
    vm,
};

/// An emulated kernel is ten to thirty times slower than this machine's own, and shares the processors with another.
const VM_LIMIT: Duration = Duration::from_secs(45 * 60);
/// A guest takes 3 GiB.
const MOST_AT_ONCE: usize = 4;

/// The emulated kernel on which every story runs with every kernel TLS relay: the longest, so the first.
const ALL_STORIES: Series = Series::V6_12;

/// Stories left out on the emulated 7.x machine where it has one processor only (`vm.rs` says why) and so takes a
/// minute for each: they are told on this machine's kernel and on the other two.
const LEFT_OUT_ON_7: &[&str] = &[
    "authority::",
    "authorizers::",
    "bulk::",
    "cluster_ca::",
    "destination::",
    "federation::",
    "fleet::",
    "hostile::",
    "http::",
    "install::",
    "interop::",
    "kubernetes_",
    "lifecycle::",
    "limits::",
    "modes::",
    "neighbours::",
    "operating::",
    "pods::",
    "policy::",
    "privileges::",
    "programs::",
    "renewal::",
    "requests::",
    "requests_",
    "review::",
    "selectors::",
    "servers_first::",
];

/// Stories left out on every emulated kernel unless somebody asks for them: they ask nothing of the kernel that others do
/// not, and their bytes are never encrypted by it.
const LEFT_OUT_EMULATED: &[&str] = &[
    "authority::",
    "authorizers::",
    "cluster_ca::",
    "destination::",
    "federation::",
    "install::",
    "kubernetes_",
    "privileges::",
    "renewal::",
    "requests_",
    "review::",
];

/// And on those other than [`ALL_STORIES`]: it is programs, requests, policies and outputs that these differ in.
const LEFT_OUT_UNASKED: &[&str] = &[
    "authority::",
    "authorizers::",
    "cluster_ca::",
    "destination::",
    "federation::",
    "fleet::",
    "install::",
    "kubernetes_",
    "operating::",
    "policy::",
    "privileges::",
    "programs::",
    "renewal::",
    "requests::",
    "requests_",
    "review::",
];

/// What one guest is for.
enum Job<'a> {
    Stories(Series, &'a Result<Kernel>),
    SystemdUnit,
    Kubelet,
}

/// Runs the integration tests on each kernel, and systemd's unit and Kubernetes' kubelet where no filter asks for something else.
pub(crate) fn run(binaries: &Binaries, kernels: &[Series], args: &TestArgs) -> Vec<Level> {
    // One after the other: package managers and downloads.
    let prepared: Vec<_> = kernels.iter().map(|series| (*series, setup::for_vm(*series))).collect();
    let mut jobs: VecDeque<_> =
        prepared.iter().map(|(series, kernel)| Job::Stories(*series, kernel)).enumerate().collect();
    if kernels.contains(&systemd::KERNEL) && args.filter.is_none() {
        jobs.push_back((jobs.len(), Job::SystemdUnit));
    }
    if kernels.contains(&kubelet::KERNEL) && args.filter.is_none() {
        jobs.push_back((jobs.len(), Job::Kubelet));
    }
    let is_longest = |job: &Job<'_>| matches!(job, Job::Stories(series, _) if *series == ALL_STORIES);
    jobs.make_contiguous().sort_by_key(|(_, job)| !is_longest(job));
    let (jobs, levels) = (Mutex::new(jobs), Mutex::new(Vec::new()));
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..at_once() {
            scope.spawn(|| {
                while let Some((place, job)) = next() {
                    let level = match job {
                        Job::Stories(series, kernel) => stories(binaries, series, kernel, args),
                        Job::SystemdUnit => systemd::run(binaries.programs()),
                        Job::Kubelet => kubelet::run(binaries.programs()),
                    };
                    note(&level.line());
                    levels.lock().unwrap_or_else(PoisonError::into_inner).push((place, level));
                }
            });
        }
    });
    let mut levels = levels.into_inner().unwrap_or_else(PoisonError::into_inner);
    levels.sort_by_key(|(place, _)| *place);
    levels.into_iter().map(|(_, level)| level).collect()
}

fn at_once() -> usize {
    if vm::is_accelerated() {
        return 1;
    }
    thread::available_parallelism().map_or(1, usize::from).min(MOST_AT_ONCE)
}

fn stories(binaries: &Binaries, series: Series, kernel: &Result<Kernel>, args: &TestArgs) -> Level {
    let name = format!("integration {}", series.name());
    step(&format!("{name} (virtual machine)"));
    let kernel = match kernel {
        Ok(kernel) => kernel,
        Err(error) => return Level::skipped(&name, &format!("no virtual machine: {error:#}")),
    };
    let started = Instant::now();
    let unasked = args.filter.is_none() && !vm::is_accelerated();
    let (left_out, reason): (&[&str], _) = if series == Series::V7_3 && !vm::has_two_processors(kernel) {
        (
            LEFT_OUT_ON_7,
            "topics left out on this emulated kernel, which has one processor; told on the others",
        )
    } else if series != ALL_STORIES && unasked {
        (LEFT_OUT_UNASKED, "told elsewhere in a whole run; --filter with the topic's name tells them here")
    } else if unasked {
        (
            LEFT_OUT_EMULATED,
            "told on this machine's own kernel; --filter with the topic's name tells them here",
        )
    } else {
        (&[], "")
    };
    let mut summary = Summary::default();
    for topic in left_out {
        summary.skip(&format!("{topic}*"), reason);
    }
    let guest = vm::Guest {
        kernel,
        command: words(binaries, left_out, args),
        env: environment(series),
        timeout: VM_LIMIT,
        clock: vm::Clock::Time,
    };
    let outcome = guest.run(|line| {
        println!("{}| {line}", series.name());
        summary.read(line);
    });
    match outcome {
        Ok(outcome) => {
            note(&format!("{} booted in {:.1} s", kernel.release, outcome.boot.as_secs_f64()));
            summary.close(outcome.exit_code == 0, &name, "");
            if summary.results == 1 {
                summary.fail("one of its two programs printed no result line", "");
            }
        }
        Err(error) => {
            note(&format!("{error:#}"));
            summary.fail("the virtual machine", &format!("{error:#}"));
        }
    }
    Level { name, summary, took: started.elapsed(), kernel: Some(series.name().to_owned()) }
}

/// Both programs, whatever becomes of the first; the script's own arguments are the binaries and the filter.
fn words(binaries: &Binaries, left_out: &[&str], args: &TestArgs) -> Vec<String> {
    let script = "relay=$1 integration=$2 skip=$3; shift 3; MESHD_TEST_SCALE=64 \"$relay\" \"$@\"; failed=$?; \
                  \"$integration\" $skip \"$@\" && exit $failed";
    let mut words: Vec<String> = ["bash", "-c", script, "tests"].map(str::to_owned).into();
    words.extend([&binaries.relay, &binaries.integration].map(|binary| binary.display().to_string()));
    words.push(left_out.iter().flat_map(|topic| ["--skip ", topic, " "]).collect());
    words.extend(args.filter.clone());
    words
}

fn environment(series: Series) -> Vec<(String, String)> {
    let mut env = vec![
        ("MESHD_TEST_SCALE", "vm"),
        ("MESHD_TEST_CGROUP", "/sys/fs/cgroup"),
        ("MESHD_TEST_REQUIRE_KTLS", "1"),
        ("RUST_BACKTRACE", "1"),
    ];
    if series != ALL_STORIES && !vm::is_accelerated() {
        // Splice differs from the copy loop in how bytes move, which these two kernels' relay cases and bulk
        // stories show; who is asked for what does not.
        env.push(("MESHD_TEST_SPLICE_BULK_ONLY", "1"));
    }
    env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
