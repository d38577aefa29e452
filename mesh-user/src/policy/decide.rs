//! The verdict: mode first, then CUSTOM, DENY, ALLOW, as Istio orders them.

use super::{
    DenyReason, L4Request, Mode, RuleRef, Verdict, WorkloadPolicy,
    compile::{CompiledRule, Policy, Term},
    matcher::Connection,
};
use std::sync::Arc;

impl WorkloadPolicy {
    /// Whether the connection may reach the workload.
    pub fn decide(&self, request: &L4Request<'_>) -> Verdict {
        let deny = |reason| Verdict::Deny { reason };
        if request.peer.is_none() && self.mode(request.dst.port()) == Mode::Strict {
            return deny(DenyReason::StrictPlaintext);
        }
        if self.custom.is_empty() && self.deny.is_empty() && self.allow.is_empty() {
            return Verdict::Allow { rule: None };
        }
        let connection = Connection::new(request);
        if let Some(rule) = first_match(&self.custom, &connection) {
            return deny(DenyReason::CustomUnavailable(rule.clone()));
        }
        if let Some(rule) = first_match(&self.deny, &connection) {
            return deny(DenyReason::Rule(rule.clone()));
        }
        if self.allow.is_empty() {
            return Verdict::Allow { rule: None };
        }
        match first_match(&self.allow, &connection) {
            Some(rule) => Verdict::Allow { rule: Some(rule.clone()) },
            None => deny(DenyReason::NoAllowMatched),
        }
    }
}

fn first_match<'a>(policies: &'a [Arc<Policy>], connection: &Connection<'_>) -> Option<&'a RuleRef> {
    let rules = policies.iter().flat_map(|p| &p.rules);
    rules.into_iter().find(|r| r.matches(connection)).map(|r| &r.reference)
}

impl CompiledRule {
    pub(super) fn matches(&self, connection: &Connection<'_>) -> bool {
        let all = |terms: &[Term]| terms.iter().all(|t| t.matches(connection));
        let one = |groups: &[Vec<Term>]| groups.is_empty() || groups.iter().any(|g| all(g));
        self.never.is_empty() && one(&self.from) && one(&self.to) && all(&self.when)
    }
}

impl Term {
    /// A negated list matches when none of its values does: also when the connection lacks the attribute.
    pub(super) fn matches(&self, connection: &Connection<'_>) -> bool {
        self.test.matches(connection) != self.negated
    }
}
