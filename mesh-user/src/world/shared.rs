//! One copy of what many workloads have in common: of a hundred thousand, most differ in name and address only.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    sync::Arc,
};

use super::WorkloadName;
use crate::identity::{MadeOf, SpiffeId};

/// What was met so far while a world is built.
#[derive(Default)]
pub(super) struct Shared {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Arc<BTreeMap<String, String>>>,
    /// What each was made of, and for whom first.
    identities: HashMap<SpiffeId, (MadeOf, WorkloadName)>,
}

impl Shared {
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        one_of(&mut self.texts, text, || text.into())
    }

    pub(super) fn labels(&mut self, labels: &BTreeMap<String, String>) -> Arc<BTreeMap<String, String>> {
        one_of(&mut self.labels, labels, || Arc::new(labels.clone()))
    }

    /// One that another workload has already is this one's too only when both were made of the same.
    ///
    /// # Errors
    /// The identity, and who has it.
    pub(super) fn identity(
        &mut self,
        id: SpiffeId,
        made_of: MadeOf,
        of: &WorkloadName,
    ) -> Result<SpiffeId, (SpiffeId, WorkloadName)> {
        match self.identities.entry(id) {
            Entry::Vacant(entry) => {
                let id = entry.key().clone();
                entry.insert((made_of, of.clone()));
                Ok(id)
            }
            Entry::Occupied(known) if known.get().0 == made_of => Ok(known.key().clone()),
            Entry::Occupied(known) => Err((known.key().clone(), known.get().1.clone())),
        }
    }
}

/// The copy of `value` that is known, or what `make` makes of it, which is known from then on.
pub(crate) fn one_of<T: ?Sized + Eq + Hash>(
    known: &mut HashSet<Arc<T>>,
    value: &T,
    make: impl FnOnce() -> Arc<T>,
) -> Arc<T> {
    if let Some(known) = known.get(value) {
        return Arc::clone(known);
    }
    let new = make();
    known.insert(Arc::clone(&new));
    new
}
