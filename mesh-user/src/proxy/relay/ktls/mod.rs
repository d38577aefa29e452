//! The relay over kernel TLS, through a buffer or a pipe. Payload passes, keys do not stay. Every rule of
//! kernel TLS that a relay must keep is kept here: records other than data, `close_notify`, key limits.
//!
//! Sources: RFC 8446 sections 4.6, 5.5, 6.1; Documentation/networking/tls.rst.

mod control;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;

use std::{
    io,
    task::{Context, Poll, ready},
};

use tokio::{io::Interest, net::TcpStream};

use super::{
    Pump, RelayOptions,
    buffers::{Buffer, PLAINTEXT_BYTES},
    handover::HandoverState,
    legs::{Leg, Legs, Moved, ended_by, retryable, send_all},
    pipes,
    stats::{EndedBy, LiveStats},
};
use crate::{
    sys::ktls::{self, RECORD_ALERT, RECORD_DATA, RECORD_HANDSHAKE, Received},
    sys::splice::{PIPE_BYTES, Pipe},
    tls::{KernelCipher, KernelSession, MAX_RECORD_PLAINTEXT_BYTES, Offloaded},
};

/// Records in reserve below a key's limit: control records, and what one pass may send.
const RECORD_RESERVE: u64 = 4096;

/// Less than the AEAD allows, or what the options say.
fn records_per_key(cipher: KernelCipher, options: &RelayOptions) -> u64 {
    (cipher.record_limit() - RECORD_RESERVE).min(options.records_per_key)
}

/// At most so many records are made of a spliced pipe: each ends full, with the call, or with the fragments that one
/// can have (`MAX_SKB_FRAGS`, `net/tls/tls_sw.c`), of which the pipe holds a page's worth each.
fn spliced_records(bytes: usize) -> u64 {
    const FRAGMENTS_PER_RECORD: usize = 17;
    let by_fragments = (PIPE_BYTES / 4096).div_ceil(FRAGMENTS_PER_RECORD);
    (bytes.div_ceil(MAX_RECORD_PLAINTEXT_BYTES) + by_fragments).min(bytes) as u64
}

/// State of a connection whose records the kernel makes.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about two directions")]
pub(in crate::proxy::relay) struct Ktls {
    /// None after a hand-over: the key schedule stayed behind.
    session: Option<KernelSession>,
    cipher: KernelCipher,
    can_rekey: bool,
    splice: bool,
    records_sent: u64,
    /// Records after which the key is changed, or the connection ended.
    records_per_key: u64,
    outbound: Stage,
    /// A `KeyUpdate` of ours must go out before the next data.
    key_update_due: bool,
    /// Part of a handshake message that came over several records.
    handshake: Vec<u8>,
    /// What a peer may send besides data, before it is refused.
    patience: control::Patience,
    /// What the peer is told when it has broken the protocol, unless it knows.
    alert: Option<u8>,
    inbound: Stage,
    /// How the wire leg ended, while bytes that came before are being delivered.
    ended: Option<EndedBy>,
    early: Vec<u8>,
    early_given: usize,
    peer_closed: bool,
    app_closed: bool,
    close_notify_sent: bool,
    /// Splice has met something that is no data, and `recvmsg` has not said yet what.
    splice_refused: bool,
}

/// Where bytes on their way wait.
#[derive(Default)]
enum Stage {
    #[default]
    Empty,
    Buffer(Buffer),
    Pipe(Pipe),
}

impl Stage {
    /// Gives an emptied buffer or pipe back.
    fn release(&mut self) {
        if let Self::Pipe(pipe) = std::mem::take(self) {
            pipes::give_back(pipe);
        }
    }
}

impl Ktls {
    pub(in crate::proxy::relay) fn new(
        wire: Offloaded,
        splice: bool,
        options: &RelayOptions,
    ) -> (TcpStream, Self) {
        let Offloaded { stream, session, cipher, plaintext, peer_closed, records_sent, can_rekey, .. } = wire;
        let begun =
            HandoverState { splice, cipher, records_sent, outbound_ended: false, inbound_ended: peer_closed };
        let state =
            Self { session: Some(session), can_rekey, early: plaintext, ..Self::resume(begun, options) };
        (stream, state)
    }

    /// With nothing on its way and without a key schedule.
    pub(in crate::proxy::relay) fn resume(state: HandoverState, options: &RelayOptions) -> Self {
        Self {
            session: None,
            cipher: state.cipher,
            can_rekey: false,
            splice: state.splice,
            records_sent: state.records_sent,
            records_per_key: records_per_key(state.cipher, options),
            outbound: Stage::Empty,
            key_update_due: false,
            handshake: Vec::new(),
            patience: control::Patience::default(),
            alert: Some(control::BAD_RECORD_MAC),
            inbound: Stage::Empty,
            ended: None,
            early: Vec::new(),
            early_given: 0,
            peer_closed: state.inbound_ended,
            app_closed: state.outbound_ended,
            close_notify_sent: state.outbound_ended,
            splice_refused: false,
        }
    }

