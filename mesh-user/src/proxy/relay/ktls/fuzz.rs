//! The door for the fuzz targets: records as if the kernel had received and opened them.

use std::io;

use tokio::net::TcpStream;

use super::{Buffer, Ktls, LiveStats, RelayOptions};
use crate::{
    proxy::relay::{HandoverState, legs::Legs, rest::Rests},
    sys::ktls::Received,
    tls::{Established, KernelCipher},
};

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// So many bytes go to the application.
    Data(usize),
    /// The connection goes on.
    Taken,
    /// The peer sends no more.
    Closed,
    /// The connection ends: the label of the end, and the alert that the peer is told.
    Ended(&'static str, Option<u8>),
}

/// One connection's receiving side. Its sockets carry nothing and are used by nobody else.
pub struct Control {
    relay: Ktls,
    sockets: (TcpStream, TcpStream),
    live: LiveStats,
}

impl Control {
    /// As after a hand-over, without a key schedule.
    pub fn without_session(cipher: KernelCipher, sockets: (TcpStream, TcpStream)) -> Self {
        let relay = Ktls::resume(begun(cipher), &RelayOptions::default());
        Self { relay, sockets, live: LiveStats::default() }
    }

    /// As after the offload, but for the keys: the kernel has not got them.
    pub fn of(established: Established, app: TcpStream) -> io::Result<Self> {
        let cipher = KernelCipher::of(established.facts().cipher_suite);
        let cipher = cipher.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let (_keys, session) = established.session.into_kernel().map_err(io::Error::other)?;
        let mut control = Self::without_session(cipher, (app, established.stream));
        control.relay.session = Some(session);
        Ok(control)
    }

    /// The next connection, with the same key schedule.
    pub fn begin(&mut self, can_rekey: bool) {
        let session = self.relay.session.take();
        let fresh = Ktls::resume(begun(self.relay.cipher), &RelayOptions::default());
        self.relay = Ktls { session, can_rekey, ..fresh };
    }

    /// Takes one record of at most the size that the protocol allows.
    pub fn take(&mut self, record_type: u8, body: &[u8]) -> Told {
        let mut buffer = Buffer::borrow();
        buffer.room()[..body.len()].copy_from_slice(body);
        let (app, wire) = (&self.sockets.0, &self.sockets.1);
        let legs = Legs { app, wire, live: &self.live, rest: &Rests::default(), app_ended: false };
        let received = Received { record_type: Some(record_type), length: body.len() };
        match self.relay.take_record(legs, &received, &mut buffer) {
            Err(ended) => Told::Ended(ended.label(), self.relay.alert),
            Ok(()) if self.relay.peer_closed => Told::Closed,
            Ok(()) if buffer.is_empty() => Told::Taken,
            Ok(()) => Told::Data(buffer.filled().len()),
        }
    }

    /// What is kept of a handshake message until the rest of it comes.
    pub fn kept_bytes(&self) -> usize {
        self.relay.handshake.len()
    }
}

fn begun(cipher: KernelCipher) -> HandoverState {
    HandoverState { splice: false, cipher, records_sent: 0, outbound_ended: false, inbound_ended: false }
}
