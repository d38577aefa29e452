//! `Config` -> `World`, a pure function. A configuration that passed validation builds; what would make a
//! lookup ambiguous is refused here again, so that no other source can slip it in.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    ExternalService, InboundPorts, LocalWorkload, Service, VirtualPort, Workload, WorkloadId, WorkloadName,
    World, select::LabelIndex, service_endpoints, shared::Shared,
};
use crate::{
    config::{Config, ExternalServiceConfig, RemoteWorkloadConfig, Selector, ServiceConfig, WorkloadConfig},
    identity::{MadeOf, SpiffeId, TemplateError},
};

/// Why no world can be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorldError {
    /// What is known of it makes no SPIFFE ID.
    #[error("workload {workload} cannot have an identity: {source}")]
    Identity {
        /// Whose.
        workload: String,
        /// The cause.
        source: TemplateError,
    },
    /// Two workloads of one identity by accident.
    #[error(
        "{first} and {second} would both be {id}, made of different things; say the same of both, or give them their own"
    )]
    DuplicateIdentity {
        /// Whose both are.
        id: SpiffeId,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// Two workloads or services of one name.
    #[error("{0} is defined twice; names are unique in a namespace")]
    DuplicateName(String),
    /// Two owners of one address.
    #[error("address {address} belongs to {first} and to {second}; give each its own")]
    DuplicateAddress {
        /// Canonical.
        address: IpAddr,
        /// One owner.
        first: String,
        /// The other.
        second: String,
    },
    /// Two owners of one port of a shared address.
    #[error(
        "{socket} belongs to {first} and to {second}; workloads that share an address need ports of their own"
    )]
    DuplicatePort {
        /// Canonical.
        socket: SocketAddr,
        /// One owner.
        first: String,
        /// The other.
        second: String,
    },
}

impl World {
    /// Builds the snapshot that a configuration describes.
    ///
    /// # Errors
    /// When an identity is not valid, a name is used twice, or who answers at an address and port is not clear.
    pub fn build(config: &Config) -> Result<Self, WorldError> {
        let mut world = Self {
            node: config.node.as_str().into(),
            root_namespace: config.root_namespace.as_str().into(),
            ..Self::default()
        };
        world.trust_domains.push(config.trust_domain.clone());
        world.forwarded_for = config.forwarded_for.clone();
        world.trust_domains.extend(config.trust_domain_aliases.iter().cloned());
        let mut shared = Shared::default();
        for workload in &config.workloads {
            world.add(local(config, &mut shared, workload)?)?;
        }
        for workload in &config.remote_workloads {
            world.add(remote(config, &mut shared, workload)?)?;
        }
        world.add_services(&config.services)?;
        world.add_external(&config.external_services)?;
        Ok(world)
    }

    pub(super) fn add(&mut self, mut workload: Workload) -> Result<(), WorldError> {
        // the configuration's limits keep the count far below u32::MAX
        let id = WorkloadId(u32::try_from(self.workloads.len()).unwrap_or(u32::MAX));
        workload.id = id;
        if self.by_name.insert(workload.name.clone(), id).is_some() {
            return Err(WorldError::DuplicateName(workload.name.to_string()));
        }
        for address in &workload.addresses {
            self.claim(*address, &workload)?;
        }
        self.workloads.push(workload);
        Ok(())
    }

    /// An address has one owner, or several that each declare the ports they own of it.
    fn claim(&mut self, address: IpAddr, workload: &Workload) -> Result<(), WorldError> {
        let by_port = |w: &Workload| matches!(w.ports, InboundPorts::Only(_));
        let others = self.by_address.entry(address).or_default();
        for other in others.iter() {
            let other = self.workloads.get(other.0 as usize).unwrap_or(workload);
            if other.id == workload.id || !by_port(other) || !by_port(workload) {
                return Err(duplicate(address, &other.name, &workload.name));
            }
        }
        others.push(workload.id);
        let InboundPorts::Only(ports) = &workload.ports else { return Ok(()) };
        for port in ports {
            let socket = SocketAddr::new(address, *port);
            if let Some(first) = self.by_port.insert(socket, workload.id) {
                let first = self.workloads.get(first.0 as usize).unwrap_or(workload).name.to_string();
                return Err(WorldError::DuplicatePort { socket, first, second: workload.name.to_string() });
            }
        }
        Ok(())
    }

