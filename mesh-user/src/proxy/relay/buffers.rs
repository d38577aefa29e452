//! Buffers lent to relays while bytes are moving: a small pool per thread. An idle connection holds none; a
//! blocked one holds what its peer has not taken yet, and no more.

use std::cell::{Cell, RefCell};

use crate::tls::{MAX_RECORD_PLAINTEXT_BYTES, RECORD_OVERHEAD_BYTES};

/// Records that fit one buffer.
const RECORDS: usize = 4;
/// Plaintext moved at a time: whole records.
pub(super) const PLAINTEXT_BYTES: usize = RECORDS * MAX_RECORD_PLAINTEXT_BYTES;
/// A buffer has room for that plaintext sealed, and for a key update before it.
pub(super) const BUFFER_BYTES: usize = PLAINTEXT_BYTES + (RECORDS + 4) * RECORD_OVERHEAD_BYTES;
/// Buffers kept per thread for the next relay.
const KEPT: usize = 16;

thread_local! {
    static LENT: Cell<usize> = const { Cell::new(0) };
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers that this thread's relays hold at the moment (those moved to another thread are not counted right).
pub fn buffers_lent() -> usize {
    LENT.get()
}

/// A borrowed buffer with unread bytes between `start` and `end`.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Takes one from this thread's pool.
    pub(super) fn borrow() -> Self {
        let bytes =
            POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice());
        LENT.set(LENT.get() + 1);
        Self { bytes, start: 0, end: 0 }
    }

    /// Unread bytes.
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Unread bytes, to be decrypted in place.
    pub(super) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Room behind the unread bytes.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// How much room there is.
    pub(super) fn room_len(&self) -> usize {
        self.bytes.len() - self.end
    }

    /// Marks bytes written to the room as unread.
    pub(super) fn commit(&mut self, written: usize) {
        self.end = (self.end + written).min(self.bytes.len());
    }

    /// Drops bytes from the front.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves the unread bytes to the front, so that all room is behind them.
    pub(super) fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
    }

    /// Appends what fits.
    pub(super) fn append(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room_len());
        self.room()[..count].copy_from_slice(&bytes[..count]);
        self.commit(count);
        count
    }

    /// Whether nothing is unread.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = LENT.try_with(|lent| lent.set(lent.get().saturating_sub(1)));
        let bytes = std::mem::take(&mut self.bytes);
        // A thread that ends has no pool any more; then the buffer is simply freed.
        let _ = POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut()
                && pool.len() < KEPT
                && !bytes.is_empty()
            {
                pool.push(bytes);
            }
        });
    }
}
