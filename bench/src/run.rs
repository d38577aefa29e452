//! A run: subjects are started, shown to do what they claim, measured in turns, and everything is written down. One
//! measurement that fails is told and does not end the others.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    figures::{Figure, THROUGHPUT, count, in_instructions},
    html,
    load::{READY, Report, Transfer, WRK_SCRIPT},
    machine::{self, Machine, Programs},
    plan::Plan,
    results::{Environment, Results, Samples, SyscallRow},
    scenario::{self, Scenario, Work},
    stage::{Running, Stage, output},
    subject::{self, BULK_PORT, HTTP_PORT, Kind, Relay, Subject, TEAM_HEADER, Tools},
    syscalls, table,
};

/// What to measure.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// The daily scenarios only, in under three minutes
    #[arg(long)]
    quick: bool,
    /// Only these scenarios
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only these subjects, and plain TCP
    #[arg(long, value_name = "NAME")]
    subject: Vec<String>,
    /// Leave out the pass that counts system calls
    #[arg(long)]
    no_syscalls: bool,
    /// This machine's clock counts instructions: show those instead of times, print the results as JSON, write nothing
    #[arg(long)]
    instructions: bool,
    /// The folder of meshd and meshctl
    #[arg(long)]
    bin_dir: PathBuf,
    /// Envoy's executable
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// ztunnel's executable, built with its feature `testing`
    #[arg(long)]
    ztunnel: Option<PathBuf>,
    /// Where results go
    #[arg(long)]
    out: PathBuf,
}

/// How long the machine is watched before anything is started.
const BACKGROUND: Duration = Duration::from_secs(1);
/// Beyond the time a client was told to take.
const SLACK: Duration = Duration::from_secs(60);
/// What one of many connections may take longer to be opened, and to be used.
const OPENING: Duration = Duration::from_millis(5);
/// Until memory is what it will be.
const SETTLE: Duration = Duration::from_secs(1);
/// What a pass under strace takes.
const TRACED_S: u32 = 2;
/// Scenarios whose system calls are counted.
const TRACED: &[&str] =
    &["rr1", "rr32", "rr32-16k", "crr8", "http1", "http32", "http32-16k", "http-crr8", "bulk1"];

/// Before the results as JSON, on a line of their own.
const RESULTS: &str = "results: ";

/// Whether everything that was asked for was measured.
pub(crate) fn run(args: &RunArgs) -> Result<bool> {
    let scenarios = chosen_scenarios(args)?;
    let tools =
        Tools { bin_dir: args.bin_dir.clone(), envoy: args.envoy.clone(), ztunnel: args.ztunnel.clone() };
    let background = background()?;
    let (stage, mut results) = (Stage::build()?, Results::default());
    let reading = scenarios.iter().any(|scenario| scenario.requests_are_read);
    let mut subjects = start_subjects(&stage, args, &tools, reading, &mut results)?;
    let plan =
        if args.instructions { Plan::counted() } else { Plan::new(args.quick, subjects.len(), &scenarios) };
    let begun = Machine::now()?;
    let shown = if args.instructions { in_instructions } else { <[Figure]>::to_vec };
    let samples = measure(&mut subjects, &scenarios, &plan, shown, &mut results);
    let measured = Machine::now()?.since(&begun);
    if !args.no_syscalls {
        trace(&subjects, &scenarios, &mut results);
    }
    let peers: Vec<&str> = subjects.iter().filter(|s| s.kind.is_peer()).map(|s| s.kind.name()).collect();
    results.rows = samples.rows(&peers);
    drop(peers);
    drop(subjects);
    drop(stage);
    results.environment = Environment {
        background_cpu_percent: background,
        stolen_percent: percent(measured.stolen_us, measured.total_us),
        repeats: plan.repeats,
        seconds_each: plan.seconds,
        quick: args.quick,
        ..environment()
    };
    if args.instructions {
        print(&results);
        println!("{RESULTS}{}", serde_json::to_string(&results)?);
    } else {
        publish(&results, &args.out)?;
    }
    Ok(results.failures.is_empty())
}

