//! The door for the fuzz targets: the desk, with events as the ring buffer brings them.

use std::sync::Arc;

use mesh_common::HeldConnect;
use tokio_util::sync::CancellationToken;

use super::{Desk, Pending, share};
use crate::sys::bpf::read_pod;

/// What the reader of the ring buffer feeds.
pub struct Events(Arc<Desk>);

/// One subscriber.
pub struct Share(share::Share);

/// A held connect that is being decided until this is dropped.
pub struct Decision {
    desk: Arc<Desk>,
    number: usize,
    given_up: CancellationToken,
    /// Whose connect it is.
    pub held: HeldConnect,
}

impl Events {
    /// A desk at which each subscriber has room for `waiting_limit`.
    pub fn new(waiting_limit: usize) -> Self {
        Self(Arc::new(Desk::new(waiting_limit)))
    }

    /// Takes in what the ring buffer brought; whether it was an event.
    pub fn take(&self, event: &[u8]) -> bool {
        read_pod::<HeldConnect>(event).map(|held| self.feed(held)).is_some()
    }

    /// Takes in an event.
    pub fn feed(&self, held: HeldConnect) {
        self.0.take(held);
    }

    /// A subscriber of this namespace.
    pub fn subscribe(&self, netns_cookie: u64) -> Share {
        Share(share::Share::new(&self.0, netns_cookie))
    }

    /// Nobody serves the namespace any more.
    pub fn close(&self, netns_cookie: u64) {
        self.0.close(netns_cookie);
    }

    /// How many connects are remembered.
    pub fn remembered(&self) -> usize {
        self.0.pending.lock().len()
    }
}

impl Share {
    /// The next one, if any waits.
    pub fn take_up(&mut self) -> Option<Decision> {
        let Pending { held, number, given_up } = self.0.try_recv()?;
        Some(Decision { desk: Arc::clone(self.0.desk()), number, given_up, held })
    }
}

impl Decision {
    /// Whether the application gave it up.
    pub fn is_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }
}

impl Drop for Decision {
    fn drop(&mut self) {
        self.desk.forget(self.held.socket_cookie, self.number);
    }
}
