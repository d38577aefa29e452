//! Live connections are decided again when policy, trust or the world changes; what is no longer allowed is
//! reset at once. A certificate that has merely expired since its handshake ends no connection.

use std::{sync::Arc, time::SystemTime};

use super::{Live, Mesh, Requests, View, destination, kernel_path, relay::CloseReason};
use crate::{
    policy::{DenyReason, Mode, Verdict},
    telemetry::Direction,
    world::Workload,
};

/// Decides all live connections again; returns how many were closed.
pub fn recheck(mesh: &Mesh) -> usize {
    let view = mesh.view();
    let mut closed = 0;
    for live in mesh.connections.list() {
        if let Some(reason) = no_longer_allowed(mesh, &view, &live) {
            live.stats.close(reason);
            closed += 1;
        }
    }
    closed + kernel_path::recheck(mesh, &view)
}

/// Decides those on the kernel path once more: one may have been about to be recorded at the first time.
pub fn recheck_kernel_path(mesh: &Mesh) -> usize {
    kernel_path::recheck(mesh, &mesh.view())
}

/// Decides a connection that has just entered the table: what changed since its verdict counts.
pub(super) fn recheck_one(mesh: &Mesh, live: &Arc<Live>) {
    let view = mesh.view();
    if let Some(reason) = no_longer_allowed(mesh, &view, live) {
        live.stats.close(reason);
    }
}

fn no_longer_allowed(mesh: &Mesh, view: &View, live: &Live) -> Option<CloseReason> {
    if let Some((peer, role)) = &live.peer {
        let moment = SystemTime::now().min(peer.not_after);
        if let Err(cause) = mesh.tls.verifier().verify_again(peer, *role, None, moment) {
            return Some(CloseReason::Trust(cause));
        }
    }
    let world = view.world();
    let Some(workload) = world.by_name(&live.workload.namespace, &live.workload.name) else {
        return Some(CloseReason::Policy("its workload is no longer enrolled".to_owned()));
    };
    match live.record.direction {
        Direction::Inbound => inbound_denied(view, workload, live),
        Direction::Outbound => destination::denied(view, workload, live),
    }
}

fn inbound_denied(view: &View, workload: &Workload, live: &Live) -> Option<CloseReason> {
    let policy = view.snapshot.policies.for_workload(workload.id);
    let port = live.record.destination.address.port();
    match live.requests {
        Requests::Inspected if live.peer.is_none() && policy.mode(port) == Mode::Strict => {
            return Some(CloseReason::Policy(DenyReason::StrictPlaintext.to_string()));
        }
        // Each of its requests is decided anew.
        Requests::Inspected => return None,
        Requests::Uninspected if policy.inspects_requests(port) => {
            return Some(CloseReason::Policy("its requests have to be read from now on".to_owned()));
        }
        Requests::Uninspected | Requests::None => {}
    }
    match policy.decide(&live.request()) {
        Verdict::Allow { .. } => None,
        Verdict::Deny { reason } => Some(CloseReason::Policy(reason.to_string())),
    }
}
