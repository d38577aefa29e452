//! Puts a snapshot into force: certificates first, then capture, then the proxy's view, then live connections
//! are decided again. Also tries again what could not be enrolled.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;

use super::plan::plan;
use crate::{
    capture::{Capture, CaptureError, canary::Capability},
    discovery::Snapshot,
    identity::TrustBundles,
    proxy::{self, Acceptors, Mesh, Workers},
    world::WorkloadName,
};

/// What a snapshot is applied to.
pub(super) struct Runtime {
    pub(super) mesh: Arc<Mesh>,
    pub(super) workers: Workers,
    pub(super) acceptors: Acceptors,
    pub(super) capture: Capture,
    pub(super) bundles: Arc<ArcSwap<TrustBundles>>,
    /// What the canary proved at start.
    pub(super) proofs: Vec<Capability>,
    /// The last plan did not get through: capture may hold parts of it.
    pub(super) unsettled: AtomicBool,
    /// Local workloads that are not enrolled, and why.
    pub(super) failed: Mutex<HashMap<WorkloadName, String>>,
}

impl Runtime {
    /// Puts `snapshot` into force; returns how many live connections were closed.
    ///
    /// # Errors
    /// When capture refuses the plan as a whole: the snapshot before stays in force.
    pub(super) fn apply(&self, snapshot: &Arc<Snapshot>) -> Result<usize, CaptureError> {
        let local = snapshot.world.local_workloads().map(|w| w.spiffe_id.clone());
        for (id, error) in self.mesh.svids.ensure(local) {
            tracing::error!(%id, %error, "no SVID could be issued; connections of this identity are refused");
        }
        // Listeners must know the new workloads before the hooks send them connections.
        let before = Arc::clone(&self.mesh.view().snapshot);
        self.bundles.store(Arc::new(merged(self.mesh.svids.bundles(), &snapshot.bundles)));
        self.mesh.set_snapshot(Arc::clone(snapshot));
        if let Err(error) = self.enrol() {
            self.bundles.store(Arc::new(merged(self.mesh.svids.bundles(), &before.bundles)));
            self.mesh.set_snapshot(before);
            return Err(error);
        }
        Ok(proxy::recheck(&self.mesh))
    }

    /// Makes capture match the snapshot in force.
    pub(super) fn enrol(&self) -> Result<(), CaptureError> {
        let snapshot = Arc::clone(&self.mesh.view().snapshot);
        let (plan, unplanned) = plan(&self.mesh, &snapshot.world);
        // An error midway leaves parts of this plan in force: the one that shall hold is applied again.
        self.unsettled.store(true, Ordering::Relaxed);
        let applied = self.capture.apply(&plan)?;
        self.unsettled.store(false, Ordering::Relaxed);
        let mut failed: HashMap<_, _> = unplanned.into_iter().collect();
        for (number, error) in applied.failed {
            if let Some(name) = self.mesh.name(number) {
                failed.insert(name, error.to_string());
            }
        }
        for namespace in applied.namespaces {
            if let Err(error) = self.acceptors.add(&self.mesh, &self.workers, namespace) {
                tracing::error!(%error, "a namespace's listeners cannot be served; its connections are refused");
            }
        }
        for cookie in applied.removed {
            self.acceptors.remove(cookie);
        }
        self.mesh.metrics.set_workloads(applied.enrolled.len());
        self.report(failed);
        Ok(())
    }

    /// Logs what changed among the workloads that are not enrolled.
    fn report(&self, failed: HashMap<WorkloadName, String>) {
        let mut known = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        for (workload, why) in &failed {
            if known.get(workload) != Some(why) {
                tracing::warn!(%workload, %why, "a workload is not enrolled; it is tried again");
            }
        }
        *known = failed;
    }

    pub(super) fn has_failed(&self) -> bool {
        self.unsettled.load(Ordering::Relaxed)
            || !self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// The issuer's roots and those from files.
pub(super) fn merged(mut own: TrustBundles, extra: &TrustBundles) -> TrustBundles {
    for (domain, roots) in &extra.roots {
        own.roots.entry(domain.clone()).or_default().extend(roots.iter().cloned());
    }
    own
}
