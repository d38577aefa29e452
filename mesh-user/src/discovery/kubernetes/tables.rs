//! Everything that is kept, and how the API server's events change it. A list that begins anew takes the place of the old
//! one when it is whole.

use std::{collections::HashMap, sync::Arc};

use kube::{Resource, core::DynamicObject, runtime::watcher::Event};

use super::{
    documents::{Document, PolicyKind},
    objects::{self, Interner, Kept, Key, Namespace, Node, Pod, Service, Slice, Table},
    wire,
};

/// What the API server said.
pub(super) enum Change {
    Namespace(Event<wire::NamespaceObject>),
    Pod(Event<wire::PodObject>),
    Service(Event<wire::ServiceObject>),
    Slice(Event<wire::SliceObject>),
    Endpoints(Event<wire::EndpointsObject>),
    Node(Event<wire::NodeObject>),
    Policy(PolicyKind, Event<DynamicObject>),
    /// It does not know this kind (yet).
    NoSuchKind(PolicyKind),
}

/// Objects of one kind.
#[derive(Debug)]
struct Filled<T> {
    table: Table<T>,
    /// A list that is not whole yet.
    filling: Option<HashMap<Key, Arc<T>>>,
    /// It was whole once.
    is_known: bool,
}

impl<T> Default for Filled<T> {
    fn default() -> Self {
        Self { table: Table::default(), filling: None, is_known: false }
    }
}

impl<T: PartialEq> Filled<T> {
    /// Whether anything changed that counts.
    fn apply<O: Resource>(
        &mut self,
        event: Event<O>,
        interner: &mut Interner,
        keep: impl Fn(O, &mut Interner) -> Option<T>,
    ) -> bool {
        match event {
            Event::Init => {
                self.filling = Some(HashMap::with_capacity(self.table.len()));
                false
            }
            Event::InitApply(object) => {
                if let Some(key) = interner.key(object.meta())
                    && let Some(kept) = keep(object, interner)
                    && let Some(filling) = &mut self.filling
                {
                    filling.insert(key, Arc::new(kept));
                }
                false
            }
            Event::InitDone => {
                let Some(filled) = self.filling.take() else { return false };
                let changed = !self.is_known || *self.table != filled;
                if changed {
                    self.table = Arc::new(filled);
                }
                self.is_known = true;
                changed
            }
            Event::Apply(object) => {
                let Some(key) = interner.key(object.meta()) else { return false };
                match keep(object, interner) {
                    Some(kept) if self.table.get(&key).is_some_and(|known| **known == kept) => false,
                    Some(kept) => {
                        Arc::make_mut(&mut self.table).insert(key, Arc::new(kept));
                        true
                    }
                    None => self.remove(&key),
                }
            }
            Event::Delete(object) => interner.key(object.meta()).is_some_and(|key| self.remove(&key)),
        }
    }

    fn remove(&mut self, key: &Key) -> bool {
        self.table.contains_key(key) && Arc::make_mut(&mut self.table).remove(key).is_some()
    }
}

/// The tables of one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Moment {
    pub(super) namespaces: Table<Namespace>,
    pub(super) pods: Table<Pod>,
    pub(super) services: Table<Service>,
    pub(super) slices: Table<Box<[Slice]>>,
    pub(super) node: Option<Arc<Node>>,
    pub(super) documents: Vec<Table<Document>>,
}

/// All tables.
#[derive(Debug, Default)]
pub(super) struct Tables {
    namespaces: Filled<Namespace>,
    pods: Filled<Pod>,
    services: Filled<Service>,
    slices: Filled<Box<[Slice]>>,
    nodes: Filled<Node>,
    documents: [Filled<Document>; PolicyKind::ALL.len()],
    interner: Interner,
}

impl Tables {
    /// Whether anything changed that counts.
    pub(super) fn apply(&mut self, change: Change) -> bool {
        let interner = &mut self.interner;
        let changed = match change {
            Change::Namespace(event) => self.namespaces.apply(event, interner, Namespace::keep),
            Change::Pod(event) => self.pods.apply(event, interner, Pod::keep),
            Change::Service(event) => self.services.apply(event, interner, Service::keep),
            Change::Slice(event) => self.slices.apply(event, interner, |object, interner| {
                Slice::keep(object, interner).map(|slice| Box::from([slice]))
            }),
            Change::Endpoints(event) => self
                .slices
                .apply(event, interner, |object, interner| Some(objects::slices(&object, interner).into())),
            Change::Node(event) => self.nodes.apply(event, interner, Node::keep),
            Change::Policy(kind, event) => {
                self.documents[kind as usize].apply(event, interner, |object, _| Document::keep(object, kind))
            }
            Change::NoSuchKind(kind) => {
                let documents = &mut self.documents[kind as usize];
                // Those that were there stay in force: a server that has lost a kind has deleted its objects one by one before.
                let is_news = !documents.is_known;
                documents.is_known = true;
                is_news
            }
        };
        interner.sweep();
        changed
    }

    /// Kinds of which nothing whole was heard yet.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let known = [
            (self.namespaces.is_known, "namespaces"),
            (self.pods.is_known, "pods"),
            (self.services.is_known, "services"),
            (self.slices.is_known, "endpointslices"),
            (self.nodes.is_known, "nodes"),
        ];
        let documents =
            PolicyKind::ALL.iter().map(|kind| (self.documents[*kind as usize].is_known, kind.plural()));
        known.into_iter().chain(documents).filter(|(known, _)| !known).map(|(_, kind)| kind).collect()
    }

    /// How many objects of each kind are kept.
    pub(super) fn counts(&self) -> Vec<(&'static str, usize)> {
        let mut counts = vec![
            ("namespaces", self.namespaces.table.len()),
            ("pods", self.pods.table.len()),
            ("services", self.services.table.len()),
            ("endpointslices", self.slices.table.len()),
            ("nodes", self.nodes.table.len()),
        ];
        counts.extend(PolicyKind::ALL.iter().map(|k| (k.plural(), self.documents[*k as usize].table.len())));
        counts
    }

    pub(super) fn moment(&self) -> Moment {
        Moment {
            namespaces: Arc::clone(&self.namespaces.table),
            pods: Arc::clone(&self.pods.table),
            services: Arc::clone(&self.services.table),
            slices: Arc::clone(&self.slices.table),
            node: self.nodes.table.values().next().cloned(),
            documents: self.documents.iter().map(|filled| Arc::clone(&filled.table)).collect(),
        }
    }
}
