//! Network namespaces: opening them, telling them apart, and doing something inside one on this thread.
//! A thread never stays behind in another namespace: if it cannot come back, the process ends.

use std::{
    cell::{Cell, OnceCell},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

const SO_NETNS_COOKIE: libc::c_int = 71;

/// An open network namespace. Holding it keeps the namespace alive.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    inode: u64,
    cookie: u64,
}

thread_local! {
    /// The namespace this thread belongs to, opened before it first leaves it.
    static HOME: OnceCell<(File, u64)> = const { OnceCell::new() };
    static AWAY: Cell<bool> = const { Cell::new(false) };
}

impl NetNs {
    /// Opens the namespace at a path such as `/run/netns/web` or `/proc/1234/ns/net`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(File::open(path)?)
    }

    /// Opens what somebody else says is a namespace: a file of another kind is refused, and never waited for.
    pub fn open_untrusted(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a network namespace"));
        }
        Self::from_file(file)
    }

    /// The namespace this thread is in now.
    pub fn current() -> io::Result<Self> {
        let file = File::open("/proc/thread-self/ns/net")?;
        let cookie = cookie_of_current()?;
        Ok(Self { inode: file.metadata()?.ino(), file, cookie })
    }

    /// Makes a namespace without a name: it ends when this and the last socket in it are dropped.
    pub fn create() -> io::Result<Self> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        Self::from_file(made.join().map_err(|_| io::Error::other("the thread for it ended"))??)
    }

    /// Takes an open namespace file. One of another kind is refused by `setns`.
    pub fn from_file(file: File) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        let cookie = run_in_file(&file, inode, cookie_of_current)??;
        Ok(Self { file, inode, cookie })
    }

    /// The kernel's number for this namespace, which it never uses again.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// A path by which this process and its children can open the namespace, while this is held.
    pub fn path_for_others(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// The inode number, as `ip netns` and links show it.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` with this thread inside the namespace. Sockets made there belong to it for good.
    ///
    /// `work` must not block and must not call `run_in` itself, which is an error.
    pub fn run_in<R>(&self, work: impl FnOnce() -> R) -> io::Result<R> {
        run_in_file(&self.file, self.inode, work)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Brings the thread home when dropped, panic or not.
struct Return;

impl Drop for Return {
    fn drop(&mut self) {
        let home = HOME.with(|home| home.get().map(|(file, _)| setns(file, CloneFlags::CLONE_NEWNET)));
        AWAY.set(false);
        if !matches!(home, Some(Ok(()))) {
            // Later connections of this thread would leave from, and be seen in, the wrong workload.
            eprintln!("meshd: a thread could not return from a workload's network namespace; ending");
            std::process::abort();
        }
    }
}

fn run_in_file<R>(file: &File, inode: u64, work: impl FnOnce() -> R) -> io::Result<R> {
    if AWAY.get() {
        return Err(io::Error::other("this thread is inside another network namespace already"));
    }
    let home_inode = HOME.with(|home| {
        if home.get().is_none() {
            let file = File::open("/proc/thread-self/ns/net")?;
            let inode = file.metadata()?.ino();
            let _: Result<(), _> = home.set((file, inode));
        }
        Ok::<_, io::Error>(home.get().map(|(_, inode)| *inode))
    })?;
    if home_inode == Some(inode) {
        return Ok(work());
    }
    setns(file, CloneFlags::CLONE_NEWNET)?;
    AWAY.set(true);
    let _return = Return;
    Ok(work())
}

fn cookie_of_current() -> io::Result<u64> {
    let socket = OwnedFd::from(socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?);
    netns_cookie_of_socket(socket.as_fd())
}

/// The cookie of the namespace a socket was made in.
pub fn netns_cookie_of_socket(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: both pointers lead to live locals, and `length` says how large the first one is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
