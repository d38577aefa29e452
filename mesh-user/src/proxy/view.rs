//! What connections look up on every accept, made once per snapshot and workload that is met: label sets and the
//! identities that may answer for a workload. Of a large mesh a node meets few.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use crate::{
    discovery::Snapshot,
    ext_authz::Authorizers,
    identity::SpiffeId,
    telemetry::{Party, ServiceLabels, WorkloadLabels},
    world::{Service, Workload, WorkloadId, World},
};

/// A snapshot with what is derived from it.
#[derive(Debug)]
pub struct View {
    /// World, policies, configuration.
    pub snapshot: Arc<Snapshot>,
    /// What CUSTOM policies ask.
    pub(super) authorizers: Authorizers,
    /// By workload id, as the next one.
    labels: Vec<OnceLock<Arc<WorkloadLabels>>>,
    identities: Vec<OnceLock<Arc<BTreeSet<SpiffeId>>>>,
    unknown: Arc<WorkloadLabels>,
    no_service: Arc<ServiceLabels>,
}

impl View {
    /// Nothing is made yet.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        let workloads = snapshot.world.workloads().len();
        Self {
            authorizers: Authorizers::new(&snapshot.config.extension_providers),
            labels: vec![OnceLock::new(); workloads],
            identities: vec![OnceLock::new(); workloads],
            unknown: Arc::new(WorkloadLabels::unknown(None)),
            no_service: Arc::new(ServiceLabels::all("unknown")),
            snapshot,
        }
    }

    /// The world of this snapshot.
    pub fn world(&self) -> &World {
        &self.snapshot.world
    }

    /// The identities that may answer for a workload (secure naming).
    pub fn identities(&self, id: WorkloadId) -> Arc<BTreeSet<SpiffeId>> {
        let known = self.identities.get(id.0 as usize).zip(self.world().workload(id));
        let make = |workload| Arc::new(self.world().identities(workload).into_iter().collect());
        known.map(|(made, workload)| Arc::clone(made.get_or_init(|| make(workload)))).unwrap_or_default()
    }

    /// Metric labels of a workload, or of an unknown peer that may have proven an identity.
    pub(super) fn workload_labels(
        &self,
        workload: Option<&Workload>,
        proven: Option<&SpiffeId>,
    ) -> Arc<WorkloadLabels> {
        match (workload.and_then(|w| Some((w, self.labels.get(w.id.0 as usize)?))), proven) {
            (Some((workload, made)), _) => Arc::clone(made.get_or_init(|| Arc::new(labels(workload)))),
            (None, Some(id)) => Arc::new(WorkloadLabels::unknown(Some(&id.to_string()))),
            (None, None) => Arc::clone(&self.unknown),
        }
    }

    /// Metric labels of a service.
    pub(super) fn service_labels(&self, service: Option<&Service>) -> Arc<ServiceLabels> {
        service.map_or_else(
            || Arc::clone(&self.no_service),
            |s| Arc::new(ServiceLabels::new(&self.service_host(s), &s.name.name, &s.name.namespace)),
        )
    }

    /// A service's full name, `<name>.<namespace>.svc.<trust domain>`.
    pub(super) fn service_host(&self, service: &Service) -> String {
        let domain = self.world().trust_domains().first().map_or("cluster.local", |d| d.as_str());
        format!("{}.{}.svc.{domain}", service.name.name, service.name.namespace)
    }

    /// One end of a connection, as the access log names it.
    pub(super) fn party(address: SocketAddr, workload: Option<&Workload>) -> Party {
        Party {
            address,
            workload: workload.map(|w| Arc::clone(&w.name.name)),
            namespace: workload.map(|w| Arc::clone(&w.name.namespace)),
        }
    }
}

fn labels(workload: &Workload) -> WorkloadLabels {
    let principal = workload.spiffe_id.to_string();
    WorkloadLabels::new(&workload.owner, workload.namespace(), Some(&principal), &workload.labels)
        .in_cluster(&workload.cluster)
}
