//! An inbound connection to a port where policy asks about requests: TLS has ended, each request is put before the
//! policy of the moment, and what is allowed goes to the application. What turns out not to be HTTP is decided as TCP.

mod asking;
mod authorizer;
mod gate;
mod legs;
mod report;
mod tunnel;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{BufMut as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use self::{
    asking::Asking,
    gate::PolicyGate,
    legs::{AppLeg, PeerLeg},
    report::Reporter,
};
pub(super) use self::{gate::tell_observed, tunnel::AskedTunnel};
use super::{
    Live, Mesh,
    attempt::{Attempt, Failure},
    connections::{Candidate, Requests},
    inbound::connected,
    memory::{Noted, NotedContent},
    recheck::recheck_one,
    relay::{CloseReason, Vigil},
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

/// Bytes that a client may send while an external authorizer is asked about its connection.
const MOST_READ_AHEAD: usize = 16 * 1024;

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
    let mut leg = PeerLeg::new(wire, Vigil::new(limits.keepalive_idle(), limits.user_timeout()));
    let mut read = BytesMut::new();
    match look(&mut leg, &mut read, &settings).await {
        Ok(Detected::Http1 | Detected::Http2) => {}
        Ok(Detected::NotHttp | Detected::NeedMore) => {
            let asked = (client, local, peer.as_ref().map(|(peer, _)| &**peer), net);
            let carried = as_tcp(mesh, &mut attempt, asked, leg, read, app, &ends).await;
            return match carried {
                Ok((wire, app, requests)) => carry(mesh, attempt, app, wire, ends, requests).await,
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
    let gate = PolicyGate { mesh, net, live: &live };
    let reporter = Reporter { mesh, live: &live, requests: attempt.request_metrics() };
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
    (client, local, peer, net): (SocketAddr, SocketAddr, Option<&VerifiedPeer>, &WorkloadNet),
    mut leg: PeerLeg,
    mut read: BytesMut,
    mut app: TcpStream,
    ends: &Ends,
) -> Result<(Wire, TcpStream, Requests), Failure> {
    let connection =
        L4Request { peer: peer.map(|p| &p.spiffe_id), src: client, dst: local, sni: ends.sni.as_deref() };
    let decided = tokio::select! {
        biased;
        decided = decide_tcp(mesh, attempt, net, connection, ends) => decided,
        error = broken_off(&mut leg, &mut read) => Err(Failure::new(ResponseFlags::Reset, &error)),
    };
    let allowed_by = match decided {
        Ok(allowed_by) => allowed_by,
        Err(failure) => {
            leg.reset();
            reset_on_close(&app);
            return Err(failure);
        }
    };
    let reset = |error: io::Error| Failure::new(ResponseFlags::Reset, &error);
    let (wire, first) = leg.into_wire(&read).map_err(reset)?;
    app.write_all(first).await.map_err(reset)?;
    Ok((wire, app, Requests::None { allowed_by }))
}

/// Says which external authorizers allowed it.
async fn decide_tcp(
    mesh: &Mesh,
    attempt: &mut Attempt,
    net: &WorkloadNet,
    connection: L4Request<'_>,
    ends: &Ends,
) -> Result<Vec<Arc<str>>, Failure> {
    let view = mesh.view().clone();
    let Some(workload) = view.world().by_name(&ends.workload.namespace, &ends.workload.name) else {
        return Err(Failure::new(ResponseFlags::Denied, "its workload is no longer enrolled"));
    };
    let policy = view.snapshot.policies.for_workload(workload.id);
    mesh.memory.note(&Noted {
        server: &ends.workload,
        client: ends.remote.as_ref(),
        connection,
        mode: policy.mode(connection.dst.port()),
        content: NotedContent::NotHttp,
    });
    let original = connection.src.ip().to_canonical();
    let asking = Asking { mesh, view: &view, net, workload, policy, connection, original };
    let allowed_by = asking.about_connection().await.map_err(|reason| attempt.deny(&reason))?;
    attempt.set_verdict(&policy.decide_authorized(&connection, None))?;
    Ok(allowed_by)
}

/// Waits until the client's side breaks, while its connection is decided. What it sends in the meantime is kept, within
/// bounds; one that only listens from now on is still served.
async fn broken_off(leg: &mut PeerLeg, read: &mut BytesMut) -> io::Error {
    while read.len() < MOST_READ_AHEAD {
        match leg.read_buf(&mut (&mut *read).limit(MOST_READ_AHEAD)).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    std::future::pending().await
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
    (flags_of(error.as_ref()), error.map(|error| error.to_string()))
}

/// Why a connection or a request ended.
fn flags_of(error: Option<&HttpError>) -> ResponseFlags {
    match error {
        None => ResponseFlags::None,
        Some(HttpError::Open(_)) => ResponseFlags::ConnectFailure,
        Some(HttpError::RequestTruncated | HttpError::ResponseTruncated) => ResponseFlags::Truncated,
        Some(HttpError::Peer(_) | HttpError::Application(_)) => ResponseFlags::Reset,
        Some(_) => ResponseFlags::Failed,
    }
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
