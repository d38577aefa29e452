//! What of an `AuthorizationPolicy` is not enforced as written, and what happens instead: for people only.

use super::{
    AuthorizationPolicy,
    api::{Action, Rule},
    matcher, targets,
};

/// One line each.
pub(super) fn not_enforced(policy: &AuthorizationPolicy) -> Vec<String> {
    let spec = &policy.spec;
    if targets::only_proxies(targets::refs(spec)) {
        return vec!["targetRefs name gateways and waypoints; the policy is not enforced yet".to_owned()];
    }
    let mut notes = Vec::new();
    let proxies = targets::proxies(targets::refs(spec));
    if !proxies.is_empty() {
        notes.push(format!("meshd is no gateway; left out of targetRefs: {}", proxies.join(", ")));
    }
    if policy.dry_run {
        notes.push("istio.io/dry-run: the policy is evaluated and reported, never enforced".to_owned());
    }
    let action = spec.action.unwrap_or(Action::Allow);
    for (i, rule) in spec.rules.iter().flatten().enumerate() {
        notes.extend(of_rule(i, rule, action));
    }
    notes
}

fn of_rule(index: usize, rule: &Rule, action: Action) -> Option<String> {
    let effect = match action {
        Action::Allow => "the rule never matches, so less is allowed",
        Action::Audit => "they are ignored, so the rule reports more",
        Action::Deny | Action::Custom => "they are ignored, so the rule denies more",
    };
    let keys = matcher::unsupported_keys(rule).join(", ");
    (!keys.is_empty())
        .then(|| format!("rules[{index}] uses keys that need Envoy's filters ({keys}): {effect}"))
}
