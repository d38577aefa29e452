//! A destination by its name: which `DestinationRule` is about it, how a connection to it is to be opened, and whether a
//! live one still is what it was asked to be. It opens nothing itself.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
};

use rustls_pki_types::ServerName;

use super::{Live, View, relay::CloseReason};
use crate::{
    policy::{
        Mode,
        destination_rule::{Applied, Origination, Way, host_name, narrowed},
    },
    world::{Destination, Endpoint, Workload},
};

/// The rule about connections of `client` to where it wants to go.
pub(super) fn rule<'v>(view: &'v View, client: &Workload, wanted: SocketAddr) -> Option<Applied<'v>> {
    let (host, port) = view.world().host(wanted)?;
    view.snapshot.policies.destination_rules().find(client, &host, port)
}

/// What a server outside the mesh's identities is called by: the rule's `sni`, else its host.
///
/// # Errors
/// In words, where that is no DNS name.
pub(super) fn called(
    view: &View,
    origination: &Origination,
    wanted: SocketAddr,
) -> Result<ServerName<'static>, String> {
    let name = match &origination.sni {
        Some(sni) => sni.clone(),
        None => view.world().host(wanted).map(|(host, _)| host_name(&host)).unwrap_or_default(),
    };
    ServerName::try_from(name.clone()).map_err(|_| format!("{name:?} is no DNS name: mend the rule's sni"))
}

/// Endpoints in the order in which this client tries them, always the same while they are the same; where one comes or goes,
/// few clients move (highest random weight: Thaler and Ravishankar, 1998).
pub(super) fn rendezvous(client: Option<IpAddr>, endpoints: &[Endpoint<'_>]) -> Vec<usize> {
    let weight = |endpoint: &Endpoint<'_>| {
        let mut hasher = DefaultHasher::new();
        (client, endpoint.addr).hash(&mut hasher);
        hasher.finish()
    };
    let mut order: Vec<_> = endpoints.iter().map(weight).enumerate().collect();
    order.sort_unstable_by_key(|(index, weight)| (std::cmp::Reverse(*weight), *index));
    order.into_iter().map(|(index, _)| index).collect()
}

/// Why a live outbound connection is no longer what policy asks for.
pub(super) fn denied(view: &View, client: &Workload, live: &Live) -> Option<CloseReason> {
    let reached = live.record.destination.address;
    let wanted = live.record.original_destination.unwrap_or(reached);
    let tls = rule(view, client, wanted).map(|applied| applied.tls);
    let Some(remote) = &live.remote else {
        return match view.world().resolve(wanted) {
            Destination::External { .. } => not_as_asked(view, Way::to_outside(tls), None, live, wanted),
            // An endpoint outside the mesh, of a service that has others.
            Destination::Meshed { endpoints, .. }
                if endpoints.iter().any(|e| e.addr == reached && e.workload.is_none()) =>
            {
                not_as_asked(view, Way::to_outside(tls), None, live, wanted)
            }
            _ if live.server.is_some() => {
                Some(CloseReason::Policy("its destination is no longer known by name".to_owned()))
            }
            _ => None,
        };
    };
    // One that has left the mesh proved itself when the connection began.
    let remote = view.world().by_name(&remote.namespace, &remote.name)?;
    let mode = view.snapshot.policies.for_workload(remote.id).mode(reached.port());
    not_as_asked(view, Way::to_workload(tls, mode), Some((remote, mode)), live, wanted)
}

fn not_as_asked(
    view: &View,
    way: Way<'_>,
    remote: Option<(&Workload, Mode)>,
    live: &Live,
    wanted: SocketAddr,
) -> Option<CloseReason> {
    let policy = |why: &str| Some(CloseReason::Policy(why.to_owned()));
    let identities = remote.map(|(workload, _)| view.identities(workload.id)).unwrap_or_default();
    let may_serve = |names: Option<&_>| {
        let (peer, _) = live.peer.as_ref()?;
        let narrowed = names.map(|names| narrowed(&identities, names));
        let allowed = narrowed.as_ref().unwrap_or(&identities);
        if allowed.contains(&peer.spiffe_id) {
            return None;
        }
        Some(CloseReason::Policy(format!("{} may no longer serve the destination", peer.spiffe_id)))
    };
    match way {
        Way::Refused(why) => policy(why),
        Way::Plaintext => may_serve(None),
        Way::Mesh { names } if live.peer.is_some() => may_serve(names),
        Way::Mesh { .. } if live.server.is_some() => {
            policy("its server has to prove an identity of the mesh from now on")
        }
        Way::Mesh { .. } => policy("the destination no longer permits plaintext"),
        Way::Originate(origination) => {
            let Some(server) = &live.server else {
                return policy("a DestinationRule asks for TLS to the server itself from now on");
            };
            let originator = match view.snapshot.origins.of(origination) {
                Ok(originator) => originator,
                Err(why) => return policy(why),
            };
            let name = match called(view, origination, wanted) {
                Ok(name) => name,
                Err(why) => return policy(&why),
            };
            originator.verify_live(server, &name).err().map(CloseReason::Trust)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_client_stays_with_its_endpoint_when_another_goes() {
        let endpoints: Vec<_> = (1..=8)
            .map(|n| Endpoint { addr: SocketAddr::new([10, 0, 0, n].into(), 80), workload: None })
            .collect();
        let mut chosen = BTreeSet::new();
        for n in 0..64 {
            let client = Some(IpAddr::from([10, 1, 0, n]));
            let order = rendezvous(client, &endpoints);
            assert_eq!(order.iter().copied().collect::<BTreeSet<_>>().len(), endpoints.len());
            let first = endpoints[order[0]].addr;
            let gone = endpoints[order[1]].addr;
            let left: Vec<_> = endpoints.iter().filter(|e| e.addr != gone).copied().collect();
            assert_eq!(left[rendezvous(client, &left)[0]].addr, first);
            chosen.insert(first);
        }
        assert!(chosen.len() > 4, "clients are spread: {chosen:?}");
    }
}
