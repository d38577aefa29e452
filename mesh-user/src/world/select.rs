//! Finds the workloads that a service selects without looking at all of them for each service: a cluster has
//! thousands of both.

use std::collections::{BTreeMap, HashMap};

use super::{Workload, WorkloadId};

/// Workloads by namespace and label.
pub(super) struct LabelIndex<'a> {
    workloads: &'a [Workload],
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<WorkloadId>>,
}

impl<'a> LabelIndex<'a> {
    pub(super) fn new(workloads: &'a [Workload]) -> Self {
        let mut index = Self { workloads, by_label: HashMap::new() };
        for workload in workloads {
            for (key, value) in &*workload.labels {
                index.by_label.entry((workload.namespace(), key, value)).or_default().push(workload.id);
            }
        }
        index
    }

    /// The workloads of a namespace that have all labels of `selector`, in order; an empty selector selects
    /// none, as a Kubernetes Service's does.
    pub(super) fn select(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<WorkloadId> {
        let fewest = selector
            .iter()
            .map(|(key, value)| self.labelled(namespace, key, value))
            .min_by_key(|ids| ids.len())
            .unwrap_or_default();
        let selected = |id: &&WorkloadId| {
            self.workloads.get(id.0 as usize).is_some_and(|workload| workload.has_labels(selector))
        };
        fewest.iter().filter(selected).copied().collect()
    }

    fn labelled<'s>(&'s self, namespace: &'s str, key: &'s str, value: &'s str) -> &'s [WorkloadId] {
        self.by_label.get(&(namespace, key, value)).map_or(&[], Vec::as_slice)
    }
}
