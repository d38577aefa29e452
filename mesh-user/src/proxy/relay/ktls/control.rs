//! Records that are not data: alerts, tickets, key changes. What a peer sends here is parsed with bounds, and
//! anything that does not belong after a handshake ends the connection.
//!
//! Sources: RFC 8446 sections 4.6, 5.1, 5.5, 6.

use std::{
    io,
    task::{Context, Poll, ready},
};

use super::{Ktls, Leg, Legs, Moved, ended_by};
use crate::{
    proxy::relay::stats::EndedBy,
    sys::ktls::{Direction, RECORD_HANDSHAKE},
    tls::{KernelSession, set_secrets},
};

/// Handshake message types after the handshake (RFC 8446 section 4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// A ticket is at most two 64 KiB vectors; real ones have a few kilobytes. More is refused.
const MAX_HANDSHAKE_BYTES: usize = 64 * 1024;
/// Alert `user_canceled` precedes `close_notify` and means nothing by itself (RFC 8446 section 6.1).
const USER_CANCELED: u8 = 90;
/// Level of an alert that, before TLS 1.3, ends nothing (RFC 5246 section 7.2).
const WARNING: u8 = 1;
/// warning, `close_notify`.
pub(super) const CLOSE_NOTIFY: [u8; 2] = [WARNING, 0];
/// Alert descriptions (RFC 8446 section 6).
pub(super) const UNEXPECTED_MESSAGE: u8 = 10;
pub(super) const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;

/// An alert that ends the connection.
pub(super) fn fatal(description: u8) -> [u8; 2] {
    [2, description]
}

/// What a peer may send before the next data: numbers as rustls and `BoringSSL` have them.
pub(super) struct Patience {
    key_updates: u8,
    warnings: u8,
    empty_records: u8,
}

impl Default for Patience {
    fn default() -> Self {
        Self { key_updates: 32, warnings: 4, empty_records: 32 }
    }
}

impl Ktls {
    /// The peer has broken the protocol, and will be told so.
    pub(super) fn refuse(&mut self, alert: u8, what: &str) -> EndedBy {
        self.alert = Some(alert);
        EndedBy::WireProtocol(what.to_owned())
    }

