//! Who is at the other end of a Unix socket: the process that connected, as the kernel remembers it (unix(7)), and what
//! that process is now. A process's number may be given to another one when it has ended; its pidfd (`pidfd_open(2)`) never
//! is, so whatever is read by the number counts only while the pidfd says that the process lives.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
};

/// More than the kernel ever shows of one process in one of these files.
const MAX_PROC_BYTES: u64 = 64 * 1024;

/// A file by device and inode: one network namespace, or one cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of what a path leads to now.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// The process that connected a Unix socket. Who got the socket from it later does not matter.
#[derive(Debug)]
pub struct Peer {
    pid: i32,
    uid: u32,
    process: OwnedFd,
}

/// What a process is: read while it was alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its network namespace.
    pub netns: FileId,
    /// Its path in the cgroup v2 tree, as /proc shows it to this process.
    pub cgroup: Option<PathBuf>,
    /// Its real and its effective user.
    pub users: (u32, u32),
}

impl Peer {
    /// Of the socket that `accept` gave.
    ///
    /// # Errors
    /// `Unsupported` where the kernel has no `SO_PEERPIDFD` (before Linux 6.5): without it nothing could tell the process
    /// from a later one of the same number. `NotFound` when it has ended, or is in a pid namespace that is not below ours.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials)?;
        let process = getsockopt(socket, sockopt::PeerPidfd).map_err(|errno| match errno {
            nix::errno::Errno::ENOPROTOOPT => io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel does not tell which process connected (SO_PEERPIDFD, Linux 6.5)",
            ),
            nix::errno::Errno::ESRCH | nix::errno::Errno::EINVAL => gone(),
            other => other.into(),
        })?;
        if credentials.pid() <= 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process is not visible from here"));
        }
        Ok(Self { pid: credentials.pid(), uid: credentials.uid(), process })
    }

    /// Its number, for logs: it may be another process's by now.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its effective user when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether the process has not ended. One that nobody has waited for yet counts as ended.
    pub fn is_alive(&self) -> io::Result<bool> {
        is_alive(self.process.as_fd())
    }

    /// What the process is now.
    ///
    /// # Errors
    /// `NotFound` when it has ended, also while it was looked at.
    pub fn look(&self) -> io::Result<Process> {
        if !self.is_alive()? {
            return Err(gone());
        }
        let process = read(self.pid);
        // Alive after the last read, it had its number at each of them.
        if self.is_alive()? { process } else { Err(gone()) }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the process that connected has ended")
}

fn is_alive(process: BorrowedFd<'_>) -> io::Result<bool> {
    // A pidfd is readable once its process has ended (pidfd_open(2)).
    let mut fds = [PollFd::new(process, PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? == 0)
}

fn read(pid: i32) -> io::Result<Process> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let text = |name: &str| {
        let mut text = String::new();
        File::open(folder.join(name))?.take(MAX_PROC_BYTES).read_to_string(&mut text).map(|_| text)
    };
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/status has no users");
    Ok(Process {
        netns: FileId::of(&folder.join("ns/net"))?,
        cgroup: cgroup(&text("cgroup")?),
        users: users(&text("status")?).ok_or_else(unreadable)?,
    })
}

/// The unified hierarchy's line (cgroups(7)); names of cgroups have no line breaks.
fn cgroup(membership: &str) -> Option<PathBuf> {
    membership.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

/// `Uid:` with real, effective, saved and file-system user (`proc_pid_status(5)`). The process's own name, further up, has
/// its line breaks escaped.
fn users(status: &str) -> Option<(u32, u32)> {
    let mut ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace();
    Some((ids.next()?.parse().ok()?, ids.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::net::{UnixListener, UnixStream},
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// A process that connects to a listener, tells that it has, and waits.
    fn connected() -> (tempfile::TempDir, UnixStream, Child) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let program =
            "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nsys.stdin.read()";
        let child = Command::new("python3")
            .args(["-c", program])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let (stream, _) = listener.accept().unwrap();
        (folder, stream, child)
    }

    #[test]
    fn it_is_the_process_that_connected() {
        let (_folder, stream, mut child) = connected();
        let peer = Peer::of(&stream).unwrap();
        assert_eq!(u32::try_from(peer.pid()).unwrap(), child.id());
        let process = peer.look().unwrap();
        assert_eq!(process.netns, FileId::of(Path::new("/proc/self/ns/net")).unwrap());
        let own = nix::unistd::geteuid().as_raw();
        assert_eq!((process.users, peer.uid()), ((own, own), own));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(peer.look().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn one_that_ended_is_nobody_before_anyone_has_waited_for_it() {
        let (_folder, stream, mut child) = connected();
        let peer = Peer::of(&stream).unwrap();
        drop(child.stdin.take());
        let mut end = [0];
        (&stream).read_exact(&mut end).unwrap_err();
        // Its socket closes a little before the process has ended.
        while peer.is_alive().unwrap() {
            std::thread::yield_now();
        }
        // A zombie: /proc still shows what it was.
        assert_eq!(peer.look().unwrap_err().kind(), io::ErrorKind::NotFound);
        child.wait().unwrap();
        let error = Peer::of(&stream);
        assert!(error.is_err() || !error.unwrap().is_alive().unwrap());
    }

    #[test]
    fn lines_of_proc_are_read_as_the_kernel_writes_them() {
        assert_eq!(cgroup("1:name=x:/a\n0::/batch/0::x\n"), Some("/batch/0::x".into()));
        assert_eq!(cgroup("1:name=x:/a\n"), None);
        assert_eq!(users("Name:\tUid: 7\\nUid:\nUid:\t1000\t0\t0\t0\n"), Some((1000, 0)));
        assert_eq!(users("Uid:\tx\n"), None);
    }
}
