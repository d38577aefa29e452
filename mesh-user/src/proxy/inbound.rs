//! A connection that `sk_lookup` steered to a workload's inbound listener: mode, handshake or detection,
//! verdict, app leg.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use super::{
    Mesh, View,
    attempt::{Attempt, Failure},
    connections::Requests,
    detect::{Opening, opening},
    handshakes::own_svid,
    http::{self, Inspected},
    kernel_path,
    memory::{Noted, NotedContent},
    mesh::{Admission, OVER_LIMIT, handshake_limits},
    stage::{Ends, Wire, carry},
};
use crate::{
    capture::{PeerViewGuard, WorkloadNet},
    identity::SpiffeId,
    policy::{DenyReason, L4Request, Mode},
    sys::socket::{finish_connect, reset_on_close},
    telemetry::{Direction, HandshakeSide, ResponseFlags},
    tls::{Established, HandshakeError},
    world::{Workload, WorkloadName},
};

/// Of a client's, read before its handshake: a `ClientHello` has fewer.
const FIRST_BYTES: usize = 4096;
/// Content type of a record that carries handshake messages (RFC 8446 section 5.1).
const TLS_HANDSHAKE_RECORD: u8 = 22;

const OVER_SHARE: &str =
    "a quarter of limits.connections are this address's and have yet to say who they are";

/// Serves one inbound connection to its end. `local` is the address that the client wanted.
pub(super) async fn inbound(
    mesh: Arc<Mesh>,
    net: Arc<WorkloadNet>,
    name: WorkloadName,
    stream: TcpStream,
    (client, local): (SocketAddr, SocketAddr),
) {
    // Boxed: what only the beginning needs, the world it judges by above all, goes with it. So does the other stage.
    let begun = Box::pin(begin(&mesh, &net, name, stream, (client, local))).await;
    let Some(Begun {
        attempt,
        opened: Opened { wire, app, sni, guard, inspects },
        workload,
        remote,
        admission: _held,
    }) = begun
    else {
        return;
    };
    let ends = Ends { workload, remote, sni };
    if inspects {
        let inspected = Inspected { net: &net, client, local, ends, app, guard };
        Box::pin(http::inspect(&mesh, attempt, wire, inspected)).await;
    } else {
        carry(&mesh, attempt, app, wire, ends, Requests::Uninspected).await;
        drop(guard);
    }
}

/// A connection that is allowed and open at both ends.
struct Begun {
    attempt: Attempt,
    opened: Opened,
    workload: WorkloadName,
    remote: Option<WorkloadName>,
    admission: Admission,
}

/// Nothing where it has failed, of which it has told.
async fn begin(
    mesh: &Arc<Mesh>,
    net: &WorkloadNet,
    name: WorkloadName,
    stream: TcpStream,
    (client, local): (SocketAddr, SocketAddr),
) -> Option<Begun> {
    let kernel_generation = mesh.kernel_generation();
    let view = mesh.view().clone();
    let Some(workload) = view.world().by_name(&name.namespace, &name.name) else {
        reset_on_close(&stream);
        return None;
    };
    let source = view.world().by_address(client.ip());
    let mut attempt =
        Attempt::new(mesh, &view, Direction::Inbound, "sk_lookup", (client, source), (local, Some(workload)));
    let Some(admission) = mesh.admit() else {
        reset_on_close(&stream);
        attempt.fail(Failure::new(ResponseFlags::Limit, OVER_LIMIT));
        return None;
    };
    let inbound = Inbound { mesh, view: &view, workload, source, client, local, kernel_generation };
    match inbound.open(&mut attempt, stream, net).await {
        Ok(opened) => {
            Some(Begun { attempt, opened, workload: name, remote: source.map(|w| w.name.clone()), admission })
        }
        Err(failure) => {
            attempt.fail(failure);
            None
        }
    }
}

struct Inbound<'a> {
    mesh: &'a Mesh,
    view: &'a View,
    workload: &'a Workload,
    source: Option<&'a Workload>,
    client: SocketAddr,
    local: SocketAddr,
    kernel_generation: u64,
}

struct Opened {
    wire: Wire,
    app: TcpStream,
    sni: Option<String>,
    guard: PeerViewGuard,
    /// Its requests are to be decided, not the connection.
    inspects: bool,
}

