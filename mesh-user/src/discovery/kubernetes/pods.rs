//! Which pods are workloads of the mesh, and which of them are this node's. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::objects::{Key, Namespace, Pod, Table, Wish};
use crate::{
    runtime::{NodePod, PodPlace, PodPlaces, PodUid},
    world::{AddedWorkload, WorkloadName},
};

/// What is made of the pods of one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pods {
    /// Of the mesh, sorted by name.
    pub(super) workloads: Vec<AddedWorkload>,
    /// Of this node, enrolled or not.
    pub(super) of_node: Vec<NodePod>,
    /// Pods of this node that are to be enrolled and cannot be yet, and why.
    pub(super) waiting: Vec<(WorkloadName, String)>,
    /// Pods of this node whose labels ask for what cannot be: they share the host's network namespace.
    pub(super) host_network: Vec<WorkloadName>,
    /// Namespaces in which any pod is enrolled, or would be.
    pub(super) namespaces: BTreeSet<Arc<str>>,
}

pub(super) fn pods(
    namespaces: &Table<Namespace>,
    pods: &Table<Pod>,
    (node, with_ambient): (&str, bool),
    places: &PodPlaces,
) -> Pods {
    let mut found = Pods::default();
    let wish_of = |namespace: &Arc<str>| {
        let key = Key { namespace: "".into(), name: Arc::clone(namespace) };
        namespaces.get(&key).map(|namespace| namespace.wish).unwrap_or_default()
    };
    let wishes: HashMap<&Arc<str>, Wish> = pods
        .keys()
        .map(|key| &key.namespace)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|n| (n, wish_of(n)))
        .collect();
    for (key, namespace) in namespaces.iter() {
        if Wish::is_enrolled(Wish::default(), namespace.wish, with_ambient) {
            found.namespaces.insert(Arc::clone(&key.name));
        }
    }
    let owners = owners(pods);
    let first = first_of_each_uid(pods, node);
    let first_of = |uid: &PodUid| first.get(uid).copied();
    let mut alive: Vec<_> = pods.iter().filter(|(_, pod)| !pod.ended).collect();
    alive.sort_unstable_by_key(|(key, _)| *key);
    for (key, pod) in alive {
        let namespace = wishes.get(&key.namespace).copied().unwrap_or_default();
        let wanted = Wish::is_enrolled(pod.wish, namespace, with_ambient);
        let is_here = !pod.node.is_empty() && *pod.node == *node;
        let name = WorkloadName { namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) };
        if is_here && first_of(&pod.uid) != Some(key) {
            if wanted {
                found.waiting.push((name, "an older pod of this node has its UID".to_owned()));
            }
            continue;
        }
        if is_here {
            found.of_node.push(NodePod {
                uid: pod.uid.clone(),
                namespace: Arc::clone(&key.namespace),
                name: Arc::clone(&key.name),
                host_network: pod.host_network,
                wanted,
            });
        }
        if !wanted {
            continue;
        }
        found.namespaces.insert(Arc::clone(&key.namespace));
        if pod.host_network {
            if is_here {
                found.host_network.push(name);
            }
            continue;
        }
        let addresses: Vec<_> =
            pod.addresses.iter().filter(|a| owners.get(*a) == Some(&key)).copied().collect();
        let netns = match places.get(&pod.uid) {
            _ if !is_here => None,
            Some(PodPlace::Netns(path)) => Some(path.clone()),
            Some(PodPlace::Unknown(why)) => {
                found.waiting.push((name, why.clone()));
                continue;
            }
            None => {
                found.waiting.push((name, "it is not known yet where it runs".to_owned()));
                continue;
            }
        };
        // Another's that has no address, or whose addresses have been given to others, is not reached.
        if netns.is_some() || !addresses.is_empty() {
            found.workloads.push(AddedWorkload {
                name,
                owner: Arc::clone(&pod.owner),
                service_account: Arc::clone(&pod.service_account),
                labels: Arc::clone(&pod.labels),
                addresses,
                node: Arc::clone(&pod.node),
                netns,
            });
        }
    }
    found
}

/// Of this node's pods with one UID the oldest. The API server gives none twice, but that of a static pod is what its object
/// says.
fn first_of_each_uid<'a>(pods: &'a Table<Pod>, node: &str) -> HashMap<&'a PodUid, &'a Key> {
    let mut here: Vec<_> = pods.iter().filter(|(_, pod)| !pod.ended && *pod.node == *node).collect();
    here.sort_unstable_by_key(|(key, pod)| std::cmp::Reverse((pod.created, *key)));
    here.into_iter().map(|(key, pod)| (&pod.uid, key)).collect()
}

/// Who has each address. An address is given out again as soon as its pod has ended, which the API server may hear of later
/// than of the next one: the younger has it.
fn owners(pods: &Table<Pod>) -> HashMap<IpAddr, &Key> {
    let mut owners: HashMap<IpAddr, (&Key, &Pod)> = HashMap::with_capacity(pods.len());
    for (key, pod) in pods.iter().filter(|(_, pod)| !pod.ended && !pod.host_network) {
        for address in &pod.addresses {
            let age = |(key, pod): (&Key, &Pod)| (pod.created, pod.uid.clone(), key.clone());
            let is_younger = owners.get(address).is_none_or(|known| age(*known) < age((key, pod)));
            if is_younger {
                owners.insert(*address, (key, pod));
            }
        }
    }
    owners.into_iter().map(|(address, (key, _))| (address, key)).collect()
}
