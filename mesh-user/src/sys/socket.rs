//! Socket options and reads that tokio does not offer: keepalive and user timeout, reset on close, peeking.
//! Every helper works on a borrowed descriptor and never closes it.

use std::{io, os::fd::AsFd, time::Duration};

use nix::sys::socket::{MsgFlags, recv};
use socket2::{SockRef, TcpKeepalive};

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

/// Makes the coming close a reset. An error means that the socket is gone already.
pub fn reset_on_close(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Takes the pending error, if any.
pub fn take_error(socket: &impl AsFd) -> Option<io::Error> {
    SockRef::from(socket).take_error().ok().flatten()
}

/// Reads without consuming; `WouldBlock` when nothing has come.
pub fn peek(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(recv(std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()), buffer, flags)?)
}
