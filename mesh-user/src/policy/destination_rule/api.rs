//! `DestinationRule` as it is written, with every field of the API, so that nothing valid is refused. Only what is about
//! TLS is read further; the rest is here for its shape.
//!
//! Source: istio.io/api `networking/v1alpha3/destination_rule.proto` and the schema Istio installs.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::traffic::{ConnectionPool, LoadBalancer, OutlierDetection, ProxyProtocol, RetryBudget, Tunnel};
use crate::policy::api::WorkloadSelector;

/// `DestinationRule.spec`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::policy) struct DestinationRuleSpec {
    pub(super) host: String,
    pub(super) traffic_policy: Option<TrafficPolicy>,
    pub(super) subsets: Option<Vec<Subset>>,
    pub(super) export_to: Option<Vec<String>>,
    pub(super) workload_selector: Option<WorkloadSelector>,
}

/// `TrafficPolicy`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TrafficPolicy {
    pub(super) load_balancer: Option<LoadBalancer>,
    pub(super) connection_pool: Option<ConnectionPool>,
    pub(super) outlier_detection: Option<OutlierDetection>,
    pub(super) tls: Option<ClientTlsSettings>,
    pub(super) port_level_settings: Option<Vec<PortTrafficPolicy>>,
    pub(super) tunnel: Option<Tunnel>,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    pub(super) retry_budget: Option<RetryBudget>,
}

/// `TrafficPolicy.PortTrafficPolicy`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PortTrafficPolicy {
    pub(super) port: Option<PortSelector>,
    pub(super) load_balancer: Option<LoadBalancer>,
    pub(super) connection_pool: Option<ConnectionPool>,
    pub(super) outlier_detection: Option<OutlierDetection>,
    pub(super) tls: Option<ClientTlsSettings>,
}

/// `PortSelector`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PortSelector {
    pub(super) number: Option<u32>,
}

/// `Subset`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Subset {
    pub(super) name: String,
    #[serde(rename = "labels")]
    _labels: Option<BTreeMap<String, String>>,
    pub(super) traffic_policy: Option<TrafficPolicy>,
}

/// `ClientTLSSettings`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClientTlsSettings {
    /// None is DISABLE, protobuf's zero.
    pub(super) mode: Option<ApiTlsMode>,
    pub(super) client_certificate: Option<String>,
    pub(super) private_key: Option<String>,
    pub(super) ca_certificates: Option<String>,
    pub(super) credential_name: Option<String>,
    pub(super) subject_alt_names: Option<Vec<String>>,
    pub(super) sni: Option<String>,
    pub(super) insecure_skip_verify: Option<bool>,
    pub(super) ca_crl: Option<String>,
}

/// `ClientTLSSettings.TLSmode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum ApiTlsMode {
    #[default]
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}
