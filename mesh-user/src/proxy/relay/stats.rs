//! What a relay tells while it lives and when it ends: counters that `meshctl connections` reads, a way to
//! close it from outside, and the outcome for the access log.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::handover::Handover;
use crate::tls::VerifyError;

/// Bounds of one relay.
#[derive(Debug, Clone, Copy)]
pub struct RelayOptions {
    /// Without a byte either way for so long, both legs are reset; zero: never.
    pub idle_timeout: Duration,
    /// Both legs are reset when the wire's peer has acknowledged nothing for so long though it should have; zero:
    /// when the kernel gives it up.
    pub user_timeout: Duration,
    /// The wire's peer is probed when it has been quiet for so long; zero: never.
    pub keepalive_idle: Duration,
    /// Kernel TLS changes its key, or ends the connection, after so many records, and always before the
    /// AEAD's own limit (RFC 8446 section 5.5).
    pub records_per_key: u64,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::ZERO,
            user_timeout: Duration::ZERO,
            keepalive_idle: Duration::ZERO,
            records_per_key: u64::MAX,
        }
    }
}

/// Why a relay was closed from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// Policy does not allow it any more.
    Policy(String),
    /// The peer's certificate is not believed any more.
    Trust(VerifyError),
    /// The daemon stops.
    Shutdown,
    /// An operator asked for it.
    Operator,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(rule) => write!(f, "no longer allowed by policy: {rule}"),
            Self::Trust(cause) => write!(f, "no longer trusted: {cause}"),
            Self::Shutdown => f.write_str("meshd stops"),
            Self::Operator => f.write_str("closed by an operator"),
        }
    }
}

/// Counters of a live relay, readable from anywhere.
#[derive(Debug)]
pub struct LiveStats {
    started: Instant,
    app_to_wire_bytes: AtomicU64,
    wire_to_app_bytes: AtomicU64,
    /// Milliseconds after `started`.
    last_activity_ms: AtomicU64,
    cancel: CancellationToken,
    close_reason: OnceLock<CloseReason>,
    handover: CancellationToken,
}

impl Default for LiveStats {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            app_to_wire_bytes: AtomicU64::new(0),
            wire_to_app_bytes: AtomicU64::new(0),
            last_activity_ms: AtomicU64::new(0),
            cancel: CancellationToken::new(),
            close_reason: OnceLock::new(),
            handover: CancellationToken::new(),
        }
    }
}

impl LiveStats {
    /// Plaintext bytes that the application sent and the wire leg took.
    pub fn app_to_wire_bytes(&self) -> u64 {
        self.app_to_wire_bytes.load(Ordering::Relaxed)
    }

    /// Plaintext bytes that the application was given.
    pub fn wire_to_app_bytes(&self) -> u64 {
        self.wire_to_app_bytes.load(Ordering::Relaxed)
    }

    /// When the relay was set up.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How long nothing has moved.
    pub fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last_activity_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    /// Resets both legs at once. The first reason given is the one recorded.
    pub fn close(&self, reason: CloseReason) {
        let _ = self.close_reason.set(reason);
        self.cancel.cancel();
    }

    /// Why it was closed from outside, if it was.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        self.close_reason.get()
    }

    /// Asks a kernel TLS relay to end with [`EndedBy::HandedOver`] at the next moment when it holds nothing.
    /// Other kinds go on.
    pub fn request_handover(&self) {
        self.handover.cancel();
    }

    pub(super) fn handover_requested(&self) -> &CancellationToken {
        &self.handover
    }

    /// Ends when it is closed from outside.
    pub(in crate::proxy) async fn closed(&self) {
        self.cancel.cancelled().await;
    }

    /// Ends when nothing has moved for `limit`; never, if that is zero.
    pub(in crate::proxy) async fn idle_for(&self, limit: Duration) {
        super::patience::idle(self, limit).await;
    }

    pub(super) fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    pub(in crate::proxy) fn add_app_to_wire(&self, bytes: usize) {
        self.app_to_wire_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    pub(in crate::proxy) fn add_wire_to_app(&self, bytes: usize) {
        self.wire_to_app_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    fn touch(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_activity_ms.store(now, Ordering::Relaxed);
    }
}

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndedBy {
    /// Both directions were closed in order.
    Finished,
    /// The application reset its connection.
    AppReset,
    /// The wire leg was reset, or the kernel gave its peer up.
    WireReset,
    /// The wire leg ended without `close_notify`: bytes may be missing (RFC 8446 section 6.1).
    Truncated,
    /// The peer broke the TLS protocol or sent a fatal alert.
    WireProtocol(String),
    /// The AEAD limit of the key is reached and the kernel cannot change keys (RFC 8446 section 5.5).
    KeyExhausted,
    /// The peer changed its key and the kernel cannot follow.
    KeyUpdateUnsupported,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The wire's peer owes acknowledgements and sends none.
    Silent,
    /// Closed from outside; the reason is in [`LiveStats::close_reason`].
    Closed,
    /// Both legs live on in [`RelayOutcome::handover`].
    HandedOver,
    /// Something failed on our side.
    Local(String),
}

impl EndedBy {
    /// A stable name for metrics and the access log.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::AppReset => "app_reset",
            Self::WireReset => "wire_reset",
            Self::Truncated => "truncated",
            Self::WireProtocol(_) => "wire_protocol",
            Self::KeyExhausted => "key_exhausted",
            Self::KeyUpdateUnsupported => "key_update_unsupported",
            Self::Idle => "idle_timeout",
            Self::Silent => "user_timeout",
            Self::Closed => "closed",
            Self::HandedOver => "handed_over",
            Self::Local(_) => "local",
        }
    }
}

/// What the access log says about a relay.
#[derive(Debug)]
pub struct RelayOutcome {
    /// How it ended.
    pub ended_by: EndedBy,
    /// Plaintext bytes that the wire leg took.
    pub app_to_wire_bytes: u64,
    /// Plaintext bytes that the application was given.
    pub wire_to_app_bytes: u64,
    /// The live connection, when it ended by [`EndedBy::HandedOver`].
    pub handover: Option<Box<Handover>>,
}
