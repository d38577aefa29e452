//! What in valid documents bites: a finding says where it is, what happens, and what to write instead. Advice only; nothing
//! that decides reads it. Pure: what was seen of traffic and which external authorizers there are is given.

mod requests;
mod scope;
mod sources;
#[cfg(test)]
mod tests;
mod tokens;
mod traffic;

use serde::Serialize;

use super::{
    AuthorizationPolicy, CompiledPolicies, PeerAuthentication, PolicySet, PolicyStatus,
    RequestAuthentication,
    api::{Action, WorkloadSelector},
    compile::labels,
    http::Normalization,
    targets,
    traffic::Seen,
};
use crate::{
    config::ExtensionProvider,
    world::{Workload, World},
};

/// What documents are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The workloads and services that the node knows.
    pub world: &'a World,
    /// What is made of paths before rules see them.
    pub normalization: Normalization,
    /// What was seen lately; empty offline.
    pub seen: &'a [Seen],
    /// The external authorizers there are.
    pub providers: &'a [ExtensionProvider],
}

/// Something that bites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The file, as it was named.
    pub file: String,
    /// 1-based; none: the field is not there.
    pub line: Option<u64>,
    /// Kind, namespace and name.
    pub document: String,
    /// Its path, such as `spec.rules[0].to[0].operation.paths`.
    pub field: String,
    /// The kind of finding, in kebab case.
    pub check: &'static str,
    /// What happens.
    pub problem: String,
    /// What to do.
    pub advice: String,
}

/// A finding before its place is known.
struct Found {
    check: &'static str,
    field: String,
    problem: String,
    advice: &'static str,
}

/// A set of documents that is looked through.
struct Lint<'a> {
    facts: Facts<'a>,
    set: &'a PolicySet,
    compiled: CompiledPolicies,
}

/// Looks through all documents, in the order they were read.
pub fn lint(set: &PolicySet, facts: Facts<'_>) -> Vec<Finding> {
    let lint = Lint { facts, set, compiled: CompiledPolicies::compile(facts.world, set) };
    let mut peers = set.peer_authentications.iter();
    let mut policies = set.authorization_policies.iter();
    let mut requests = set.request_authentications.iter();
    let mut findings = Vec::new();
    for (number, status) in set.status.iter().enumerate() {
        let mut found = Vec::new();
        // Statuses and parsed documents are in the same order.
        match status.kind.as_str() {
            "PeerAuthentication" => {
                if let Some(peer) = peers.next() {
                    lint.peer_authentication(peer, &mut found);
                }
            }
            "AuthorizationPolicy" => {
                if let Some(policy) = policies.next() {
                    lint.authorization_policy(policy, &mut found);
                }
            }
            "RequestAuthentication" => {
                if let Some(request) = requests.next() {
                    lint.request_authentication(request, &mut found);
                }
            }
            _ => {}
        }
        findings.extend(found.into_iter().map(|found| placed(set, number, status, found)));
    }
    findings
}

fn placed(set: &PolicySet, number: usize, status: &PolicyStatus, found: Found) -> Finding {
    Finding {
        file: status.file.clone(),
        line: set.line(number, &found.field),
        document: format!("{} {}/{}", status.kind, status.namespace, status.name),
        field: found.field,
        check: found.check,
        problem: found.problem,
        advice: found.advice.to_owned(),
    }
}

impl<'a> Lint<'a> {
    fn peer_authentication(&self, peer: &PeerAuthentication, found: &mut Vec<Found>) {
        self.selects_nothing(&peer.namespace, peer.spec.selector.as_ref(), found);
        self.strict_with_plaintext_clients(peer, found);
    }

    fn authorization_policy(&self, policy: &AuthorizationPolicy, found: &mut Vec<Found>) {
        self.selects_nothing(&policy.namespace, policy.spec.selector.as_ref(), found);
        self.missing_services(&policy.namespace, targets::refs(&policy.spec), found);
        self.allows_too_much_or_nothing(policy, found);
        self.unknown_provider(policy, found);
        sources::dry_run(policy, found);
        for (i, rule) in policy.spec.rules.iter().flatten().enumerate() {
            let at = format!("spec.rules[{i}]");
            self.unknown_clients(policy, rule, &at, found);
            self.requests(policy, rule, &at, found);
        }
    }

    fn request_authentication(&self, request: &RequestAuthentication, found: &mut Vec<Found>) {
        self.selects_nothing(&request.namespace, request.selector.as_ref(), found);
        self.missing_services(&request.namespace, request.targets.iter(), found);
        self.token_not_demanded(request, found);
    }

    /// The workloads that a selector in `namespace` is for.
    fn selected(
        &self,
        namespace: &str,
        selector: Option<&WorkloadSelector>,
    ) -> impl Iterator<Item = &'a Workload> {
        let (world, labels) = (self.facts.world, labels(selector).cloned());
        let everywhere = namespace == world.root_namespace();
        let namespace = namespace.to_owned();
        world.workloads().iter().filter(move |w| {
            (everywhere || w.namespace() == namespace) && labels.as_ref().is_none_or(|l| w.has_labels(l))
        })
    }
}

fn action(policy: &AuthorizationPolicy) -> Action {
    policy.spec.action.unwrap_or(Action::Allow)
}