fn chosen_scenarios(args: &RunArgs) -> Result<Vec<Scenario>> {
    let known: Vec<&str> = scenario::ALL.iter().map(|scenario| scenario.name).collect();
    for name in &args.only {
        ensure!(
            known.contains(&name.as_str()),
            "no scenario is called {name}; there are: {}",
            known.join(", ")
        );
    }
    let wanted = |scenario: &&Scenario| {
        if args.only.is_empty() {
            !scenario.on_demand && (!args.quick || scenario.quick)
        } else {
            args.only.iter().any(|n| n == scenario.name)
        }
    };
    Ok(scenario::ALL.iter().filter(wanted).copied().collect())
}

fn say(what: &str) {
    eprintln!("==> {what}");
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { count(part) * 100.0 / count(whole) }
}

/// How busy the machine is with other things.
fn background() -> Result<f64> {
    let before = Machine::now()?;
    std::thread::sleep(BACKGROUND);
    let during = Machine::now()?.since(&before);
    let busy = percent(during.busy_us, during.total_us);
    if busy > 5.0 {
        say(&format!("the machine is {busy:.0} % busy with other things: absolute figures will be noise"));
    }
    Ok(busy)
}

fn start_subjects(
    stage: &Stage,
    args: &RunArgs,
    tools: &Tools,
    reading: bool,
    results: &mut Results,
) -> Result<Vec<Subject>> {
    let wanted = |kind: Kind| {
        let named = args.subject.is_empty() || args.subject.iter().any(|n| n == kind.name());
        kind == Kind::Plain || (named && (reading || !kind.reads_requests()))
    };
    let mut subjects = Vec::new();
    for kind in [Kind::Plain, Kind::Meshd(Relay::Userspace)] {
        if wanted(kind) || args.subject.iter().any(|name| name.starts_with("meshd")) {
            subjects.push(started(stage, kind, tools)?);
        }
    }
    if let Some(meshd) = subjects.iter().find(|subject| matches!(subject.kind, Kind::Meshd(_))) {
        let (relays, missing) = subject::kernel_relays(meshd)?;
        results.notes.extend(missing);
        for kind in relays.into_iter().map(Kind::Meshd).filter(|kind| wanted(*kind)) {
            subjects.push(started(stage, kind, tools)?);
        }
    }
    for kind in Kind::ON_DEMAND.into_iter().filter(|kind| args.subject.iter().any(|n| n == kind.name())) {
        subjects.push(started(stage, kind, tools)?);
    }
    if wanted(Kind::MeshdHttp) {
        subjects.push(started(stage, Kind::MeshdHttp, tools)?);
    }
    for (kind, tool, how) in [
        (Kind::Envoy, &tools.envoy, "`cargo xtask bench` brings it"),
        (Kind::EnvoyHttp, &tools.envoy, "`cargo xtask bench` brings it"),
        (Kind::Ztunnel, &tools.ztunnel, "name an executable built with `--features testing` in ZTUNNEL_BIN"),
    ] {
        if tool.is_none() {
            results.notes.push(format!("without {}: {how}", kind.name()));
        } else if wanted(kind) {
            subjects.push(started(stage, kind, tools)?);
        }
    }
    for note in &results.notes {
        say(note);
    }
    Ok(subjects)
}

fn started(stage: &Stage, kind: Kind, tools: &Tools) -> Result<Subject> {
    say(&format!("start {}", kind.name()));
    let subject =
        Subject::start(stage, kind, tools).with_context(|| format!("cannot start {}", kind.name()))?;
    subject.prove_wire().with_context(|| format!("looking at the wire of {}", kind.name()))?;
    subject.prove_rules().with_context(|| format!("asking {} for what its rules forbid", kind.name()))?;
    Ok(subject)
}

/// Every repeat measures every scenario with every subject, in another order of subjects each time.
fn measure(
    subjects: &mut [Subject],
    scenarios: &[Scenario],
    plan: &Plan,
    shown: fn(&[Figure]) -> Vec<Figure>,
    results: &mut Results,
) -> Samples {
    let mut samples = Samples::default();
    for repeat in 0..plan.repeats.max(plan.untimed_repeats) {
        for scenario in scenarios.iter().filter(|scenario| repeat < plan.repeats_of(scenario)) {
            let mut line = format!("{} {}/{}:", scenario.name, repeat + 1, plan.repeats_of(scenario));
            // The first round shows plain TCP first, so that rows keep that order.
            let (turn, all) = (repeat % subjects.len(), subjects.len());
            for index in (0..all).map(|index| (index + turn) % all) {
                let subject = &mut subjects[index];
                if subject.kind.reads_requests() && !scenario.requests_are_read {
                    continue;
                }
                match one(subject, scenario.work, plan.seconds) {
                    Ok(figures) => {
                        let figures = shown(&figures);
                        line.push_str(&brief(subject.kind.name(), &figures));
                        samples.add(subject.kind.name(), scenario.name, &figures);
                    }
                    Err(error) => {
                        let failure = format!("{} {}: {error:#}", subject.kind.name(), scenario.name);
                        say(&failure);
                        results.failures.push(failure);
                    }
                }
            }
            say(&line);
        }
    }
    samples
}

