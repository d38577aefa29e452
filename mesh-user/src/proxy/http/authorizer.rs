//! The way to external authorizers: from the workload's own network namespace, and where the authorizer is a workload of
//! the mesh, proven by mTLS with the asking workload's SVID, as the workload's own connections are. Never in plaintext to
//! a workload that takes none.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use rand::seq::IndexedRandom as _;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    capture::WorkloadNet,
    ext_authz::{Connector, Io, ServiceName},
    identity::SpiffeId,
    policy::destination_rule::{Way, narrowed},
    proxy::{
        Mesh, View, destination,
        handshakes::{ClientFailure, own_svid, with_server},
        inbound::connected,
        mesh::handshake_limits,
    },
    telemetry::HandshakeSide,
    tls::{Established, TlsStream, Unconfirmed},
    world::{Destination, Workload, World},
};

/// Addresses of a name that are tried.
const MAX_TRIES: usize = 3;

const NOT_ORIGINATED: &str =
    "a DestinationRule asks for TLS to the authorizer itself, which meshd does not speak to one";

/// Connects on behalf of one workload.
pub(super) struct Road<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) view: &'a View,
    pub(super) net: &'a WorkloadNet,
    pub(super) workload: &'a Workload,
}

impl Connector for Road<'_> {
    async fn connect(&self, service: &ServiceName) -> Result<Box<dyn Io>, String> {
        let mut failed = format!("{service} has no address");
        for address in addresses(self.view.world(), service).await?.into_iter().take(MAX_TRIES) {
            match self.connect_to(address).await {
                Ok(io) => return Ok(io),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// Where a service answers: an address as it is, a service of the node's file, or what the system's resolver says.
async fn addresses(world: &World, service: &ServiceName) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = service.host.parse() {
        return Ok(vec![SocketAddr::new(ip, service.port)]);
    }
    if let Some(found) = known(world, service)? {
        return Ok(found);
    }
    let found = tokio::net::lookup_host((service.host.as_str(), service.port)).await;
    found.map(Iterator::collect).map_err(|error| format!("{} does not resolve: {error}", service.host))
}

/// The virtual addresses of a service that the node's file lists; none: it is no name of such a one.
fn known(world: &World, service: &ServiceName) -> Result<Option<Vec<SocketAddr>>, String> {
    let mut labels = service.host.split('.');
    let name = labels.next().unwrap_or_default();
    let namespace = match (labels.next(), labels.next(), &service.namespace) {
        (Some(inner), None | Some("svc"), None) => inner,
        (Some(inner), None | Some("svc"), Some(namespace)) if inner == namespace => inner,
        (None, None, Some(namespace)) => namespace,
        _ => return Ok(None),
    };
    let found = world.services().iter().find(|s| *s.name.name == *name && *s.name.namespace == *namespace);
    let Some(found) = found else { return Ok(None) };
    if !found.ports.iter().any(|(port, _)| *port == service.port) {
        return Err(format!("service {} has no port {}", found.name, service.port));
    }
    Ok(Some(found.addresses.iter().map(|ip| SocketAddr::new(*ip, service.port)).collect()))
}

impl Road<'_> {
    async fn connect_to(&self, address: SocketAddr) -> Result<Box<dyn Io>, String> {
        let tls = destination::rule(self.view, self.workload, address).map(|rule| rule.tls);
        let endpoints = match self.view.world().resolve(address) {
            Destination::NotMeshed => return Ok(Box::new(self.tcp(address).await?)),
            Destination::External { addr, .. } => {
                return match Way::to_outside(tls) {
                    Way::Plaintext => Ok(Box::new(self.tcp(addr).await?)),
                    Way::Refused(why) => Err(why.to_owned()),
                    Way::Mesh { .. } | Way::Originate(_) => Err(NOT_ORIGINATED.to_owned()),
                };
            }
            Destination::Meshed { endpoints, .. } => endpoints,
        };
        let endpoint = endpoints.choose(&mut rand::rng()).ok_or(format!("nobody serves {address}"))?;
        let Some(server) = endpoint.workload else {
            return match Way::to_outside(tls) {
                Way::Plaintext => Ok(Box::new(self.tcp(endpoint.addr).await?)),
                Way::Refused(why) => Err(why.to_owned()),
                Way::Mesh { .. } | Way::Originate(_) => Err(NOT_ORIGINATED.to_owned()),
            };
        };
        // What a workload says to itself does not leave it.
        if server.id == self.workload.id {
            return Ok(Box::new(self.tcp(endpoint.addr).await?));
        }
        let policy = self.view.snapshot.policies.for_workload(server.id);
        let identities = self.view.identities(server.id);
        let expected = match Way::to_workload(tls, policy.mode(endpoint.addr.port())) {
            Way::Plaintext => return Ok(Box::new(self.tcp(endpoint.addr).await?)),
            Way::Mesh { names: None } => identities,
            Way::Mesh { names: Some(names) } => Arc::new(narrowed(&identities, names)),
            Way::Originate(_) => return Err(NOT_ORIGINATED.to_owned()),
            Way::Refused(why) => return Err(why.to_owned()),
        };
        let stream = self.tcp(endpoint.addr).await?;
        let mut established = self.handshake(stream, &expected, endpoint.addr).await?;
        if established.will_be_confirmed() {
            let patience = self.view.snapshot.config.limits.connect_timeout();
            match timeout(patience, established.confirmed()).await {
                Ok(Ok(())) => {}
                Ok(Err(Unconfirmed::Denied)) => {
                    return Err(format!("policy of {} denies {}", server.name, self.workload.name));
                }
                Ok(Err(error)) => return Err(format!("{}: {error}", endpoint.addr)),
                Err(_) => return Err(format!("{} does not confirm the connection", endpoint.addr)),
            }
        }
        Ok(Box::new(TlsStream::from(established)))
    }

    async fn tcp(&self, to: SocketAddr) -> Result<TcpStream, String> {
        let failed = |error: std::io::Error| format!("{to}: {error}");
        let socket = self.net.wire_socket(to, None).map_err(failed)?;
        connected(socket, self.view.snapshot.config.limits.connect_timeout()).await.map_err(failed)
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        expected: &Arc<BTreeSet<SpiffeId>>,
        to: SocketAddr,
    ) -> Result<Established, String> {
        let limits = handshake_limits(&self.view.snapshot.config.limits);
        let own = own_svid(self.mesh, &self.workload.spiffe_id, HandshakeSide::Client, limits).await;
        let (svid, limits) = own.map_err(|error| error.to_string())?;
        let handshake = self.mesh.tls.connect(stream, &svid, expected, to.ip(), limits);
        let done = with_server(self.mesh, &self.view.snapshot.config.limits, handshake).await;
        done.map_err(|failure| match failure {
            ClientFailure::TooMany => "limits.concurrentHandshakes is reached".to_owned(),
            ClientFailure::Handshake(error) => format!("{to} cannot prove itself: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_service_is_found_by_its_names() {
        let node = "node: n\nservices:\n- {name: authz, namespace: ops, addresses: [10.9.0.1], ports: [{port: 80, targetPort: 8080}], selector: {app: a}}\n";
        let world = World::build(&Config::parse(node, "n.yaml").unwrap()).unwrap();
        let here = Ok(Some(vec!["10.9.0.1:80".parse().unwrap()]));
        for (namespace, host, port, expected) in [
            (None, "authz.ops.svc.cluster.local", 80, here.clone()),
            (None, "authz.ops", 80, here.clone()),
            (Some("ops"), "authz", 80, here.clone()),
            (Some("ops"), "authz.ops.svc", 80, here),
            (Some("shop"), "authz.ops.svc", 80, Ok(None)),
            (None, "authz", 80, Ok(None)),
            (None, "authz.example.com", 80, Ok(None)),
            (None, "authz.ops", 81, Err("service ops/authz has no port 81".to_owned())),
        ] {
            let service =
                ServiceName { namespace: namespace.map(str::to_owned), host: host.to_owned(), port };
            assert_eq!(known(&world, &service), expected, "{namespace:?} {host}");
        }
    }
}
