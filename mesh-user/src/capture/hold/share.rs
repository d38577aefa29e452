//! One subscriber's share of the held connects. What it has not taken up when it ends is given back, so that the
//! next SYN of each is a new chance: an application must not wait for a subscriber that is gone.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Desk, Pending};

#[derive(Debug)]
pub(super) struct Share {
    desk: Arc<Desk>,
    queue: mpsc::Receiver<Pending>,
}

impl Share {
    pub(super) fn new(desk: &Arc<Desk>, netns_cookie: u64) -> Self {
        Self { desk: Arc::clone(desk), queue: desk.subscribe(netns_cookie) }
    }

    pub(super) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    pub(super) async fn recv(&mut self) -> Option<Pending> {
        self.queue.recv().await
    }

    #[cfg(fuzzing)]
    pub(super) fn try_recv(&mut self) -> Option<Pending> {
        self.queue.try_recv().ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // From here on the desk has nobody to hand on to.
        self.queue.close();
        while let Ok(left) = self.queue.try_recv() {
            self.desk.forget(left.held.socket_cookie, left.number);
        }
    }
}
