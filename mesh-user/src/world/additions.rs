//! What a source beside the node's file adds to a world. Such a source tells of a moment of something that goes on changing,
//! so that what does not fit is left out and told, and never refuses the rest.

use std::{
    collections::{BTreeMap, HashSet, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use super::{
    InboundPorts, LocalWorkload, Service, ServiceEndpoint, VirtualPort, Workload, WorkloadName, World,
    build::named, select::LabelIndex, shared::Shared,
};
use crate::{
    config::{Config, Selector},
    identity::WorkloadFacts,
};

/// Workloads and services of another source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Additions {
    /// Enrolled workloads, of this node and of others.
    pub workloads: Vec<AddedWorkload>,
    /// Services, of enrolled workloads or not.
    pub services: Vec<AddedService>,
}

/// An enrolled workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedWorkload {
    /// Namespace and name.
    pub name: WorkloadName,
    /// What made it and others alike, or its own name.
    pub owner: Arc<str>,
    /// Part of its identity.
    pub service_account: Arc<str>,
    /// What policies and services select by.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Canonical.
    pub addresses: Vec<IpAddr>,
    /// The node it runs on.
    pub node: Arc<str>,
    /// Its network namespace, where that is of this node; none: another node's meshd serves it.
    pub netns: Option<PathBuf>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedService {
    /// Namespace and name.
    pub name: WorkloadName,
    /// Virtual addresses, canonical.
    pub addresses: Vec<IpAddr>,
    /// What its workloads carry; empty: only its endpoints say who they are.
    pub selector: BTreeMap<String, String>,
    /// A client stays with one endpoint.
    pub sticky: bool,
    /// Its ports.
    pub ports: Vec<AddedPort>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedPort {
    /// The service's own.
    pub port: u16,
    /// By Istio's rules it begins with the protocol.
    pub name: Option<Arc<str>>,
    /// Who answers, by where applications connect to. Of a service without a virtual address: one without sockets.
    pub fronts: Vec<Front>,
}

/// Sockets behind which the same endpoints are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// Where applications connect to; canonical.
    pub sockets: Vec<SocketAddr>,
    /// Who answers.
    pub endpoints: Vec<AddedEndpoint>,
}

/// Who answers for a port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedEndpoint {
    /// Canonical.
    pub addr: SocketAddr,
    /// Whose it is said to be.
    pub workload: Option<WorkloadName>,
}

/// Sockets of services that are being added.
#[derive(Default)]
struct Made {
    fronts: Vec<(SocketAddr, VirtualPort)>,
    headless: Vec<(SocketAddr, (usize, u16))>,
}

impl World {
    /// Adds what another source knows; returns what was left out, and why.
    pub fn add_beside(&mut self, config: &Config, additions: &Additions) -> Vec<String> {
        let mut left_out = Vec::new();
        let mut shared = Shared::default();
        for added in &additions.workloads {
            if let Err(why) = self.add_workload(config, &mut shared, added) {
                left_out.push(format!("{} is left out: {why}", added.name));
            }
        }
        self.add_services_beside(&additions.services, &mut left_out);
        left_out
    }

    fn add_workload(
        &mut self,
        config: &Config,
        shared: &mut Shared,
        added: &AddedWorkload,
    ) -> Result<(), String> {
        let WorkloadName { namespace, name } = &added.name;
        if self.by_name.contains_key(&added.name) {
            return Err("the node's file has a workload of this name".to_owned());
        }
        let facts = WorkloadFacts {
            trust_domain: &config.trust_domain,
            namespace,
            name,
            service_account: &added.service_account,
            user: None,
            unit: None,
            labels: &added.labels,
        };
        let identity = config.identity.template.fill(&facts, |_| false);
        let workload = named(config, shared, (namespace, name, &added.service_account), identity)
            .map_err(|error| error.to_string())?;
        let mut addresses = added.addresses.clone();
        addresses.retain(|address| !self.is_taken(*address));
        if addresses.len() < added.addresses.len() {
            return Err("the node's file gives its address to another".to_owned());
        }
        let local = added.netns.as_ref().map(|netns| LocalWorkload {
            selector: Selector::Netns(netns.clone()),
            exclude_outbound_ports: Vec::new(),
            same_node: config.same_node,
        });
        let workload = Workload {
            owner: Arc::clone(&added.owner),
            labels: Arc::clone(&added.labels),
            addresses,
            ports: InboundPorts::AllBut(Vec::new()),
            local,
            node: Arc::clone(&added.node),
            ..workload
        };
        self.add(workload).map_err(|error| error.to_string())
    }