    fn add_services(&mut self, configs: &[ServiceConfig]) -> Result<(), WorldError> {
        let labels = LabelIndex::new(&self.workloads);
        let services: Vec<_> = configs.iter().map(|config| service(config, &labels)).collect();
        let (mut names, mut owners) = (HashSet::new(), HashMap::new());
        for (index, service) in services.iter().enumerate() {
            if !names.insert(&service.name) {
                return Err(WorldError::DuplicateName(service.name.to_string()));
            }
            for address in &service.addresses {
                let workload = self.sharing(*address).next().map(|workload| &workload.name);
                let owner = workload.or(owners.insert(*address, &service.name));
                if let Some(owner) = owner.filter(|owner| **owner != service.name) {
                    return Err(duplicate(*address, owner, &service.name));
                }
                self.virtual_addresses.insert(*address);
            }
            // Those of one address family share their endpoints.
            for (port, target) in &service.ports {
                for is_ipv4 in [true, false] {
                    let mut fronts = service.addresses.iter().filter(|a| a.is_ipv4() == is_ipv4).peekable();
                    if fronts.peek().is_none() {
                        continue;
                    }
                    let workloads = service.workloads.iter().filter_map(|id| self.workload(*id));
                    let endpoints: Arc<[_]> =
                        workloads.flat_map(|w| service_endpoints(w, is_ipv4, *target)).collect();
                    for address in fronts {
                        let endpoints = Arc::clone(&endpoints);
                        let front = VirtualPort { service: index, port: *port, endpoints };
                        self.service_ports.insert(SocketAddr::new(*address, *port), front);
                    }
                }
            }
        }
        self.services = services;
        self.index_headless();
        Ok(())
    }

    /// Where two services without a virtual address lead to one endpoint, the first in the file names it.
    fn index_headless(&mut self) {
        for (index, service) in self.services.iter().enumerate().filter(|(_, s)| s.addresses.is_empty()) {
            let workloads = service.workloads.iter().filter_map(|id| self.workloads.get(id.0 as usize));
            for address in workloads.flat_map(|workload| &workload.addresses) {
                for (port, target) in &service.ports {
                    self.headless.entry(SocketAddr::new(*address, *target)).or_insert((index, *port));
                }
            }
        }
    }

    fn add_external(&mut self, configs: &[ExternalServiceConfig]) -> Result<(), WorldError> {
        for (index, config) in configs.iter().enumerate() {
            let service = external(config);
            for socket in sockets(&service) {
                let workload = self.by_socket(socket.0).map(|workload| workload.name.to_string());
                let virtual_of = |s: &&Service| s.addresses.contains(&socket.0.ip());
                let owner =
                    workload.or_else(|| Some(self.services.iter().find(virtual_of)?.name.to_string()));
                let earlier = self.external_ports.insert(socket.0, (index, socket.1));
                let earlier = earlier.and_then(|(first, _)| Some(self.external.get(first)?.host.to_string()));
                if let Some(first) = owner.or(earlier) {
                    let second = service.host.to_string();
                    return Err(WorldError::DuplicatePort { socket: socket.0, first, second });
                }
            }
            self.external.push(service);
        }
        Ok(())
    }
}

fn external(config: &ExternalServiceConfig) -> ExternalService {
    ExternalService {
        host: config.host.as_str().into(),
        namespace: config.namespace.as_str().into(),
        addresses: canonical(&config.addresses),
        ports: config.ports.iter().map(|p| (p.port, p.target())).collect(),
    }
}

/// Where applications connect to it, and the server's own port.
fn sockets(service: &ExternalService) -> impl Iterator<Item = (SocketAddr, u16)> {
    let at = |address: &IpAddr| {
        let address = *address;
        service.ports.iter().map(move |(port, target)| (SocketAddr::new(address, *port), *target))
    };
    service.addresses.iter().flat_map(at)
}

