//! Proof by doing, at start: in two throwaway namespaces and a throwaway cgroup under the configured one, a
//! short-lived child is a client and a server, and this process does what the proxy would do. The programs
//! are those that the daemon attaches, to the same cgroup, under a runtime directory of their own; no
//! workload of the node is touched, and nothing is left behind.

mod held;
mod kernel_path;
mod peer;
mod root;
mod script;
mod stage;

use std::{net::IpAddr, time::Duration};

use super::{
    Capture, CaptureError, CaptureLimits, CapturePlan, CaptureSettings, EnrolledNamespace, Form,
    PlannedWorkload, Selector, cleanup,
};

pub use held::NAME as HELD_CONNECT;
pub use kernel_path::NAME as KERNEL_PATH;
pub use peer::{PeerError, PeerPart};
pub use root::sockets_outside;

/// The hidden subcommand of `meshd` with which the canary's child runs [`run_peer`].
pub const PEER_COMMAND: &str = "canary-peer";

/// Its flag for [`run_held_peer`].
pub const HELD_FLAG: &str = "--held";

/// Bound on each step. Natively all of them together take a fraction of a second; an emulated machine is
/// twenty times slower.
const STEP_LIMIT: Duration = Duration::from_secs(15);
const SERVER_PORT: u16 = 8080;
const DIR_NAME: &str = "canary";
const LIMITS: CaptureLimits =
    CaptureLimits { workloads: 2, destinations: 4, connections: 64, held_connects: 64 };

/// One thing the canary tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name, stable for scripts.
    pub name: &'static str,
    /// Whether it was seen to work.
    pub proven: bool,
    /// Whether meshd refuses to start without it.
    pub required: bool,
    /// What it is good for, and what happens without it.
    pub meaning: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Removes what an earlier canary left that was killed.
pub(super) fn clean_up(runtime_dir: &std::path::Path) -> Result<(), CaptureError> {
    let dir = runtime_dir.join(DIR_NAME);
    if !dir.exists() {
        return Ok(());
    }
    stage::ChildCgroup::remove_left(&dir);
    cleanup(&dir)
}

/// Does everything once and says what was seen. An error means that the stage could not be set up; what was
/// tried and did not work is a [`Capability`] that is not proven.
pub fn prove(settings: &CaptureSettings) -> Result<Vec<Capability>, CaptureError> {
    clean_up(&settings.runtime_dir)?;
    let proven = try_all(settings);
    if proven.is_err() {
        // What did not start cannot end: a mount of its own for one.
        clean_up(&settings.runtime_dir)?;
    }
    proven
}

fn try_all(settings: &CaptureSettings) -> Result<Vec<Capability>, CaptureError> {
    let stage = stage::Stage::build()?;
    let own = CaptureSettings {
        form: Form::Listener,
        runtime_dir: settings.runtime_dir.join(DIR_NAME),
        limits: LIMITS,
        refuse_uncaptured: false,
        kernel_path: false,
        pods: false,
        keep_on_exit: false,
        log_programs: false,
        ..settings.clone()
    };
    let unprepared = |_: &Capture| Ok(());
    let mut proofs =
        on_stage(&stage, &own, unprepared, |_, client, server, child| script::play(client, server, child))?;
    let holding = CaptureSettings { form: Form::Hold, ..own.clone() };
    proofs.push(
        on_stage(&stage, &holding, unprepared, |_, client, _, child| held::play(&client, child))
            .unwrap_or_else(|error| held::not_tried(&error)),
    );
    if settings.kernel_path {
        proofs.push(kernel_path::play(&stage, &own));
    }
    proofs.push(root::capability(&settings.cgroup));
    Ok(proofs)
}

/// Captures the stage's two namespaces while `play` runs; the child starts after `prepare`.
fn on_stage<T>(
    stage: &stage::Stage,
    settings: &CaptureSettings,
    prepare: impl FnOnce(&Capture) -> Result<(), CaptureError>,
    play: impl FnOnce(&Capture, EnrolledNamespace, EnrolledNamespace, peer::Child) -> T,
) -> Result<T, CaptureError> {
    let capture = Capture::start(settings)?;
    let outcome = perform(&capture, stage, settings, prepare, play);
    let ended = capture.shutdown();
    let seen = outcome?;
    ended?;
    Ok(seen)
}

fn perform<T>(
    capture: &Capture,
    stage: &stage::Stage,
    settings: &CaptureSettings,
    prepare: impl FnOnce(&Capture) -> Result<(), CaptureError>,
    play: impl FnOnce(&Capture, EnrolledNamespace, EnrolledNamespace, peer::Child) -> T,
) -> Result<T, CaptureError> {
    let mut applied = capture.apply(&plan(stage))?;
    if let Some((_, error)) = applied.failed.pop() {
        return Err(error);
    }
    let mut take = |cookie| {
        let at = applied.namespaces.iter().position(|namespace| namespace.net.cookie() == cookie);
        at.map(|at| applied.namespaces.swap_remove(at)).ok_or(CaptureError::Object("canary namespace"))
    };
    let (client, server) = (take(stage.client.cookie())?, take(stage.server.cookie())?);
    prepare(capture)?;
    let child = peer::Child::start(settings, stage)?;
    Ok(play(capture, client, server, child))
}

fn plan(stage: &stage::Stage) -> CapturePlan {
    let workload = |id, name: &str, netns, addresses: &[IpAddr]| PlannedWorkload {
        id,
        name: name.to_owned(),
        selector: Selector::Netns(netns),
        addresses: addresses.to_vec(),
        ports: Vec::new(),
        exclude_inbound_ports: Vec::new(),
        exclude_outbound_ports: Vec::new(),
        capture_all: false,
        strict: false,
    };
    CapturePlan {
        workloads: vec![
            workload(1, "canary-client", stage.client.path_for_others(), &stage::CLIENT),
            workload(2, "canary-server", stage.server.path_for_others(), &stage::SERVER),
        ],
        destinations: stage::SERVER.iter().map(|address| (*address, None)).collect(),
    }
}
