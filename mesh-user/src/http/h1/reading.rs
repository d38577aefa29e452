//! The reading half of a connection with what was read and not yet used. It reads only as much as there is room for.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A reader and its buffer.
#[derive(Debug)]
pub(super) struct Reading<R> {
    pub(super) io: R,
    pub(super) buffer: BytesMut,
    /// The last read took all there was room for.
    more_waits: bool,
}

/// Most that is read at a time before it has shown that more is waiting: less is cheaper to have and to give back.
const FIRST_ROOM: usize = 16 * 1024;

impl<R: AsyncRead + Unpin> Reading<R> {
    pub(super) fn new(io: R, buffer: BytesMut) -> Self {
        Self { io, buffer, more_waits: false }
    }

    /// Reads at most `room` bytes behind those in the buffer; 0 at the end. Nothing is lost when it is dropped.
    pub(super) async fn fill(&mut self, room: usize) -> io::Result<usize> {
        let room = if self.more_waits { room } else { room.min(FIRST_ROOM) };
        self.buffer.reserve(room);
        let read = self.io.read_buf(&mut (&mut self.buffer).limit(room)).await?;
        self.more_waits = read == room;
        Ok(read)
    }

    /// Drops empty lines before a request, of which a client may send one after a body (RFC 9112 section 2.2).
    pub(super) fn skip_empty_line(&mut self) {
        if self.buffer.starts_with(b"\r\n") {
            self.buffer.advance(2);
        }
    }
}
