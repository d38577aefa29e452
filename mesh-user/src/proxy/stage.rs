//! The last stage of every connection, outbound or inbound: offload where the kernel can, enter the table of
//! live connections, relay until the end, write the access-log line.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;

use super::{
    Live, Mesh,
    attempt::{Attempt, Failure},
    connections::{Candidate, Requests},
    mesh::relay_options,
    recheck::recheck_one,
    relay::{self, CloseReason, EndedBy, RelayKind, RelayOutcome, WireLeg},
};
use crate::{
    sys::socket::reset_on_close,
    telemetry::{self, ResponseFlags},
    tls::{Established, OffloadError, Proven},
    world::WorkloadName,
};

/// The wire leg before its relay is chosen.
pub(super) enum Wire {
    /// The mode permits plaintext.
    Plain(TcpStream),
    /// Handshake done.
    Tls(Box<Established>),
}

impl Wire {
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        let stream = match self {
            Self::Plain(stream) => stream,
            Self::Tls(established) => established.stream(),
        };
        stream.local_addr().ok()
    }
}

/// Whose connection it is.
pub(super) struct Ends {
    pub(super) workload: WorkloadName,
    pub(super) remote: Option<WorkloadName>,
    pub(super) sni: Option<String>,
}

/// Relays until both directions have ended.
pub(super) async fn carry(
    mesh: &Arc<Mesh>,
    mut attempt: Attempt,
    app: TcpStream,
    wire: Wire,
    ends: Ends,
    requests: Requests,
) {
    let (peer, server) = match &wire {
        Wire::Plain(_) => (None, None),
        Wire::Tls(established) => match established.proven() {
            Proven::Workload(peer) => (Some((Arc::clone(peer), established.peer_role())), None),
            Proven::Server(server) => (None, Some(Arc::clone(server))),
        },
    };
    let leg = match wire {
        Wire::Plain(stream) => WireLeg::Plain(stream),
        Wire::Tls(established) => match offload(mesh, established).await {
            Ok(leg) => leg,
            Err(failure) => {
                reset_on_close(&app);
                return attempt.fail(failure);
            }
        },
    };
    let kind = telemetry_kind(leg.kind());
    attempt.record_mut().relay = Some(kind);
    let mut metrics = attempt.open_metrics(kind);
    let live = mesh.connections.insert(Candidate {
        record: Arc::clone(&attempt.record),
        workload: ends.workload,
        remote: ends.remote,
        peer,
        server,
        sni: ends.sni,
        requests,
        metric_bytes: Arc::clone(metrics.bytes()),
    });
    let entered = Entered::new(mesh, &live);
    recheck_one(mesh, &live);
    let options = relay_options(&mesh.view().snapshot.config.limits);
    let outcome = relay::relay(app, leg, &options, &live.stats).await;
    drop(entered);
    let (flags, error) = explain(&outcome, &live);
    metrics.set_response_flags(flags);
    if let Some(reason @ (CloseReason::Policy(_) | CloseReason::Trust(_))) = live.stats.close_reason() {
        attempt.revoke(reason);
    }
    attempt.finish(flags, error, live.bytes());
}

/// Takes the connection out of the table even if its task is dropped.
pub(super) struct Entered<'a> {
    mesh: &'a Mesh,
    live: &'a Live,
}

impl<'a> Entered<'a> {
    pub(super) fn new(mesh: &'a Mesh, live: &'a Live) -> Self {
        Self { mesh, live }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.live.report_bytes();
        self.mesh.connections.remove(self.live.id);
    }
}

async fn offload(mesh: &Mesh, established: Box<Established>) -> Result<WireLeg, Failure> {
    if matches!(established.proven(), Proven::Server(_)) {
        // Its session gives no keys away, and such a server may need TLS 1.2.
        return Ok(WireLeg::Userspace(established));
    }
    let splice = match mesh.relay_kind() {
        RelayKind::Plain | RelayKind::Userspace => return Ok(WireLeg::Userspace(established)),
        RelayKind::Ktls => false,
        RelayKind::KtlsSplice => true,
    };
    let patience = mesh.view().snapshot.config.limits.handshake_timeout();
    match established.offload(&mesh.kernel_tls, patience).await {
        Ok(wire) => Ok(WireLeg::Ktls { wire: Box::new(wire), splice }),
        Err(OffloadError::NotOffloaded { established, reason }) => {
            tracing::debug!(%reason, "a connection stays on the userspace relay");
            mesh.metrics.offload_failed("not_offloaded");
            Ok(WireLeg::Userspace(established))
        }
        Err(error @ OffloadError::Lost(_)) => {
            mesh.metrics.offload_failed("keys_refused");
            Err(Failure::new(ResponseFlags::Failed, &error))
        }
    }
}

fn telemetry_kind(kind: RelayKind) -> telemetry::RelayKind {
    match kind {
        RelayKind::Plain => telemetry::RelayKind::Plaintext,
        RelayKind::Userspace => telemetry::RelayKind::Userspace,
        RelayKind::Ktls => telemetry::RelayKind::Ktls,
        RelayKind::KtlsSplice => telemetry::RelayKind::KtlsSplice,
    }
}

fn explain(outcome: &RelayOutcome, live: &Live) -> (ResponseFlags, Option<String>) {
    let flags = match &outcome.ended_by {
        EndedBy::Finished | EndedBy::HandedOver => return (ResponseFlags::None, None),
        EndedBy::AppReset | EndedBy::WireReset | EndedBy::Silent => ResponseFlags::Reset,
        EndedBy::Truncated => ResponseFlags::Truncated,
        EndedBy::WireProtocol(_) => ResponseFlags::TlsFailure,
        EndedBy::Idle => ResponseFlags::IdleTimeout,
        EndedBy::Closed => match live.stats.close_reason() {
            Some(CloseReason::Policy(_) | CloseReason::Trust(_)) => ResponseFlags::PolicyChanged,
            Some(CloseReason::Shutdown) => ResponseFlags::Drained,
            Some(CloseReason::Operator) | None => ResponseFlags::Failed,
        },
        EndedBy::KeyExhausted | EndedBy::KeyUpdateUnsupported | EndedBy::Local(_) => ResponseFlags::Failed,
    };
    let error = match (&outcome.ended_by, live.stats.close_reason()) {
        (EndedBy::Closed, Some(reason)) => reason.to_string(),
        (EndedBy::WireProtocol(detail) | EndedBy::Local(detail), _) => {
            format!("{}: {detail}", outcome.ended_by.label())
        }
        (ended_by, _) => ended_by.label().to_owned(),
    };
    (flags, Some(error))
}
