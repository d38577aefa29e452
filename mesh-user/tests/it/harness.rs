//! Runs the stories: one trial per story and relay kind, a bound on each one's time, a reason for each one not run.
//! A story that overruns loses its processes first, so that whatever it waits for ends and its ground is removed.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::ground::{self, Ground};
use super::relay::{self, Relay};
use super::{peer, scenarios};

/// What a story needs besides root.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: it judges the harness itself.
    NoDaemon,
    /// `meshd`, once, with the relay the machine offers first.
    Daemon,
    /// `meshd`, once, on this machine's own kernel: much work, and nothing of it depends on the kernel.
    DaemonNatively,
    /// `meshd`, once for every relay kind.
    EveryRelay,
    /// `meshd` and Envoy, once, on this machine's own kernel.
    Envoy,
    /// `meshd` and an `OpenID` provider, once, on this machine's own kernel.
    OpenIdProvider,
    /// `meshd` and py-spiffe, once, on this machine's own kernel.
    SpiffeClient,
    /// `meshd`, once, where the processor has `cmpxchg16b`: haproxy does not run without it.
    WideCompare,
    /// A Kubernetes API server, once, on this machine's own kernel.
    Kubernetes,
    /// A Kubernetes API server and Helm's library, once, on this machine's own kernel.
    Helm,
    /// `meshd` and libfaketime, once, on this machine's own kernel.
    FakeTime,
    /// `meshd`, once, where the kernel lets programs use `io_uring`.
    IoUring,
}

impl Needs {
    /// Why no virtual machine tells such a story, where none does.
    fn why_natively(self) -> Option<&'static str> {
        match self {
            Self::DaemonNatively => Some("it does not depend on the kernel"),
            Self::Envoy => Some("Envoy is too slow for an emulated kernel"),
            Self::OpenIdProvider => Some("the OpenID provider does not depend on the kernel"),
            Self::Kubernetes | Self::Helm => Some("an API server is too slow for an emulated kernel"),
            Self::SpiffeClient => Some("a Python of this machine's own is needed"),
            Self::FakeTime => Some("libfaketime of this machine's own is needed"),
            Self::NoDaemon | Self::Daemon | Self::EveryRelay | Self::WideCompare | Self::IoUring => None,
        }
    }
}

/// A story: a sentence as its name, and the function that tells it.
#[derive(Clone, Copy)]
pub(crate) struct Story {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) tell: fn(&Ground) -> anyhow::Result<()>,
    /// Seconds on a machine of its own speed; a VM gets [`VM_PATIENCE`] times as many.
    pub(crate) limit_s: u64,
}

const VM_PATIENCE: u64 = 15;

/// Lists stories of one topic: `stories![NoDaemon: a, b; EveryRelay: c]` names each after its function.
macro_rules! stories {
    ($($needs:ident $limit_s:literal: $($tell:ident),+ $(,)?);+ $(;)?) => {
        &[$($($crate::it::harness::Story {
            name: stringify!($tell),
            needs: $crate::it::harness::Needs::$needs,
            tell: $tell,
            limit_s: $limit_s,
        },)+)+]
    };
}
pub(crate) use stories;

/// Why trials did not run, for the summary.
type Skipped = Arc<Mutex<BTreeMap<String, usize>>>;
/// How long each trial took, for the summary.
type Took = Arc<Mutex<Vec<(Duration, String)>>>;

/// How many of the slowest trials the summary names.
const SLOWEST: usize = 12;

/// Entry point of the test executable; also of the peers it starts from itself.
pub(crate) fn main() -> ExitCode {
    if let Some(code) = peer::main() {
        return code;
    }
    let mut args = Arguments::from_args();
    if !args.list && !nix::unistd::geteuid().is_root() {
        eprintln!(
            "these tests make network namespaces and cgroups: run them as root (sudo -E cargo xtask test)"
        );
        return ExitCode::from(101);
    }
    if !args.list {
        ground::sweep_dead();
        remove_on_signal();
    }
    if args.test_threads.is_none() {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        args.test_threads = Some(cores.clamp(2, 4));
    }
    let (skipped, took) = (Skipped::default(), Took::default());
    let trials = scenarios::all()
        .into_iter()
        .flat_map(|(topic, story)| trials(topic, *story, &skipped, &took))
        .collect();
    let conclusion = libtest_mimic::run(&args, trials);
    for (reason, count) in &*skipped.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
        println!("ignored {count}: {reason}");
    }
    say_slowest(&took);
    conclusion.exit_code()
}

/// A suite grows slow story by story: these are the ones to look at.
fn say_slowest(took: &Took) {
    let mut took = took.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    took.sort_by(|a, b| b.cmp(a));
    for (time, name) in took.iter().take(SLOWEST) {
        println!("slow {:.1} s: {name}", time.as_secs_f64());
    }
}

