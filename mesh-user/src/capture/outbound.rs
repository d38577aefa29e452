//! How captured connections reach the proxy. The `listener` form accepts them on loopback; a form that holds
//! the application's `connect` until the upstream is proven will implement the same trait.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use tokio::net::{TcpListener, TcpStream};

use super::{OriginalDestination, WorkloadNet};
use crate::sys::socket::{self, reset_on_close};

/// A captured connection on its way out.
#[derive(Debug)]
pub struct Captured {
    /// The app leg.
    pub stream: TcpStream,
    /// Where the application wanted to go, and whose it is.
    pub original: OriginalDestination,
    /// The application's end of the app leg as the kernel has it.
    pub app_addr: SocketAddr,
}

/// A source of captured connections.
pub trait OutboundCapture: Send + Sync {
    /// Waits for the next captured connection. Connections whose original destination nobody knows are
    /// reset here and never returned. An error is the listener's own and lasting.
    fn accept(&self) -> impl Future<Output = io::Result<Captured>> + Send;

    /// Ends a captured connection so that the application sees a failure at once, never a clean EOF.
    fn refuse(&self, captured: Captured);
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

impl OutboundCapture for ListenerCapture {
    async fn accept(&self) -> io::Result<Captured> {
        loop {
            let (stream, app_addr) = socket::accept(&self.listener).await?;
            if let Some(original) = self.net.original_dst(app_addr) {
                return Ok(Captured { stream, original, app_addr });
            }
            reset(stream);
        }
    }

    fn refuse(&self, captured: Captured) {
        reset(captured.stream);
    }
}

/// Closes a connection with RST.
pub fn reset(stream: TcpStream) {
    reset_on_close(&stream);
    drop(stream);
}
