//! What of an `AuthorizationPolicy` is not enforced as written, and what happens instead: for people only.

use super::{
    AuthorizationPolicy,
    api::{Action, Rule},
    matcher, targets,
};

/// One line each. `http_path`: whether requests are looked into; else every connection is decided as TCP.
pub(super) fn not_enforced(policy: &AuthorizationPolicy, http_path: bool) -> Vec<String> {
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
    if action == Action::Audit && !http_path {
        notes.push("AUDIT is not enforced yet; it never decides".to_owned());
        return notes;
    }
    if action == Action::Custom && !http_path {
        notes.push("external authorization is not available; what a rule matches is denied".to_owned());
    }
    for (i, rule) in spec.rules.iter().flatten().enumerate() {
        notes.extend(of_rule(i, rule, action, http_path));
    }
    notes
}

fn of_rule(index: usize, rule: &Rule, action: Action, http_path: bool) -> Option<String> {
    let effect = match action {
        Action::Allow => "the rule never matches, so less is allowed",
        Action::Audit => "they are ignored, so the rule reports more",
        Action::Deny | Action::Custom => "they are ignored, so the rule denies more",
    };
    let (names, what) = if http_path {
        let keys = matcher::unsupported_keys(rule).into_iter().map(str::to_owned).collect();
        (keys, "keys that need Envoy's filters")
    } else {
        (matcher::http_fields(rule), "HTTP fields")
    };
    let place = if http_path { "" } else { " on TCP" };
    (!names.is_empty()).then(|| format!("rules[{index}] uses {what} ({}){place}: {effect}", names.join(", ")))
}
