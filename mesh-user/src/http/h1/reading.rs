//! The reading half of a connection with what was read and not yet used. It reads only as much as there is room for.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A reader and its buffer.
#[derive(Debug)]
pub(super) struct Reading<R> {
    pub(super) io: R,
    pub(super) buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Reading<R> {
    pub(super) fn new(io: R, buffer: BytesMut) -> Self {
        Self { io, buffer }
    }

    /// Reads at most `room` bytes behind those in the buffer; 0 at the end. Nothing is lost when it is dropped.
    pub(super) async fn fill(&mut self, room: usize) -> io::Result<usize> {
        self.buffer.reserve(room);
        self.io.read_buf(&mut (&mut self.buffer).limit(room)).await
    }

    /// Drops empty lines before a request, of which a client may send one after a body (RFC 9112 section 2.2).
    pub(super) fn skip_empty_line(&mut self) {
        if self.buffer.starts_with(b"\r\n") {
            self.buffer.advance(2);
        }
    }
}
