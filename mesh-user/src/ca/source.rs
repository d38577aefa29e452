//! Where a node's SVIDs come from: a CA in this process, `meshd ca` or istiod elsewhere, or a Workload API.

use std::{sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::CaError;
use crate::identity::{SpiffeId, Svid, TrustBundles};

/// Where SVIDs and what they are held against come from. Asked by the [`super::SvidStore`], which plans renewals and keeps
/// what is still valid when an answer fails to come.
pub trait SvidSource: Send + Sync {
    /// A fresh SVID for `id`. Takes as long as the source does; the caller bounds it.
    ///
    /// # Errors
    /// When the source refuses, cannot be reached, or answers with what is no SVID of `id`.
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Svid, CaError>>;

    /// Roots, revocation lists and JWT authorities, the source's own trust domain's and those it hands on. A new value is
    /// put into force at once.
    fn trust(&self) -> watch::Receiver<Arc<TrustBundles>>;

    /// Of a source that pushes: counts up when [`Self::issue`] would give other SVIDs than before.
    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// When the issuing certificate ends; none: not known here.
    fn not_after(&self) -> Option<SystemTime> {
        None
    }

    /// Why the source cannot be used now, for who operates the node; none: nothing is known to be wrong.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// A value of [`Self::trust`] decides about connections from now on.
    fn trust_in_force(&self, trust: &Arc<TrustBundles>) {
        let _ = trust;
    }
}
