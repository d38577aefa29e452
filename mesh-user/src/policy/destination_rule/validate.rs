//! What Istio's validation refuses in a `DestinationRule`, as far as it is about whom the rule is for and about TLS.
//!
//! Source: istio/istio pkg/config/validation/validation.go (`ValidateDestinationRule`, `validateExportTo`,
//! `validateTrafficPolicy`), pkg/config/validation/agent/validation.go (`ValidateTLS`).

use std::collections::HashSet;

use super::{
    api::{ApiTlsMode, ClientTlsSettings, DestinationRuleSpec, PortTrafficPolicy, TrafficPolicy},
    host,
};

/// Path of the field and what is wrong with it.
type Invalid = (String, String);

fn invalid<T>(path: impl Into<String>, what: impl Into<String>) -> Result<T, Invalid> {
    Err((path.into(), what.into()))
}

pub(super) fn destination_rule(namespace: &str, spec: &DestinationRuleSpec) -> Result<(), Invalid> {
    if let Some(what) = host::problem(&spec.host) {
        return invalid("spec.host", what);
    }
    traffic_policy("spec.trafficPolicy", spec.traffic_policy.as_ref())?;
    let mut names = HashSet::new();
    for (i, subset) in spec.subsets.iter().flatten().enumerate() {
        let path = format!("spec.subsets[{i}]");
        if !host::is_label(&subset.name) {
            return invalid(format!("{path}.name"), format!("{:?} is no DNS label", subset.name));
        }
        if !names.insert(&subset.name) {
            return invalid(format!("{path}.name"), format!("subset {} is there twice", subset.name));
        }
        traffic_policy(&format!("{path}.trafficPolicy"), subset.traffic_policy.as_ref())?;
    }
    export_to(namespace, spec)?;
    crate::policy::validate::selector(spec.workload_selector.as_ref())
        .map(drop)
        .map_err(|(_, what)| ("spec.workloadSelector.matchLabels".to_owned(), what))
}

fn export_to(namespace: &str, spec: &DestinationRuleSpec) -> Result<(), Invalid> {
    let listed = spec.export_to.as_deref().unwrap_or_default();
    let mut seen = HashSet::new();
    for (i, entry) in listed.iter().enumerate() {
        let path = format!("spec.exportTo[{i}]");
        if entry != "." && entry != "*" && !host::is_label(entry) {
            return invalid(path, format!("{entry:?} is no namespace; `.` is this one, `*` are all"));
        }
        let meant = if entry == "." { namespace } else { entry };
        if !seen.insert(meant) {
            return invalid(path, format!("{meant} is there twice"));
        }
    }
    if seen.contains("*") && seen.len() > 1 {
        return invalid("spec.exportTo", "`*` are all namespaces: name it alone");
    }
    let beyond = seen.iter().any(|entry| *entry != namespace);
    if spec.workload_selector.is_some() && beyond {
        return invalid("spec.exportTo", "a rule with a workloadSelector is for its own namespace only");
    }
    Ok(())
}

fn traffic_policy(path: &str, policy: Option<&TrafficPolicy>) -> Result<(), Invalid> {
    let Some(policy) = policy else { return Ok(()) };
    let TrafficPolicy {
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
        port_level_settings,
        tunnel,
        proxy_protocol,
        retry_budget,
    } = policy;
    let is_empty = load_balancer.is_none()
        && connection_pool.is_none()
        && outlier_detection.is_none()
        && tls.is_none()
        && port_level_settings.is_none()
        && tunnel.is_none()
        && proxy_protocol.is_none()
        && retry_budget.is_none();
    if is_empty {
        return invalid(path, "has no field; leave it out");
    }
    if tunnel.is_some() && proxy_protocol.is_some() {
        return invalid(path, "tunnel and proxyProtocol cannot both be set");
    }
    client_tls(&format!("{path}.tls"), tls.as_ref())?;
    for (i, settings) in port_level_settings.iter().flatten().enumerate() {
        port_policy(&format!("{path}.portLevelSettings[{i}]"), settings)?;
    }
    Ok(())
}

fn port_policy(path: &str, settings: &PortTrafficPolicy) -> Result<(), Invalid> {
    let Some(port) = &settings.port else {
        return invalid(path, "names no port");
    };
    if port.number.is_some_and(|number| number > u32::from(u16::MAX)) {
        return invalid(format!("{path}.port.number"), "is no port");
    }
    let PortTrafficPolicy { load_balancer, connection_pool, outlier_detection, tls, .. } = settings;
    if load_balancer.is_none() && connection_pool.is_none() && outlier_detection.is_none() && tls.is_none() {
        return invalid(path, "has no field but its port");
    }
    client_tls(&format!("{path}.tls"), tls.as_ref())
}

fn client_tls(path: &str, tls: Option<&ClientTlsSettings>) -> Result<(), Invalid> {
    let Some(tls) = tls else { return Ok(()) };
    let set = |value: &Option<String>| value.as_ref().is_some_and(|text| !text.is_empty());
    let mode = tls.mode.unwrap_or_default();
    let originates = matches!(mode, ApiTlsMode::Simple | ApiTlsMode::Mutual);
    if originates && tls.insecure_skip_verify == Some(true) {
        let with_credential = mode == ApiTlsMode::Simple && set(&tls.credential_name);
        if set(&tls.ca_certificates) || with_credential || tls.subject_alt_names.is_some() {
            let what = "nothing is verified with it: caCertificates, subjectAltNames and (SIMPLE) \
                        credentialName cannot be set";
            return invalid(format!("{path}.insecureSkipVerify"), what);
        }
    }
    if originates && set(&tls.credential_name) {
        let files = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates, &tls.ca_crl];
        if files.into_iter().any(set) {
            return invalid(format!("{path}.credentialName"), "files cannot be named beside it");
        }
        return Ok(());
    }
    if mode == ApiTlsMode::Mutual {
        for (field, value) in
            [("clientCertificate", &tls.client_certificate), ("privateKey", &tls.private_key)]
        {
            if !set(value) {
                return invalid(format!("{path}.{field}"), "MUTUAL needs it");
            }
        }
    }
    Ok(())
}
