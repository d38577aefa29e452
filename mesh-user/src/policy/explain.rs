//! Why a verdict is what it is, for `meshctl policy explain`: every policy that applies, every rule, and the
//! first thing of it that did not match.

use serde::Serialize;

use super::{
    L4Request, Mode, Verdict, WorkloadPolicy,
    api::Action,
    compile::{CompiledRule, Term},
    matcher::Connection,
};

/// A verdict with everything that was considered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What [`WorkloadPolicy::decide`] says.
    pub verdict: Verdict,
    /// The verdict for people.
    pub summary: String,
    /// Peer authentication of the port.
    pub mode: Mode,
    /// Documents that set it; empty: the default.
    pub mode_sources: Vec<String>,
    /// The policies that apply, in the order they are considered.
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
    /// Decides, and says what led there.
    pub fn explain(&self, request: &L4Request<'_>) -> Explanation {
        let connection = Connection::new(request);
        let policies = self.custom.iter().chain(&self.deny).chain(&self.allow).map(|policy| {
            let rules: Vec<_> = policy.rules.iter().map(|r| explain_rule(r, &connection)).collect();
            PolicyExplanation {
                action: policy.action,
                namespace: policy.namespace.to_string(),
                name: policy.name.to_string(),
                matched: rules.iter().any(|r| r.matched),
                rules,
            }
        });
        let verdict = self.decide(request);
        Explanation {
            summary: verdict.to_string(),
            verdict,
            mode: self.mode(request.dst.port()),
            mode_sources: self.mode_sources.clone(),
            policies: policies.collect(),
        }
    }
}

fn explain_rule(rule: &CompiledRule, connection: &Connection<'_>) -> RuleExplanation {
    let why = if rule.never.is_empty() {
        let from = unmatched("from", &rule.from, connection);
        let to = || unmatched("to", &rule.to, connection);
        let when = || {
            rule.when
                .iter()
                .find(|t| !t.matches(connection))
                .map(|t| format!("when: {}", t.failure(connection)))
        };
        from.or_else(to).or_else(when)
    } else {
        Some(format!("HTTP fields ({}) never match on TCP", rule.never.join(", ")))
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
