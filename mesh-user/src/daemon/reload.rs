//! Puts a snapshot into force: certificates first, then capture, then the proxy's view, then live connections
//! are decided again. Also tries again what could not be enrolled.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;

use super::{
    endpoint::Publisher,
    plan::{plan, units},
    pods::Pods,
    workload_api::WorkloadApi,
};
use crate::{
    ca::{authority::Authority, federation::FederationWatcher, merged},
    capture::{Capture, CaptureError, canary::Capability},
    discovery::{FileSource, Snapshot},
    identity::{SpiffeId, TrustBundles},
    proxy::{self, Acceptors, Mesh, Workers},
    sys::memory,
    world::WorkloadName,
};

/// How far the daemon has followed its files.
#[derive(Debug)]
pub(super) struct InForce {
    /// Of the snapshot that was tried last.
    generation: u64,
    /// Why capture refused it; none: it is in force.
    refused: Option<String>,
}

impl InForce {
    /// Nothing yet.
    pub(super) fn nothing() -> Mutex<Self> {
        Mutex::new(Self { generation: 0, refused: None })
    }
}

/// What a reload that somebody asked for did.
pub(super) struct Reloaded {
    /// Whether anything was put into force.
    pub(super) changed: bool,
    /// Live connections closed because they are no longer allowed.
    pub(super) closed: usize,
    /// Fields whose change takes effect at the next start.
    pub(super) needs_restart: Vec<&'static str>,
}

/// What a snapshot is applied to.
pub(super) struct Runtime {
    pub(super) mesh: Arc<Mesh>,
    pub(super) workers: Workers,
    pub(super) acceptors: Acceptors,
    pub(super) capture: Capture,
    pub(super) bundles: Arc<ArcSwap<TrustBundles>>,
    /// None: it is not served.
    pub(super) workload_api: Option<WorkloadApi>,
    /// The CA, where it is embedded.
    pub(super) authority: Option<Authority>,
    /// Other trust domains' bundles, by their endpoints.
    pub(super) federation: FederationWatcher,
    /// Serves this mesh's own bundle; none: it is not served.
    pub(super) publisher: Option<Publisher>,
    /// What the endpoint of this mesh's own bundle proves to be, where it does so by an SVID.
    pub(super) endpoint_id: Option<SpiffeId>,
    /// What the canary proved at start.
    pub(super) proofs: Vec<Capability>,
    /// Held while a snapshot is put into force: they come one at a time, from a signal, the watcher or an admin.
    pub(super) in_force: Mutex<InForce>,
    /// A snapshot was put into force since connections on the kernel path were last decided for good.
    pub(super) recheck_kernel_path: AtomicBool,
    /// The last plan did not get through: capture may hold parts of it.
    pub(super) unsettled: AtomicBool,
    /// Local workloads that are not enrolled, and why.
    pub(super) failed: Mutex<HashMap<WorkloadName, String>>,
    /// The kubelet's pods; none: nothing here is one.
    pub(super) pods: Option<Pods>,
    /// The cgroups of systemd's units that were planned last.
    pub(super) units: Mutex<Vec<Option<u64>>>,
}

impl Runtime {
    /// Puts the daemon's first snapshot into force.
    ///
    /// # Errors
    /// When capture refuses the plan.
    pub(super) fn begin(&self, snapshot: &Arc<Snapshot>) -> Result<(), CaptureError> {
        let mut in_force = self.in_force();
        warn_of(snapshot, None);
        self.apply(snapshot)?;
        in_force.generation = snapshot.generation;
        memory::give_back();
        Ok(())
    }

    /// Puts the files' snapshot into force where it is a new one.
    pub(super) fn catch_up(&self, files: &FileSource) {
        let mut in_force = self.in_force();
        if files.snapshot().generation != in_force.generation {
            // A refusal is logged, counted and shown by the status.
            let _ = self.put_into_force(&mut in_force, files);
        }
    }

    /// Reads the files again and puts into force what they say, also what was refused before.
    ///
    /// # Errors
    /// In words, when the files are bad or capture refuses them: what was in force stays.
    pub(super) fn reload(&self, files: &FileSource) -> Result<Reloaded, String> {
        // Held while the files are read: whoever else is told of them finds it done.
        let mut in_force = self.in_force();
        let reload = files.reload().map_err(|error| error.to_string())?;
        let changed = reload.generation != in_force.generation || in_force.refused.is_some();
        let closed = if changed { self.put_into_force(&mut in_force, files)? } else { 0 };
        Ok(Reloaded { changed, closed, needs_restart: reload.needs_restart })
    }

    fn put_into_force(&self, in_force: &mut InForce, files: &FileSource) -> Result<usize, String> {
        let snapshot = files.snapshot();
        if !snapshot.complete {
            return Err("the API server has not been heard: nothing is put into force before".to_owned());
        }
        warn_of(&snapshot, Some(&self.mesh.view().snapshot));
        let applied = self.apply(&snapshot);
        in_force.generation = snapshot.generation;
        in_force.refused = applied.as_ref().err().map(ToString::to_string);
        self.mesh.metrics.config_reloaded(applied.is_ok());
        memory::give_back();
        match applied {
            Ok(closed) => {
                let generation = snapshot.generation;
                tracing::info!(generation, closed, "configuration and policies are in force");
                Ok(closed)
            }
            Err(error) => {
                tracing::error!(%error, "the new configuration is refused; the old one stays in force");
                Err(error.to_string())
            }
        }
    }