fn service(config: &ServiceConfig, labels: &LabelIndex<'_>) -> Service {
    Service {
        name: name(&config.namespace, &config.name),
        addresses: canonical(&config.addresses),
        ports: config.ports.iter().map(|p| (p.port, p.target())).collect(),
        port_names: config.ports.iter().map(|p| p.name.as_deref().map(Into::into)).collect(),
        workloads: labels.select(&config.namespace, &config.selector),
        sticky: false,
    }
}

fn duplicate(address: IpAddr, first: &WorkloadName, second: &WorkloadName) -> WorldError {
    WorldError::DuplicateAddress { address, first: first.to_string(), second: second.to_string() }
}

fn name(namespace: &str, name: &str) -> WorkloadName {
    WorkloadName { namespace: namespace.into(), name: name.into() }
}

fn canonical(addresses: &[IpAddr]) -> Vec<IpAddr> {
    addresses.iter().map(IpAddr::to_canonical).collect()
}

fn local(config: &Config, shared: &mut Shared, entry: &WorkloadConfig) -> Result<Workload, WorldError> {
    let by_port = !matches!(entry.selector, Selector::Netns(_));
    Ok(Workload {
        labels: shared.labels(&entry.labels),
        addresses: canonical(&entry.addresses),
        ports: captured(by_port, &entry.ports, &entry.exclude_inbound_ports),
        local: Some(LocalWorkload {
            selector: entry.selector.clone(),
            exclude_outbound_ports: entry.exclude_outbound_ports.clone(),
            same_node: entry.same_node.unwrap_or(config.same_node),
        }),
        node: shared.text(&config.node),
        ..named(
            config,
            shared,
            (&entry.namespace, &entry.name, &entry.service_account),
            entry.identity(config),
        )?
    })
}

fn remote(
    config: &Config,
    shared: &mut Shared,
    entry: &RemoteWorkloadConfig,
) -> Result<Workload, WorldError> {
    let (account, identity) = (&entry.service_account, entry.identity(config));
    let named = named(config, shared, (&entry.namespace, &entry.name, account), identity)?;
    Ok(Workload {
        labels: shared.labels(&entry.labels),
        addresses: canonical(&entry.addresses),
        ports: captured(!entry.ports.is_empty(), &entry.ports, &entry.exclude_inbound_ports),
        node: shared.text(&entry.node),
        cluster: entry.cluster_name.as_deref().map_or(named.cluster, |name| shared.text(name)),
        ..named
    })
}

/// A workload of which no more is known yet than who it is.
pub(super) fn named(
    config: &Config,
    shared: &mut Shared,
    (namespace, name, account): (&str, &str, &str),
    identity: Result<(SpiffeId, MadeOf), TemplateError>,
) -> Result<Workload, WorldError> {
    let name = WorkloadName { namespace: shared.text(namespace), name: name.into() };
    let (id, made_of) =
        identity.map_err(|source| WorldError::Identity { workload: name.to_string(), source })?;
    let service_account = shared.text(account);
    let spiffe_id = shared.identity(id, made_of, &name).map_err(|(id, first)| {
        WorldError::DuplicateIdentity { id, first: first.to_string(), second: name.to_string() }
    })?;
    Ok(Workload {
        id: WorkloadId(0),
        spiffe_id,
        owner: Arc::clone(&name.name),
        name,
        service_account,
        labels: Arc::default(),
        addresses: Vec::new(),
        ports: InboundPorts::AllBut(Vec::new()),
        local: None,
        node: "".into(),
        cluster: shared.text(&config.cluster_name),
    })
}

fn captured(by_port: bool, ports: &[u16], excluded: &[u16]) -> InboundPorts {
    if by_port {
        InboundPorts::Only(ports.iter().filter(|port| !excluded.contains(port)).copied().collect())
    } else {
        InboundPorts::AllBut(excluded.to_vec())
    }
}