    /// Whether a workload, a service or a server outside has it already.
    fn is_taken(&self, address: IpAddr) -> bool {
        !self.owners(address).is_empty() || self.virtual_addresses.contains(&address)
    }

    fn add_services_beside(&mut self, added: &[AddedService], left_out: &mut Vec<String>) {
        let mut names: HashSet<WorkloadName> = self.services.iter().map(|s| s.name.clone()).collect();
        let mut services = Vec::with_capacity(added.len());
        let mut made = Made::default();
        let labels = LabelIndex::new(&self.workloads);
        for service in added {
            if !names.insert(service.name.clone()) {
                left_out.push(format!(
                    "{} is left out: the node's file has a service of this name",
                    service.name
                ));
                continue;
            }
            let index = self.services.len() + services.len();
            services.push(self.service(service, index, &labels, &mut made));
        }
        self.services.extend(services);
        for (socket, named) in made.headless {
            self.headless.entry(socket).or_insert(named);
        }
        for (socket, front) in made.fronts {
            let whose = &self.services[front.service].name;
            let is_taken = self.by_socket(socket).is_some() || self.external_ports.contains_key(&socket);
            match self.service_ports.entry(socket) {
                Entry::Vacant(entry) if !is_taken => {
                    entry.insert(front);
                }
                _ => left_out.push(format!("{whose} is not served at {socket}, which is another's")),
            }
        }
    }

    /// The service, with its sockets in `made`. It is served by meshd where any workload of the mesh may be behind
    /// it: what others do with a connection to it would end there in plaintext.
    fn service(
        &self,
        added: &AddedService,
        index: usize,
        labels: &LabelIndex<'_>,
        made: &mut Made,
    ) -> Service {
        let mut workloads = labels.select(&added.name.namespace, &added.selector);
        let mut fronts = Vec::new();
        let (mut ports, mut port_names) = (Vec::new(), Vec::new());
        for port in &added.ports {
            for front in &port.fronts {
                let endpoints: Arc<[_]> = self.endpoints(&front.endpoints).collect();
                workloads.extend(endpoints.iter().filter_map(|endpoint| endpoint.workload));
                let mut targets: Vec<_> = endpoints.iter().map(|endpoint| endpoint.addr.port()).collect();
                targets.sort_unstable();
                targets.dedup();
                for target in targets {
                    if !ports.contains(&(port.port, target)) {
                        ports.push((port.port, target));
                        port_names.push(port.name.clone());
                    }
                }
                let front_of = |socket: &SocketAddr| {
                    (
                        *socket,
                        VirtualPort { service: index, port: port.port, endpoints: Arc::clone(&endpoints) },
                    )
                };
                fronts.extend(front.sockets.iter().map(front_of));
                if added.addresses.is_empty() {
                    let meshed = endpoints.iter().filter(|endpoint| endpoint.workload.is_some());
                    made.headless.extend(meshed.map(|endpoint| (endpoint.addr, (index, port.port))));
                }
            }
            if !ports.iter().any(|(known, _)| *known == port.port) {
                ports.push((port.port, port.port));
                port_names.push(port.name.clone());
            }
        }
        workloads.sort_unstable();
        workloads.dedup();
        if !workloads.is_empty() {
            made.fronts.extend(fronts);
        }
        Service {
            name: added.name.clone(),
            addresses: added.addresses.clone(),
            ports,
            port_names,
            workloads,
            sticky: added.sticky,
        }
    }

    /// Who lives at each endpoint now. One whose address another workload has since taken over is gone.
    fn endpoints<'a>(&'a self, added: &'a [AddedEndpoint]) -> impl Iterator<Item = ServiceEndpoint> + 'a {
        added.iter().filter_map(|endpoint| {
            let owner = self.by_socket(endpoint.addr).filter(|w| w.ports.captures(endpoint.addr.port()));
            let stale = owner.zip(endpoint.workload.as_ref()).is_some_and(|(w, said)| w.name != *said);
            (!stale).then(|| ServiceEndpoint { addr: endpoint.addr, workload: owner.map(|w| w.id) })
        })
    }
}
