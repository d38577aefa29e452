//! Host names of rules: what a short one means, which services a wildcard is for, which of two rules is the closer one.
//! Names are compared in lower case and, since meshd knows no cluster domain, with every trust domain's `svc.` taken for
//! `svc.cluster.local`.
//!
//! Source: istio/istio pilot/pkg/model/config.go (`ResolveShortnameToFQDN`, `MostSpecificHostMatch`),
//! pkg/config/host, pkg/config/validation/agent (`ValidateWildcardDomain`).

use std::net::IpAddr;

use crate::{
    identity::TrustDomain,
    world::{WorkloadName, WorldHost},
};

/// Kubernetes's own default, which rules are written with whatever the mesh's trust domain is.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// RFC 1035 section 2.3.4, as Istio counts it.
const MAX_NAME_BYTES: usize = 255;
const MAX_LABEL_BYTES: usize = 63;

/// What a destination is called in rules.
pub fn of(host: &WorldHost<'_>) -> String {
    match host {
        WorldHost::Service(service) => {
            let WorkloadName { namespace, name } = &service.name;
            format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}").to_ascii_lowercase()
        }
        WorldHost::Outside(outside) => outside.host.to_ascii_lowercase(),
    }
}

/// The host that a rule in `namespace` means.
pub(super) fn resolve(written: &str, namespace: &str, trust_domains: &[TrustDomain]) -> String {
    let host = written.strip_suffix('.').unwrap_or(written).to_ascii_lowercase();
    if !host.contains('.') && host != "*" && host.parse::<IpAddr>().is_err() {
        return format!("{host}.{namespace}.svc.{CLUSTER_DOMAIN}");
    }
    let in_mesh = trust_domains.iter().find_map(|domain| host.strip_suffix(&format!(".svc.{domain}")));
    in_mesh.map_or_else(|| host.clone(), |service| format!("{service}.svc.{CLUSTER_DOMAIN}"))
}

/// Whether a rule's host, with or without a wildcard, is for this service.
pub(super) fn matches(rule: &str, service: &str) -> bool {
    rule.strip_prefix('*').map_or(rule == service, |suffix| service.ends_with(suffix))
}

/// Sorts the closer host first: exact ones, then the longer wildcard.
pub(super) fn closeness(rule: &str) -> (bool, std::cmp::Reverse<usize>, &str) {
    (rule.starts_with('*'), std::cmp::Reverse(rule.len()), rule)
}

/// What is wrong with a rule's host, if anything.
pub(super) fn problem(written: &str) -> Option<String> {
    if written.is_empty() {
        return Some("is empty; name the service".to_owned());
    }
    if written.len() > MAX_NAME_BYTES {
        return Some(format!("is longer than {MAX_NAME_BYTES} characters"));
    }
    let (first, rest) = written.split_once('.').map_or((written, None), |(first, rest)| (first, Some(rest)));
    let first_is_good = first == "*"
        || first.len() <= MAX_LABEL_BYTES
            && is_label(first.strip_prefix("*-").or_else(|| first.strip_prefix('*')).unwrap_or(first));
    let bad = |label: &str| Some(format!("{written:?} is no host: {label:?} is no DNS label"));
    if !first_is_good {
        return bad(first);
    }
    let labels: Vec<_> = rest.into_iter().flat_map(|rest| rest.split('.')).collect();
    let last = labels.last().copied().unwrap_or_default();
    if last.parse::<i64>().is_ok() {
        return Some(format!("{written:?} is no host: its top level domain is a number"));
    }
    // A name may end in a dot.
    let checked = if last.is_empty() { labels.len().saturating_sub(1) } else { labels.len() };
    labels[..checked].iter().find(|label| !is_label(label)).and_then(|label| bad(label))
}

/// A label of RFC 1123 section 2.1.
pub(super) fn is_label(label: &str) -> bool {
    let alphanumeric = |at: Option<char>| at.is_some_and(|c| c.is_ascii_alphanumeric());
    label.len() <= MAX_LABEL_BYTES
        && alphanumeric(label.chars().next())
        && alphanumeric(label.chars().next_back())
        && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}
