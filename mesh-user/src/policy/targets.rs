//! `targetRefs`: which policies are for the endpoints of a Service. meshd is no gateway and no waypoint, so a
//! policy for one is left out.

use std::collections::HashMap;

use super::{
    AuthorizationPolicy,
    api::{AuthorizationPolicySpec, TargetRef},
};
use crate::world::{Service, WorkloadId, World};

fn refs(spec: &AuthorizationPolicySpec) -> impl Iterator<Item = &TargetRef> {
    spec.target_ref.iter().chain(spec.target_refs.iter().flatten())
}

fn is_service(target: &TargetRef) -> bool {
    target.kind == "Service" && matches!(target.group.as_deref(), None | Some("" | "core"))
}

/// Whether a policy is attached to something, and so has no selector.
pub(super) fn is_attached(spec: &AuthorizationPolicySpec) -> bool {
    refs(spec).next().is_some()
}

/// Whether a policy is attached to gateways and waypoints alone.
pub(super) fn only_proxies(spec: &AuthorizationPolicySpec) -> bool {
    is_attached(spec) && !refs(spec).any(is_service)
}

/// Kind and name of each target that is no Service.
pub(super) fn proxies(spec: &AuthorizationPolicySpec) -> Vec<String> {
    let proxies = refs(spec).filter(|target| !is_service(target));
    proxies.map(|target| format!("{} {}", target.kind, target.name)).collect()
}

/// Services of a world by name. Empty where no policy asks for one.
pub(super) struct Services<'a>(HashMap<(&'a str, &'a str), &'a Service>);

impl<'a> Services<'a> {
    pub(super) fn new(world: &'a World, policies: &[AuthorizationPolicy]) -> Self {
        let asked = policies.iter().any(|p| is_attached(&p.spec));
        let services = world.services().iter().filter(|_| asked);
        Self(services.map(|s| ((&*s.name.namespace, &*s.name.name), s)).collect())
    }

    /// Endpoints of the services in a policy's own namespace that it is attached to; a workload behind two of
    /// them comes twice.
    pub(super) fn endpoints<'s>(
        &'s self,
        policy: &'s AuthorizationPolicy,
    ) -> impl Iterator<Item = WorkloadId> + use<'s, 'a> {
        let services = refs(&policy.spec).filter(|target| is_service(target));
        let found = services.filter_map(|target| self.0.get(&(&*policy.namespace, target.name.as_str())));
        found.flat_map(|service| service.workloads.iter().copied())
    }
}
