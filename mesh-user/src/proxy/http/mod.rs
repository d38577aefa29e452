//! An inbound connection to a port where policy asks about requests: TLS has ended, each request is put before the
//! policy of the moment, and what is allowed goes to the application. What turns out not to be HTTP is decided as TCP.

mod gate;
mod legs;
mod report;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::BytesMut;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

pub(super) use self::gate::tell_observed;
use self::{
    gate::PolicyGate,
    legs::{AppLeg, PeerLeg},
    report::Reporter,
};
use super::{
    Live, Mesh,
    attempt::{Attempt, Failure},
    connections::{Candidate, Requests},
    inbound::connected,
    recheck::recheck_one,
    relay::CloseReason,
    stage::{Ends, Entered, Wire, carry},
};
use crate::{
    capture::{PeerViewGuard, WorkloadNet},
    http::{Detected, HttpError, Served, Settings, look, serve},
    policy::L4Request,
    sys::socket::reset_on_close,
    telemetry::{RelayKind, ResponseFlags},
    tls::VerifiedPeer,
};

/// What an inbound connection has when its client is known.
pub(super) struct Inspected<'a> {
    pub(super) net: &'a WorkloadNet,
    pub(super) client: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) ends: Ends,
    pub(super) app: TcpStream,
    pub(super) guard: PeerViewGuard,
}

/// Serves the connection to its end.
pub(super) async fn inspect(mesh: &Arc<Mesh>, mut attempt: Attempt, wire: Wire, inspected: Inspected<'_>) {
    let Inspected { net, client, local, ends, app, guard } = inspected;
    let peer = match &wire {
        Wire::Plain(_) => None,
        Wire::Tls(established) => established.peer().map(|peer| (Arc::clone(peer), established.peer_role())),
    };
    let limits = mesh.view().snapshot.config.limits.clone();
    let settings = Settings { detect_timeout: Some(limits.detect_timeout()), ..Settings::default() };
    let mut leg = PeerLeg::new(wire);
    let mut read = BytesMut::new();
    match look(&mut leg, &mut read, &settings).await {
        Ok(Detected::Http1 | Detected::Http2) => {}
        Ok(Detected::NotHttp | Detected::NeedMore) => {
            let asked = (client, local, peer.as_ref().map(|(peer, _)| &**peer));
            let carried = as_tcp(mesh, &mut attempt, asked, leg, &read, app, &ends).await;
            return match carried {
                Ok((wire, app)) => carry(mesh, attempt, app, wire, ends, Requests::None).await,
                Err(failure) => attempt.fail(failure),
            };
        }
        Err(error) => {
            leg.reset();
            reset_on_close(&app);
            return attempt.fail(Failure::new(ResponseFlags::Reset, &error));
        }
    }
    attempt.decide_requests();
    attempt.record_mut().relay = Some(RelayKind::Http);
    let mut metrics = attempt.open_metrics(RelayKind::Http);
    let live = mesh.connections.insert(Candidate {
        record: Arc::clone(&attempt.record),
        workload: ends.workload,
        remote: ends.remote,
        peer,
        server: None,
        sni: ends.sni,
        requests: Requests::Inspected,
        metric_bytes: Arc::clone(metrics.bytes()),
    });
    let entered = Entered::new(mesh, &live);
    recheck_one(mesh, &live);
    let first = Mutex::new(Some((app, guard)));
    let open = || async {
        let prepared = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (stream, guard) = match prepared {
            Some(prepared) => prepared,
            None => reach(net, local, client, limits.connect_timeout()).await?,
        };
        Ok::<_, io::Error>(AppLeg::new(stream, guard, Arc::clone(&live)))
    };
    let gate = PolicyGate { mesh, live: &live };
    let reporter = Reporter { mesh, live: &live };
    let reset = leg.reset_switch();
    let ended = tokio::select! {
        served = serve(leg, read, open, &gate, &reporter, &settings) => Some(served),
        () = live.stats.closed() => None,
        () = live.stats.idle_for(limits.idle_timeout()) => None,
    };
    let (flags, error) = match ended {
        Some(Served::Ended(error)) => ending(error),
        Some(Served::Cut { peer, error }) => {
            peer.reset();
            ending(Some(error))
        }
        // It was HTTP when it was looked at.
        Some(Served::NotHttp { peer, .. }) => {
            peer.reset();
            (ResponseFlags::Failed, Some("the first bytes changed".to_owned()))
        }
        None => {
            reset.pull();
            closed(&live)
        }
    };
    drop(entered);
    metrics.set_response_flags(flags);
    if let Some(reason @ (CloseReason::Policy(_) | CloseReason::Trust(_))) = live.stats.close_reason() {
        attempt.revoke(reason);
    }
    attempt.finish(flags, error, live.bytes());
}

/// No HTTP: the rules for TCP count, and nothing that was read is lost.
async fn as_tcp(
    mesh: &Mesh,
    attempt: &mut Attempt,
    (client, local, peer): (SocketAddr, SocketAddr, Option<&VerifiedPeer>),
    leg: PeerLeg,
    read: &[u8],
    mut app: TcpStream,
    ends: &Ends,
) -> Result<(Wire, TcpStream), Failure> {
    let view = mesh.view().clone();
    let workload = view.world().by_name(&ends.workload.namespace, &ends.workload.name);
    let request =
        L4Request { peer: peer.map(|p| &p.spiffe_id), src: client, dst: local, sni: ends.sni.as_deref() };
    let decided = match workload {
        Some(workload) => {
            let policy = view.snapshot.policies.for_workload(workload.id);
            attempt.set_verdict(&policy.decide(&request))
        }
        None => Err(Failure::new(ResponseFlags::Denied, "its workload is no longer enrolled")),
    };
    if let Err(failure) = decided {
        leg.reset();
        reset_on_close(&app);
        return Err(failure);
    }
    let reset = |error: io::Error| Failure::new(ResponseFlags::Reset, &error);
    let (wire, first) = leg.into_wire(read).map_err(reset)?;
    app.write_all(first).await.map_err(reset)?;
    Ok((wire, app))
}

async fn reach(
    net: &WorkloadNet,
    local: SocketAddr,
    client: SocketAddr,
    patience: std::time::Duration,
) -> io::Result<(TcpStream, PeerViewGuard)> {
    let (socket, guard) = net.app_socket(local, client)?;
    Ok((connected(socket, patience).await?, guard))
}

fn ending(error: Option<HttpError>) -> (ResponseFlags, Option<String>) {
    let flags = match &error {
        None => ResponseFlags::None,
        Some(HttpError::Open(_)) => ResponseFlags::ConnectFailure,
        Some(HttpError::RequestTruncated | HttpError::ResponseTruncated) => ResponseFlags::Truncated,
        Some(HttpError::Peer(_) | HttpError::Application(_)) => ResponseFlags::Reset,
        Some(_) => ResponseFlags::Failed,
    };
    (flags, error.map(|error| error.to_string()))
}

fn closed(live: &Live) -> (ResponseFlags, Option<String>) {
    let Some(reason) = live.stats.close_reason() else {
        return (ResponseFlags::IdleTimeout, Some("nothing moved for the idle timeout".to_owned()));
    };
    let flags = match reason {
        CloseReason::Policy(_) | CloseReason::Trust(_) => ResponseFlags::PolicyChanged,
        CloseReason::Shutdown => ResponseFlags::Drained,
        CloseReason::Operator => ResponseFlags::Failed,
    };
    (flags, Some(reason.to_string()))
}