fn trials(topic: &str, story: Story, skipped: &Skipped, took: &Took) -> Vec<Trial> {
    let relays: &[Relay] = match story.needs {
        Needs::EveryRelay => &Relay::ALL,
        _ => &[Relay::Userspace],
    };
    relays
        .iter()
        .map(|&relay| {
            let name = match story.needs {
                Needs::EveryRelay => format!("{topic}::{}::{relay}", story.name),
                _ => format!("{topic}::{}", story.name),
            };
            let (skipped, took) = (Arc::clone(skipped), Arc::clone(took));
            let label = name.clone();
            Trial::ignorable_test(name, move || {
                if let Some(reason) = reason_not_to_run(&label, story, relay) {
                    *skipped
                        .lock()
                        .expect("no trial panics holding this")
                        .entry(reason.clone())
                        .or_default() += 1;
                    return Ok(Completion::ignored_with(reason));
                }
                let begun = Instant::now();
                let told = told_in_time(&label, story, relay);
                took.lock().expect("no trial panics holding this").push((begun.elapsed(), label.clone()));
                told.map(|()| Completion::Completed)
            })
        })
        .collect()
}

fn reason_not_to_run(name: &str, story: Story, relay: Relay) -> Option<String> {
    if story.needs == Needs::NoDaemon {
        return None;
    }
    if std::env::var_os("MESHD_TEST_NO_DAEMON").is_some() {
        return Some("MESHD_TEST_NO_DAEMON is set: only the harness's own checks run".to_owned());
    }
    if ground::Scale::from_environment().is_vm()
        && let Some(why) = story.needs.why_natively()
    {
        return Some(format!("{why}: its stories are told natively"));
    }
    if story.needs == Needs::Envoy && super::envoy::executable().is_none() {
        return Some("no Envoy under target/tools: cargo xtask test installs it".to_owned());
    }
    if story.needs == Needs::OpenIdProvider && scenarios::requests_openid::module().is_none() {
        return Some(
            "no oidc-provider under target/tools: cargo xtask test installs it where npm is".to_owned(),
        );
    }
    if matches!(story.needs, Needs::Kubernetes | Needs::Helm) && super::kube::assets().is_none() {
        return Some("no API server under target/kube: cargo xtask test builds it".to_owned());
    }
    if story.needs == Needs::Helm && scenarios::helm::library().is_none() {
        return Some("no Helm under target/tools: cargo xtask test fetches it".to_owned());
    }
    if story.needs == Needs::SpiffeClient && scenarios::workload_api::python().is_none() {
        return Some("no py-spiffe under target/tools: cargo xtask test installs it".to_owned());
    }
    if story.needs == Needs::FakeTime && super::faketime::library().is_none() {
        return Some("no libfaketime: cargo xtask setup installs it".to_owned());
    }
    if story.needs == Needs::WideCompare && !has_wide_compare() {
        return Some("this processor has no cx16, without which haproxy does not run".to_owned());
    }
    if story.needs == Needs::IoUring {
        return io_uring::IoUring::new(8)
            .err()
            .map(|error| format!("this kernel gives no io_uring: {error}"));
    }
    if ground::Scale::from_environment().is_vm()
        && story.needs == Needs::EveryRelay
        && relay == Relay::Userspace
    {
        let elsewhere =
            "on an emulated kernel the userspace relay is tested by relay_kernel, its stories natively";
        return Some(elsewhere.to_owned());
    }
    let moves_much = name.starts_with("bulk::");
    if relay == Relay::KtlsSplice && !moves_much && std::env::var_os("MESHD_TEST_SPLICE_BULK_ONLY").is_some()
    {
        let elsewhere = "on this emulated kernel splice is tested by relay_kernel and the bulk stories";
        return Some(elsewhere.to_owned());
    }
    relay::why_unavailable(relay)
}

fn has_wide_compare() -> bool {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processors.split_whitespace().any(|flag| flag == "cx16")
}

/// Tells the story on a thread of its own and takes its ground away when the time is over.
fn told_in_time(name: &str, story: Story, relay: Relay) -> Result<(), Failed> {
    let ground = Ground::lay(name, relay)
        .map_err(|e| Failed::from(format!("cannot make the test's ground: {e:#}")))?;
    let (_, more) = ground.scale().load(0, 0);
    let limit =
        Duration::from_secs(story.limit_s * if ground.scale().is_vm() { VM_PATIENCE } else { 1 }) + more * 2;
    let (done, outcome) = mpsc::channel();
    let begun = Instant::now();
    let shared = Arc::new(ground);
    let teller = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (story.tell)(&teller)));
            // The receiver is gone only after a timeout, which has been reported already.
            let _ = done.send(told.map_err(|panic| panic_text(panic.as_ref())));
        })
        .map_err(|e| Failed::from(format!("cannot start a thread: {e}")))?;
    let told = outcome.recv_timeout(limit);
    if told.is_err() {
        shared.kill_everything();
    }
    let failure = match told {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(error))) => Some(format!("{error:#}")),
        Ok(Err(panic)) => Some(panic),
        Err(_) => Some(format!("not over after {} s, processes killed", begun.elapsed().as_secs())),
    };
    // After a kill every wait inside the story ends; a thread that still hangs is left behind, its ground is not.
    let patience = Instant::now() + Duration::from_secs(10);
    while !thread.is_finished() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    match failure {
        None => Ok(()),
        Some(text) => {
            let kept = shared.keep_logs(name);
            shared.remove();
            Err(Failed::from(format!("{text}\n{kept}")))
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("(no text)"))
}

/// Ctrl-C and SIGTERM take everything of this process away before it ends.
fn remove_on_signal() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            else {
                return;
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
            }
        });
        eprintln!("interrupted: removing namespaces, cgroups and files of this run");
        ground::sweep_own();
        std::process::exit(130);
    });
}
