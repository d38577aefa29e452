//! Pipes and `splice(2)` between a socket and a pipe, always non-blocking. A pipe here is empty whenever it is
//! not inside one pump's hands.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    ptr,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};

/// What a pipe of a relay holds (kernel.md, rule 4).
pub const PIPE_BYTES: usize = 256 * 1024;

/// A non-blocking pipe that knows how much is in it.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    filled: usize,
    capacity: usize,
}

impl Pipe {
    /// Asks for `capacity` bytes; the kernel may round up, or give less to an unprivileged user.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let wanted = i32::try_from(capacity).map_err(io::Error::other)?;
        let granted = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(wanted))
            .or_else(|_| fcntl(&writer, FcntlArg::F_GETPIPE_SZ))?;
        let capacity = usize::try_from(granted).map_err(io::Error::other)?;
        Ok(Self { reader, writer, filled: 0, capacity })
    }

    /// Bytes inside.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Reads what the pipe holds.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = nix::unistd::read(&self.reader, buffer)?;
        self.filled -= count.min(self.filled);
        Ok(count)
    }

    /// Moves what the socket has into the empty pipe; 0 is the end of the stream.
    pub fn fill_from(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let moved = splice(socket, &self.writer, self.capacity - self.filled.min(self.capacity))?;
        self.filled += moved;
        Ok(moved)
    }

    /// Moves what the pipe holds to the socket.
    pub fn drain_to(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.reader, socket, self.filled)?;
        self.filled -= moved.min(self.filled);
        Ok(moved)
    }

    /// The same to a socket whose records the kernel makes: `WouldBlock` also sends what it has queued.
    ///
    /// Up to 6.4 the kernel's splice to a TLS socket queues full records with `MSG_SENDPAGE_NOTLAST`, and where they
    /// fill the send buffer it reports EAGAIN without sending them (`net/tls/tls_sw.c`, `tls_sw_do_sendpage`), so that
    /// the socket never became writable again.
    pub fn drain_to_tls(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.drain_to(socket).inspect_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                push(socket);
            }
        })
    }
}

/// Sends queued segments: setting `TCP_NODELAY`, which every leg has, does (net/ipv4/tcp.c,
/// `__tcp_sock_set_nodelay`). A socket that refuses it is closed already.
fn push(socket: &impl AsFd) {
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::TcpNoDelay, &true);
}

fn splice(from: &impl AsFd, to: &impl AsFd, length: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: both descriptors are borrowed for the call; null offsets mean "at the current position".
    let moved = unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), length, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}
