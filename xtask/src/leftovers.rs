//! What must not outlive this program: removed when its guard is dropped, and when a signal ends us before that.
//! After SIGKILL it stays; whoever makes such things finds them again on the next start.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::sys::signal::{SigSet, Signal};

static LEFTOVERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Has signals that end us remove what is left first. Call it before there are other threads, which inherit what
/// it blocks; children do not.
pub(crate) fn remove_on_signal() -> nix::Result<()> {
    let signals: SigSet = ENDING.into_iter().collect();
    signals.thread_block()?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        // Held until the end: nothing is registered any more.
        let leftovers = lock();
        for path in leftovers.iter() {
            remove(path);
        }
        eprintln!("interrupted ({signal})");
        process::exit(128 + signal as i32);
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
