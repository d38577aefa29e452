//! One copy of what many workloads have in common: of a hundred thousand, most differ in name and address only.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use crate::identity::{SpiffeId, SpiffeIdError, TrustDomain};

/// What was met so far while a world is built.
#[derive(Default)]
pub(super) struct Shared {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Arc<BTreeMap<String, String>>>,
    /// By namespace and service account.
    identities: HashMap<(Arc<str>, Arc<str>), SpiffeId>,
}

impl Shared {
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        one_of(&mut self.texts, text, || text.into())
    }

    pub(super) fn labels(&mut self, labels: &BTreeMap<String, String>) -> Arc<BTreeMap<String, String>> {
        one_of(&mut self.labels, labels, || Arc::new(labels.clone()))
    }

    pub(super) fn identity(
        &mut self,
        trust_domain: &TrustDomain,
        namespace: &Arc<str>,
        account: &Arc<str>,
    ) -> Result<SpiffeId, SpiffeIdError> {
        let who = (Arc::clone(namespace), Arc::clone(account));
        if let Some(known) = self.identities.get(&who) {
            return Ok(known.clone());
        }
        let new = SpiffeId::for_service_account(trust_domain, namespace, account)?;
        self.identities.insert(who, new.clone());
        Ok(new)
    }
}

fn one_of<T: ?Sized + Eq + Hash>(
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
