//! What Istio's validation webhook refuses in a policy: without it a document that Istio would never have
//! accepted could mean more, or less, than its author believes.
//!
//! Source: istio/istio pkg/config/validation/validation.go, pkg/config/security/security.go.

use super::{
    api::{
        Action, AuthorizationPolicySpec, Operation, PeerAuthenticationSpec, Rule, Source, WorkloadSelector,
    },
    matcher, targets,
};

/// Path of the field and what is wrong with it.
type Invalid = (String, String);

fn invalid<T>(path: impl Into<String>, what: impl Into<String>) -> Result<T, Invalid> {
    Err((path.into(), what.into()))
}

pub(super) fn selector(selector: Option<&WorkloadSelector>) -> Result<bool, Invalid> {
    let labels = selector.and_then(|s| s.match_labels.as_ref());
    for (key, value) in labels.into_iter().flatten() {
        if key.is_empty() || key.contains('*') || value.contains('*') {
            return invalid(
                "spec.selector.matchLabels",
                format!("{key}={value}: wildcards are not supported"),
            );
        }
    }
    Ok(labels.is_some_and(|l| !l.is_empty()))
}

pub(super) fn peer_authentication(spec: &PeerAuthenticationSpec) -> Result<(), Invalid> {
    let selects = selector(spec.selector.as_ref())?;
    if let Some(ports) = &spec.port_level_mtls {
        if !selects {
            return invalid("spec.portLevelMtls", "needs a selector: ports belong to a workload");
        }
        if ports.is_empty() {
            return invalid("spec.portLevelMtls", "is empty; list a port or remove it");
        }
        if ports.contains_key(&0) {
            return invalid("spec.portLevelMtls", "port 0 does not exist");
        }
    }
    Ok(())
}

pub(super) fn authorization_policy(spec: &AuthorizationPolicySpec) -> Result<(), Invalid> {
    let selects = selector(spec.selector.as_ref())?;
    if selects && targets::is_attached(spec) {
        return invalid("spec.selector", "selector and targetRefs cannot both be set");
    }
    target_refs(spec)?;
    let action = spec.action.unwrap_or(Action::Allow);
    let provider = spec.provider.as_ref().and_then(|p| p.name.as_deref()).unwrap_or_default();
    if action == Action::Custom && provider.is_empty() {
        return invalid("spec.provider", "CUSTOM needs provider.name");
    }
    if action != Action::Custom && spec.provider.is_some() {
        return invalid("spec.provider", "only CUSTOM has a provider");
    }
    if action != Action::Allow && spec.rules.is_none() {
        let what =
            "an action other than ALLOW never triggers without rules; `rules: [{}]` matches everything";
        return invalid("spec.rules", what);
    }
    for (i, each) in spec.rules.iter().flatten().enumerate() {
        rule(&format!("spec.rules[{i}]"), each)?;
    }
    Ok(())
}

/// Source: `validatePolicyTargetReference`.
fn target_refs(spec: &AuthorizationPolicySpec) -> Result<(), Invalid> {
    if spec.target_ref.is_some() && spec.target_refs.as_ref().is_some_and(|refs| !refs.is_empty()) {
        return invalid("spec.targetRef", "targetRef and targetRefs cannot both be set");
    }
    for (i, target) in spec.target_refs.iter().flatten().chain(&spec.target_ref).enumerate() {
        let path = if spec.target_ref.is_some() {
            "spec.targetRef".to_owned()
        } else {
            format!("spec.targetRefs[{i}]")
        };
        if target.name.is_empty() {
            return invalid(path, "name is empty");
        }
        if target.namespace.as_deref().is_some_and(|namespace| !namespace.is_empty()) {
            return invalid(path, "namespace: a target is in the policy's own namespace; leave it out");
        }
    }
    Ok(())
}

fn rule(path: &str, rule: &Rule) -> Result<(), Invalid> {
    for (field, empty) in [
        ("from", rule.from.as_ref().is_some_and(Vec::is_empty)),
        ("to", rule.to.as_ref().is_some_and(Vec::is_empty)),
        ("when", rule.when.as_ref().is_some_and(Vec::is_empty)),
    ] {
        if empty {
            return invalid(format!("{path}.{field}"), "is empty; leave it out to match everything");
        }
    }
    for (i, from) in rule.from.iter().flatten().enumerate() {
        source(&format!("{path}.from[{i}].source"), &from.source)?;
    }
    for (i, to) in rule.to.iter().flatten().enumerate() {
        operation(&format!("{path}.to[{i}].operation"), &to.operation)?;
    }
    for (i, when) in rule.when.iter().flatten().enumerate() {
        let path = format!("{path}.when[{i}]");
        if when.values.as_ref().is_none_or(Vec::is_empty)
            && when.not_values.as_ref().is_none_or(Vec::is_empty)
        {
            return invalid(path, "needs values or notValues");
        }
        for (field, values) in [("values", &when.values), ("notValues", &when.not_values)] {
            let Some(values) = values else { continue };
            check_list(&format!("{path}.{field}"), values)?;
            if let Err(what) = matcher::condition_test(&when.key, values, &matcher::Scope::default()) {
                return invalid(path, what);
            }
        }
    }
    Ok(())
}

fn source(path: &str, source: &Source) -> Result<(), Invalid> {
    let identity_lists =
        [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    let account_lists = [&source.service_accounts, &source.not_service_accounts];
    if account_lists.iter().any(|l| l.is_some()) && identity_lists.iter().any(|l| l.is_some()) {
        return invalid(path, "serviceAccounts cannot be combined with principals or namespaces");
    }
    fields(path, matcher::source_fields(source))
}

fn operation(path: &str, operation: &Operation) -> Result<(), Invalid> {
    fields(path, matcher::operation_fields(operation))
}

/// Each list that is there is not empty, holds no empty value, and holds values that parse; one is there.
fn fields<'a>(path: &str, fields: impl Iterator<Item = matcher::Field<'a>>) -> Result<(), Invalid> {
    let mut any = false;
    for field in fields {
        let Some(values) = field.values else { continue };
        any = true;
        let path = format!("{path}.{}", field.name);
        check_list(&path, values)?;
        if let Err(what) = matcher::field_test(&field, values, &matcher::Scope::default()) {
            return invalid(path, what);
        }
    }
    if any { Ok(()) } else { invalid(path, "has no field; leave the whole entry out to match everything") }
}

fn check_list(path: &str, values: &[String]) -> Result<(), Invalid> {
    if values.is_empty() {
        return invalid(path, "is empty; leave it out to match everything");
    }
    if let Some(i) = values.iter().position(String::is_empty) {
        return invalid(format!("{path}[{i}]"), "is an empty string");
    }
    Ok(())
}
