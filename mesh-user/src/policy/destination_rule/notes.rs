//! What of a `DestinationRule` is not enforced: for people only.

use super::api::{ApiTlsMode, ClientTlsSettings, DestinationRuleSpec, PortTrafficPolicy, TrafficPolicy};

/// One line each.
pub(super) fn not_enforced(spec: &DestinationRuleSpec) -> Vec<String> {
    let policy = spec.traffic_policy.as_ref();
    let ports = || policy.and_then(|policy| policy.port_level_settings.as_ref()).into_iter().flatten();
    let tls = || {
        policy
            .and_then(|policy| policy.tls.as_ref())
            .into_iter()
            .chain(ports().filter_map(|p| p.tls.as_ref()))
    };
    if tls().next().is_none() {
        return vec!["nothing of it is enforced: it says nothing about TLS".to_owned()];
    }
    let mut notes = Vec::new();
    let mut ignored = |names: Vec<&str>, place: &str| {
        notes.extend(names.into_iter().map(|name| format!("{place}.{name} is not enforced")));
    };
    ignored(policy.map(of_policy).unwrap_or_default(), "trafficPolicy");
    for (i, settings) in ports().enumerate() {
        ignored(of_port(settings), &format!("trafficPolicy.portLevelSettings[{i}]"));
    }
    if spec.subsets.iter().flatten().any(|subset| subset.traffic_policy.is_some()) {
        notes.push("subsets: their policies do not count, as there is no VirtualService".to_owned());
    } else if spec.subsets.is_some() {
        notes.push("subsets are not enforced".to_owned());
    }
    notes.extend(tls().filter_map(of_tls).map(str::to_owned));
    notes
}

fn of_policy(policy: &TrafficPolicy) -> Vec<&'static str> {
    named([
        ("loadBalancer", policy.load_balancer.is_some()),
        ("connectionPool", policy.connection_pool.is_some()),
        ("outlierDetection", policy.outlier_detection.is_some()),
        ("tunnel", policy.tunnel.is_some()),
        ("proxyProtocol", policy.proxy_protocol.is_some()),
        ("retryBudget", policy.retry_budget.is_some()),
    ])
}

fn of_port(settings: &PortTrafficPolicy) -> Vec<&'static str> {
    named([
        ("loadBalancer", settings.load_balancer.is_some()),
        ("connectionPool", settings.connection_pool.is_some()),
        ("outlierDetection", settings.outlier_detection.is_some()),
    ])
}

fn named<const N: usize>(fields: [(&'static str, bool); N]) -> Vec<&'static str> {
    fields.into_iter().filter_map(|(name, is_set)| is_set.then_some(name)).collect()
}

fn of_tls(tls: &ClientTlsSettings) -> Option<&'static str> {
    let files = [
        &tls.client_certificate,
        &tls.private_key,
        &tls.ca_certificates,
        &tls.credential_name,
        &tls.sni,
        &tls.ca_crl,
    ];
    let says_more = files.into_iter().any(|value| value.as_ref().is_some_and(|text| !text.is_empty()))
        || tls.insecure_skip_verify == Some(true);
    match tls.mode.unwrap_or_default() {
        ApiTlsMode::IstioMutual if says_more => {
            Some("ISTIO_MUTUAL: of the tls block only subjectAltNames counts besides the mode")
        }
        ApiTlsMode::Disable if says_more || tls.subject_alt_names.is_some() => {
            Some("DISABLE, the mode where none is written: the rest of the tls block does not count")
        }
        _ => None,
    }
}