fn brief(subject: &str, figures: &[Figure]) -> String {
    let first =
        figures.first().map(|f| format!("{} {}", crate::figures::show(f.value), f.unit)).unwrap_or_default();
    format!("  {subject} {first}")
}

/// Counters around a piece of work.
struct Watch {
    machine: Machine,
    programs: Programs,
    proxies: Vec<Programs>,
}

impl Watch {
    fn start(subject: &Subject) -> Result<Self> {
        let programs = Programs::now(subject.ground.cgroup())?;
        Ok(Self { machine: Machine::now()?, programs, proxies: subject.proxies()? })
    }

    /// Figures per `unit` of work, of which `done` were done; times are in `per` microseconds.
    fn figures(&self, subject: &Subject, done: f64, unit: &str, per: (&str, f64)) -> Result<Vec<Figure>> {
        let machine = Machine::now()?.since(&self.machine);
        let programs = Programs::now(subject.ground.cgroup())?.since(&self.programs);
        let now = subject.proxies()?;
        let proxies: Vec<Programs> =
            now.iter().zip(&self.proxies).map(|(now, then)| now.since(then)).collect();
        let (name, size) = per;
        let time = |us: u64| count(us) / size / done;
        let (time_unit, calls_unit) = (format!("{name}/{unit}"), format!("per {unit}"));
        let mut figures = vec![
            Figure::new("cpu", &time_unit, time(machine.busy_us)),
            Figure::new("cpu in softirq", &time_unit, time(machine.softirq_us)),
            Figure::new("cpu of all programs", &time_unit, time(programs.cpu_us)),
            Figure::new("context switches", &calls_unit, count(machine.switches) / done),
        ];
        if let [near, far] = proxies[..] {
            figures.extend([
                Figure::new("cpu of the proxies", &time_unit, time(near.cpu_us + far.cpu_us)),
                Figure::new("cpu of the client's proxy", &time_unit, time(near.cpu_us)),
                Figure::new("cpu of the server's proxy", &time_unit, time(far.cpu_us)),
                Figure::new(
                    "context switches of the proxies",
                    &calls_unit,
                    count(near.switches + far.switches) / done,
                ),
            ]);
        }
        Ok(figures)
    }
}

const MICROSECONDS: (&str, f64) = ("us", 1.0);
const SECONDS: (&str, f64) = ("s", 1e6);

fn one(subject: &mut Subject, work: Work, seconds: u32) -> Result<Vec<Figure>> {
    match work {
        Work::KeepAlive { .. } | Work::PerConnection { .. } | Work::OpenLoop { .. } => {
            let watch = Watch::start(subject)?;
            let report = requests(subject, work, seconds)?;
            let unit = if matches!(work, Work::PerConnection { .. }) { "connection" } else { "request" };
            let mut figures = served(&report, unit);
            figures.extend(watch.figures(subject, count(report.count), unit, MICROSECONDS)?);
            Ok(figures)
        }
        Work::Bulk { streams, both_ways } => {
            let watch = Watch::start(subject)?;
            let transfer = bulk(subject, streams, both_ways, seconds)?;
            let mut figures = vec![Figure::new(THROUGHPUT, "Gbit/s", transfer.gigabits_per_second())];
            figures.extend(watch.figures(subject, transfer.gigabytes(), "GB", SECONDS)?);
            Ok(figures)
        }
        Work::Idle { connections } => idle(subject, connections),
        Work::Storm { connections } => storm(subject, connections),
        Work::Start => start(subject),
    }
}

fn served(report: &Report, unit: &str) -> Vec<Figure> {
    let latency = report.latency_us;
    vec![
        Figure::new(THROUGHPUT, format!("{unit}s/s"), count(report.count) / report.seconds),
        Figure::new("p50", "us", latency.p50),
        Figure::new("p90", "us", latency.p90),
        Figure::new("p99", "us", latency.p99),
        Figure::new("p99.9", "us", latency.p999),
    ]
}

