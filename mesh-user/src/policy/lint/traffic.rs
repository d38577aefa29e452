//! Documents against what was seen lately: clients that STRICT would cut off, and ports that turned out not to speak HTTP.

use std::collections::BTreeSet;

use super::{Found, Lint};
use crate::{
    policy::{Mode, PeerAuthentication, traffic::Content},
    world::{Workload, WorkloadName},
};

/// Clients that are named in one finding.
const MOST_NAMED: usize = 5;

impl Lint<'_> {
    /// Reported at the document that sets the mode.
    pub(super) fn strict_with_plaintext_clients(&self, peer: &PeerAuthentication, found: &mut Vec<Found>) {
        let own = format!("PeerAuthentication {}/{}", peer.namespace, peer.name);
        let mut clients = BTreeSet::new();
        let mut servers = BTreeSet::new();
        for seen in self.facts.seen.iter().filter(|seen| seen.traffic.peer.is_none()) {
            let traffic = &seen.traffic;
            let WorkloadName { namespace, name } = &traffic.server;
            let Some(workload) = self.facts.world.by_name(namespace, name) else { continue };
            let policy = self.compiled.for_workload(workload.id);
            let port = traffic.destination.port();
            // Under DISABLE an enrolled client has no choice.
            let forced = traffic.mode == Mode::Disable && traffic.client.is_some();
            let by_this = policy.mode_source(port).is_some_and(|source| source == own);
            if policy.mode(port) == Mode::Strict && by_this && !forced {
                clients.insert(traffic.client());
                servers.insert(format!("{}:{port}", traffic.server));
            }
        }
        if clients.is_empty() {
            return;
        }
        let named = |all: &BTreeSet<String>| {
            let some: Vec<_> = all.iter().take(MOST_NAMED).map(String::as_str).collect();
            let more = all.len().saturating_sub(MOST_NAMED);
            if more == 0 { some.join(", ") } else { format!("{} and {more} more", some.join(", ")) }
        };
        found.push(Found {
            check: "strict-with-plaintext-clients",
            field: "spec.mtls".to_owned(),
            problem: format!(
                "STRICT refuses plaintext, which {} spoke to {} in the last hour",
                named(&clients),
                named(&servers)
            ),
            advice: "enrol these clients first, or keep PERMISSIVE for the ports that they use",
        });
    }

    /// Ports of a workload, with how it is known that they speak no HTTP.
    pub(super) fn ports_without_http(&self, workload: &Workload) -> Vec<(u16, String)> {
        let mut ports = Vec::new();
        for service in self.facts.world.services().iter().filter(|s| s.workloads.contains(&workload.id)) {
            for ((_, target), name) in service.ports.iter().zip(&service.port_names) {
                if let Some(name) = name.as_deref().filter(|name| names_no_http(name)) {
                    ports.push((*target, format!("Service {} calls it {name}", service.name)));
                }
            }
        }
        let seen = self.facts.seen.iter().filter(|seen| seen.traffic.server == workload.name);
        for seen in seen.filter(|seen| seen.traffic.content == Content::NotHttp) {
            let port = seen.traffic.destination.port();
            let also_http = self.facts.seen.iter().any(|other| {
                other.traffic.destination == seen.traffic.destination
                    && matches!(other.traffic.content, Content::Request(_))
            });
            if !also_http {
                ports.push((port, "as seen in the last hour".to_owned()));
            }
        }
        ports
    }
}

/// A port's name begins with its protocol (Istio, "Protocol Selection"); of those only these are no HTTP to a proxy.
fn names_no_http(name: &str) -> bool {
    let protocol = name.split('-').next().unwrap_or_default().to_ascii_lowercase();
    matches!(protocol.as_str(), "tcp" | "tls" | "https" | "mongo" | "mysql" | "redis" | "udp")
}
