//! Trust-domain aliases in principals: one written with the mesh's own trust domain, an alias, or the pointer
//! `cluster.local` means the same workload in all of them.
//!
//! Source: istio/istio pilot/pkg/trustdomain/bundle.go, `ReplaceTrustDomainAliases`.

use crate::identity::TrustDomain;

/// The principals that one pattern stands for.
pub(super) fn expand(principal: &str, trust_domains: &[TrustDomain]) -> Vec<String> {
    let as_written = || vec![principal.to_owned()];
    // Only `<td>/ns/<ns>/sa/<sa>` names a trust domain; `*/ns/...` and shorter patterns do not care about it.
    let Some((domain, path)) = principal.split_once('/') else { return as_written() };
    if domain == "*" || path.split('/').count() != 4 {
        return as_written();
    }
    let ours = domain == TrustDomain::cluster_local().as_str()
        || trust_domains.iter().any(|td| same_domain(domain, td.as_str()));
    if !ours {
        return as_written();
    }
    let mut expanded: Vec<String> = Vec::new();
    for td in trust_domains {
        let suffix = domain.strip_prefix('*').is_some_and(|suffix| td.as_str().ends_with(suffix));
        let next = if suffix { principal.to_owned() } else { format!("{td}/{path}") };
        if !expanded.contains(&next) {
            expanded.push(next);
        }
    }
    if expanded.is_empty() { as_written() } else { expanded }
}

/// A trust domain of the mesh against one in a policy, which may start or end with a star.
fn same_domain(pattern: &str, domain: &str) -> bool {
    pattern == domain
        || pattern.strip_suffix('*').is_some_and(|prefix| domain.starts_with(prefix))
        || pattern.strip_prefix('*').is_some_and(|suffix| domain.ends_with(suffix))
}
