//! A wall clock of a program's own, which the story sets while it runs: Debian's libfaketime, loaded into the program. The
//! clocks that nobody sets (`CLOCK_MONOTONIC`, `CLOCK_BOOTTIME`) stay the machine's.

use std::fs;
use std::path::{Path, PathBuf};

/// The library; none: it is not installed.
pub(crate) fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    folders
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
}

/// The clock of one program.
pub(crate) struct WallClock {
    file: PathBuf,
    library: PathBuf,
}

impl WallClock {
    /// Right, at first.
    pub(crate) fn new(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let library = library().ok_or_else(|| anyhow::anyhow!("libfaketime is not installed"))?;
        let clock = Self { file: folder.join(format!("{name}.clock")), library };
        clock.set(0)?;
        Ok(clock)
    }

    /// What to write before the program's name to have it live by this clock.
    pub(crate) fn prefix(&self) -> Vec<String> {
        vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", self.library.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            "DONT_FAKE_MONOTONIC=1".to_owned(),
        ]
    }

    /// Sets it so many seconds before or after the machine's.
    pub(crate) fn set(&self, seconds: i64) -> anyhow::Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(fs::rename(new, &self.file)?)
    }
}