fn requests(subject: &Subject, work: Work, seconds: u32) -> Result<Report> {
    let limit = SLACK + Duration::from_secs(seconds.into());
    let duration = seconds.to_string();
    match work {
        Work::KeepAlive { connections, kib } => {
            let script = subject.ground.dir().join("wrk.lua");
            std::fs::write(&script, WRK_SCRIPT)?;
            let (threads, connections) = (connections.min(2).to_string(), connections.to_string());
            let (url, script) = (subject.url(&format!("/{kib}k")), script.to_string_lossy());
            let duration = format!("{duration}s");
            let argv = [
                "wrk",
                "-t",
                &threads,
                "-c",
                &connections,
                "-d",
                &duration,
                "-H",
                TEAM_HEADER,
                "-s",
                &script,
                &url,
            ];
            Report::from_wrk(&client(subject, "wrk", &argv)?.finish(limit)?)?.complete()
        }
        Work::PerConnection { at_once } => {
            let own = ["connections", "--at-once", &at_once.to_string(), "--seconds", &duration];
            Report::parse(&own_client(subject, &own)?.finish(limit)?)?.complete()
        }
        Work::OpenLoop { connections, per_second } => {
            let (connections, per_second) = (connections.to_string(), per_second.to_string());
            let own = [
                "open-loop",
                "--connections",
                &connections,
                "--per-second",
                &per_second,
                "--seconds",
                &duration,
            ];
            Report::parse(&own_client(subject, &own)?.finish(limit)?)?.complete()
        }
        _ => anyhow::bail!("no requests are made in this scenario"),
    }
}

fn bulk(subject: &Subject, streams: u32, both_ways: bool, seconds: u32) -> Result<Transfer> {
    let (server, port) = (subject.ground.server.address.to_string(), BULK_PORT.to_string());
    let (duration, streams) = (seconds.to_string(), streams.to_string());
    let mut argv = vec!["iperf3", "--client", &server, "--port", &port, "--time", &duration, "--json"];
    argv.extend(["--parallel", &streams]);
    if both_ways {
        argv.push("--bidir");
    }
    let limit = SLACK + Duration::from_secs(seconds.into());
    Transfer::parse(&client(subject, "iperf3", &argv)?.finish(limit)?)
}

/// Memory per connection: of the proxies, and the kernel's for the sockets of everybody on the path.
fn idle(subject: &Subject, connections: u32) -> Result<Vec<Figure>> {
    // The kernel frees the sockets of the measurement before a little later.
    std::thread::sleep(SETTLE);
    let (before, kernel) = (resident_kib(&subject.proxies()?), machine::kernel_objects_kib()?);
    let number = connections.to_string();
    let begun = Instant::now();
    let mut client = own_client(subject, &["idle", "--connections", &number])?;
    client.wait_to_say(READY, SLACK + OPENING * connections)?;
    let opened = begun.elapsed();
    // What was used while they were opened may be given back.
    std::thread::sleep(SETTLE);
    let (after, kernel_after) = (resident_kib(&subject.proxies()?), machine::kernel_objects_kib()?);
    client.tell("go on")?;
    let report = Report::parse(&client.finish(SLACK + OPENING * connections)?)?.complete()?;
    let each = |kib: u64| count(kib) / f64::from(connections);
    let mut figures = vec![Figure::new(
        "memory of the kernel",
        "KiB/connection",
        each(kernel_after.saturating_sub(kernel)),
    )];
    if after > 0 {
        figures.push(Figure::new(
            "memory of the proxies",
            "KiB/connection",
            each(after.saturating_sub(before)),
        ));
        figures.push(Figure::new("resident proxies", "KiB", count(after)));
    }
    figures.push(Figure::new("p50 of the active", "us", report.latency_us.p50));
    figures.push(Figure::new("p99 of the active", "us", report.latency_us.p99));
    figures.push(Figure::new("time to open", "s", opened.as_secs_f64()));
    Ok(figures)
}

fn resident_kib(proxies: &[Programs]) -> u64 {
    proxies.iter().map(|programs| programs.resident_kib).sum()
}

