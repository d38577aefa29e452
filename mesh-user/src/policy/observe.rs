//! What is reported beside a verdict and never changes it: AUDIT rules that matched, and what policies with
//! `istio.io/dry-run` would have done.

use serde::Serialize;

use super::{
    DenyReason, L4Request, RuleRef, WorkloadPolicy,
    compile::Actions,
    connection::Connection,
    decide::{HttpVerdict, connection_verdict, request_verdict},
    http::HttpRequest,
};

/// What is reported of a connection or a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// Rules of AUDIT policies that matched.
    pub audit: Vec<RuleRef>,
    /// None: the workload has no dry-run policy.
    pub dry_run: Option<DryRun>,
}

/// What a workload's dry-run policies would have done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    /// The verdict if they were enforced beside those that are: what happens once the annotation is gone. For a
    /// request it is the first answer, before any external authorizer was asked.
    pub verdict: HttpVerdict,
    /// Their rules that matched, CUSTOM first, then DENY, ALLOW and AUDIT.
    pub matched: Vec<RuleRef>,
}

impl WorkloadPolicy {
    /// Whether [`Self::observe`] can have anything to say: ask first, it costs as much as a decision.
    pub fn observes(&self) -> bool {
        !self.enforced.audit.is_empty() || self.dry_run.is_some()
    }

    /// What is to be reported of a connection, or of a request on it.
    pub fn observe(&self, connection: &L4Request<'_>, request: Option<&HttpRequest<'_>>) -> Observed {
        let known = Connection::new(connection, request);
        let audit = self.enforced.audit.iter().flat_map(|policy| &policy.rules);
        let audit = audit.filter(|rule| rule.matches(&known)).map(|rule| rule.reference.clone()).collect();
        let dry_run = self.dry_run.as_ref().map(|dry_run| self.would_do(dry_run, connection, &known));
        Observed { audit, dry_run }
    }

    fn would_do(&self, dry_run: &Actions, connection: &L4Request<'_>, known: &Connection<'_>) -> DryRun {
        let sets = [&self.enforced, dry_run];
        let verdict = if self.is_strict_plaintext(connection) {
            HttpVerdict::Deny { reason: DenyReason::StrictPlaintext }
        } else if known.http.is_some() {
            request_verdict(&sets, known)
        } else {
            connection_verdict(&sets, known).into()
        };
        let rules = dry_run.all().flat_map(|policy| &policy.rules);
        let matched = rules.filter(|rule| rule.matches(known)).map(|rule| rule.reference.clone()).collect();
        DryRun { verdict, matched }
    }
}
