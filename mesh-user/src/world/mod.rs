//! One immutable snapshot of workloads, services and addresses, built from the node's file and what a source beside it knows.
//! Pure: it never reads a file, a clock or the kernel; readers hold it behind an `Arc`.

mod additions;
mod build;
mod select;
mod shared;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

pub use additions::{AddedEndpoint, AddedPort, AddedService, AddedWorkload, Additions, Front};
pub use build::WorldError;
pub(crate) use shared::one_of;

use crate::{
    config::{ForwardedForConfig, SameNode, Selector},
    identity::{SpiffeId, TrustDomain},
};

/// Index of a workload in one [`World`]. It means nothing in another one: across reloads use [`WorkloadName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadId(pub u32);

/// What a workload is called; stable across reloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName {
    /// Kubernetes-style namespace.
    pub namespace: Arc<str>,
    /// Unique in its namespace.
    pub name: Arc<str>,
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A workload, here or on another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Index in this world.
    pub id: WorkloadId,
    /// Namespace and name.
    pub name: WorkloadName,
    /// What metrics call it: that which made it and others alike, a Deployment for one, or else its own name.
    pub owner: Arc<str>,
    /// Part of its identity.
    pub service_account: Arc<str>,
    /// Its identity.
    pub spiffe_id: SpiffeId,
    /// What policies and services select by.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The addresses it answers on, canonical (no v4-mapped ones).
    pub addresses: Vec<IpAddr>,
    /// Which of its ports its meshd captures.
    pub ports: InboundPorts,
    /// What only its own node knows; none: another node's meshd serves it.
    pub local: Option<LocalWorkload>,
    /// The node it runs on.
    pub node: Arc<str>,
    /// The cluster it runs in, for metrics.
    pub cluster: Arc<str>,
}

impl Workload {
    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.name.namespace
    }

    /// Whether all of `selector` is among its labels; an empty selector selects all.
    pub fn has_labels(&self, selector: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

/// What only a workload's own node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkload {
    /// Which programs it is.
    pub selector: Selector,
    /// Outbound connections to these ports are left alone.
    pub exclude_outbound_ports: Vec<u16>,
    /// How it reaches others of this node, and they it.
    pub same_node: SameNode,
}

/// Which inbound ports of a workload are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboundPorts {
    /// All but these.
    AllBut(Vec<u16>),
    /// Only these.
    Only(Vec<u16>),
}

impl InboundPorts {
    /// Whether connections to `port` are captured, and so speak mTLS between nodes.
    pub fn captures(&self, port: u16) -> bool {
        match self {
            Self::AllBut(excluded) => !excluded.contains(&port),
            Self::Only(ports) => ports.contains(&port),
        }
    }
}

/// A virtual address in front of workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: WorkloadName,
    /// Virtual addresses, canonical.
    pub addresses: Vec<IpAddr>,
    /// Port on the virtual address and on the workload.
    pub ports: Vec<(u16, u16)>,
    /// What each of `ports` is called: by Istio's rules it begins with the protocol.
    pub port_names: Vec<Option<Arc<str>>>,
    /// Workloads that the selector picked in its namespace.
    pub workloads: Vec<WorkloadId>,
    /// A client stays with one endpoint as long as that is one.
    pub sticky: bool,
}

/// Who answers behind a virtual address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ServiceEndpoint {
    addr: SocketAddr,
    /// None: nobody of the mesh.
    workload: Option<WorkloadId>,
}

/// A virtual address and port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct VirtualPort {
    /// Index of the service.
    service: usize,
    /// The service's own.
    port: u16,
    endpoints: Arc<[ServiceEndpoint]>,
}

/// A server outside the mesh that the node's file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalService {
    /// Its DNS name.
    pub host: Arc<str>,
    /// Where rules about it are looked for, besides the client's namespace and the root's.
    pub namespace: Arc<str>,
    /// Its addresses, canonical.
    pub addresses: Vec<IpAddr>,
    /// Port that applications connect to, and the server's own.
    pub ports: Vec<(u16, u16)>,
}

/// What a destination is called, so that rules may be about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorldHost<'a> {
    /// A service of the mesh.
    Service(&'a Service),
    /// A server outside of it.
    Outside(&'a ExternalService),
}

/// One place that answers for a destination. Only `workload`'s identity may answer there (secure naming).
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// Where to connect.
    pub addr: SocketAddr,
    /// Who lives there; none: somebody outside the mesh, among a service's others.
    pub workload: Option<&'a Workload>,
}

