//! A TLS connection as a stream of bytes, for those who must read what passes: the HTTP path. Relays do not use it.
//! It ends cleanly only where the peer has said so, and keeps no buffer while nobody sends.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

use super::{
    Established, MAX_RECORD_BYTES, MAX_RECORD_PLAINTEXT_BYTES, Proven, RECORD_OVERHEAD_BYTES, Session,
    SessionFacts, Step,
};

/// A TLS connection after its handshake. Dropped without a shutdown it ends in a FIN without `close_notify`, which the
/// peer takes for a truncation.
pub struct TlsStream {
    stream: TcpStream,
    session: Session,
    ciphertext: BytesMut,
    /// Opened, not yet read.
    opened: Vec<u8>,
    read: usize,
    /// Sealed or queued by rustls, not yet sent.
    outgoing: Vec<u8>,
    sent: usize,
    /// The last read took all there was room for.
    more_waits: bool,
    peer_closed: bool,
    close_sealed: bool,
    failed: Option<rustls::Error>,
    proven: Proven,
    facts: SessionFacts,
}

/// Records that are sealed for one write, or received by one read while much comes.
const RECORDS: usize = 4;

impl From<Established> for TlsStream {
    fn from(established: Established) -> Self {
        let Established {
            stream,
            session,
            ciphertext,
            outgoing,
            plaintext,
            peer_closed,
            failed,
            proven,
            facts,
        } = established;
        Self {
            stream,
            session,
            ciphertext: BytesMut::from(&ciphertext[..]),
            opened: plaintext,
            read: 0,
            outgoing,
            sent: 0,
            more_waits: false,
            peer_closed,
            close_sealed: false,
            failed,
            proven,
            facts,
        }
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl TlsStream {
    /// The socket, to see its addresses or to have its end be a reset.
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// What a relay can go on with. `given` is what was read of it and has not been used: it is given again, first.
    pub fn into_established(self, given: &[u8]) -> Established {
        let mut plaintext = given.to_vec();
        plaintext.extend_from_slice(&self.opened[self.read..]);
        Established {
            stream: self.stream,
            session: self.session,
            ciphertext: self.ciphertext.to_vec(),
            outgoing: self.outgoing[self.sent..].to_vec(),
            plaintext,
            peer_closed: self.peer_closed,
            failed: self.failed,
            proven: self.proven,
            facts: self.facts,
        }
    }

    /// One step over what was received; false when nothing more can be opened without more bytes.
    fn open_one(&mut self) -> io::Result<bool> {
        let opened = &mut self.opened;
        let done = self.session.process(
            &mut self.ciphertext,
            &mut |bytes| opened.extend_from_slice(bytes),
            &mut self.outgoing,
        );
        let _discarded = self.ciphertext.split_to(done.discard.min(self.ciphertext.len()));
        match done.outcome {
            Ok(Step::Progress) => Ok(true),
            Ok(Step::Ready | Step::NeedsInput) => Ok(false),
            Ok(Step::PeerClosed | Step::Closed) => {
                self.peer_closed = true;
                Ok(false)
            }
            Err(error) => {
                self.session.last_words(&mut self.ciphertext, &mut self.outgoing);
                self.failed = Some(error.clone());
                Err(broken(error))
            }
        }
    }

    /// Sends what is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outgoing[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.outgoing = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.poll_read_ready(cx) {
            Poll::Ready(ready) => ready?,
            Poll::Pending => {
                if self.ciphertext.is_empty() {
                    self.ciphertext = BytesMut::new();
                }
                return Poll::Pending;
            }
        }
        self.ciphertext.reserve(MAX_RECORD_BYTES * if self.more_waits { RECORDS } else { 1 });
        let read = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.ciphertext))?;
        self.more_waits = self.ciphertext.len() == self.ciphertext.capacity();
        // A FIN without close_notify is a truncation (RFC 8446 section 6.1).
        Poll::Ready(if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
    }

    /// Opens all that was received and sends all that is sealed, after which something may be sealed.
    fn poll_ready_to_seal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(broken(error.clone())));
        }
        while !self.peer_closed && self.open_one()? {}
        self.poll_send(cx)
    }

    fn seal(
        &mut self,
        room: usize,
        seal: impl FnOnce(&mut Session, &mut [u8], &mut [u8]) -> Result<Option<usize>, rustls::Error>,
    ) -> io::Result<()> {
        // And for a key update before it.
        let records = room.div_ceil(MAX_RECORD_PLAINTEXT_BYTES) + 4;
        self.outgoing.resize(room + records * RECORD_OVERHEAD_BYTES, 0);
        match seal(&mut self.session, &mut self.ciphertext, &mut self.outgoing) {
            Ok(Some(written)) => {
                self.outgoing.truncate(written);
                Ok(())
            }
            Ok(None) => Err(io::Error::other("the TLS session was not ready to seal")),
            Err(error) => {
                self.outgoing.clear();
                self.failed = Some(error.clone());
                Err(broken(error))
            }
        }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.read < this.opened.len() {
                let rest = &this.opened[this.read..];
                let given = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest[..given]);
                this.read += given;
                return Poll::Ready(Ok(()));
            }
            this.opened = Vec::new();
            this.read = 0;
            if let Some(error) = &this.failed {
                return Poll::Ready(Err(broken(error.clone())));
            }
            if this.peer_closed {
                return Poll::Ready(Ok(()));
            }
            match this.open_one() {
                Ok(true) => continue,
                Ok(false) if !this.opened.is_empty() || this.peer_closed => continue,
                Ok(false) => {}
                Err(error) => {
                    // The alert, as far as the socket takes it.
                    let _ = this.poll_send(cx);
                    return Poll::Ready(Err(error));
                }
            }
            // Tickets, answers to key updates; what does not fit now goes with the next call.
            if let Poll::Ready(Err(error)) = this.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            ready!(this.poll_receive(cx))?;
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.close_sealed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_ready_to_seal(cx))?;
        let chunk = &buffer[..buffer.len().min(RECORDS * MAX_RECORD_PLAINTEXT_BYTES)];
        this.seal(chunk.len(), |session, input, room| session.seal(input, chunk, room))?;
        // It is taken in; what does not fit the socket goes with the next call.
        if let Poll::Ready(Err(error)) = this.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.close_sealed {
            ready!(this.poll_ready_to_seal(cx))?;
            this.seal(0, Session::seal_close_notify)?;
            this.close_sealed = true;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
