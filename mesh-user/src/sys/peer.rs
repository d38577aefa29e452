//! Who is at the other end of a Unix socket: the process that connected, as the kernel remembers it (unix(7)), and what
//! that process is now. A process's number may be given to another one when it has ended; its pidfd (`pidfd_open(2)`) never
//! is, so whatever is read by the number counts only while the pidfd says that the process lives.
//!
//! Kernels before 6.5 give no pidfd of who connected, only the number. There it is opened by that number, and counts if the
//! process that has it now was there before the connection can have been made: a later one of the same number was not.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use std::{os::fd::FromRawFd, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
    unistd::{SysconfVar, sysconf},
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
    /// Of the socket that `accept` gave. `quiet`: a moment of the machine's time since its start (`CLOCK_BOOTTIME`) at which
    /// no connection waited to be accepted, so that this one was made after it.
    ///
    /// # Errors
    /// `NotFound` when the process has ended, or is in a pid namespace that is not below ours. `PermissionDenied` when
    /// nothing tells it from a later one of the same number: it may connect again a moment later.
    pub fn of(socket: &impl AsFd, quiet: Duration) -> io::Result<Self> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials)?;
        let (pid, uid) = (credentials.pid(), credentials.uid());
        if pid <= 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process is not visible from here"));
        }
        match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(process) => Ok(Self { pid, uid, process }),
            Err(Errno::ENOPROTOOPT) => Self::by_number(pid, uid, quiet),
            Err(Errno::ESRCH | Errno::EINVAL) => Err(gone()),
            Err(other) => Err(other.into()),
        }
    }

    /// The process that had this number at `quiet`, if it still has it.
    fn by_number(pid: i32, uid: u32, quiet: Duration) -> io::Result<Self> {
        let before = started(pid)?;
        let process = open(pid)?;
        // The same before and after: this is what was opened, and it keeps its number while it lives.
        if started(pid)? != before || !is_alive(process.as_fd())? {
            return Err(gone());
        }
        if before >= quiet {
            let what = "it may have its number from the one that connected; connect again";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
        Ok(Self { pid, uid, process })
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

/// Whether no connection waits to be accepted.
///
/// # Errors
/// When the listener cannot be asked.
pub fn is_quiet(listener: &impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? == 0)
}

/// `pidfd_open(2)`.
fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: two numbers go in, and no memory is touched.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made it, close-on-exec, and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Err(gone()),
            error => Err(error),
        },
    }
}

/// When a process started, since the machine did, rounded up: field 22 of `proc_pid_stat(5)`.
fn started(pid: i32) -> io::Result<Duration> {
    let mut text = String::new();
    let file = File::open(format!("/proc/{pid}/stat"));
    let file = file.map_err(|error| if error.kind() == io::ErrorKind::NotFound { gone() } else { error })?;
    file.take(MAX_PROC_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| if error.raw_os_error() == Some(libc::ESRCH) { gone() } else { error })?;
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has no start");
    let ticks = start_ticks(&text).ok_or_else(unreadable)?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let nanoseconds = 1_000_000_000 / per_second.ok_or_else(unreadable)?;
    Ok(Duration::from_nanos(ticks.saturating_add(1).saturating_mul(nanoseconds)))
}

/// Its name, in brackets, may hold anything, brackets too; nothing behind it does.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(19)?.parse().ok()
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
    use crate::sys::clock::boot_time;

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
        let peer = Peer::of(&stream, boot_time()).unwrap();
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
        let peer = Peer::of(&stream, boot_time()).unwrap();
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
        let error = Peer::of(&stream, boot_time());
        assert!(error.is_err() || !error.unwrap().is_alive().unwrap());
    }

    #[test]
    fn by_its_number_it_is_the_same_if_it_was_there_before() {
        let (_folder, stream, mut child) = connected();
        let known = Peer::of(&stream, Duration::ZERO).unwrap();
        let (pid, uid) = (known.pid(), known.uid());
        // Started within the last hundredth of a second, it is told from nobody.
        let began = started(pid).unwrap();
        for quiet in [Duration::ZERO, began.saturating_sub(Duration::from_nanos(1)), began] {
            let error = Peer::by_number(pid, uid, quiet).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{quiet:?}");
        }
        while boot_time() <= began {
            std::thread::yield_now();
        }
        let found = Peer::by_number(pid, uid, boot_time()).unwrap();
        assert_eq!(found.look().unwrap(), known.look().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.look().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(Peer::by_number(pid, uid, boot_time()).unwrap_err().kind(), io::ErrorKind::NotFound);
        // Ourselves, who are older than this test.
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(
            Peer::by_number(own, uid, boot_time()).unwrap().look().unwrap().netns,
            FileId::of(Path::new("/proc/self/ns/net")).unwrap()
        );
    }

    #[test]
    fn a_listener_is_quiet_until_somebody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_quiet(&listener).unwrap());
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(!is_quiet(&listener).unwrap());
    }

    #[test]
    fn lines_of_proc_are_read_as_the_kernel_writes_them() {
        assert_eq!(cgroup("1:name=x:/a\n0::/batch/0::x\n"), Some("/batch/0::x".into()));
        assert_eq!(cgroup("1:name=x:/a\n"), None);
        assert_eq!(users("Name:\tUid: 7\\nUid:\nUid:\t1000\t0\t0\t0\n"), Some((1000, 0)));
        assert_eq!(users("Uid:\tx\n"), None);
        let stat = "7 (a) b 1 2) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 9 9\n";
        assert_eq!((start_ticks(stat), start_ticks("7 (a) S 1")), (Some(4711), None));
    }
}
