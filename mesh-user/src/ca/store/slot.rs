//! The place of one identity's SVID: read without a lock, waited for while it is empty.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use crate::identity::Svid;

/// Why there is no SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSvid {
    /// No workload of this node has the identity.
    #[error("the workload's identity is not one of this node's any more")]
    NotWanted,
    /// The first answer has not come yet.
    #[error("the workload has no SVID yet: whoever issues it has not answered")]
    UnderWay,
    /// The last answer was an error.
    #[error("the workload has no SVID: {0}")]
    Failing(String),
}

/// Empty until the first SVID is there; later ones take its place.
#[derive(Default)]
pub(super) struct Slot {
    svid: ArcSwapOption<Svid>,
    filled: Notify,
}

impl Slot {
    pub(super) fn svid(&self) -> Option<Arc<Svid>> {
        self.svid.load_full()
    }

    pub(super) fn put(&self, svid: Svid) {
        self.svid.store(Some(Arc::new(svid)));
        self.filled.notify_waiters();
    }

    /// Waits for the first.
    pub(super) async fn first(&self) -> Arc<Svid> {
        loop {
            let mut filled = std::pin::pin!(self.filled.notified());
            filled.as_mut().enable();
            if let Some(svid) = self.svid() {
                return svid;
            }
            filled.await;
        }
    }
}
