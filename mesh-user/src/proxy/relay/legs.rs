//! The two sockets of a relay and the non-blocking reads and writes on them. An error is named after the leg
//! it came from right here, so that an outcome always says who ended the connection.

use std::{
    io,
    net::Shutdown,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::{
    rest::{Rests, Taken},
    stats::{EndedBy, LiveStats},
};

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
    pub(super) rest: &'a Rests,
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

    /// Reads an application's bytes; 0 is the end of the stream.
    pub(super) fn poll_read(&self, leg: Leg, cx: &mut Context<'_>, buffer: &mut [u8]) -> Moved<usize> {
        let rest = match leg {
            Leg::App => &self.rest.app,
            Leg::Wire => &self.rest.wire,
        };
        self.poll_read_to_the_last(leg, cx, |stream| rest.read(stream, buffer))
    }

    /// Reads a wire leg's records; 0 is the end of the stream. A short read has taken all: only before a byte marked
    /// as urgent it stops earlier, and TLS marks none. A peer that does has its records read with its next packet.
    pub(super) fn poll_read_records(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Moved<usize> {
        self.poll_read_to_the_last(Leg::Wire, cx, |stream| {
            let read = io::Read::read(&mut &*SockRef::from(stream), buffer)?;
            Ok(Taken { read, all: read < buffer.len() })
        })
    }

    /// Runs `take` when the leg is readable, again after `WouldBlock`. When it has taken all, it is not asked again
    /// before epoll has told of more. Nothing is missed: what comes after epoll has told of the leg, it tells of once
    /// more, and an end that came before is in what it told, which tokio keeps (`Ready::READ_CLOSED`).
    fn poll_read_to_the_last(
        &self,
        leg: Leg,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&TcpStream) -> io::Result<Taken>,
    ) -> Moved<usize> {
        let stream = self.stream(leg);
        loop {
            ready!(stream.poll_read_ready(cx)).map_err(|error| ended_by(leg, &error))?;
            let mut last = 0;
            let taken = stream.try_io(Interest::READABLE, || match take(stream)? {
                // tokio's way of being told that the socket is not readable any more.
                Taken { read, all: true } if read > 0 => {
                    last = read;
                    Err(io::ErrorKind::WouldBlock.into())
                }
                Taken { read, .. } => Ok(read),
            });
            match taken {
                Err(_) if last > 0 => return Poll::Ready(Ok(last)),
                Err(error) if retryable(&error) => {}
                result => return Poll::Ready(result.map_err(|error| ended_by(leg, &error))),
            }
        }
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