impl Inbound<'_> {
    async fn open(
        &self,
        attempt: &mut Attempt,
        stream: TcpStream,
        net: &WorkloadNet,
    ) -> Result<Opened, Failure> {
        let policy = self.view.snapshot.policies.for_workload(self.workload.id);
        let mode = policy.mode(self.local.port());
        attempt.set_mode(mode);
        let Some(unproven) = self.mesh.unproven.of(self.client.ip()).try_place() else {
            reset_on_close(&stream);
            return Err(Failure::new(ResponseFlags::Limit, OVER_SHARE));
        };
        let (wire, sni) = self.identify(attempt, stream, mode).await?;
        drop(unproven);
        let peer = match &wire {
            Wire::Plain(_) => None,
            Wire::Tls(established) => established.peer().cloned(),
        };
        let request = L4Request {
            peer: peer.as_ref().map(|p| &p.spiffe_id),
            src: self.client,
            dst: self.local,
            sni: sni.as_deref(),
        };
        let inspects = policy.inspects_requests(self.local.port());
        if !inspects {
            self.note(mode, request);
        }
        if !inspects && policy.observes() {
            http::tell_observed(self.mesh, &attempt.record, &policy.observe(&request, None), |_| {});
        }
        let decided = if inspects { Ok(()) } else { attempt.set_verdict(&policy.decide(&request)) };
        let opened = match decided {
            Ok(()) => self.connect_app(net).await,
            Err(denied) => Err(denied),
        };
        match opened {
            Ok((app, guard)) => {
                let mut opened = Opened { wire, app, sni, guard, inspects };
                self.confirm(&mut opened).await?;
                if let Some(peer) = &peer {
                    self.offer_kernel_path(&peer.spiffe_id);
                }
                Ok(opened)
            }
            Err(failure) => {
                // The client's side learns of it as a reset, never as a clean end of file.
                reset_on_close(&match wire {
                    Wire::Plain(stream) => stream,
                    Wire::Tls(established) if failure.flags == ResponseFlags::Denied => established.deny(),
                    Wire::Tls(established) => established.stream,
                });
                Err(failure)
            }
        }
    }

    fn note(&self, mode: Mode, connection: L4Request<'_>) {
        self.mesh.memory.note(&Noted {
            server: &self.workload.name,
            client: self.source.map(|source| &source.name),
            connection,
            mode,
            content: NotedContent::Unread,
        });
    }

    /// Where the client is the local workload that its address says.
    fn offer_kernel_path(&self, proven: &SpiffeId) {
        if let Some(client) = self.source.filter(|source| source.spiffe_id == *proven) {
            let (from, to) = ((client, self.client.ip()), (self.workload, self.local));
            kernel_path::offer(self.mesh, self.view, self.kernel_generation, from, to);
        }
    }

    /// Tells the client's meshd that the application has taken the connection.
    async fn confirm(&self, opened: &mut Opened) -> Result<(), Failure> {
        let Wire::Tls(established) = &mut opened.wire else { return Ok(()) };
        let patience = self.view.snapshot.config.limits.handshake_timeout();
        let failure = match timeout(patience, established.confirm()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => Failure::new(ResponseFlags::Reset, &error),
            Err(_) => Failure::new(ResponseFlags::HandshakeTimeout, "the client does not read"),
        };
        reset_on_close(&opened.app);
        reset_on_close(established.stream());
        Err(failure)
    }

    /// Who is there: by handshake, or nobody in particular where plaintext is permitted.
    async fn identify(
        &self,
        attempt: &mut Attempt,
        mut stream: TcpStream,
        mode: Mode,
    ) -> Result<(Wire, Option<String>), Failure> {
        let limits = &self.view.snapshot.config.limits;
        let mut begun = Vec::new();
        let patience = match mode {
            Mode::Disable => return Ok((Wire::Plain(stream), None)),
            Mode::Strict => {
                begun = self.demand_tls(attempt, &mut stream).await?;
                None
            }
            // A known workload's meshd speaks first, so there is no need to guess from its silence.
            Mode::Permissive if self.source.is_some_and(|source| self.speaks_tls(source)) => {
                Some(limits.handshake_timeout())
            }
            Mode::Permissive => Some(limits.detect_timeout()),
        };
        if let Some(patience) = patience {
            let found = opening(&stream, patience).await;
            let found = found.map_err(|e| Failure::new(ResponseFlags::Reset, &e))?;
            if let Opening::Plaintext { sni } = found {
                return Ok((Wire::Plain(stream), sni));
            }
        }
        let established = self.handshake(stream, begun).await?;
        attempt.set_tls(self.view, &established);
        Ok((Wire::Tls(Box::new(established)), None))
    }

    /// Whether no rule has a workload's meshd leave its bytes as they are.
    fn speaks_tls(&self, source: &Workload) -> bool {
        !self.view.snapshot.policies.destination_rules().may_say_plaintext(source)
    }

    /// Refuses plaintext by a reset, before a single byte is answered: an alert would tell a port scanner more
    /// than a closed port, and look to a plaintext client like data. What was read begins the handshake.
    async fn demand_tls(&self, attempt: &mut Attempt, stream: &mut TcpStream) -> Result<Vec<u8>, Failure> {
        let limits = &self.view.snapshot.config.limits;
        let failure = match timeout(limits.handshake_timeout(), first_bytes(stream)).await {
            Ok(Ok(begun)) if begun.first() == Some(&TLS_HANDSHAKE_RECORD) => return Ok(begun),
            Ok(Ok(begun)) if begun.is_empty() => {
                Failure::new(ResponseFlags::TlsFailure, "the peer closed before the handshake")
            }
            Ok(Ok(_)) => {
                self.mesh.metrics.handshake_ended(HandshakeSide::Server, Err("not_tls"));
                self.note(
                    Mode::Strict,
                    L4Request { peer: None, src: self.client, dst: self.local, sni: None },
                );
                attempt.deny(&DenyReason::StrictPlaintext)
            }
            Ok(Err(error)) => Failure::new(ResponseFlags::Reset, &error),
            Err(_) => {
                self.mesh.metrics.handshake_ended(HandshakeSide::Server, Err("timeout"));
                Failure::new(ResponseFlags::HandshakeTimeout, "the peer sent nothing")
            }
        };
        reset_on_close(stream);
        Err(failure)
    }

    async fn handshake(&self, stream: TcpStream, first: Vec<u8>) -> Result<Established, Failure> {
        let limits = handshake_limits(&self.view.snapshot.config.limits);
        let metrics = &self.mesh.metrics;
        let own = own_svid(self.mesh, &self.workload.spiffe_id, HandshakeSide::Server, limits).await;
        let (svid, limits) = own.map_err(|error| {
            reset_on_close(&stream);
            Failure::new(ResponseFlags::TlsFailure, &error)
        })?;
        let Some(_place) = self.mesh.handshakes.inbound(self.client.ip(), limits.timeout).await else {
            metrics.handshake_ended(HandshakeSide::Server, Err("too_many"));
            reset_on_close(&stream);
            return Err(Failure::new(ResponseFlags::Limit, "limits.concurrentHandshakes is reached"));
        };
        let _in_progress = metrics.handshake_started();
        let began = Instant::now();
        match self.mesh.tls.accept_begun(stream, first, &svid, limits).await {
            Ok(established) => {
                metrics.handshake_ended(HandshakeSide::Server, Ok(began.elapsed()));
                Ok(established)
            }
            Err(error) => {
                metrics.handshake_ended(HandshakeSide::Server, Err(error.label()));
                Err(handshake_failure(&error))
            }
        }
    }

    /// The application's own address, from that address: with a loopback source it could tell the difference.
    async fn connect_app(&self, net: &WorkloadNet) -> Result<(TcpStream, PeerViewGuard), Failure> {
        let limits = &self.view.snapshot.config.limits;
        let refused = |e: std::io::Error| {
            Failure::new(ResponseFlags::ConnectFailure, &format!("the application does not answer: {e}"))
        };
        let (socket, guard) = net.app_socket(self.local, self.client).map_err(refused)?;
        let stream = connected(socket, limits.connect_timeout()).await.map_err(refused)?;
        Ok((stream, guard))
    }
}

/// What a client begins with; nothing, if it ends. One that is silent costs no memory.
async fn first_bytes(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    stream.readable().await?;
    let mut first = vec![0; FIRST_BYTES];
    let read = stream.read(&mut first).await?;
    first.truncate(read);
    first.shrink_to_fit();
    Ok(first)
}

/// Waits until a connect under way has succeeded or failed.
pub(super) async fn connected(
    socket: socket2::Socket,
    patience: std::time::Duration,
) -> std::io::Result<TcpStream> {
    timeout(patience, finish_connect(socket)).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

pub(super) fn handshake_failure(error: &HandshakeError) -> Failure {
    let flags = match error {
        HandshakeError::Timeout(_) => ResponseFlags::HandshakeTimeout,
        _ => ResponseFlags::TlsFailure,
    };
    Failure::new(flags, error)
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
