//! Whom a document is for, and whether it says more or less than its author can have meant.

use super::{Found, Lint, action};
use crate::policy::{
    AuthorizationPolicy,
    api::{Action, Rule, TargetRef, WorkloadSelector},
    compile::labels,
    targets,
};

impl Lint<'_> {
    pub(super) fn selects_nothing(
        &self,
        namespace: &str,
        selector: Option<&WorkloadSelector>,
        found: &mut Vec<Found>,
    ) {
        let Some(labels) = labels(selector) else { return };
        if self.selected(namespace, selector).next().is_none() {
            let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            found.push(Found {
                check: "selects-nothing",
                field: "spec.selector.matchLabels".to_owned(),
                problem: format!(
                    "no workload that this node knows has {}, so it is for nobody",
                    labels.join(", ")
                ),
                advice: "compare the labels with those of the workload, and the namespace with its own",
            });
        }
    }

    pub(super) fn missing_services<'t>(
        &self,
        namespace: &str,
        targets: impl Iterator<Item = &'t TargetRef>,
        found: &mut Vec<Found>,
    ) {
        let services = self.facts.world.services();
        for (i, target) in targets.enumerate() {
            let known =
                || services.iter().any(|s| *s.name.namespace == *namespace && *s.name.name == *target.name);
            if targets::is_service(target) && !known() {
                found.push(Found {
                    check: "missing-service",
                    field: format!("spec.targetRefs[{i}]"),
                    problem: format!("there is no Service {namespace}/{}, so it is for nobody there", target.name),
                    advice: "name a Service of the policy's own namespace, or select workloads by their labels",
                });
            }
        }
    }

    pub(super) fn allows_too_much_or_nothing(&self, policy: &AuthorizationPolicy, found: &mut Vec<Found>) {
        if action(policy) != Action::Allow {
            return;
        }
        for (i, rule) in policy.spec.rules.iter().flatten().enumerate() {
            if *rule == Rule::default() {
                found.push(Found {
                    check: "allows-all",
                    field: format!("spec.rules[{i}]"),
                    problem: "an empty rule matches everything, so no other ALLOW policy of these workloads counts"
                        .to_owned(),
                    advice: "say who may do what in from and to, or remove the policy if all is meant to be open",
                });
            }
        }
        let mesh = *policy.namespace == *self.facts.world.root_namespace()
            && labels(policy.spec.selector.as_ref()).is_none()
            && !targets::is_attached(&policy.spec);
        if mesh && !policy.dry_run && policy.spec.rules.as_ref().is_none_or(Vec::is_empty) {
            found.push(Found {
                check: "denies-the-mesh",
                field: "spec".to_owned(),
                problem: "an ALLOW policy without rules in the root namespace denies everything in the whole mesh \
                          that no other ALLOW policy allows"
                    .to_owned(),
                advice: "keep it only if each workload has an ALLOW policy of its own; meshctl policy impact shows \
                         what would be denied",
            });
        }
    }

    pub(super) fn unknown_provider(&self, policy: &AuthorizationPolicy, found: &mut Vec<Found>) {
        let Some(name) = policy.spec.provider.as_ref().and_then(|p| p.name.as_ref()) else { return };
        if !self.facts.providers.iter().any(|provider| provider.name == *name) {
            found.push(Found {
                check: "unknown-provider",
                field: "spec.provider.name".to_owned(),
                problem: format!("no extensionProvider is called {name:?}: what a rule matches is denied"),
                advice: "define it in the node file's extensionProviders, or mend the name",
            });
        }
    }
}