    /// Tries again what could not be enrolled, and follows units to their new cgroups.
    pub(super) fn retry(&self) {
        let _in_force = self.in_force();
        if self.recheck_kernel_path.swap(false, Ordering::Relaxed) {
            proxy::recheck_kernel_path(&self.mesh);
        }
        if (self.has_failed() || self.units_moved())
            && let Err(error) = self.enrol()
        {
            tracing::error!(%error, "workloads cannot be enrolled");
        }
    }

    /// Whether connections are captured and served.
    pub(super) fn has_begun(&self) -> bool {
        self.in_force().generation > 0
    }

    /// Why the files' newest snapshot is not in force, if it is not.
    pub(super) fn refused(&self) -> Option<String> {
        self.in_force().refused.clone()
    }

    fn in_force(&self) -> MutexGuard<'_, InForce> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `snapshot` into force; returns how many live connections were closed.
    fn apply(&self, snapshot: &Arc<Snapshot>) -> Result<usize, CaptureError> {
        self.certify(snapshot);
        // Listeners must know the new workloads before the hooks send them connections.
        let before = Arc::clone(&self.mesh.view().snapshot);
        self.believe(&snapshot.bundles);
        self.mesh.set_snapshot(Arc::clone(snapshot));
        self.mesh.keys.set_sources(&snapshot.policies.jwks_sources(&snapshot.world));
        self.tell_pods(snapshot);
        if let Err(error) = self.enrol() {
            self.believe(&before.bundles);
            self.certify(&before);
            self.mesh.keys.set_sources(&before.policies.jwks_sources(&before.world));
            self.tell_pods(&before);
            self.mesh.set_snapshot(before);
            return Err(error);
        }
        self.tell_workload_api(snapshot);
        Ok(proxy::recheck(&self.mesh))
    }

    /// Puts into force whom the source of SVIDs and other trust domains' endpoints believe now; returns how many live
    /// connections were closed.
    pub(super) fn follow_trust(&self) -> usize {
        let _in_force = self.in_force();
        let snapshot = Arc::clone(&self.mesh.view().snapshot);
        self.believe(&snapshot.bundles);
        self.tell_workload_api(&snapshot);
        proxy::recheck(&self.mesh)
    }

    /// Believes what the source of SVIDs says, and files, and other trust domains' endpoints.
    fn believe(&self, files: &TrustBundles) {
        self.federation.revoke(&files.revoked);
        let trust = Arc::clone(&self.mesh.svids.trust().borrow());
        let own = merged(TrustBundles::clone(&trust), files);
        let mut bundles = merged(own, &self.federation.trust());
        if let Some(workload_api) = &self.workload_api {
            workload_api.add_authorities(&mut bundles);
        }
        if let Some(publisher) = &self.publisher {
            publisher.publish(&bundles);
        }
        let bundles = Arc::new(bundles);
        self.bundles.store(Arc::clone(&bundles));
        self.mesh.svids.trust_in_force(&trust, &bundles);
    }

    fn tell_workload_api(&self, snapshot: &Snapshot) {
        if let Some(workload_api) = &self.workload_api {
            workload_api.put(&snapshot.world, self.bundles.load_full());
        }
    }

    /// Sees to it that each local workload of `snapshot` has an SVID, and no other identity.
    pub(super) fn certify(&self, snapshot: &Snapshot) {
        let local = snapshot.world.local_workloads().map(|w| w.spiffe_id.clone());
        self.mesh.svids.ensure(local.chain(self.endpoint_id.clone()));
    }

    /// Says which pods the files want.
    fn tell_pods(&self, snapshot: &Snapshot) {
        if let Some(pods) = &self.pods {
            pods.tell_files(super::pods::of_files(&snapshot.world));
        }
    }

    /// Lets pods wait or go as is known of them now.
    pub(super) fn gate_pods(&self) {
        let Some(pods) = &self.pods else { return };
        if let Err(error) = self.capture.set_pods(pods.gates()) {
            tracing::error!(%error, "what is known of pods is not in force; those that are new wait");
        }
    }

    /// Enrols pods where they live now.
    pub(super) fn follow_places(&self) {
        let _in_force = self.in_force();
        if let Err(error) = self.enrol() {
            tracing::error!(%error, "pods cannot be enrolled");
        }
    }

    /// Makes capture match the snapshot in force.
    fn enrol(&self) -> Result<(), CaptureError> {
        let snapshot = Arc::clone(&self.mesh.view().snapshot);
        let root = self.capture.cgroup();
        // Looked at before the plan is made: one that moves in between is found moved the next time.
        *self.units.lock().unwrap_or_else(PoisonError::into_inner) = units(&snapshot.world, &root);
        let places = self.pods.as_ref().map(Pods::places).unwrap_or_default();
        let (plan, unplanned) = plan(&self.mesh, &snapshot, &root, &places);
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
        self.mesh.forget_gone_workloads();
        // Verdicts given since the snapshot was set may rest on the plan before.
        self.mesh.withdraw_kernel_verdicts();
        self.recheck_kernel_path.store(true, Ordering::Relaxed);
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

    fn units_moved(&self) -> bool {
        let now = units(self.mesh.view().world(), &self.capture.cgroup());
        *self.units.lock().unwrap_or_else(PoisonError::into_inner) != now
    }

    fn has_failed(&self) -> bool {
        self.unsettled.load(Ordering::Relaxed)
            || !self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// Says what was not said of the snapshot before.
fn warn_of(snapshot: &Snapshot, before: Option<&Snapshot>) {
    let is_news = |warning: &&String| before.is_none_or(|before| !before.warnings.contains(warning));
    for warning in snapshot.warnings.iter().filter(is_news) {
        tracing::warn!("{warning}");
    }
}
