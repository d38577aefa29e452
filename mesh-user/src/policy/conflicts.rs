//! Which `PeerAuthentication` counts where several of one level compete: the mesh, a namespace, a workload. For people only;
//! the decision itself is made in `compile`, by the same order.

use std::collections::BTreeMap;

use super::{
    PeerAuthentication, PolicySet,
    compile::{oldest_first, selector},
};
use crate::world::{Workload, World};

/// All documents, the oldest first, and the workloads of this node.
pub(super) struct Conflicts<'a> {
    root: &'a str,
    peers: Vec<&'a PeerAuthentication>,
    locals: Vec<&'a Workload>,
}

impl<'a> Conflicts<'a> {
    pub(super) fn new(set: &'a PolicySet, world: &'a World) -> Self {
        let mut peers: Vec<_> = set.peer_authentications.iter().collect();
        peers.sort_by(|a, b| oldest_first(a, b));
        Self { root: world.root_namespace(), peers, locals: world.local_workloads().collect() }
    }

    /// One sentence for each document that takes this one's place, or whose place this one takes.
    pub(super) fn of(&self, own: &PeerAuthentication) -> Vec<String> {
        let same_kind = |other: &&&PeerAuthentication| {
            other.namespace == own.namespace && selector(other).is_some() == selector(own).is_some()
        };
        let level: Vec<_> = self.peers.iter().filter(same_kind).copied().collect();
        if selector(own).is_none() {
            let level_name = if *own.namespace == *self.root { "the mesh" } else { "the namespace" };
            return compete(&level, own, level_name).collect();
        }
        if *own.namespace == *self.root {
            // It applies to nothing, and says so.
            return Vec::new();
        }
        let mut by_outcome: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for workload in self.locals.iter().filter(|w| w.namespace() == &*own.namespace) {
            let picks = |p: &&PeerAuthentication| selector(p).is_some_and(|l| workload.has_labels(l));
            let picking: Vec<_> = level.iter().copied().filter(picks).collect();
            for outcome in compete(&picking, own, "") {
                by_outcome.entry(outcome).or_default().push(workload.name.to_string());
            }
        }
        by_outcome
            .into_iter()
            .map(|(outcome, workloads)| format!("{outcome}{}", workloads.join(", ")))
            .collect()
    }
}

/// `level` has the oldest first.
fn compete<'a>(
    level: &'a [&'a PeerAuthentication],
    own: &'a PeerAuthentication,
    place: &'a str,
) -> impl Iterator<Item = String> + 'a {
    let first = level.first().copied();
    let is_in = level.iter().any(|p| std::ptr::eq(*p, own));
    let is_first = first.is_some_and(|first| std::ptr::eq(first, own));
    let others = level.iter().filter(move |p| {
        is_in && if is_first { !std::ptr::eq(**p, own) } else { first.is_some_and(|f| std::ptr::eq(**p, f)) }
    });
    others.map(move |other| {
        let (namespace, name) = (&other.namespace, &other.name);
        let order = if other.created == own.created { "by name" } else { "by age" };
        if is_first {
            format!("counts before {namespace}/{name} ({order}) for {place}")
        } else {
            format!("is overridden by {namespace}/{name} ({order}) for {place}")
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::{config::Config, policy::PolicySet, world::World};

    const NODE: &str = "
node: a
workloads:
- { name: web, namespace: shop, labels: { app: web, tier: front }, selector: { netns: /run/netns/web }, addresses: [10.0.0.1] }
- { name: db, namespace: shop, labels: { app: db }, selector: { netns: /run/netns/db }, addresses: [10.0.0.2] }
";

    fn document(namespace: &str, name: &str, created: &str, labels: &str) -> String {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{ name: {name}, namespace: {namespace}, \
             creationTimestamp: \"{created}\" }}\nspec: {{ selector: {{ matchLabels: {{ {labels} }} }}, mtls: {{ mode: STRICT }} }}\n"
        )
    }

    #[test]
    fn each_level_says_which_document_counts() {
        let (old, new) = ("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z");
        let text = [
            document("istio-system", "mesh-new", new, ""),
            document("istio-system", "mesh-old", old, ""),
            document("shop", "b", old, ""),
            document("shop", "a", old, ""),
            document("shop", "web", new, "app: web"),
            document("shop", "front", old, "tier: front"),
            document("shop", "db", new, "app: db"),
        ]
        .concat();
        let world = World::build(&Config::parse(NODE, "node.yaml").unwrap()).unwrap();
        let set = PolicySet::parse([("p.yaml", text.as_str())]).unwrap();
        let said: Vec<_> =
            set.status_in(&world).into_iter().map(|s| (s.name, s.conflicts.join("; "))).collect();
        let expected = [
            ("mesh-new", "is overridden by istio-system/mesh-old (by age) for the mesh"),
            ("mesh-old", "counts before istio-system/mesh-new (by age) for the mesh"),
            ("b", "is overridden by shop/a (by name) for the namespace"),
            ("a", "counts before shop/b (by name) for the namespace"),
            ("web", "is overridden by shop/front (by age) for shop/web"),
            ("front", "counts before shop/web (by age) for shop/web"),
            ("db", ""),
        ];
        assert_eq!(said, expected.map(|(name, what)| (name.to_owned(), what.to_owned())));
    }
}
