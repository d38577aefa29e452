//! What must not outlive this program: removed when its guard is dropped, and when a signal ends us before that.
//! After SIGKILL it stays; whoever makes such things finds them again on the next start.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
    low_level::signal_name,
};

static LEFTOVERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Has signals that end us remove what is left first. They are handled and not blocked: children would inherit a
/// blocked signal, and what we start must heed its own SIGTERM.
pub(crate) fn remove_on_signal() -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        // Held until the end: nothing is registered any more.
        let leftovers = lock();
        for path in leftovers.iter() {
            remove(path);
        }
        eprintln!("interrupted ({})", signal_name(signal).unwrap_or("signal"));
        process::exit(128 + signal);
    });
    Ok(())
}

/// A file or folder that goes when this is dropped.
pub(crate) struct Leftover(PathBuf);

impl Leftover {
    /// Registers what is there, or is about to be.
    pub(crate) fn new(path: PathBuf) -> Self {
        lock().push(path.clone());
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        remove(&self.0);
        lock().retain(|path| *path != self.0);
    }
}

fn lock() -> MutexGuard<'static, Vec<PathBuf>> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove(path: &Path) {
    // What is gone already is as good as removed.
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_heeds_the_signals_that_end_us() {
        remove_on_signal().unwrap();
        let status = process::Command::new("cat").arg("/proc/self/status").output().unwrap().stdout;
        let status = String::from_utf8(status).unwrap();
        for mask in ["SigBlk:\t", "SigIgn:\t"] {
            let line = status.lines().find(|line| line.starts_with(mask)).unwrap();
            let bits = u64::from_str_radix(&line[mask.len()..], 16).unwrap();
            for signal in [SIGINT, SIGTERM, SIGHUP] {
                assert_eq!(bits >> (signal - 1) & 1, 0, "{signal} in {line}");
            }
        }
    }

    #[test]
    fn a_dropped_leftover_is_gone_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let leftover = Leftover::new(path.clone());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "text").unwrap();
        drop(leftover);
        assert!(!path.exists() && !lock().contains(&path));
    }
}
