//! How captured connections reach the proxy. The `listener` form accepts them on loopback, so the
//! application's `connect` succeeds before anything is known; the `hold` form keeps it waiting until the
//! upstream is proven.

use std::{future::pending, io, sync::Arc};

use tokio::net::{TcpListener, TcpStream};

use super::{HeldLeg, OriginalDestination, WorkloadNet};
use crate::sys::socket::{self, reset_on_close};

/// How outbound connections are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A loopback listener in the workload's namespace.
    Listener,
    /// The application's `connect` waits until the upstream is proven.
    Hold,
}

impl Form {
    /// The name in configuration, logs and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Hold => "hold",
        }
    }
}

/// What the application's `connect` is told where it can still be told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// ECONNREFUSED.
    Refused,
    /// EHOSTUNREACH.
    Unreachable,
    /// Nothing: its SYN stays unanswered, as it would be without meshd.
    Unanswered,
}

/// A captured connection on its way out.
#[derive(Debug)]
pub struct Captured {
    /// The application's side.
    pub leg: AppLeg,
    /// Where the application wanted to go, and whose it is.
    pub original: OriginalDestination,
}

/// The application's side of a captured connection, before anything is decided.
#[derive(Debug)]
pub enum AppLeg {
    /// Its `connect` has succeeded.
    Accepted(TcpStream),
    /// Its `connect` waits.
    Held(HeldLeg),
}

impl From<HeldLeg> for AppLeg {
    fn from(leg: HeldLeg) -> Self {
        Self::Held(leg)
    }
}

impl AppLeg {
    /// The form it was captured by.
    pub fn form(&self) -> Form {
        match self {
            Self::Accepted(_) => Form::Listener,
            Self::Held(_) => Form::Hold,
        }
    }

    /// Ends when the application gives up before its `connect` is decided; a listener's has succeeded already.
    pub async fn given_up(&self) {
        match self {
            Self::Accepted(_) => pending().await,
            Self::Held(leg) => leg.given_up().await,
        }
    }

    /// The connected app leg.
    ///
    /// # Errors
    /// When the application has gone meanwhile.
    pub async fn complete(self) -> io::Result<TcpStream> {
        match self {
            Self::Accepted(stream) => Ok(stream),
            Self::Held(leg) => leg.complete().await,
        }
    }

    /// Ends it so that the application sees a failure, never a clean EOF: by the error that fits where its
    /// `connect` still waits, else by a reset.
    pub async fn refuse(self, refusal: Refusal) {
        match self {
            Self::Accepted(stream) => reset(stream),
            Self::Held(leg) => leg.refuse(refusal).await,
        }
    }
}

/// The `listener` form.
#[derive(Debug)]
pub struct ListenerCapture {
    net: Arc<WorkloadNet>,
    listener: TcpListener,
}

impl ListenerCapture {
    /// Takes one of [`super::EnrolledListeners::outbound`]; must be called within a tokio runtime.
    pub fn new(net: Arc<WorkloadNet>, listener: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self { net, listener: TcpListener::from_std(listener)? })
    }
}

impl ListenerCapture {
    /// Waits for the next captured connection. Connections whose original destination nobody knows are reset
    /// here and never returned.
    ///
    /// # Errors
    /// The listener's own and lasting ones.
    pub async fn next(&self) -> io::Result<Captured> {
        loop {
            let (stream, app_addr) = socket::accept(&self.listener).await?;
            if let Some(original) = self.net.original_dst(app_addr) {
                return Ok(Captured { leg: AppLeg::Accepted(stream), original });
            }
            reset(stream);
        }
    }
}

/// Closes a connection with RST.
pub fn reset(stream: TcpStream) {
    reset_on_close(&stream);
    drop(stream);
}
