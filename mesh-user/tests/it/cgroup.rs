//! Control groups of the test's own, under the machine's cgroup2 mount: what capture is attached to, and the handle
//! by which every process of a story is ended. The mount's root itself is never written to.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Where tests may make cgroups: `MESHD_TEST_CGROUP`, else the cgroup2 mount itself.
pub(crate) fn base() -> anyhow::Result<PathBuf> {
    if let Some(base) = std::env::var_os("MESHD_TEST_CGROUP") {
        return Ok(base.into());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(target))
    });
    mount.context("no cgroup2 is mounted: mount one, or name a writable one in MESHD_TEST_CGROUP")
}

/// Makes `path` and its parents.
pub(crate) fn make(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making cgroup {}", path.display()))
}

/// Kills every process in `path` and below, and waits until they are gone.
pub(crate) fn kill(path: &Path) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("killing cgroup {}", path.display()))?;
    let patience = Instant::now() + Duration::from_secs(5);
    while is_populated(path) {
        if Instant::now() > patience {
            bail!("processes of cgroup {} did not die", path.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether any process lives in `path` or below.
pub(crate) fn is_populated(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
}

/// Removes `path` and everything below it; processes must be gone.
pub(crate) fn remove(path: &Path) {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove(&entry.path());
        }
    }
    // A cgroup may stay busy for some milliseconds after its last process.
    for _ in 0..50 {
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
