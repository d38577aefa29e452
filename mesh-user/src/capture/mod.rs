//! The eBPF side: loading, maps, enrolment, listeners inside workload namespaces. Nothing here decides policy.
//!
//! What is attached fails closed: hooks that outlive meshd send captured connections to a listener that is
//! gone (refused) and drop what arrives for an empty listener slot. [`Capture::apply`] fills every map before
//! the first hook is attached or replaced, so there is no moment at which an enrolled workload is not captured.

pub mod canary;
mod error;
mod hold;
mod hooks;
mod kernel_path;
mod maps;
mod net;
mod objects;
mod outbound;
mod plan;
mod pods;
mod program_log;
mod runtime_dir;
mod space;
mod spare;
mod state;
mod tables;

use std::{net::SocketAddr, path::Path, sync::Arc};

use parking::Mutex;

pub use error::CaptureError;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use hold::fuzz;
pub use hold::{HeldConnects, HeldLeg, HoldCapture};
pub use kernel_path::{KernelConnectionOf, KernelEnded, KernelEnding, KernelEnds, KernelPairOf, KernelPath};
pub use maps::{MapUse, Stats};
pub use net::{InboundOwner, OriginalDestination, PeerViewGuard, WorkloadNet};
pub use outbound::{AppLeg, Captured, Form, ListenerCapture, Refusal, reset};
pub use plan::{CaptureLimits, CapturePlan, CaptureSettings, PlannedWorkload, Selector};
pub use pods::{PodGate, PodGates};
pub use space::{EnrolledListeners, EnrolledNamespace};
pub use state::Applied;

/// The loaded programs, their maps and what is enrolled. One per runtime directory.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<maps::Shared>,
    state: Mutex<state::State>,
}

impl Capture {
    /// Locks the runtime directory and loads the node's programs. Nothing is attached, and hooks of an
    /// earlier run stay in force, until the first [`Capture::apply`].
    pub fn start(settings: &CaptureSettings) -> Result<Self, CaptureError> {
        let state = state::State::load(settings)?;
        Ok(Self { shared: state.shared(), state: Mutex::new(state) })
    }

    /// Chooses how outbound connections are taken, before the first [`Capture::apply`].
    pub fn choose(&self, form: Form) -> Result<(), CaptureError> {
        self.state.lock().choose(form)
    }

    /// How outbound connections are taken.
    pub fn form(&self) -> Form {
        self.state.lock().form()
    }

    /// Makes the plan the one in force. A plan over a declared capacity, or with two workloads of the same
    /// name or selector, is refused as a whole and the one before stays. A workload whose namespace, cgroup
    /// or ports cannot be had is reported in [`Applied::failed`] and tried again by the next call; what it had
    /// before, it keeps.
    ///
    /// An error of the kernel midway (memory, a refused map entry or link) ends the call with some of the new
    /// plan in force beside the old one. That fails closed: entries are added before any is removed, so nothing
    /// enrolled before is let go, and what is half enrolled is refused, since nobody serves its listeners yet.
    /// The next call takes up where this one ended and hands those listeners over; call it again with the plan
    /// that shall hold.
    pub fn apply(&self, plan: &CapturePlan) -> Result<Applied, CaptureError> {
        self.state.lock().apply(plan)
    }

    /// What is known of this node's pods, enrolled or not, in place of what was: before the first [`Capture::apply`] too,
    /// so that there is no moment at which a pod that is there goes past the hooks.
    ///
    /// # Errors
    /// When the pods' cgroup cannot be used, there are too many of them, or the kernel refuses an entry. What was known of
    /// others stays, and a pod of which nothing is known waits.
    pub fn set_pods(&self, gates: PodGates) -> Result<(), CaptureError> {
        self.state.lock().set_pods(gates)
    }

    /// Where the connection that `net`'s outbound listener accepted from `peer` wanted to go. The answer is
    /// given once; `None` means that nobody knows, and the connection must be reset.
    pub fn original_dst(&self, net: &WorkloadNet, peer: SocketAddr) -> Option<OriginalDestination> {
        net.original_dst(peer)
    }

    /// The cgroup below which sockets are captured.
    pub fn cgroup(&self) -> std::path::PathBuf {
        self.state.lock().cgroup_path()
    }

    /// The path past meshd within the node; none where the settings do not ask for it.
    pub fn kernel_path(&self) -> Option<Arc<KernelPath>> {
        self.state.lock().kernel_path()
    }

    /// What the programs have counted since they were loaded.
    pub fn stats(&self) -> Result<Stats, CaptureError> {
        self.shared.stats()
    }

    /// How full each map is, and its declared capacity.
    pub fn map_use(&self) -> Result<Vec<MapUse>, CaptureError> {
        self.state.lock().map_use()
    }

    /// Ends capture: hooks are detached and everything in the runtime directory is removed, or all of it stays
    /// and fails closed when the settings say `keep_on_exit`. Dropping a `Capture` without this also leaves
    /// the hooks.
    pub fn shutdown(&self) -> Result<(), CaptureError> {
        self.state.lock().shutdown()
    }
}

/// Removes everything that a dead meshd left under a runtime directory: hooks, pins, mount, lock.
/// Refused while a meshd is running there.
pub fn cleanup(runtime_dir: &Path) -> Result<(), CaptureError> {
    let dir = runtime_dir::RuntimeDir::lock(runtime_dir)?;
    canary::clean_up(runtime_dir)?;
    dir.remove_all()
}

mod parking {
    //! A mutex without poisoning: the state it guards is consistent after every statement that can panic.
    use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};

    #[derive(Debug, Default)]
    pub(super) struct Mutex<T>(StdMutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(StdMutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
