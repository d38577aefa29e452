//! Which endpoints answer for each port of a service, as kube-proxy chooses them. Pure.
//!
//! Source: the Kubernetes documentation, "Virtual IPs and Service Proxies", "Topology Aware Routing" and "Service Internal
//! Traffic Policy"; `pkg/proxy/topology.go` (`CategorizeEndpoints`).

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use super::objects::{Endpoint, Key, Node, Port, Service, Slice, Table};
use crate::world::{AddedEndpoint, AddedPort, AddedService, Front, WorkloadName};

/// Sorted by name.
pub(super) fn services(
    services: &Table<Service>,
    slices: &Table<Box<[Slice]>>,
    node_name: &str,
    node: Option<&Node>,
) -> Vec<AddedService> {
    let mut of_service: HashMap<&Key, Vec<&Slice>> = HashMap::with_capacity(services.len());
    for slice in slices.values().flat_map(|slices| slices.iter()) {
        of_service.entry(&slice.service).or_default().push(slice);
    }
    let mut sorted: Vec<_> = services.iter().collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    let one = |(key, service): (&Key, &Arc<Service>)| {
        let slices = of_service.get(key).map_or(&[][..], Vec::as_slice);
        AddedService {
            name: WorkloadName { namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) },
            addresses: service.addresses.to_vec(),
            selector: service.selector.clone(),
            sticky: service.sticky,
            ports: service.ports.iter().map(|port| added(service, port, slices, node_name, node)).collect(),
        }
    };
    sorted.into_iter().map(one).collect()
}

fn added(
    service: &Service,
    port: &Port,
    slices: &[&Slice],
    node_name: &str,
    node: Option<&Node>,
) -> AddedPort {
    let zone = node.and_then(|node| node.zone.as_deref());
    let mut fronts = Vec::new();
    let mut of_any_zone = Vec::new();
    for is_ipv4 in [true, false] {
        let all: Vec<_> = behind(port, slices, is_ipv4).collect();
        let all = answering(all);
        if service.addresses.is_empty() {
            of_any_zone.extend(all.iter().flat_map(|(endpoint, port)| endpoints(endpoint, *port)));
            continue;
        }
        let nearest = nearest(all.clone(), node_name, zone);
        let made = |chosen: &[(&Endpoint, u16)]| {
            let mut made: Vec<_> =
                chosen.iter().flat_map(|(endpoint, port)| endpoints(endpoint, *port)).collect();
            // In no order of its own: that of a table changes from one run to the next.
            made.sort_unstable_by_key(|endpoint| endpoint.addr);
            made.dedup_by_key(|endpoint| endpoint.addr);
            made
        };
        let of_family = |a: &&std::net::IpAddr| a.is_ipv4() == is_ipv4;
        let sockets: Vec<_> =
            service.addresses.iter().filter(of_family).map(|a| SocketAddr::new(*a, port.number)).collect();
        if !sockets.is_empty() {
            let here = |(e, _): &&(&Endpoint, u16)| e.node.as_deref() == Some(node_name);
            let endpoints = if service.local_inside {
                made(&all.iter().filter(here).copied().collect::<Vec<_>>())
            } else {
                made(&nearest)
            };
            fronts.push(Front { sockets, endpoints });
        }
        // What a pod of this node sends to a node port stays inside, whatever externalTrafficPolicy says.
        let at_node = port.at_nodes.zip(node).map_or(Vec::new(), |(port, node)| {
            node.addresses.iter().filter(of_family).map(|a| SocketAddr::new(*a, port)).collect()
        });
        if !at_node.is_empty() {
            fronts.push(Front { sockets: at_node, endpoints: made(&nearest) });
        }
    }
    if service.addresses.is_empty() {
        of_any_zone.sort_unstable_by_key(|endpoint: &AddedEndpoint| endpoint.addr);
        of_any_zone.dedup_by_key(|endpoint| endpoint.addr);
        fronts.push(Front { sockets: Vec::new(), endpoints: of_any_zone });
    }
    AddedPort { port: port.number, name: protocol_name(port), fronts }
}

/// By Istio's rules a port's name begins with its protocol, and `appProtocol` counts for more.
fn protocol_name(port: &Port) -> Option<Arc<str>> {
    let said = match &*port.app_protocol {
        "" => Arc::clone(&port.name),
        "kubernetes.io/h2c" => "http2".into(),
        "kubernetes.io/ws" => "http".into(),
        "kubernetes.io/wss" => "https".into(),
        _ => Arc::clone(&port.app_protocol),
    };
    Some(said).filter(|name| !name.is_empty())
}

/// Endpoints with the number that a service's port has there.
fn behind<'s>(
    port: &'s Port,
    slices: &'s [&Slice],
    is_ipv4: bool,
) -> impl Iterator<Item = (&'s Endpoint, u16)> {
    let of_family = slices.iter().filter(move |slice| slice.is_ipv4 == is_ipv4);
    of_family.flat_map(move |slice| {
        let number = slice.ports.iter().find(|(name, _)| *name == port.name).map(|(_, number)| *number);
        number.into_iter().flat_map(move |number| slice.endpoints.iter().map(move |e| (e, number)))
    })
}

/// The ready ones; where there is none, those that end and still answer.
fn answering(all: Vec<(&Endpoint, u16)>) -> Vec<(&Endpoint, u16)> {
    let any_ready = all.iter().any(|(endpoint, _)| endpoint.ready);
    let answers = |e: &Endpoint| if any_ready { e.ready } else { e.serves_to_the_end };
    all.into_iter().filter(|(endpoint, _)| answers(endpoint)).collect()
}

/// Those that are for clients on this node, else those for this zone, else all.
fn nearest<'s>(all: Vec<(&'s Endpoint, u16)>, node: &str, zone: Option<&str>) -> Vec<(&'s Endpoint, u16)> {
    let of_zone = || zone.and_then(|zone| meant_for(&all, |endpoint| &endpoint.zones, zone));
    meant_for(&all, |endpoint| &endpoint.nodes, node).or_else(of_zone).unwrap_or(all)
}

/// Where every endpoint says for whom it is, those that are for this one, if there is any.
fn meant_for<'s>(
    all: &[(&'s Endpoint, u16)],
    hints: fn(&Endpoint) -> &[Arc<str>],
    client: &str,
) -> Option<Vec<(&'s Endpoint, u16)>> {
    if all.iter().any(|(endpoint, _)| hints(endpoint).is_empty()) {
        return None;
    }
    let is_for = |(endpoint, _): &&(&Endpoint, u16)| hints(endpoint).iter().any(|hinted| **hinted == *client);
    let meant: Vec<_> = all.iter().filter(is_for).copied().collect();
    (!meant.is_empty()).then_some(meant)
}

fn endpoints(endpoint: &Endpoint, port: u16) -> impl Iterator<Item = AddedEndpoint> {
    // Others of one endpoint are the same place.
    endpoint.addresses.first().into_iter().map(move |address| AddedEndpoint {
        addr: SocketAddr::new(*address, port),
        workload: endpoint
            .pod
            .as_ref()
            .map(|pod| WorkloadName { namespace: Arc::clone(&pod.namespace), name: Arc::clone(&pod.name) }),
    })
}
