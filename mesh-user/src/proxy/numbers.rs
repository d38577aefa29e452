//! The numbers by which capture knows workloads. A name keeps its number as long as it is known; a number never
//! means another workload.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::world::WorkloadName;

/// Workloads' numbers, both ways.
#[derive(Default)]
pub(super) struct Numbers(RwLock<Inner>);

#[derive(Default)]
struct Inner {
    numbers: HashMap<WorkloadName, u32>,
    names: HashMap<u32, WorkloadName>,
    next: u32,
}

impl Numbers {
    /// The number of a workload; a new one for a name that is not known.
    pub(super) fn number(&self, name: &WorkloadName) -> u32 {
        let mut inner = self.write();
        if let Some(number) = inner.numbers.get(name) {
            return *number;
        }
        let number = inner.next;
        // Four thousand million workloads later a number comes round again.
        inner.next = number.wrapping_add(1);
        inner.numbers.insert(name.clone(), number);
        inner.names.insert(number, name.clone());
        number
    }

    /// The workload behind a number; none: it was forgotten.
    pub(super) fn name(&self, number: u32) -> Option<WorkloadName> {
        self.read().names.get(&number).cloned()
    }

    /// Forgets the workloads that `keeps` does not want.
    pub(super) fn retain(&self, keeps: impl Fn(&WorkloadName) -> bool) {
        let mut inner = self.write();
        inner.numbers.retain(|name, _| keeps(name));
        inner.names.retain(|_, name| keeps(name));
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_never_means_another_workload() {
        let name = |name: &str| WorkloadName { namespace: "shop".into(), name: name.into() };
        let numbers = Numbers::default();
        let (web, db) = (numbers.number(&name("web")), numbers.number(&name("db")));
        assert_eq!(numbers.number(&name("web")), web);
        assert_eq!(numbers.name(db), Some(name("db")));
        numbers.retain(|kept| *kept == name("web"));
        assert_eq!((numbers.name(web), numbers.name(db)), (Some(name("web")), None));
        let again = numbers.number(&name("db"));
        assert!(again != web && again != db);
        assert_eq!((numbers.name(again), numbers.name(db)), (Some(name("db")), None));
    }
}