    /// Sends what waits, as data records.
    fn poll_flush(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        loop {
            let written = match &mut self.outbound {
                Stage::Buffer(buffer) if !buffer.is_empty() => {
                    let written = ready!(legs.poll_write(Leg::Wire, cx, buffer.filled()))?;
                    buffer.consume(written);
                    // The kernel fills records, but ends one with every call.
                    self.records_sent += written.div_ceil(MAX_RECORD_PLAINTEXT_BYTES) as u64;
                    written
                }
                Stage::Pipe(pipe) if pipe.filled() > 0 => {
                    let sent = legs.poll_write_with(Leg::Wire, cx, |stream| pipe.drain_to_tls(stream));
                    let written = ready!(sent).map_err(|error| ended_by(Leg::Wire, &error))?;
                    self.records_sent += spliced_records(written);
                    written
                }
                _ => break,
            };
            legs.live.add_app_to_wire(written);
        }
        self.outbound.release();
        Poll::Ready(Ok(()))
    }

    async fn flush(&mut self, wire: &TcpStream, live: &LiveStats) -> io::Result<()> {
        match &mut self.outbound {
            Stage::Empty => {}
            Stage::Buffer(buffer) => {
                send_all(wire, buffer.filled()).await?;
                live.add_app_to_wire(buffer.filled().len());
            }
            Stage::Pipe(pipe) => {
                while pipe.filled() > 0 {
                    let sent = wire.async_io(Interest::WRITABLE, || pipe.drain_to_tls(wire)).await?;
                    live.add_app_to_wire(sent);
                }
            }
        }
        self.outbound.release();
        Ok(())
    }

    fn poll_send_record(
        &mut self,
        cx: &mut Context<'_>,
        legs: Legs<'_>,
        record_type: u8,
        body: &[u8],
    ) -> Moved<()> {
        // EAGAIN does happen here; giving up would make the peer see truncation.
        ready!(legs.poll_write_with(Leg::Wire, cx, |wire| ktls::send_record(wire, record_type, body)))
            .map_err(|error| ended_by(Leg::Wire, &error))?;
        self.records_sent += 1;
        Poll::Ready(Ok(()))
    }

    /// Takes what the application has sent; false at its end.
    fn poll_take(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<bool> {
        ready!(legs.app.poll_read_ready(cx)).map_err(|_| EndedBy::AppReset)?;
        if self.splice
            && let Ok(mut pipe) = pipes::borrow()
        {
            match pipe.fill_from(legs.app) {
                Ok(moved) if moved > 0 => {
                    self.outbound = Stage::Pipe(pipe);
                    return Poll::Ready(Ok(true));
                }
                Err(error) if !retryable(&error) => {
                    pipes::give_back(pipe);
                    return Poll::Ready(Err(ended_by(Leg::App, &error)));
                }
                // Splice stops before a byte sent as urgent, in line or not, and calls that the end or nothing
                // (net/ipv4/tcp.c, `tcp_read_sock`): a receive says what it is.
                _ => pipes::give_back(pipe),
            }
        }
        let mut buffer = Buffer::borrow();
        let read = ready!(legs.poll_read(Leg::App, cx, &mut buffer.room()[..PLAINTEXT_BYTES]))?;
        buffer.commit(read);
        self.outbound = Stage::Buffer(buffer);
        Poll::Ready(Ok(read > 0))
    }

    fn poll_deliver(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        while self.early_given < self.early.len() {
            let written = ready!(legs.poll_write(Leg::App, cx, &self.early[self.early_given..]))?;
            self.early_given += written;
            legs.live.add_wire_to_app(written);
        }
        (self.early, self.early_given) = (Vec::new(), 0);
        loop {
            let written = match &mut self.inbound {
                Stage::Buffer(buffer) if !buffer.is_empty() => {
                    let written = ready!(legs.poll_write(Leg::App, cx, buffer.filled()))?;
                    buffer.consume(written);
                    written
                }
                Stage::Pipe(pipe) if pipe.filled() > 0 => {
                    let sent = legs.poll_write_with(Leg::App, cx, |app| pipe.drain_to(app));
                    ready!(sent).map_err(|error| ended_by(Leg::App, &error))?
                }
                _ => break,
            };
            legs.live.add_wire_to_app(written);
        }
        self.inbound.release();
        Poll::Ready(Ok(()))
    }

    /// Receives until there is something to deliver, the peer has closed, or nothing is left.
    fn poll_receive(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        if let Some(ended) = self.ended.take() {
            return Poll::Ready(Err(ended));
        }
        ready!(legs.wire.poll_read_ready(cx)).map_err(|_| EndedBy::WireReset)?;
        // In the middle of a handshake message there must be no data.
        if self.splice
            && self.handshake.is_empty()
            && let Ok(mut pipe) = pipes::borrow()
        {
            match legs.poll_read_with(Leg::Wire, cx, |wire| pipe.fill_from(wire)) {
                Poll::Pending => {
                    pipes::give_back(pipe);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(moved)) if moved > 0 => {
                    self.inbound = Stage::Pipe(pipe);
                    return Poll::Ready(Ok(()));
                }
                // EINVAL is a record that is no data; nothing moved is that, an empty one, or the end.
                Poll::Ready(Ok(_)) => pipes::give_back(pipe),
                Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.splice_refused = true;
                    pipes::give_back(pipe);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.receive_error(&error))),
            }
        }
        let mut buffer = Buffer::borrow();
        while buffer.room_len() >= MAX_RECORD_PLAINTEXT_BYTES && !self.peer_closed {
            match self.poll_receive_record(cx, legs, &mut buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(ended)) if buffer.is_empty() => return Poll::Ready(Err(ended)),
                // What came before the end is delivered first.
                Poll::Ready(Err(ended)) => {
                    self.ended = Some(ended);
                    break;
                }
                Poll::Pending if buffer.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
            if self.splice && !buffer.is_empty() {
                break;
            }
        }
        self.inbound = Stage::Buffer(buffer);
        Poll::Ready(Ok(()))
    }

    fn poll_receive_record(
        &mut self,
        cx: &mut Context<'_>,
        legs: Legs<'_>,
        buffer: &mut Buffer,
    ) -> Moved<()> {
        let received: io::Result<Received> =
            ready!(legs.poll_read_with(Leg::Wire, cx, |wire| ktls::receive_record(wire, buffer.room())));
        let received = received.map_err(|error| self.receive_error(&error))?;
        self.splice_refused = false;
        Poll::Ready(self.take_record(legs, &received, buffer))
    }

    /// Takes the record that lies in the buffer's room.
    fn take_record(
        &mut self,
        legs: Legs<'_>,
        &Received { record_type, length }: &Received,
        buffer: &mut Buffer,
    ) -> Result<(), EndedBy> {
        match record_type {
            None => Err(EndedBy::Truncated),
            // RFC 8446 section 5.1.
            Some(RECORD_DATA | RECORD_ALERT) if !self.handshake.is_empty() => {
                Err(self.refuse(control::UNEXPECTED_MESSAGE, "a record within a handshake message"))
            }
            Some(RECORD_DATA) if length == 0 => self.take_empty(),
            Some(RECORD_DATA) => {
                self.patience = control::Patience::default();
                buffer.commit(length);
                Ok(())
            }
            Some(RECORD_ALERT) => self.take_alert(&buffer.room()[..length]),
            Some(RECORD_HANDSHAKE) => {
                self.handshake.extend_from_slice(&buffer.room()[..length]);
                self.take_handshake(legs)
            }
            Some(other) => {
                Err(self.refuse(control::UNEXPECTED_MESSAGE, &format!("a record of type {other}")))
            }
        }
    }
}

