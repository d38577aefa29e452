//! What tokio does not offer of sockets: keepalive, what a peer owes, reset on close, peeking, and an accept that
//! outlasts bad moments. Every helper works on a borrowed descriptor and never closes it.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, recv};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::Interest,
    net::{TcpListener, TcpStream},
};

/// Pause after an accept that failed for want of descriptors or memory: the connection stays queued.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);
/// Probes sent before a silent peer is given up.
const KEEPALIVE_PROBES: u32 = 3;

/// `TCP_NODELAY` and urgent data in line, for a leg whose bytes are an application's, and for a listener: what it accepts
/// inherits both (`sk_clone_lock`, net/core/sock.c).
pub fn prepare_leg(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_nodelay(true)?;
    read_urgent_in_line(socket)
}

/// Otherwise the byte that an application sends as urgent is taken out of the stream and lost (RFC 6093 section 4).
pub fn read_urgent_in_line(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_out_of_band_inline(true)
}

/// Has the kernel probe a peer that has been quiet for `idle`, counted from its last sign of life.
pub fn keep_alive(socket: &impl AsFd, idle: Duration) -> io::Result<()> {
    let interval = (idle / 4).max(Duration::from_secs(1));
    SockRef::from(socket).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(idle.max(Duration::from_secs(1)))
            .with_interval(interval)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// What a connection's peer has left unanswered (`TCP_INFO`, include/uapi/linux/tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// Time since its last acknowledgement.
    pub silence: Duration,
    /// After how long what it has not acknowledged is sent again.
    pub sent_again_after: Duration,
    /// Segments that it has not acknowledged.
    pub unacknowledged: u32,
    /// Probes of its closed window since it last answered.
    pub unanswered_probes: u8,
}

/// Asks the kernel what a TCP socket's peer owes.
///
/// # Errors
/// When it is not a TCP socket.
pub fn owed(socket: &impl AsFd) -> io::Result<Owed> {
    // SAFETY: integers only; zero is a valid value of each.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    // SAFETY: both pointers lead to live locals, and `length` says how large the first one is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Owed {
        silence: Duration::from_millis(info.tcpi_last_ack_recv.into()),
        sent_again_after: Duration::from_micros(info.tcpi_rto.into()),
        unacknowledged: info.tcpi_unacked,
        unanswered_probes: info.tcpi_probes,
    })
}

/// Accepts the next connection, whatever became of the one before it. An error is the listener's own and lasting.
///
/// accept(2): a new connection's own errors, network ones among them, are told here and mean "try again".
pub async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        match listener.accept().await {
            Err(error) if !is_lasting(&error) => {
                tracing::debug!(%error, "accept failed; the connection stays queued or is gone");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
            result => return result,
        }
    }
}

fn is_lasting(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EFAULT | libc::EINVAL | libc::ENOTSOCK))
}

/// Makes the coming close a reset. An error means that the socket is gone already.
pub fn reset_on_close(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Takes the pending error, if any.
pub fn take_error(socket: &impl AsFd) -> Option<io::Error> {
    SockRef::from(socket).take_error().ok().flatten()
}

/// Waits for a connect that is under way. Must be called within a tokio runtime.
///
/// # Errors
/// The connect's own.
pub async fn finish_connect(socket: socket2::Socket) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(socket.into())?;
    let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
    // A connect that failed is closed both ways; one that stands need not be asked.
    if !(ready.is_error() || ready.is_write_closed()) {
        return Ok(stream);
    }
    match take_error(&stream) {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Reads without consuming; `WouldBlock` when nothing has come.
pub fn peek(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(recv(socket.as_fd().as_raw_fd(), buffer, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listeners_own_errors_end_an_accept_loop() {
        for (error, lasting) in [
            (libc::EMFILE, false),
            (libc::ENOMEM, false),
            (libc::ECONNABORTED, false),
            (libc::EPERM, false),
            (libc::ENETUNREACH, false),
            (libc::EHOSTDOWN, false),
            (libc::EBADF, true),
            (libc::EINVAL, true),
        ] {
            let error = io::Error::from_raw_os_error(error);
            assert_eq!(is_lasting(&error), lasting, "{error}");
        }
    }
}
