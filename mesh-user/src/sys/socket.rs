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

use super::ControlLength;

/// Pause after an accept that failed for want of descriptors or memory: the connection stays queued.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);
/// Probes sent before a silent peer is given up.
const KEEPALIVE_PROBES: u32 = 3;

/// include/uapi/linux/tcp.h.
const TCP_INQ: libc::c_int = 36;
const TCP_CM_INQ: libc::c_int = TCP_INQ;
const INT_BYTES: libc::socklen_t = 4;

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

/// Makes each read tell what it leaves: `TCP_INQ`, include/uapi/linux/tcp.h.
///
/// # Errors
/// When it is not a TCP socket.
pub fn tell_rest(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is a live `int`, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_INQ,
            (&raw const on).cast(),
            INT_BYTES,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives from a socket that was made to tell, never waiting: the bytes read, and how many are left. Once the peer has
/// ended its direction that is never zero (`tcp_inq_hint`, net/ipv4/tcp.c).
///
/// # Errors
/// The socket's own; `WouldBlock` when nothing has come.
pub fn receive_with_rest(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    let mut control = [0_u64; 4];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as ControlLength;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the kernel writes at most `iov_len` bytes to `buffer` and `msg_controllen` to `control`, which is aligned for
    // headers; both are exclusively borrowed here.
    let read = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has set `msg_controllen` to what it wrote; CMSG_FIRSTHDR answers null when that is less than a
    // header, and this kind of message carries an `int`.
    let rest = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (!header.is_null() && (*header).cmsg_level == libc::IPPROTO_TCP && (*header).cmsg_type == TCP_CM_INQ)
            .then(|| libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned())
    };
    Ok((read, rest))
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
    fn what_is_accepted_inherits_what_its_listener_has() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        prepare_leg(&listener).unwrap();
        let _near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap() && accepted.out_of_band_inline().unwrap());
    }

    #[test]
    fn a_read_tells_what_it_leaves() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        prepare_leg(&far).unwrap();
        tell_rest(&far).unwrap();
        let near = SockRef::from(&near);
        let mut buffer = [0; 16];
        near.send(b"ab").unwrap();
        assert_eq!(receive_with_rest(&far, &mut buffer[..1]).unwrap(), (1, Some(1)));
        assert_eq!(receive_with_rest(&far, &mut buffer).unwrap(), (1, Some(0)));
        near.send(b"ab").unwrap();
        near.send_out_of_band(b"!").unwrap();
        assert_eq!(receive_with_rest(&far, &mut buffer).unwrap(), (2, Some(1)), "an urgent byte");
        assert_eq!(receive_with_rest(&far, &mut buffer).unwrap(), (1, Some(0)));
        near.send(b"ab").unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(receive_with_rest(&far, &mut buffer).unwrap(), (2, Some(1)), "an end");
        assert_eq!(receive_with_rest(&far, &mut buffer).unwrap().0, 0);
    }

    #[tokio::test]
    async fn a_connect_that_fails_says_why() {
        for (listens, expected) in [(true, None), (false, Some(libc::ECONNREFUSED))] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let to = listener.local_addr().unwrap();
            let _kept = listens.then_some(listener);
            let kind = socket2::Type::STREAM.nonblocking();
            let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, None).unwrap();
            let _ = socket.connect(&to.into());
            let failed = finish_connect(socket).await.err();
            assert_eq!(failed.and_then(|error| error.raw_os_error()), expected);
        }
    }

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