/// What an original destination means.
#[derive(Debug, Clone)]
pub enum Destination<'a> {
    /// Enrolled workloads answer there, of a service maybe among others. No endpoint at all: the service is empty, refuse the connection.
    Meshed {
        /// Where to connect; the caller picks.
        endpoints: Vec<Endpoint<'a>>,
        /// The service whose virtual address it is.
        service: Option<&'a Service>,
    },
    /// A server outside the mesh, known by name: no identity of the mesh answers there.
    External {
        /// Where to connect.
        addr: SocketAddr,
        /// Whose address it is.
        service: &'a ExternalService,
    },
    /// Not ours: plaintext as the application asked.
    NotMeshed,
}

/// A destination that outbound capture takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaptureDestination {
    /// Canonical address.
    pub address: IpAddr,
    /// Host byte order; none: every port.
    pub port: Option<u16>,
}

/// The snapshot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct World {
    node: Arc<str>,
    trust_domains: Vec<TrustDomain>,
    forwarded_for: ForwardedForConfig,
    root_namespace: Arc<str>,
    workloads: Vec<Workload>,
    services: Vec<Service>,
    by_name: HashMap<WorkloadName, WorkloadId>,
    /// Several only where each owns some ports of the address.
    by_address: HashMap<IpAddr, Vec<WorkloadId>>,
    /// Ports of the addresses that are owned by port.
    by_port: HashMap<SocketAddr, WorkloadId>,
    service_ports: HashMap<SocketAddr, VirtualPort>,
    /// Of services.
    virtual_addresses: HashSet<IpAddr>,
    /// Endpoints of services without a virtual address: service, and its port that leads there.
    headless: HashMap<SocketAddr, (usize, u16)>,
    external: Vec<ExternalService>,
    /// Server outside the mesh, and its own port.
    external_ports: HashMap<SocketAddr, (usize, u16)>,
}

impl World {
    /// This node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The mesh's own trust domain first, then its aliases.
    pub fn trust_domains(&self) -> &[TrustDomain] {
        &self.trust_domains
    }

    /// Whose word about original clients counts.
    pub fn forwarded_for(&self) -> &ForwardedForConfig {
        &self.forwarded_for
    }

    /// Policies in this namespace apply to the whole mesh.
    pub fn root_namespace(&self) -> &str {
        &self.root_namespace
    }

