//! Why a verdict is what it is, for `meshctl policy explain`: every policy that applies, every rule, and the
//! first thing of it that did not match; of a connection, or of a request on it.

use serde::Serialize;

use super::{
    L4Request, Mode, Verdict, WorkloadPolicy,
    api::Action,
    compile::Policy,
    connection::Connection,
    decide::HttpVerdict,
    http::HttpRequest,
    observe::Observed,
    rule::{CompiledRule, Term},
};

/// A verdict with everything that was considered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation<V = Verdict> {
    /// What [`WorkloadPolicy::decide`], or of a request [`WorkloadPolicy::decide_http`], says.
    pub verdict: V,
    /// What is reported beside it.
    pub observed: Observed,
    /// The verdict for people.
    pub summary: String,
    /// Peer authentication of the port.
    pub mode: Mode,
    /// Documents that set it; empty: the default.
    pub mode_sources: Vec<String>,
    /// The policies that apply, in the order they are considered; then AUDIT, then those in a dry run.
    pub policies: Vec<PolicyExplanation>,
}

/// What one policy said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyExplanation {
    /// Its action.
    pub action: Action,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it is only watched.
    pub dry_run: bool,
    /// Whether one of its rules matched.
    pub matched: bool,
    /// Its rules; none: it matches nothing.
    pub rules: Vec<RuleExplanation>,
}

/// What one rule said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleExplanation {
    /// Index in `spec.rules`.
    pub rule: usize,
    /// Whether it matched.
    pub matched: bool,
    /// Why, or why not.
    pub why: String,
}

impl WorkloadPolicy {
    /// Decides a connection as TCP, and says what led there.
    pub fn explain(&self, request: &L4Request<'_>) -> Explanation {
        let verdict = self.decide(request);
        self.explained(verdict.to_string(), verdict, request, None)
    }

    /// Decides a request, and says what led there.
    pub fn explain_http(
        &self,
        connection: &L4Request<'_>,
        request: &HttpRequest<'_>,
    ) -> Explanation<HttpVerdict> {
        let verdict = self.decide_http(connection, request);
        self.explained(verdict.to_string(), verdict, connection, Some(request))
    }

    fn explained<V>(
        &self,
        summary: String,
        verdict: V,
        request: &L4Request<'_>,
        http: Option<&HttpRequest<'_>>,
    ) -> Explanation<V> {
        let connection = Connection::new(request, http);
        let dry_run = self.dry_run.iter().flat_map(|dry_run| dry_run.all());
        let policies = self.enforced.all().chain(dry_run);
        Explanation {
            verdict,
            summary,
            observed: self.observe(request, http),
            mode: self.mode(request.dst.port()),
            mode_sources: self.mode_sources.clone(),
            policies: policies.map(|policy| explain_policy(policy, &connection)).collect(),
        }
    }
}

fn explain_policy(policy: &Policy, connection: &Connection<'_>) -> PolicyExplanation {
    let rules: Vec<_> = policy.rules.iter().map(|r| explain_rule(r, connection)).collect();
    PolicyExplanation {
        action: policy.action,
        namespace: policy.namespace.to_string(),
        name: policy.name.to_string(),
        dry_run: policy.dry_run,
        matched: rules.iter().any(|r| r.matched),
        rules,
    }
}

fn explain_rule(rule: &CompiledRule, connection: &Connection<'_>) -> RuleExplanation {
    let why = if connection.http.is_none() && !rule.never_on_tcp.is_empty() {
        Some(format!("HTTP fields ({}) never match on TCP", rule.never_on_tcp.join(", ")))
    } else if rule.never.is_empty() {
        let from = unmatched("from", &rule.from, connection);
        let to = || unmatched("to", &rule.to, connection);
        let when = || {
            let failed = rule.when.iter().find(|t| !t.matches(connection));
            failed.map(|t| format!("when: {}", t.failure(connection)))
        };
        from.or_else(to).or_else(when)
    } else {
        Some(format!("{}: meshd cannot evaluate it, so the rule never matches", rule.never.join(", ")))
    };
    let matched = rule.matches(connection);
    let why = why.unwrap_or_else(|| "every part of it matches".to_owned());
    RuleExplanation { rule: rule.reference.rule, matched, why }
}

fn unmatched(part: &str, groups: &[Vec<Term>], connection: &Connection<'_>) -> Option<String> {
    let mut failures = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        let term = group.iter().find(|t| !t.matches(connection))?;
        failures.push(format!("{part}[{i}]: {}", term.failure(connection)));
    }
    (!failures.is_empty()).then(|| failures.join("; "))
}

impl Term {
    fn failure(&self, connection: &Connection<'_>) -> String {
        let verb = if self.negated { "exclude" } else { "do not include" };
        format!("{} [{}] {verb} {}", self.name, self.values.join(", "), connection.describe(&self.test))
    }
}