    /// Receiving has failed, for the network's sake or the peer's (`net/tls/tls_sw.c`, `net/tls/tls_strp.c`).
    pub(super) fn receive_error(&mut self, error: &io::Error) -> EndedBy {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => self.alert = Some(RECORD_OVERFLOW),
            Some(libc::EINVAL | libc::EIO) => self.alert = Some(DECODE_ERROR),
            _ => {}
        }
        ended_by(Leg::Wire, error)
    }

    /// Changes our key when the peer asks for it or the key is used up.
    pub(super) fn poll_rekey(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        let used_up = self.records_sent >= self.records_per_key;
        if !used_up && !self.key_update_due {
            return Poll::Ready(Ok(()));
        }
        if !self.can_rekey || self.session.is_none() {
            return Poll::Ready(Err(EndedBy::KeyExhausted));
        }
        ready!(self.poll_send_record(cx, legs, RECORD_HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0]))?;
        self.key_update_due = false;
        self.next_keys(legs, Direction::Transmit)?;
        self.records_sent = 0;
        Poll::Ready(Ok(()))
    }

    pub(super) fn next_keys(&mut self, legs: Legs<'_>, direction: Direction) -> Result<(), EndedBy> {
        let updated = match (&mut self.session, direction) {
            (Some(KernelSession::Client(session)), Direction::Transmit) => session.update_tx_secret(),
            (Some(KernelSession::Client(session)), Direction::Receive) => session.update_rx_secret(),
            (Some(KernelSession::Server(session)), Direction::Transmit) => session.update_tx_secret(),
            (Some(KernelSession::Server(session)), Direction::Receive) => session.update_rx_secret(),
            (None, _) => return Err(EndedBy::KeyUpdateUnsupported),
        };
        let (sequence, secrets) = updated.map_err(|error| EndedBy::WireProtocol(error.to_string()))?;
        set_secrets(legs.wire, direction, self.cipher, sequence, &secrets)
            .map_err(|error| EndedBy::Local(format!("the kernel refused the next keys: {error}")))
    }

    /// Data of no bytes, where the kernel does not pass over it by itself.
    pub(super) fn take_empty(&mut self) -> Result<(), EndedBy> {
        let Some(left) = self.patience.empty_records.checked_sub(1) else {
            return Err(self.refuse(UNEXPECTED_MESSAGE, "too many empty records"));
        };
        self.patience.empty_records = left;
        Ok(())
    }

    pub(super) fn take_alert(&mut self, body: &[u8]) -> Result<(), EndedBy> {
        match *body {
            [_, 0] => self.peer_closed = true,
            [WARNING, description]
                if (description == USER_CANCELED || !self.cipher.is_tls13())
                    && self.patience.warnings > 0 =>
            {
                self.patience.warnings -= 1;
            }
            [WARNING, USER_CANCELED] => return Err(self.refuse(UNEXPECTED_MESSAGE, "too many warnings")),
            // It has ended the connection; there is nothing to answer.
            [_, description] => {
                self.alert = None;
                return Err(EndedBy::WireProtocol(format!("the peer sent alert {description}")));
            }
            _ => return Err(self.refuse(DECODE_ERROR, "a malformed alert")),
        }
        Ok(())
    }

    /// Messages may share a record or span several.
    pub(super) fn take_handshake(&mut self, legs: Legs<'_>) -> Result<(), EndedBy> {
        if self.handshake.is_empty() {
            return Err(self.refuse(UNEXPECTED_MESSAGE, "an empty handshake record"));
        }
        while let [message_type, high, middle, low, ..] = self.handshake[..] {
            let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
            if length > MAX_HANDSHAKE_BYTES {
                return Err(self.refuse(DECODE_ERROR, "a handshake message is too large"));
            }
            if self.handshake.len() < 4 + length {
                return Ok(());
            }
            let rest = self.handshake.split_off(4 + length);
            let message = std::mem::replace(&mut self.handshake, rest);
            self.take_message(legs, message_type, &message[4..])?;
        }
        Ok(())
    }

    fn take_message(&mut self, legs: Legs<'_>, message_type: u8, body: &[u8]) -> Result<(), EndedBy> {
        match (message_type, &mut self.session) {
            (KEY_UPDATE, _) if self.cipher.is_tls13() => self.take_key_update(legs, body),
            (NEW_SESSION_TICKET, Some(KernelSession::Client(session))) if self.cipher.is_tls13() => {
                let taken = session.handle_new_session_ticket(body);
                taken.map_err(|error| self.refuse(DECODE_ERROR, &error.to_string()))
            }
            (NEW_SESSION_TICKET, None) => Ok(()),
            (other, _) => {
                let what = format!("handshake message {other} after the handshake");
                Err(self.refuse(UNEXPECTED_MESSAGE, &what))
            }
        }
    }

    fn take_key_update(&mut self, legs: Legs<'_>, body: &[u8]) -> Result<(), EndedBy> {
        let requested = match *body {
            [0] => false,
            [1] => true,
            [_] => return Err(self.refuse(ILLEGAL_PARAMETER, "a KeyUpdate of an unknown kind")),
            _ => return Err(self.refuse(DECODE_ERROR, "a malformed KeyUpdate")),
        };
        // RFC 8446 section 5.1: a message before a key change ends its record.
        if !self.handshake.is_empty() {
            return Err(self.refuse(UNEXPECTED_MESSAGE, "bytes follow a KeyUpdate"));
        }
        if !self.can_rekey {
            return Err(EndedBy::KeyUpdateUnsupported);
        }
        let Some(left) = self.patience.key_updates.checked_sub(1) else {
            return Err(self.refuse(UNEXPECTED_MESSAGE, "too many KeyUpdates without data"));
        };
        self.patience.key_updates = left;
        self.next_keys(legs, Direction::Receive)?;
        self.key_update_due |= requested;
        Ok(())
    }
}
