//! A process by its folder in /proc: what is read through an open one is that process's for good, since the number may
//! be another process's once it has ended, the open folder never (`proc_pid(5)`; reads fail with `ESRCH` then).

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::PathBuf,
};

use nix::{
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

/// More than the kernel ever shows of one process in one of these files.
const MAX_BYTES: u64 = 64 * 1024;

/// An open folder of a process.
#[derive(Debug)]
pub struct ProcDir(OwnedFd);

impl ProcDir {
    /// Of the process that has this number now.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(Self(open(format!("/proc/{pid}").as_str(), flags, Mode::empty())?))
    }

    /// Its network namespace.
    pub fn netns(&self) -> io::Result<File> {
        self.file("ns/net")
    }

    /// Its path in the cgroup v2 tree, as /proc shows it to this process.
    pub fn cgroup(&self) -> io::Result<Option<PathBuf>> {
        let text = self.text("cgroup")?;
        // The unified hierarchy's line (cgroups(7)).
        Ok(text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from))
    }

    /// When it began, in ticks since the machine's start: field 22 of `proc_pid_stat(5)`.
    pub fn started(&self) -> io::Result<u64> {
        let text = self.text("stat")?;
        // A process names itself, in brackets, with whatever it likes.
        let fields = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let started = fields.split_whitespace().nth(19).and_then(|field| field.parse().ok());
        started.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has no start"))
    }

    fn file(&self, name: &str) -> io::Result<File> {
        Ok(openat(&self.0, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    fn text(&self, name: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.file(name)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, process::Command};

    use super::*;

    #[test]
    fn a_folder_is_of_its_process_only() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let folder = ProcDir::open(child.id().cast_signed()).unwrap();
        let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(folder.netns().unwrap().metadata().unwrap().ino(), own);
        assert!(folder.started().unwrap() > 0 && folder.cgroup().is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(folder.netns().is_err() && folder.cgroup().is_err());
    }
}
