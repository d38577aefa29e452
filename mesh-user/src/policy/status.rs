//! What a world makes of each document: its scope, and how many of this node's workloads it applies to. For
//! people only; no decision reads it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    PolicyScope, PolicySet, PolicyStatus,
    api::{Action, ApiMode},
    compile::labels,
    conflicts::Conflicts,
    destination_rule::DestinationRule,
    targets::{self, Services},
};
use crate::world::{Workload, WorkloadId, World};

impl PolicySet {
    /// What became of each document in `world`, in the order they were read.
    pub fn status_in(&self, world: &World) -> Vec<PolicyStatus> {
        let mut peers = self.peer_authentications.iter();
        let mut policies = self.authorization_policies.iter();
        let mut requests = self.request_authentications.iter();
        let mut rules = self.destination_rules.iter();
        let locals: Vec<_> = world.local_workloads().collect();
        let services = Services::new(world, self);
        let conflicts = Conflicts::new(self, world);
        let each = |status: &PolicyStatus| {
            let mut status = status.clone();
            // Statuses and parsed documents are in the same order.
            let selector = match status.kind.as_str() {
                "PeerAuthentication" => {
                    let peer = peers.next();
                    status.conflicts = peer.map(|peer| conflicts.of(peer)).unwrap_or_default();
                    peer.and_then(|p| p.spec.selector.as_ref())
                }
                "AuthorizationPolicy" => {
                    let policy = policies.next();
                    if let Some(policy) = policy.filter(|p| targets::is_attached(&p.spec)) {
                        attached(
                            &mut status,
                            world,
                            services.endpoints(&policy.namespace, targets::refs(&policy.spec)),
                        );
                        return status;
                    }
                    policy.and_then(|p| p.spec.selector.as_ref())
                }
                "RequestAuthentication" => {
                    let request = requests.next();
                    if let Some(request) = request.filter(|r| !r.targets.is_empty()) {
                        let endpoints = services.endpoints(&request.namespace, request.targets.iter());
                        attached(&mut status, world, endpoints);
                        return status;
                    }
                    request.and_then(|r| r.selector.as_ref())
                }
                "DestinationRule" => {
                    if let Some(rule) = rules.next() {
                        of_clients(&mut status, world, rule, &locals);
                    }
                    return status;
                }
                _ => None,
            };
            place(&mut status, world.root_namespace(), &locals, labels(selector));
            status
        };
        self.status.iter().map(each).collect()
    }
}

/// A rule is for clients: those whose connections it may be about.
fn of_clients(status: &mut PolicyStatus, world: &World, rule: &DestinationRule, locals: &[&Workload]) {
    status.scope = match &rule.selector {
        Some(_) => PolicyScope::Workload,
        None if *status.namespace == *world.root_namespace() => PolicyScope::Mesh,
        None => PolicyScope::Namespace,
    };
    if status.accepted {
        status.workloads = locals.iter().filter(|workload| rule.may_concern(workload)).count();
    }
}

/// Of a policy with `targetRefs`.
fn attached(status: &mut PolicyStatus, world: &World, endpoints: impl Iterator<Item = WorkloadId>) {
    status.scope = PolicyScope::Workload;
    let local = |id: &WorkloadId| world.workload(*id).is_some_and(|w| w.local.is_some());
    status.workloads = endpoints.filter(local).collect::<BTreeSet<_>>().len();
}

fn place(
    status: &mut PolicyStatus,
    root_namespace: &str,
    locals: &[&Workload],
    labels: Option<&BTreeMap<String, String>>,
) {
    let root = status.namespace == root_namespace;
    status.scope = match labels {
        Some(_) => PolicyScope::Workload,
        None if root => PolicyScope::Mesh,
        None => PolicyScope::Namespace,
    };
    // In the root namespace a PeerAuthentication with a selector applies to nothing, and says so.
    let nowhere = root && labels.is_some() && status.kind == "PeerAuthentication";
    if nowhere {
        let what = "in the root namespace a PeerAuthentication with a selector applies to no workload";
        status.not_enforced.push(what.to_owned());
    }
    if nowhere || !status.accepted {
        return;
    }
    let applies = |w: &&&Workload| {
        (root || w.namespace() == status.namespace) && labels.is_none_or(|l| w.has_labels(l))
    };
    status.workloads = locals.iter().filter(applies).count();
}

/// How Istio writes an action.
pub(super) fn action(action: Option<Action>) -> &'static str {
    match action.unwrap_or(Action::Allow) {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
        Action::Audit => "AUDIT",
        Action::Custom => "CUSTOM",
    }
}

/// How Istio writes a mode.
pub(super) fn mode(mode: Option<ApiMode>) -> &'static str {
    match mode.unwrap_or(ApiMode::Unset) {
        ApiMode::Unset => "UNSET",
        ApiMode::Disable => "DISABLE",
        ApiMode::Permissive => "PERMISSIVE",
        ApiMode::Strict => "STRICT",
    }
}
