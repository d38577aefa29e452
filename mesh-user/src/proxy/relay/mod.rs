//! Moves bytes between the app leg and the wire leg until both directions have ended. One task per
//! connection, event-driven; no buffer is held while nothing moves. It never decides who may talk to whom.

mod buffers;
mod driver;
mod handover;
mod ktls;
mod legs;
mod patience;
mod pipes;
mod plain;
mod rest;
mod stats;
mod userspace;

use std::task::Context;

use tokio::net::TcpStream;

pub use buffers::buffers_lent;
pub use driver::relay;
pub use handover::{Handover, HandoverState};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use ktls::fuzz;
pub(super) use patience::Vigil;
pub use stats::{CloseReason, EndedBy, LiveStats, RelayOptions, RelayOutcome};

use crate::tls::{Established, KernelTls, Offloaded};

/// One kind of relay: two directions, each polled until it has ended.
trait Pump {
    /// From the application to the wire, until FIN (and `close_notify`) is sent.
    fn poll_outbound(&mut self, cx: &mut Context<'_>, legs: legs::Legs<'_>) -> legs::Moved<()>;
    /// From the wire to the application, until FIN is sent.
    fn poll_inbound(&mut self, cx: &mut Context<'_>, legs: legs::Legs<'_>) -> legs::Moved<()>;
    /// The state that another process needs, if nothing but the two sockets holds bytes of the stream.
    fn handover(&self) -> Option<HandoverState> {
        None
    }
    /// What an error state of the wire leg's socket means; none where it has been reported by a call before.
    fn wire_failed(&mut self, error: Option<&std::io::Error>) -> EndedBy {
        error.map_or(EndedBy::WireReset, |error| legs::ended_by(legs::Leg::Wire, error))
    }
    /// After an end that is not clean, but not the network's either: completes what the peer was being sent and says
    /// why nothing follows (RFC 8446 section 6). False when there is nothing to say.
    async fn say_last_words(
        &mut self,
        _wire: &TcpStream,
        _ended_by: &EndedBy,
        _live: &LiveStats,
    ) -> std::io::Result<bool> {
        Ok(false)
    }
}

/// How the wire leg's records are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelayKind {
    /// No TLS at all: PERMISSIVE's and DISABLE's plaintext, passthrough.
    Plain,
    /// rustls encrypts.
    Userspace,
    /// Kernel TLS, copy loop.
    Ktls,
    /// Kernel TLS, through a pipe.
    KtlsSplice,
}

impl RelayKind {
    /// The name in metrics, logs and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Userspace => "userspace",
            Self::Ktls => "ktls",
            Self::KtlsSplice => "ktls-splice",
        }
    }
}

/// What the configuration wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RelayChoice {
    /// What was proven best here.
    #[default]
    Auto,
    /// Always rustls.
    Userspace,
    /// Kernel TLS where proven.
    Ktls,
    /// Kernel TLS with splice where proven.
    KtlsSplice,
}

/// The relay kind for TLS connections on this kernel. What is not proven is not used: an explicit choice that
/// the kernel cannot serve falls back to the next one that works (still TLS).
pub fn choose(choice: RelayChoice, kernel: &KernelTls) -> RelayKind {
    match choice {
        _ if kernel.ulp.is_err() || kernel.ciphers.is_empty() => RelayKind::Userspace,
        RelayChoice::Userspace => RelayKind::Userspace,
        RelayChoice::KtlsSplice if kernel.splice.is_ok() => RelayKind::KtlsSplice,
        // kernel.md section 1: the copy loop is the default for offloaded connections.
        RelayChoice::Auto | RelayChoice::Ktls | RelayChoice::KtlsSplice => RelayKind::Ktls,
    }
}

/// The other side of the relay.
pub enum WireLeg {
    /// TCP without TLS.
    Plain(TcpStream),
    /// TLS by rustls.
    Userspace(Box<Established>),
    /// TLS by the kernel.
    Ktls {
        /// The connection.
        wire: Box<Offloaded>,
        /// Through a pipe instead of a buffer.
        splice: bool,
    },
}

impl WireLeg {
    /// How its records are made.
    pub fn kind(&self) -> RelayKind {
        match self {
            Self::Plain(_) => RelayKind::Plain,
            Self::Userspace(_) => RelayKind::Userspace,
            Self::Ktls { splice: false, .. } => RelayKind::Ktls,
            Self::Ktls { splice: true, .. } => RelayKind::KtlsSplice,
        }
    }
}