    /// All workloads, indexed by [`WorkloadId`].
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// Workloads on this node.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.iter().filter(|w| w.local.is_some())
    }

    /// Whether any workload may take the kernel path.
    pub fn wants_kernel_path(&self) -> bool {
        let kernel = |w: &Workload| w.local.as_ref().is_some_and(|local| local.same_node == SameNode::Kernel);
        self.workloads.iter().any(kernel)
    }

    /// All services.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// All servers outside the mesh that are known by name.
    pub fn external_services(&self) -> &[ExternalService] {
        &self.external
    }

    /// A workload by its index in this world.
    pub fn workload(&self, id: WorkloadId) -> Option<&Workload> {
        self.workloads.get(id.0 as usize)
    }

    /// A workload by name.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<&Workload> {
        let key = WorkloadName { namespace: namespace.into(), name: name.into() };
        self.by_name.get(&key).and_then(|id| self.workload(*id))
    }

    /// The workload that owns an address; none where several share it. v4-mapped addresses count as IPv4.
    pub fn by_address(&self, address: IpAddr) -> Option<&Workload> {
        match self.owners(address) {
            [only] => self.workload(*only),
            _ => None,
        }
    }

    /// All workloads that own an address or ports of it.
    pub fn sharing(&self, address: IpAddr) -> impl Iterator<Item = &Workload> {
        self.owners(address).iter().filter_map(|id| self.workload(*id))
    }

    fn owners(&self, address: IpAddr) -> &[WorkloadId] {
        self.by_address.get(&address.to_canonical()).map_or(&[], Vec::as_slice)
    }

    /// The workload that serves at an address and port: the address's owner whatever the port, or whoever
    /// declared the port where addresses are owned by port.
    pub fn by_socket(&self, server: SocketAddr) -> Option<&Workload> {
        let server = SocketAddr::new(server.ip().to_canonical(), server.port());
        let declared = self.by_port.get(&server).and_then(|id| self.workload(*id));
        let whole = || self.by_address(server.ip()).filter(|w| matches!(w.ports, InboundPorts::AllBut(_)));
        declared.or_else(whole)
    }

    /// Who answers at an original destination.
    pub fn resolve(&self, destination: SocketAddr) -> Destination<'_> {
        let addr = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        if let Some(workload) = self.by_socket(addr) {
            if !workload.ports.captures(addr.port()) {
                return Destination::NotMeshed;
            }
            return Destination::Meshed {
                endpoints: vec![Endpoint { addr, workload: Some(workload) }],
                service: None,
            };
        }
        let Some(found) = self.service_ports.get(&addr) else {
            let external = self.external_ports.get(&addr);
            return external.map_or(Destination::NotMeshed, |(service, port)| Destination::External {
                addr: SocketAddr::new(addr.ip(), *port),
                service: &self.external[*service],
            });
        };
        let endpoint = |e: &ServiceEndpoint| Endpoint {
            addr: e.addr,
            workload: e.workload.and_then(|id| self.workload(id)),
        };
        Destination::Meshed {
            endpoints: found.endpoints.iter().map(endpoint).collect(),
            service: Some(&self.services[found.service]),
        }
    }

    /// What an original destination is called, and the port of that host. An endpoint's own address has a name only where
    /// its service has no virtual one, as in an Istio sidecar.
    pub fn host(&self, destination: SocketAddr) -> Option<(WorldHost<'_>, u16)> {
        let addr = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        if let Some(found) = self.service_ports.get(&addr) {
            return Some((WorldHost::Service(&self.services[found.service]), found.port));
        }
        if let Some((service, port)) = self.headless.get(&addr) {
            return Some((WorldHost::Service(&self.services[*service]), *port));
        }
        let (service, _) = self.external_ports.get(&addr)?;
        Some((WorldHost::Outside(&self.external[*service]), addr.port()))
    }

    /// The identities that may answer for a workload: its own, and the same in every trust-domain alias. One of another mesh
    /// has its own only.
    pub fn identities(&self, workload: &Workload) -> Vec<SpiffeId> {
        if !self.trust_domains.contains(workload.spiffe_id.trust_domain()) {
            return vec![workload.spiffe_id.clone()];
        }
        let in_domain = |domain: &TrustDomain| workload.spiffe_id.in_trust_domain(domain).ok();
        self.trust_domains.iter().filter_map(in_domain).collect()
    }

    /// What outbound capture must take: workloads' addresses, ports of services and of servers outside. Sorted, without duplicates.
    /// An excluded port of a captured address resolves to [`Destination::NotMeshed`].
    pub fn capture_destinations(&self) -> Vec<CaptureDestination> {
        let named = self.service_ports.keys().chain(self.external_ports.keys());
        let mut all: Vec<_> = named.map(|addr| (addr.ip(), Some(addr.port()))).collect();
        for workload in &self.workloads {
            for address in &workload.addresses {
                match &workload.ports {
                    InboundPorts::AllBut(_) => all.push((*address, None)),
                    InboundPorts::Only(ports) => all.extend(ports.iter().map(|port| (*address, Some(*port)))),
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        all.into_iter().map(|(address, port)| CaptureDestination { address, port }).collect()
    }
}

/// A workload's endpoints behind a virtual address: of its address family, else of the other one. A workload
/// that does not capture the target port cannot prove who it is, so it does not answer for the service.
fn service_endpoints(workload: &Workload, is_ipv4: bool, port: u16) -> Vec<ServiceEndpoint> {
    if !workload.ports.captures(port) {
        return Vec::new();
    }
    let same_family: Vec<_> = workload.addresses.iter().filter(|a| a.is_ipv4() == is_ipv4).collect();
    let chosen = if same_family.is_empty() { workload.addresses.iter().collect() } else { same_family };
    let endpoint =
        |ip: &IpAddr| ServiceEndpoint { addr: SocketAddr::new(*ip, port), workload: Some(workload.id) };
    chosen.into_iter().map(endpoint).collect()
}
