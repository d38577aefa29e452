//! The two sides of an inspected connection as streams: the peer, with TLS ended or without TLS, and the application,
//! whose bytes are counted. Either can be made to end in a reset wherever it is dropped.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    capture::PeerViewGuard,
    proxy::{Live, relay::Vigil, stage::Wire},
    sys::socket::reset_on_close,
    tls::TlsStream,
};

enum Inner {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

/// Has the leg end in a reset when it is dropped.
#[derive(Clone)]
pub(super) struct ResetSwitch(Arc<AtomicBool>);

impl ResetSwitch {
    pub(super) fn pull(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The client's side.
pub(super) struct PeerLeg {
    /// None once it was given away.
    inner: Option<Inner>,
    reset: ResetSwitch,
    vigil: Vigil,
}

impl PeerLeg {
    pub(super) fn new(wire: Wire, vigil: Vigil) -> Self {
        let inner = match wire {
            Wire::Plain(stream) => Inner::Plain(stream),
            Wire::Tls(established) => Inner::Tls(Box::new(TlsStream::from(*established))),
        };
        Self { inner: Some(inner), reset: ResetSwitch(Arc::default()), vigil }
    }

    pub(super) fn reset_switch(&self) -> ResetSwitch {
        self.reset.clone()
    }

    /// Ends it so that the client sees that it was cut off.
    pub(super) fn reset(self) {
        self.reset.pull();
    }

    /// What it was made of, and what of the bytes that were read has to go to the application before anything else: with
    /// TLS they are part of what the wire still holds.
    ///
    /// # Errors
    /// Where it was given away already.
    pub(super) fn into_wire(mut self, read: &[u8]) -> io::Result<(Wire, &[u8])> {
        match self.inner.take().ok_or_else(gone)? {
            Inner::Tls(stream) => Ok((Wire::Tls(Box::new(stream.into_established(read))), &[])),
            Inner::Plain(stream) => Ok((Wire::Plain(stream), read)),
        }
    }
}

impl PeerLeg {
    fn socket(&self) -> Option<&TcpStream> {
        match self.inner.as_ref()? {
            Inner::Plain(stream) => Some(stream),
            Inner::Tls(stream) => Some(stream.socket()),
        }
    }

    /// What has to wait waits no longer for a client that is gone.
    fn waited<T>(&mut self, outcome: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let socket = match &self.inner {
            Some(Inner::Plain(stream)) => stream,
            Some(Inner::Tls(stream)) => stream.socket(),
            None => return outcome,
        };
        if outcome.is_pending() && self.vigil.poll(socket, context).is_ready() {
            self.reset.pull();
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client's node is silent")));
        }
        outcome
    }
}

impl Drop for PeerLeg {
    fn drop(&mut self) {
        if self.reset.0.load(Ordering::Relaxed)
            && let Some(socket) = self.socket()
        {
            reset_on_close(socket);
        }
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for PeerLeg {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = match &mut this.inner {
            Some(Inner::Plain(stream)) => Pin::new(stream).poll_read(cx, buf),
            Some(Inner::Tls(stream)) => Pin::new(stream).poll_read(cx, buf),
            None => return Poll::Ready(Err(gone())),
        };
        this.waited(read, cx)
    }
}

impl AsyncWrite for PeerLeg {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.inner {
            Some(Inner::Plain(stream)) => Pin::new(stream).poll_write(cx, buf),
            Some(Inner::Tls(stream)) => Pin::new(stream).poll_write(cx, buf),
            None => return Poll::Ready(Err(gone())),
        };
        this.waited(written, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = match &mut this.inner {
            Some(Inner::Plain(stream)) => Pin::new(stream).poll_flush(cx),
            Some(Inner::Tls(stream)) => Pin::new(stream).poll_flush(cx),
            None => return Poll::Ready(Err(gone())),
        };
        this.waited(flushed, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Some(Inner::Plain(stream)) => Pin::new(stream).poll_shutdown(cx),
            Some(Inner::Tls(stream)) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Err(gone())),
        }
    }
}

/// The application's side.
pub(super) struct AppLeg {
    stream: TcpStream,
    _guard: PeerViewGuard,
    live: Arc<Live>,
}

impl AppLeg {
    pub(super) fn new(stream: TcpStream, guard: PeerViewGuard, live: Arc<Live>) -> Self {
        Self { stream, _guard: guard, live }
    }
}

impl AsyncRead for AppLeg {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.live.stats.add_app_to_wire(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AppLeg {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        this.live.stats.add_wire_to_app(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
