//! `targetRefs`: which policies are for the endpoints of a Service. meshd is no gateway and no waypoint, so a
//! policy for one is left out.

use std::collections::HashMap;

use super::{
    PolicySet,
    api::{AuthorizationPolicySpec, TargetRef},
};
use crate::world::{Service, WorkloadId, World};

/// What an `AuthorizationPolicy` is attached to.
pub(super) fn refs(spec: &AuthorizationPolicySpec) -> impl Iterator<Item = &TargetRef> + Clone {
    spec.target_ref.iter().chain(spec.target_refs.iter().flatten())
}

fn is_service(target: &TargetRef) -> bool {
    target.kind == "Service" && matches!(target.group.as_deref(), None | Some("" | "core"))
}

/// Whether a policy is attached to something, and so has no selector.
pub(super) fn is_attached(spec: &AuthorizationPolicySpec) -> bool {
    refs(spec).next().is_some()
}

/// Whether all of a policy's targets, of which there are some, are gateways and waypoints.
pub(super) fn only_proxies<'t>(mut targets: impl Iterator<Item = &'t TargetRef> + Clone) -> bool {
    targets.clone().next().is_some() && !targets.any(is_service)
}

/// Kind and name of each target that is no Service.
pub(super) fn proxies<'t>(targets: impl Iterator<Item = &'t TargetRef>) -> Vec<String> {
    let proxies = targets.filter(|target| !is_service(target));
    proxies.map(|target| format!("{} {}", target.kind, target.name)).collect()
}

/// Services of a world by name. Empty where no policy asks for one.
pub(super) struct Services<'a>(HashMap<(&'a str, &'a str), &'a Service>);

impl<'a> Services<'a> {
    pub(super) fn new(world: &'a World, set: &PolicySet) -> Self {
        let asked = set.authorization_policies.iter().any(|p| is_attached(&p.spec))
            || set.request_authentications.iter().any(|r| !r.targets.is_empty());
        let services = world.services().iter().filter(|_| asked);
        Self(services.map(|s| ((&*s.name.namespace, &*s.name.name), s)).collect())
    }

    /// Endpoints of the services among a policy's targets, which are in its own namespace; a workload behind two of
    /// them comes twice.
    pub(super) fn endpoints<'s>(
        &'s self,
        namespace: &'s str,
        targets: impl Iterator<Item = &'s TargetRef>,
    ) -> impl Iterator<Item = WorkloadId> {
        let found = targets
            .filter(|target| is_service(target))
            .filter_map(move |target| self.0.get(&(namespace, target.name.as_str())));
        found.flat_map(|service| service.workloads.iter().copied())
    }
}
