//! What tokio does not offer of sockets: keepalive and user timeout, reset on close, peeking, and an accept that
//! outlasts bad moments. Every helper works on a borrowed descriptor and never closes it.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use nix::sys::socket::{MsgFlags, recv};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

/// Pause after an accept that failed for want of descriptors or memory: the connection stays queued.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);
/// Probes sent before a silent peer is given up.
const KEEPALIVE_PROBES: u32 = 3;

/// How soon a dead peer is noticed.
#[derive(Debug, Clone, Copy)]
pub struct Liveness {
    /// Idle time before the first keepalive probe.
    pub keepalive_idle: Duration,
    /// Unacknowledged data older than this ends the connection (`TCP_USER_TIMEOUT`, RFC 5482).
    pub user_timeout: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { keepalive_idle: Duration::from_secs(60), user_timeout: Duration::from_secs(60) }
    }
}

/// `TCP_NODELAY`, keepalive and `TCP_USER_TIMEOUT` for a leg of a relay.
pub fn prepare_leg(socket: &impl AsFd, liveness: Liveness) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let interval = (liveness.keepalive_idle / 4).max(Duration::from_secs(1));
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(liveness.keepalive_idle.max(Duration::from_secs(1)))
            .with_interval(interval)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(liveness.user_timeout))
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
    stream.writable().await?;
    match take_error(&stream) {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Reads without consuming; `WouldBlock` when nothing has come.
pub fn peek(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(recv(std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()), buffer, flags)?)
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
