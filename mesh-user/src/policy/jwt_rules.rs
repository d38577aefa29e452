//! Whom each `RequestAuthentication` applies to: by namespace and selector, or as the endpoints of the Services that it is
//! attached to. Documents add up; which of their rules believes a token is decided in `jwt`.

use std::{collections::HashSet, sync::Arc};

use super::{
    CompiledPolicies, RequestAuthentication, compile::labels, namespaces::ByNamespace, targets::Services,
};
use crate::{
    jwt::{JwksSource, JwtRule, KeySource},
    world::{Workload, WorkloadId, World},
};

/// A document that is for workloads.
pub(super) struct Applicable<'a> {
    document: &'a RequestAuthentication,
    /// With targets: the workloads behind them.
    endpoints: Option<HashSet<WorkloadId>>,
}

impl<'a> Applicable<'a> {
    /// By namespace, the oldest first, as Istio takes them (`sortConfigByCreationTime`).
    pub(super) fn by_namespace(
        world: &'a World,
        services: &Services<'_>,
        documents: &'a [RequestAuthentication],
    ) -> ByNamespace<'a, Self> {
        let mut documents: Vec<_> = documents.iter().filter(|d| !d.targets_only_proxies()).collect();
        documents.sort_by_key(|d| (d.created, Arc::clone(&d.name)));
        let applicable = documents.into_iter().map(|document| {
            let endpoints = || services.endpoints(&document.namespace, document.targets.iter()).collect();
            let endpoints = (!document.targets.is_empty()).then(endpoints);
            (&*document.namespace, Self { document, endpoints })
        });
        ByNamespace::new(world.root_namespace(), applicable)
    }

    fn is_for(&self, workload: &Workload) -> bool {
        match &self.endpoints {
            Some(endpoints) => endpoints.contains(&workload.id),
            None => labels(self.document.selector.as_ref()).is_none_or(|labels| workload.has_labels(labels)),
        }
    }
}

/// The rules of one workload: the root namespace's documents, then its own, all that are for it; then by issuer, the order in
/// which Envoy tries them (pilot `newPolicyApplier`).
pub(super) fn of_workload(
    workload: &Workload,
    documents: &ByNamespace<'_, Applicable<'_>>,
) -> Arc<[Arc<JwtRule>]> {
    let reaching = documents.of_mesh().iter().chain(documents.below_root(workload.namespace()));
    let mut rules: Vec<_> =
        reaching.filter(|d| d.is_for(workload)).flat_map(|d| d.document.rules.iter().cloned()).collect();
    rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
    rules.into()
}

impl CompiledPolicies {
    /// Where the keys of this node's workloads are, each place once.
    pub fn jwks_sources(&self, world: &World) -> Vec<JwksSource> {
        let policies = world.local_workloads().map(|workload| self.for_workload(workload.id));
        let mut sources: Vec<JwksSource> = Vec::new();
        for rule in policies.flat_map(|policy| policy.request_authentication().iter()) {
            let KeySource::Remote(source) = &rule.keys else { continue };
            match sources.iter_mut().find(|known| known.location == source.location) {
                // Rules that share a place wait for it as long as the most patient.
                Some(known) => known.timeout = known.timeout.max(source.timeout),
                None => sources.push(source.clone()),
            }
        }
        sources
    }
}
