//! The two sockets of a relay and the non-blocking reads and writes on them. An error is named after the leg
//! it came from right here, so that an outcome always says who ended the connection.

use std::{
    io,
    net::Shutdown,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::stats::{EndedBy, LiveStats};

/// Which leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leg {
    App,
    Wire,
}

/// What both directions of a relay share.
#[derive(Clone, Copy)]
pub(super) struct Legs<'a> {
    pub(super) app: &'a TcpStream,
    pub(super) wire: &'a TcpStream,
    pub(super) live: &'a LiveStats,
    /// The application has ended its direction, and all of it was read.
    pub(super) app_ended: bool,
}

pub(super) type Moved<T> = Poll<Result<T, EndedBy>>;

impl Legs<'_> {
    fn stream(&self, leg: Leg) -> &TcpStream {
        match leg {
            Leg::App => self.app,
            Leg::Wire => self.wire,
        }
    }

    /// Runs `operation` when the leg is readable, again after `WouldBlock`.
    pub(super) fn poll_read_with<T>(
        &self,
        leg: Leg,
        cx: &mut Context<'_>,
        mut operation: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let stream = self.stream(leg);
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_io(Interest::READABLE, || operation(stream)) {
                Err(error) if retryable(&error) => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Runs `operation` when the leg is writable, again after `WouldBlock`.
    pub(super) fn poll_write_with<T>(
        &self,
        leg: Leg,
        cx: &mut Context<'_>,
        mut operation: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let stream = self.stream(leg);
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_io(Interest::WRITABLE, || operation(stream)) {
                Err(error) if retryable(&error) => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Reads bytes as they are; 0 is the end of the stream.
    pub(super) fn poll_read(&self, leg: Leg, cx: &mut Context<'_>, buffer: &mut [u8]) -> Moved<usize> {
        self.poll_read_with(leg, cx, |stream| io::Read::read(&mut &*SockRef::from(stream), buffer))
            .map_err(|error| ended_by(leg, &error))
    }

    /// Writes bytes as they are.
    pub(super) fn poll_write(&self, leg: Leg, cx: &mut Context<'_>, bytes: &[u8]) -> Moved<usize> {
        self.poll_write_with(leg, cx, |stream| {
            SockRef::from(stream).send_with_flags(bytes, libc::MSG_NOSIGNAL)
        })
        .map_err(|error| ended_by(leg, &error))
    }

    /// Sends FIN. A leg that is gone already has been noticed, or will be by its reader.
    pub(super) fn finish(&self, leg: Leg) -> Result<(), EndedBy> {
        if leg == Leg::App && self.app_ended {
            // Both directions have ended now: the close that follows sends it.
            return Ok(());
        }
        match SockRef::from(self.stream(leg)).shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(ended_by(leg, &error)),
            _ => Ok(()),
        }
    }
}

/// Sends all of `bytes` as they are.
pub(super) async fn send_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = stream
            .async_io(Interest::WRITABLE, || SockRef::from(stream).send_with_flags(bytes, libc::MSG_NOSIGNAL))
            .await?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

pub(super) fn retryable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Who ended the connection, by the error of one leg.
pub(super) fn ended_by(leg: Leg, error: &io::Error) -> EndedBy {
    match (leg, error.raw_os_error()) {
        // net/tls/tls_sw.c: a record that does not authenticate, is malformed, or too large.
        (Leg::Wire, Some(libc::EBADMSG | libc::EMSGSIZE | libc::EINVAL | libc::EIO)) => {
            EndedBy::WireProtocol(format!("the kernel refused a record: {error}"))
        }
        (Leg::Wire, _) => EndedBy::WireReset,
        (Leg::App, _) => EndedBy::AppReset,
    }
}
