//! A live kernel TLS connection, small enough to change hands: two descriptors and this state. No secret is
//! in it: the keys are in the kernel, and the key schedule stays with the process that made the handshake,
//! so a connection handed over cannot change keys any more and ends before its AEAD limit.

use std::{io, os::fd::OwnedFd};

use tokio::net::TcpStream;

use super::{
    driver::relay_pump,
    ktls::Ktls,
    stats::{LiveStats, RelayOptions, RelayOutcome},
};
use crate::tls::KernelCipher;

/// What the next process must know; serialised beside the descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandoverState {
    /// Through a pipe instead of a buffer.
    pub splice: bool,
    /// Which cipher the keys in the kernel are for; tells the AEAD limit.
    pub cipher: KernelCipher,
    /// Records sent with the present key.
    pub records_sent: u64,
    /// FIN of the application was passed on: `close_notify` and FIN are sent.
    pub outbound_ended: bool,
    /// `close_notify` was received and passed on as FIN.
    pub inbound_ended: bool,
}

/// A connection between two relays.
#[derive(Debug)]
pub struct Handover {
    /// The app leg, non-blocking.
    pub app: OwnedFd,
    /// The wire leg, non-blocking, with its keys in the kernel.
    pub wire: OwnedFd,
    /// The rest.
    pub state: HandoverState,
}

impl Handover {
    pub(super) fn new(app: TcpStream, wire: TcpStream, state: HandoverState) -> io::Result<Self> {
        Ok(Self { app: app.into_std()?.into(), wire: wire.into_std()?.into(), state })
    }

    /// Relays on, in whatever process holds the descriptors now.
    pub async fn relay(self, options: &RelayOptions, live: &LiveStats) -> RelayOutcome {
        let stream = |descriptor: OwnedFd| TcpStream::from_std(std::net::TcpStream::from(descriptor));
        let ended = (self.state.outbound_ended, self.state.inbound_ended);
        match (stream(self.app), stream(self.wire)) {
            (Ok(app), Ok(wire)) => {
                relay_pump(app, wire, &mut Ktls::resume(self.state, options), ended, options, live).await
            }
            (Err(error), _) | (_, Err(error)) => RelayOutcome::local(&error, live),
        }
    }
}
