//! Records that are not data: alerts, tickets, key changes. What a peer sends here is parsed with bounds, and
//! anything that does not belong after a handshake ends the connection.
//!
//! Sources: RFC 8446 sections 4.6, 5.1, 5.5, 6.

use std::task::{Context, Poll, ready};

use super::{Ktls, Legs, Moved};
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
impl Ktls {
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

    pub(super) fn take_alert(&mut self, body: &[u8]) -> Result<(), EndedBy> {
        match *body {
            [_, 0] => {
                self.peer_closed = true;
                Ok(())
            }
            [_, USER_CANCELED] => Ok(()),
            [_, description] => Err(EndedBy::WireProtocol(format!("the peer sent alert {description}"))),
            _ => Err(EndedBy::WireProtocol("a malformed alert".to_owned())),
        }
    }

    /// Messages may share a record or span several.
    pub(super) fn take_handshake(&mut self, legs: Legs<'_>) -> Result<(), EndedBy> {
        while let [message_type, high, middle, low, ..] = self.handshake[..] {
            let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
            if length > MAX_HANDSHAKE_BYTES {
                return Err(EndedBy::WireProtocol("a handshake message is too large".to_owned()));
            }
            if self.handshake.len() < 4 + length {
                return Ok(());
            }
            let rest = self.handshake.split_off(4 + length);
            let message = std::mem::replace(&mut self.handshake, rest);
            match (message_type, &mut self.session) {
                (NEW_SESSION_TICKET, Some(KernelSession::Client(session))) => session
                    .handle_new_session_ticket(&message[4..])
                    .map_err(|error| EndedBy::WireProtocol(error.to_string()))?,
                (NEW_SESSION_TICKET, None) => {}
                (KEY_UPDATE, _) => self.take_key_update(legs, &message[4..])?,
                (other, _) => {
                    return Err(EndedBy::WireProtocol(format!(
                        "handshake message {other} after the handshake"
                    )));
                }
            }
        }
        Ok(())
    }

    pub(super) fn take_key_update(&mut self, legs: Legs<'_>, body: &[u8]) -> Result<(), EndedBy> {
        let requested = match *body {
            [0] => false,
            [1] => true,
            _ => return Err(EndedBy::WireProtocol("a malformed KeyUpdate".to_owned())),
        };
        // RFC 8446 section 5.1: a message before a key change ends its record.
        if !self.handshake.is_empty() {
            return Err(EndedBy::WireProtocol("bytes follow a KeyUpdate".to_owned()));
        }
        if !self.can_rekey {
            return Err(EndedBy::KeyUpdateUnsupported);
        }
        self.next_keys(legs, Direction::Receive)?;
        self.key_update_due |= requested;
        Ok(())
    }
}
