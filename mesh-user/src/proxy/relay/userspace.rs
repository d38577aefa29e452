//! The relay that encrypts with rustls: records are made and opened in borrowed buffers. It never gives the
//! application a byte after an error, nor a clean end that the peer has not declared.

use std::{
    io,
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;

use super::{
    Pump,
    buffers::{Buffer, PLAINTEXT_BYTES},
    legs::{Leg, Legs, Moved, send_all},
    stats::{EndedBy, LiveStats},
};
use crate::tls::{Established, MAX_RECORD_PLAINTEXT_BYTES, Session, Step};

/// State of a TLS connection whose records rustls makes.
pub(super) struct Userspace {
    session: Session,
    /// Sealed, not yet sent.
    sealed: Option<Buffer>,
    /// Records that rustls wants sent after `sealed`: key updates, alerts.
    control: Vec<u8>,
    /// What the peer did wrong before this relay had the connection; `control` ends with the alert.
    failed: Option<rustls::Error>,
    close_notify_sealed: bool,
    /// Ciphertext being opened, only while there is more than the beginning of a record.
    ciphertext: Option<Buffer>,
    /// The beginning of a record while its rest is awaited.
    partial: Vec<u8>,
    /// Opened, not yet given to the application.
    plaintext: Option<Buffer>,
    /// Opened during the handshake; goes before `plaintext`.
    early: Vec<u8>,
    early_given: usize,
    /// Opened when `plaintext` was full, because something had to be sealed; goes after it. At most what one
    /// buffer of ciphertext holds.
    spill: Vec<u8>,
    peer_closed: bool,
}

/// The ciphertext that has been received and not opened.
fn received<'a>(ciphertext: &'a mut Option<Buffer>, partial: &'a mut [u8]) -> &'a mut [u8] {
    ciphertext.as_mut().map_or(partial, Buffer::filled_mut)
}

impl Userspace {
    pub(super) fn new(established: Established) -> (tokio::net::TcpStream, Self) {
        let Established { stream, session, mut ciphertext, outgoing, plaintext, peer_closed, failed, .. } =
            established;
        ciphertext.shrink_to_fit();
        let state = Self {
            session,
            sealed: None,
            control: outgoing,
            failed,
            close_notify_sealed: false,
            ciphertext: None,
            partial: ciphertext,
            plaintext: None,
            early: plaintext,
            early_given: 0,
            spill: Vec::new(),
            peer_closed,
        };
        (stream, state)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        if let Some(sealed) = &mut self.sealed {
            while !sealed.is_empty() {
                let written = ready!(legs.poll_write(Leg::Wire, cx, sealed.filled()))?;
                sealed.consume(written);
            }
            self.sealed = None;
        }
        while !self.control.is_empty() {
            let written = ready!(legs.poll_write(Leg::Wire, cx, &self.control))?;
            self.control.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Seals `plaintext`, or `close_notify` when it is empty, behind whatever rustls has queued.
    fn seal(&mut self, plaintext: &[u8]) -> Result<(), EndedBy> {
        // rustls seals only when everything received is opened, which may queue records to be sent first.
        while !self.peer_closed && self.open_one()? {}
        let input = match &mut self.ciphertext {
            Some(buffer) => buffer.filled_mut(),
            None => &mut self.partial,
        };
        let mut sealed = Buffer::borrow();
        let written = if plaintext.is_empty() {
            self.session.seal_close_notify(input, sealed.room())
        } else {
            self.session.seal(input, plaintext, sealed.room())
        };
        match written {
            Ok(Some(written)) => {
                sealed.commit(written);
                self.sealed = Some(sealed);
                Ok(())
            }
            Ok(None) => Err(EndedBy::Local("the TLS session was not ready to seal".to_owned())),
            Err(rustls::Error::EncryptError) => {
                self.take_last_words();
                Err(EndedBy::KeyExhausted)
            }
            Err(error) => Err(EndedBy::Local(error.to_string())),
        }
    }

    fn take_last_words(&mut self) {
        let input = received(&mut self.ciphertext, &mut self.partial);
        self.session.last_words(input, &mut self.control);
    }

    /// One step over the received bytes; false when nothing more can be opened without more bytes.
    fn open_one(&mut self) -> Result<bool, EndedBy> {
        let input = received(&mut self.ciphertext, &mut self.partial);
        let (plaintext, spill) = (&mut self.plaintext, &mut self.spill);
        let done = self.session.process(
            input,
            &mut |record| {
                let held = plaintext.get_or_insert_with(Buffer::borrow);
                let fits = if spill.is_empty() { held.append(record) } else { 0 };
                spill.extend_from_slice(&record[fits..]);
            },
            &mut self.control,
        );
        match &mut self.ciphertext {
            Some(buffer) => buffer.consume(done.discard),
            None => drop(self.partial.drain(..done.discard.min(self.partial.len()))),
        }
        match done.outcome {
            Ok(Step::Progress) => Ok(true),
            Ok(Step::PeerClosed | Step::Closed) => {
                self.peer_closed = true;
                Ok(false)
            }
            Ok(Step::Ready | Step::NeedsInput) => Ok(false),
            Err(error) => {
                self.take_last_words();
                Err(EndedBy::WireProtocol(error.to_string()))
            }
        }
    }

    fn poll_deliver(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        while self.early_given < self.early.len() {
            let rest = &self.early[self.early_given..];
            let written = ready!(legs.poll_write(Leg::App, cx, rest))?;
            self.early_given += written;
            legs.live.add_wire_to_app(written);
        }
        self.early = Vec::new();
        self.early_given = 0;
        if let Some(plaintext) = &mut self.plaintext {
            while !plaintext.is_empty() {
                let written = ready!(legs.poll_write(Leg::App, cx, plaintext.filled()))?;
                plaintext.consume(written);
                legs.live.add_wire_to_app(written);
            }
            self.plaintext = None;
        }
        if !self.spill.is_empty() {
            let mut next = Buffer::borrow();
            let moved = next.append(&self.spill);
            self.spill.drain(..moved);
            self.plaintext = Some(next);
            return self.poll_deliver(cx, legs);
        }
        Poll::Ready(Ok(()))
    }

    fn plaintext_is_full(&self) -> bool {
        self.plaintext.as_ref().is_some_and(|held| held.room_len() < MAX_RECORD_PLAINTEXT_BYTES)
    }

    /// Reads behind what is left; holds a buffer only while there is something to open.
    fn poll_receive(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        match legs.wire.poll_read_ready(cx) {
            Poll::Ready(ready) => ready.map_err(|_| EndedBy::WireReset)?,
            Poll::Pending => {
                if let Some(buffer) = self.ciphertext.take() {
                    self.partial = buffer.filled().to_vec();
                }
                return Poll::Pending;
            }
        }
        let mut buffer = self.ciphertext.take().unwrap_or_else(|| {
            let mut buffer = Buffer::borrow();
            buffer.append(&self.partial);
            self.partial = Vec::new();
            buffer
        });
        buffer.compact();
        match legs.poll_read_records(cx, buffer.room()) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(EndedBy::Truncated)),
            Poll::Ready(Ok(read)) => {
                buffer.commit(read);
                self.ciphertext = Some(buffer);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(ended)) => Poll::Ready(Err(ended)),
            Poll::Pending => {
                self.partial = buffer.filled().to_vec();
                Poll::Pending
            }
        }
    }
}

impl Pump for Userspace {
    fn poll_outbound(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        loop {
            ready!(self.poll_flush(cx, legs))?;
            if self.close_notify_sealed {
                return Poll::Ready(legs.finish(Leg::Wire));
            }
            let mut plaintext = Buffer::borrow();
            let read = ready!(legs.poll_read(Leg::App, cx, &mut plaintext.room()[..PLAINTEXT_BYTES]))?;
            plaintext.commit(read);
            self.seal(plaintext.filled())?;
            if read == 0 {
                self.close_notify_sealed = true;
            } else {
                legs.live.add_app_to_wire(read);
            }
        }
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(EndedBy::WireProtocol(error.to_string())));
        }
        loop {
            ready!(self.poll_deliver(cx, legs))?;
            while !self.peer_closed && !self.plaintext_is_full() && self.open_one()? {}
            if self.plaintext.is_some() {
                continue;
            }
            if self.peer_closed {
                self.ciphertext = None;
                return Poll::Ready(legs.finish(Leg::App));
            }
            ready!(self.poll_receive(cx, legs))?;
        }
    }

    async fn say_last_words(
        &mut self,
        wire: &TcpStream,
        _ended_by: &EndedBy,
        _live: &LiveStats,
    ) -> io::Result<bool> {
        // Records are numbered: the alert is none without those sealed before it.
        let mut due = self.sealed.take().map(|sealed| sealed.filled().to_vec()).unwrap_or_default();
        due.append(&mut self.control);
        send_all(wire, &due).await?;
        Ok(!due.is_empty())
    }
}
