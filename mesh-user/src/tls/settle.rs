//! Brings a connection to rest: everything read is opened, everything sealed is sent, nothing is held back by rustls.
//! Only then may the keys go to other hands. Whatever interrupts it, the userspace relay can go on from there.

use std::io;

use bytes::BufMut as _;
use tokio::io::AsyncReadExt as _;

use super::{Established, MAX_RECORD_BYTES, Step};

/// What is read at a time.
const CHUNK_BYTES: usize = 4096;
const HEADER_BYTES: usize = 5;

/// Why a connection stays with rustls.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsettled {
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
    #[error("the peer ended the connection within a record")]
    Ended,
    #[error("a handshake message is split over records")]
    SplitMessage,
    /// In [`Established::failed`] too.
    #[error("the peer broke the protocol: {0}")]
    Protocol(rustls::Error),
}

impl Established {
    /// Leaves nothing but the session's keys and counters to be known. Loses nothing when it is dropped half-way.
    pub(crate) async fn settle(&mut self) -> Result<(), Unsettled> {
        self.reach_record_boundary().await?;
        self.session
            .answer_key_update(&mut self.ciphertext, &mut self.outgoing)
            .map_err(Unsettled::Protocol)?;
        self.send_outgoing().await?;
        Ok(())
    }

    /// Reads exactly to the end of the record begun, so that nothing read lies beyond it.
    pub(crate) async fn reach_record_boundary(&mut self) -> Result<(), Unsettled> {
        while !self.peer_closed && !self.ciphertext.is_empty() {
            match self.missing_bytes() {
                0 => self.open_whole_records()?,
                missing => self.read_some(missing).await?,
            }
        }
        // Whatever follows close_notify is ignored (RFC 8446 section 6.1).
        self.ciphertext.clear();
        Ok(())
    }

    /// Waits for a record and opens it, with whole ones that come with it: mostly one read takes all.
    pub(super) async fn next_record(&mut self) -> Result<(), Unsettled> {
        if self.peer_closed {
            return Err(Unsettled::Ended);
        }
        let mut missing = CHUNK_BYTES;
        while missing > 0 {
            self.read_some(missing).await?;
            missing = self.missing_bytes();
        }
        self.open_whole_records()
    }

    /// Of the first record, at least. A length that no record has is left to rustls to refuse.
    fn missing_bytes(&self) -> usize {
        let whole = match self.ciphertext[..] {
            [_, _, _, high, low, ..] => HEADER_BYTES + usize::from(u16::from_be_bytes([high, low])),
            _ => HEADER_BYTES,
        };
        if whole > MAX_RECORD_BYTES { 0 } else { whole.saturating_sub(self.ciphertext.len()) }
    }

    async fn read_some(&mut self, at_most: usize) -> Result<(), Unsettled> {
        // Not through an array of its own: a connection's task is as large as the largest step in its life.
        let at_most = at_most.min(CHUNK_BYTES);
        self.ciphertext.reserve(at_most);
        match self.stream.read_buf(&mut (&mut self.ciphertext).limit(at_most)).await? {
            0 => Err(Unsettled::Ended),
            _ => Ok(()),
        }
    }

    fn open_whole_records(&mut self) -> Result<(), Unsettled> {
        let before = self.ciphertext.len();
        loop {
            let plaintext = &mut self.plaintext;
            let done = self.session.process(
                &mut self.ciphertext,
                &mut |bytes| plaintext.extend_from_slice(bytes),
                &mut self.outgoing,
            );
            self.ciphertext.drain(..done.discard.min(self.ciphertext.len()));
            match done.outcome {
                Ok(Step::Progress) => {}
                Ok(Step::PeerClosed) => self.peer_closed = true,
                Ok(Step::NeedsInput | Step::Ready | Step::Closed) => break,
                Err(error) => {
                    self.session.last_words(&mut self.ciphertext, &mut self.outgoing);
                    self.failed = Some(error.clone());
                    return Err(Unsettled::Protocol(error));
                }
            }
        }
        // rustls keeps the beginning of a handshake message in the caller's buffer.
        if self.ciphertext.len() == before && !self.peer_closed {
            return Err(Unsettled::SplitMessage);
        }
        Ok(())
    }

    pub(super) async fn send_outgoing(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(&self.outgoing) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