impl Pump for Ktls {
    fn poll_outbound(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        loop {
            ready!(self.poll_flush(cx, legs))?;
            ready!(self.poll_rekey(cx, legs))?;
            if self.app_closed {
                if !self.close_notify_sent {
                    ready!(self.poll_send_record(cx, legs, RECORD_ALERT, &control::CLOSE_NOTIFY))?;
                    self.close_notify_sent = true;
                }
                return Poll::Ready(legs.finish(Leg::Wire));
            }
            if !ready!(self.poll_take(cx, legs))? {
                self.app_closed = true;
            }
        }
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        loop {
            ready!(self.poll_deliver(cx, legs))?;
            if self.peer_closed {
                return Poll::Ready(legs.finish(Leg::App));
            }
            ready!(self.poll_receive(cx, legs))?;
        }
    }

    fn handover(&self) -> Option<HandoverState> {
        let quiet = matches!((&self.outbound, &self.inbound), (Stage::Empty, Stage::Empty))
            && self.early.is_empty()
            && self.handshake.is_empty()
            && !self.key_update_due
            && self.app_closed == self.close_notify_sent;
        quiet.then_some(HandoverState {
            splice: self.splice,
            cipher: self.cipher,
            records_sent: self.records_sent,
            outbound_ended: self.app_closed,
            inbound_ended: self.peer_closed,
        })
    }

    fn wire_failed(&mut self, error: Option<&io::Error>) -> EndedBy {
        match error {
            Some(error) => self.receive_error(error),
            // Splice has taken the kernel's word for a record that cannot be taken apart: seen on 6.1.
            None if self.splice_refused => self.receive_error(&io::Error::from_raw_os_error(libc::EINVAL)),
            None => EndedBy::WireReset,
        }
    }

    async fn say_last_words(
        &mut self,
        wire: &TcpStream,
        ended_by: &EndedBy,
        live: &LiveStats,
    ) -> io::Result<bool> {
        let alert = match (ended_by, self.alert) {
            (EndedBy::WireProtocol(_), Some(description)) => control::fatal(description),
            (EndedBy::WireProtocol(_), None) => return Ok(false),
            _ if self.close_notify_sent => return Ok(true),
            // An orderly end says that all was sent.
            _ => {
                self.flush(wire, live).await?;
                control::CLOSE_NOTIFY
            }
        };
        wire.async_io(Interest::WRITABLE, || ktls::send_record(wire, RECORD_ALERT, &alert)).await?;
        Ok(true)
    }
}
