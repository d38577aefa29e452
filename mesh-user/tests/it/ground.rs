//! The ground a story stands on: a name unique to this process, a folder, a cgroup, and the one function that takes
//! everything with that name away. Namespaces, mounts and cgroups are found by name, so nothing needs registering
//! and a dead run's leftovers are removed the same way.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::cgroup;
use super::relay::Relay;

/// Prefix of every name the tests make: `mt-<pid>-<story>`.
const PREFIX: &str = "mt-";
/// Where `ip netns` keeps its names.
pub(crate) const NETNS_DIR: &str = "/run/netns";
const TMP_DIR: &str = "/tmp";

/// How much of everything: a VM without hardware virtualisation is ten to thirty times slower.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Full,
    Vm,
}

impl Scale {
    pub(crate) fn from_environment() -> Self {
        if std::env::var("MESHD_TEST_SCALE").is_ok_and(|scale| scale == "vm") { Self::Vm } else { Self::Full }
    }

    pub(crate) fn is_vm(self) -> bool {
        self == Self::Vm
    }

    /// The count for this machine.
    pub(crate) fn of<T>(self, full: T, vm: T) -> T {
        match self {
            Self::Full => full,
            Self::Vm => vm,
        }
    }

    /// How many connections a story of load makes, and what to wait for them beyond a story's own time;
    /// `MESHD_TEST_LOAD` sets another count.
    pub(crate) fn load(self, full: u32, vm: u32) -> (u32, Duration) {
        match std::env::var("MESHD_TEST_LOAD").ok().and_then(|count| count.parse().ok()) {
            Some(count) => (count, Duration::from_millis(20) * count),
            None => (self.of(full, vm), Duration::ZERO),
        }
    }
}

/// What one story owns.
pub(crate) struct Ground {
    tag: String,
    dir: PathBuf,
    cgroup: PathBuf,
    relay: Relay,
    scale: Scale,
}

impl Ground {
    /// Makes folder and cgroup for the story called `name`.
    pub(crate) fn lay(name: &str, relay: Relay) -> anyhow::Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        still_wanted()?;
        let tag = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(TMP_DIR).join(&tag);
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let cgroup = cgroup::base()?.join(&tag);
        let ground = Self { tag, dir, cgroup, relay, scale: Scale::from_environment() };
        cgroup::make(&ground.cgroup)?;
        fs::write(ground.dir.join("story"), name)?;
        Ok(ground)
    }

    /// The name that everything of this story starts with.
    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    /// The story's folder; removed with it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cgroup that holds every process of the story, daemons included.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    pub(crate) fn relay(&self) -> Relay {
        self.relay
    }

    pub(crate) fn scale(&self) -> Scale {
        self.scale
    }

    /// Ends every process of the story.
    pub(crate) fn kill_everything(&self) {
        if let Err(error) = cgroup::kill(&self.cgroup) {
            eprintln!("{}: {error:#}", self.tag);
        }
    }

    /// The tail of each log, and a copy of all of them under the build folder.
    pub(crate) fn keep_logs(&self, name: &str) -> String {
        let kept = super::daemon::bin_dir().join("test-logs").join(name.replace("::", "."));
        let _ = fs::remove_dir_all(&kept);
        let _ = fs::create_dir_all(&kept);
        let mut logs: Vec<PathBuf> = fs::read_dir(&self.dir)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        logs.retain(|path| path.is_file());
        logs.sort();
        let mut text = format!("files kept in {}\n", kept.display());
        for path in logs {
            let Some(file_name) = path.file_name() else { continue };
            let _ = fs::copy(&path, kept.join(file_name));
            let readable = path.extension().is_some_and(|ext| ext == "log" || ext == "err" || ext == "out");
            let Ok(log) = fs::read_to_string(&path) else { continue };
            if readable && !log.is_empty() {
                let lines: Vec<&str> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(15)..];
                let _ = write!(text, "--- {}\n{}\n", file_name.display(), tail.join("\n"));
            }
        }
        text
    }

    /// Takes the ground away; safe to call again.
    pub(crate) fn remove(&self) {
        remove(&self.tag);
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes what runs of processes that no longer live have left.
pub(crate) fn sweep_dead() {
    for tag in tags() {
        if pid_of(&tag).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&tag);
        }
    }
}

/// Set when the run was interrupted: nothing new may be made while what is there is being removed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Fails once the run was interrupted; asked before anything is made or started.
pub(crate) fn still_wanted() -> anyhow::Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::SeqCst), "the run was interrupted");
    Ok(())
}

/// Removes everything of this process, for good.
pub(crate) fn sweep_own() {
    INTERRUPTED.store(true, Ordering::SeqCst);
    // Whoever asked just before may still be making something.
    for pause_ms in [0, 300] {
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        for tag in tags() {
            if pid_of(&tag) == Some(std::process::id()) {
                remove(&tag);
            }
        }
    }
}

fn pid_of(tag: &str) -> Option<u32> {
    tag.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Tags seen in any of the three places: `mt-<pid>-<n>`.
fn tags() -> Vec<String> {
    let base = cgroup::base().unwrap_or_default();
    let mut tags: Vec<String> = [Path::new(NETNS_DIR), Path::new(TMP_DIR), &base]
        .into_iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .filter(|name| pid_of(name).is_some())
        .map(|name| name.splitn(4, '-').take(3).collect::<Vec<_>>().join("-"))
        .collect();
    tags.sort();
    tags.dedup();
    tags
}

/// Removes everything named `tag`: processes, namespaces, mounts, folder, cgroup, in that order.
fn remove(tag: &str) {
    let Ok(base) = cgroup::base() else { return };
    let group = base.join(tag);
    if let Err(error) = cgroup::kill(&group) {
        eprintln!("{tag}: {error:#}");
    }
    let names =
        fs::read_dir(NETNS_DIR).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    for name in names.iter().map(fs::DirEntry::file_name) {
        if name.to_string_lossy().starts_with(&format!("{tag}-")) {
            super::netns::remove(&name);
        }
    }
    let dir = Path::new(TMP_DIR).join(tag);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(target).starts_with(&dir) {
            quietly(Command::new("umount").args(["--lazy", target]));
        }
    }
    let _ = fs::remove_dir_all(&dir);
    cgroup::remove(&group);
}

fn quietly(command: &mut Command) {
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
