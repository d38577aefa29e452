//! Whether a read has left anything in its socket. That it was short does not say so: a read ends before a byte that the
//! application has marked as urgent. A leg that was often asked in vain is therefore made to tell with each read.

use std::{
    io,
    sync::atomic::{AtomicU8, Ordering},
};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::sys::socket::{receive_with_rest, tell_rest};

/// Reads in vain after which it pays to ask: a connection of one request has fewer.
const IN_VAIN: u8 = 2;

/// What a read took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// Bytes; 0 is the end of the stream.
    pub(super) read: usize,
    /// Nothing was left behind it, neither bytes nor an end.
    pub(super) all: bool,
}

/// Both legs.
#[derive(Debug, Default)]
pub(super) struct Rests {
    pub(super) app: Rest,
    pub(super) wire: Rest,
}

/// One leg, whose kernel sockets are plain TCP.
#[derive(Debug, Default)]
pub(super) struct Rest {
    in_vain: AtomicU8,
}

impl Rest {
    /// Reads, or says `WouldBlock`.
    pub(super) fn read(&self, stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Taken> {
        let in_vain = self.in_vain.load(Ordering::Relaxed);
        if in_vain > IN_VAIN {
            let (read, rest) = receive_with_rest(stream, buffer)?;
            return Ok(Taken { read, all: rest == Some(0) });
        }
        let read = io::Read::read(&mut &*SockRef::from(stream), buffer).inspect_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                self.in_vain.store(in_vain + 1, Ordering::Relaxed);
                if in_vain == IN_VAIN {
                    // Refused, reads go on as they were.
                    let _ = tell_rest(stream);
                }
            }
        })?;
        Ok(Taken { read, all: false })
    }
}
