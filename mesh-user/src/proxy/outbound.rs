//! A captured connection of a local workload: resolve the original destination, open the wire leg from inside
//! the workload's namespace, prove the server. Every failure reaches the application: as its `connect`'s error
//! where that is held, else as a reset.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use rand::Rng;
use tokio::{net::TcpStream, time::timeout};

use super::{
    Mesh, View,
    attempt::{Attempt, Failure},
    connections::Requests,
    destination,
    handshakes::{ClientFailure, own_svid, with_server},
    inbound::{canonical, connected, handshake_failure},
    mesh::{Admission, OVER_LIMIT, handshake_limits},
    stage::{Ends, Wire, carry},
};
use crate::{
    capture::{AppLeg, Captured, Form, Refusal, WorkloadNet},
    config::DeniedConnect,
    identity::SpiffeId,
    policy::destination_rule::{ClientTls, Origination, Way, narrowed},
    sys::socket::read_urgent_in_line,
    telemetry::{Direction, HandshakeSide, ResponseFlags},
    tls::{Established, HandshakeError, TlsContext, Unconfirmed},
    world::{Destination, Endpoint, Service, Workload, WorkloadName},
};

/// Endpoints of a service that are tried before the application is told that none answers.
const MAX_TRIES: usize = 3;

/// Serves one outbound connection to its end.
pub(super) async fn outbound(mesh: Arc<Mesh>, net: Arc<WorkloadNet>, name: WorkloadName, captured: Captured) {
    // Boxed: what only the beginning needs, the world it judges by above all, goes with it.
    let begun = Box::pin(begin(&mesh, &net, name, captured)).await;
    let Some(Begun { attempt, app, wire, ends, admission: _held }) = begun else { return };
    carry(&mesh, attempt, app, wire, ends, Requests::Uninspected).await;
}

/// A connection that is open at both ends.
struct Begun {
    attempt: Attempt,
    app: TcpStream,
    wire: Wire,
    ends: Ends,
    admission: Admission,
}

/// Nothing where it has failed, of which it has told.
async fn begin(
    mesh: &Arc<Mesh>,
    net: &WorkloadNet,
    name: WorkloadName,
    Captured { leg, original }: Captured,
) -> Option<Begun> {
    let view = mesh.view().clone();
    let Some(workload) = view.world().by_name(&name.namespace, &name.name) else {
        leg.refuse(Refusal::Refused).await;
        return None;
    };
    let destination = canonical(original.destination);
    // A pod that has only begun: the API server does not know its address yet.
    let source = original.source.map_or(unknown_like(destination), canonical);
    let mut attempt = Attempt::new(
        mesh,
        &view,
        Direction::Outbound,
        leg.form().as_str(),
        (source, Some(workload)),
        (destination, view.world().by_socket(destination)),
    );
    let Some(admission) = mesh.admit() else {
        leg.refuse(Refusal::Refused).await;
        attempt.fail(Failure::new(ResponseFlags::Limit, OVER_LIMIT));
        return None;
    };
    let outbound =
        Outbound { mesh, view: &view, workload, net, source: original.source, destination, form: leg.form() };
    let opened = tokio::select! {
        biased;
        opened = outbound.open(&mut attempt) => opened,
        () = leg.given_up() => Err(Failure::new(ResponseFlags::Reset, "the application gave up its connect")),
    };
    let (wire, remote) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            leg.refuse(failure.refusal).await;
            attempt.fail(failure);
            return None;
        }
    };
    if original.source.is_none()
        && let Some(address) = wire.local_address()
    {
        attempt.set_source_address(canonical(address));
    }
    match outbound.complete(leg).await {
        Ok(app) => {
            attempt.allow_outbound();
            let ends = Ends { workload: name, remote, sni: None };
            Some(Begun { attempt, app, wire, ends, admission })
        }
        Err(failure) => {
            attempt.fail(failure);
            None
        }
    }
}

fn unknown_like(address: SocketAddr) -> SocketAddr {
    let unknown = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(unknown, 0)
}

/// TLS has no urgent data, but a server that speaks for itself may.
fn plain(wire: TcpStream) -> Result<Wire, Failure> {
    read_urgent_in_line(&wire).map_err(|error| Failure::new(ResponseFlags::Reset, &error))?;
    Ok(Wire::Plain(wire))
}