/// What it takes until proxies serve.
fn start(subject: &mut Subject) -> Result<Vec<Figure>> {
    let served = subject.restart()?;
    // What was used while they started may be given back.
    std::thread::sleep(SETTLE);
    let proxies = subject.proxies()?;
    let mut figures = vec![Figure::new("time until it serves", "s", served.as_secs_f64())];
    if !proxies.is_empty() {
        let used: u64 = proxies.iter().map(|programs| programs.cpu_us).sum();
        figures.push(Figure::new("resident proxies", "KiB", count(resident_kib(&proxies))));
        figures.push(Figure::new("cpu of the proxies", "s", count(used) / 1e6));
    }
    Ok(figures)
}

fn storm(subject: &mut Subject, connections: u32) -> Result<Vec<Figure>> {
    let _ = subject.restart()?;
    let watch = Watch::start(subject)?;
    let number = connections.to_string();
    let client = own_client(subject, &["storm", "--connections", &number])?;
    let report = Report::parse(&client.finish(SLACK)?)?;
    ensure!(report.count > 0, "nobody was served");
    let mut figures = served(&report, "connection");
    figures.push(Figure::new("not served", "connections", count(report.failures)));
    figures.extend(watch.figures(subject, count(report.count), "connection", MICROSECONDS)?);
    Ok(figures)
}

fn client(subject: &Subject, role: &str, argv: &[&str]) -> Result<Running> {
    subject.ground.start(&subject.ground.client, &format!("client-{role}"), argv, None)
}

/// One of this program's own clients.
fn own_client(subject: &Subject, own: &[&str]) -> Result<Running> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let (program, to) = (program.to_string_lossy(), format!("{}:{HTTP_PORT}", subject.ground.server.address));
    let mut argv = vec![&*program, "load"];
    argv.extend(own);
    argv.extend(["--to", &to]);
    client(subject, own[0], &argv)
}

/// A short pass of some scenarios under strace.
fn trace(subjects: &[Subject], scenarios: &[Scenario], results: &mut Results) {
    for scenario in scenarios.iter().filter(|scenario| TRACED.contains(&scenario.name)) {
        say(&format!("system calls in {}", scenario.name));
        let read = |subject: &&Subject| scenario.requests_are_read || !subject.kind.reads_requests();
        for subject in subjects.iter().filter(read) {
            match traced(subject, scenario) {
                Ok(rows) => results.syscalls.extend(rows),
                Err(error) => {
                    results.failures.push(format!(
                        "{} {} traced: {error:#}",
                        subject.kind.name(),
                        scenario.name
                    ));
                }
            }
        }
    }
}

fn traced(subject: &Subject, scenario: &Scenario) -> Result<Vec<SyscallRow>> {
    let counted = syscalls::count(subject, || match scenario.work {
        Work::Bulk { streams, both_ways } => {
            Ok(("per MB", bulk(subject, streams, both_ways, TRACED_S)?.gigabytes() * 1000.0))
        }
        work => {
            let unit =
                if matches!(work, Work::PerConnection { .. }) { "per connection" } else { "per request" };
            Ok((unit, count(requests(subject, work, TRACED_S)?.count)))
        }
    })?;
    let Some((calls, (unit, done))) = counted else { return Ok(Vec::new()) };
    ensure!(!calls.is_empty(), "strace counted nothing");
    let row = |(syscall, calls): (String, u64)| SyscallRow {
        subject: subject.kind.name().to_owned(),
        scenario: scenario.name.to_owned(),
        syscall,
        unit: unit.to_owned(),
        calls: count(calls) / done,
    };
    Ok(calls.into_iter().map(row).collect())
}

fn environment() -> Environment {
    let said = |program: &str, args: &[&str]| {
        output(Command::new(program).args(args), program)
            .map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned())
    };
    Environment {
        started: said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        kernel: said("uname", &["-r"]),
        processor: machine::processor(),
        processors: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        commit: said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]),
        ..Environment::default()
    }
}

fn print(results: &Results) {
    print!("{}", table::results(results));
    for calls in table::syscalls(results) {
        println!("{calls}");
    }
}

fn publish(results: &Results, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let (latest, page) = (out.join("latest.json"), out.join("report.html"));
    if latest.exists() {
        // What the next comparison wants.
        std::fs::rename(&latest, out.join("previous.json")).context("keeping the results before")?;
    }
    results.write(&latest)?;
    html::write(results, &page)?;
    print(results);
    say(&format!("{} and {}", latest.display(), page.display()));
    Ok(())
}
