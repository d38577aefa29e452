//! The CA in the daemon's own process, as the source of its node's SVIDs.

use std::{sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::Authority;
use crate::{
    ca::{CaError, SvidSource},
    identity::{SpiffeId, Svid, TrustBundles},
};

/// An [`Authority`] that nobody else asks.
#[derive(Debug, Clone)]
pub struct Local(pub Authority);

impl SvidSource for Local {
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Svid, CaError>> {
        Box::pin(self.0.issue(id))
    }

    fn trust(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.0.0.bundles.subscribe()
    }

    /// What an authority signed that signs no more is replaced at once: it may have been moved from for a reason.
    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.0.moved.subscribe())
    }

    fn not_after(&self) -> Option<SystemTime> {
        Some(self.0.not_after())
    }
}
