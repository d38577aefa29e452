//! Documents by namespace, so that compiling one workload's policy does not look at everybody else's.

use std::collections::HashMap;

/// Documents of each namespace, in the order they were given.
pub(super) struct ByNamespace<'a, T> {
    root: &'a str,
    documents: HashMap<&'a str, Vec<T>>,
}

impl<'a, T> ByNamespace<'a, T> {
    /// `root` is the namespace whose documents count in all others.
    pub(super) fn new(root: &'a str, documents: impl IntoIterator<Item = (&'a str, T)>) -> Self {
        let mut all = Self { root, documents: HashMap::new() };
        for (namespace, document) in documents {
            all.documents.entry(namespace).or_default().push(document);
        }
        all
    }

    /// Those of the root namespace.
    pub(super) fn of_mesh(&self) -> &[T] {
        self.of(self.root)
    }

    fn of(&self, namespace: &str) -> &[T] {
        self.documents.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// Those of a namespace that is not the root's.
    pub(super) fn below_root(&self, namespace: &str) -> &[T] {
        if namespace == self.root { &[] } else { self.of(namespace) }
    }

    /// Those that may select a workload of `namespace`: its own and the root namespace's, in the order of the two names.
    pub(super) fn reaching(&self, namespace: &str) -> impl Iterator<Item = &T> {
        let mut both = [(self.root, self.of_mesh()), (namespace, self.below_root(namespace))];
        both.sort_by_key(|(name, _)| *name);
        both.map(|(_, documents)| documents).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_documents_and_the_roots_reach_a_namespace_in_order_and_once() {
        let given = [("a", "a1"), ("m", "m1"), ("root", "r1"), ("root", "r2"), ("z", "z1")];
        let documents = ByNamespace::new("root", given);
        let reaching = |namespace| documents.reaching(namespace).copied().collect::<Vec<_>>();
        assert_eq!(reaching("a"), ["a1", "r1", "r2"]);
        assert_eq!(reaching("z"), ["r1", "r2", "z1"]);
        assert_eq!(reaching("root"), ["r1", "r2"]);
        assert_eq!(reaching("none"), ["r1", "r2"]);
        assert_eq!(documents.below_root("root"), [""; 0]);
    }
}
