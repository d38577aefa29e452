//! How captured connections reach the proxy. The `listener` form accepts them on loopback; a form that holds
//! the application's `connect` until the upstream is proven will implement the same trait.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use super::{OriginalDestination, WorkloadNet};

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
            let (stream, app_addr) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_passing(&error) => {
                    // Out of descriptors or memory: the connection stays queued; do not spin.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
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

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
        )
    )
}

/// Closes a connection with RST.
pub fn reset(stream: TcpStream) {
    // If even that fails the socket is dead already.
    let _: io::Result<()> = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}