struct Outbound<'a> {
    mesh: &'a Mesh,
    view: &'a View,
    workload: &'a Workload,
    net: &'a WorkloadNet,
    source: Option<SocketAddr>,
    destination: SocketAddr,
    form: Form,
}

impl Outbound<'_> {
    /// The app leg, once the wire leg is proven.
    async fn complete(&self, leg: AppLeg) -> Result<TcpStream, Failure> {
        leg.complete().await.map_err(|error| Failure::new(ResponseFlags::Reset, &error))
    }

    async fn open(&self, attempt: &mut Attempt) -> Result<(Wire, Option<WorkloadName>), Failure> {
        let (endpoints, service) = match self.view.world().resolve(self.destination) {
            Destination::NotMeshed => {
                let wire = self.connect(self.destination).await?;
                return Ok((plain(wire)?, None));
            }
            Destination::External { addr, service } => {
                attempt.set_outside(service);
                return Ok((self.open_outside(attempt, addr).await?, None));
            }
            Destination::Meshed { endpoints, service } => (endpoints, service),
        };
        let rule = self.rule(attempt);
        if let Some(service) = service {
            attempt.set_service(self.view, service);
        }
        let (stream, endpoint) = self.connect_any(&endpoints, service).await?;
        if endpoint.addr != self.destination {
            attempt.record_mut().original_destination = Some(self.destination);
        }
        attempt.set_destination(self.view, endpoint.addr, endpoint.workload);
        let Some(server) = endpoint.workload else {
            let wire = match Way::to_outside(rule) {
                Way::Refused(why) => return Err(Failure::new(ResponseFlags::TlsFailure, why)),
                Way::Originate(origination) => self.originated(attempt, stream, origination).await?,
                Way::Plaintext | Way::Mesh { .. } => plain(stream)?,
            };
            return Ok((wire, None));
        };
        let mode = self.view.snapshot.policies.for_workload(server.id).mode(endpoint.addr.port());
        attempt.set_mode(mode);
        let remote = Some(server.name.clone());
        let wire = match Way::to_workload(rule, mode) {
            Way::Plaintext => plain(stream)?,
            Way::Refused(why) => return Err(Failure::new(ResponseFlags::TlsFailure, why)),
            Way::Originate(origination) => self.originated(attempt, stream, origination).await?,
            Way::Mesh { names } => {
                let expected = self.expected(server, names)?;
                let mut established = self.handshake(stream, &expected, endpoint.addr).await?;
                attempt.set_tls(self.view, &established);
                if self.form == Form::Hold && established.will_be_confirmed() {
                    self.confirmed(&mut established).await?;
                }
                Wire::Tls(Box::new(established))
            }
        };
        Ok((wire, remote))
    }

    async fn open_outside(&self, attempt: &mut Attempt, addr: SocketAddr) -> Result<Wire, Failure> {
        if addr != self.destination {
            attempt.record_mut().original_destination = Some(self.destination);
            attempt.record_mut().destination.address = addr;
        }
        match Way::to_outside(self.rule(attempt)) {
            Way::Refused(why) => Err(Failure::new(ResponseFlags::TlsFailure, why)),
            Way::Originate(origination) => {
                self.originated(attempt, self.connect(addr).await?, origination).await
            }
            Way::Plaintext | Way::Mesh { .. } => plain(self.connect(addr).await?),
        }
    }

    /// What the rule that applies says; the access log names it.
    fn rule(&self, attempt: &mut Attempt) -> Option<&ClientTls> {
        let applied = destination::rule(self.view, self.workload, self.destination)?;
        attempt.set_rule(&applied);
        Some(applied.tls)
    }

    /// Who may answer for a workload, as far as a rule lets it.
    fn expected(
        &self,
        workload: &Workload,
        names: Option<&BTreeSet<String>>,
    ) -> Result<Arc<BTreeSet<SpiffeId>>, Failure> {
        let identities = self.view.identities(workload.id);
        let Some(names) = names else { return Ok(identities) };
        let narrowed = narrowed(&identities, names);
        if narrowed.is_empty() {
            let why = format!("{} is not among the rule's subjectAltNames", workload.spiffe_id);
            return Err(Failure::new(ResponseFlags::TlsFailure, &why));
        }
        Ok(Arc::new(narrowed))
    }

    async fn originated(
        &self,
        attempt: &mut Attempt,
        stream: TcpStream,
        origination: &Origination,
    ) -> Result<Wire, Failure> {
        let refused = |why: &str| Failure::new(ResponseFlags::TlsFailure, why);
        let originator = self.view.snapshot.origins.of(origination).map_err(refused)?;
        let name =
            destination::called(self.view, origination, self.destination).map_err(|why| refused(&why))?;
        let limits = handshake_limits(&self.view.snapshot.config.limits);
        let established = self.counted(TlsContext::originate(stream, originator, name, limits)).await?;
        attempt.set_tls(self.view, &established);
        Ok(Wire::Tls(Box::new(established)))
    }

    /// Starts at a random endpoint, or the one that this client stays with, and goes on to the next where one does not answer.
    async fn connect_any<'e>(
        &self,
        endpoints: &'e [Endpoint<'e>],
        service: Option<&Service>,
    ) -> Result<(TcpStream, &'e Endpoint<'e>), Failure> {
        if endpoints.is_empty() {
            return Err(Failure::new(ResponseFlags::ConnectFailure, "the service has no endpoint"));
        }
        let order = if service.is_some_and(|service| service.sticky) {
            destination::rendezvous(self.client_address(), endpoints)
        } else {
            let first = rand::rng().random_range(0..endpoints.len());
            (0..endpoints.len().min(MAX_TRIES)).map(|step| (first + step) % endpoints.len()).collect()
        };
        let mut failed = None;
        for endpoint in order.into_iter().take(MAX_TRIES).filter_map(|index| endpoints.get(index)) {
            match self.connect(endpoint.addr).await {
                Ok(stream) => return Ok((stream, endpoint)),
                Err(failure) => failed = Some(failure),
            }
        }
        Err(failed.unwrap_or_else(|| Failure::new(ResponseFlags::ConnectFailure, "no endpoint was tried")))
    }

    /// What the service would see as its client's.
    fn client_address(&self) -> Option<IpAddr> {
        let same_family = |a: &&IpAddr| a.is_ipv4() == self.destination.is_ipv4();
        self.workload.addresses.iter().find(same_family).or(self.workload.addresses.first()).copied()
    }

    async fn connect(&self, to: SocketAddr) -> Result<TcpStream, Failure> {
        let limits = &self.view.snapshot.config.limits;
        let failed = |error: io::Error| Failure::connect(to, &error);
        let socket = self.net.wire_socket(to, self.source).map_err(failed)?;
        connected(socket, limits.connect_timeout()).await.map_err(failed)
    }

    /// Waits for the word of the server's meshd, so that `connect` succeeds only when the application there has
    /// taken the connection.
    async fn confirmed(&self, established: &mut Established) -> Result<(), Failure> {
        let config = &self.view.snapshot.config;
        match timeout(config.limits.connect_timeout(), established.confirmed()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(denied @ Unconfirmed::Denied)) => {
                let refusal = match config.capture.denied {
                    DeniedConnect::Refused => Refusal::Refused,
                    DeniedConnect::Unreachable => Refusal::Unreachable,
                };
                Err(Failure { refusal, ..Failure::new(ResponseFlags::Denied, &denied) })
            }
            Ok(Err(refused)) => Err(Failure::new(ResponseFlags::ConnectFailure, &refused)),
            Err(_) => Err(Failure {
                refusal: Refusal::Unanswered,
                ..Failure::new(ResponseFlags::ConnectFailure, "the server does not confirm the connection")
            }),
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        expected: &Arc<BTreeSet<SpiffeId>>,
        to: SocketAddr,
    ) -> Result<Established, Failure> {
        let limits = handshake_limits(&self.view.snapshot.config.limits);
        let own = own_svid(self.mesh, &self.workload.spiffe_id, HandshakeSide::Client, limits).await;
        let (svid, limits) = own.map_err(|error| Failure::new(ResponseFlags::TlsFailure, &error))?;
        self.counted(self.mesh.tls.connect(stream, &svid, expected, to.ip(), limits)).await
    }

    /// A handshake within the node's limits, in its metrics.
    async fn counted(
        &self,
        handshake: impl Future<Output = Result<Established, HandshakeError>>,
    ) -> Result<Established, Failure> {
        let limits = &self.view.snapshot.config.limits;
        with_server(self.mesh, limits, handshake).await.map_err(|failure| match failure {
            ClientFailure::TooMany => {
                Failure::new(ResponseFlags::Limit, "limits.concurrentHandshakes is reached")
            }
            ClientFailure::Handshake(error) => handshake_failure(&error),
        })
    }
}
