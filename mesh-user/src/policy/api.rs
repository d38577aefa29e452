//! Istio's documents as they are written: `PeerAuthentication` and `AuthorizationPolicy` with every field of
//! the API, HTTP ones too, so that nothing valid is refused. What a field means is decided in `compile`.
//!
//! Source: istio.io/api `security/v1/{peer_authentication,authorization_policy}.proto`,
//! `type/v1beta1/selector.proto`.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

/// Parts of any Kubernetes object that decide how it is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Head {
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) metadata: Option<LooseMetadata>,
}

/// Name and namespace of an object that is not read further.
#[derive(Debug, Default, Deserialize)]
pub(super) struct LooseMetadata {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
}

/// A whole document of a kind that is enforced.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: Option<S>,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
}

/// Kubernetes' `ObjectMeta`, so that output of `kubectl get -o yaml` is read too.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) creation_timestamp: Option<String>,
    #[serde(rename = "labels")]
    _labels: Option<IgnoredAny>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
    #[serde(rename = "uid")]
    _uid: Option<IgnoredAny>,
    #[serde(rename = "resourceVersion")]
    _resource_version: Option<IgnoredAny>,
    #[serde(rename = "generation")]
    _generation: Option<IgnoredAny>,
    #[serde(rename = "generateName")]
    _generate_name: Option<IgnoredAny>,
    #[serde(rename = "selfLink")]
    _self_link: Option<IgnoredAny>,
    #[serde(rename = "managedFields")]
    _managed_fields: Option<IgnoredAny>,
    #[serde(rename = "ownerReferences")]
    _owner_references: Option<IgnoredAny>,
    #[serde(rename = "finalizers")]
    _finalizers: Option<IgnoredAny>,
    #[serde(rename = "deletionTimestamp")]
    _deletion_timestamp: Option<IgnoredAny>,
    #[serde(rename = "deletionGracePeriodSeconds")]
    _deletion_grace_period_seconds: Option<IgnoredAny>,
}

/// Which workloads a policy is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// All of these must be among the workload's labels.
    pub match_labels: Option<BTreeMap<String, String>>,
}

/// `PeerAuthentication.spec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    /// None or empty: the whole namespace, or the mesh from the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// For all ports.
    pub mtls: Option<MutualTls>,
    /// For single ports of the workload.
    pub port_level_mtls: Option<BTreeMap<u16, Option<MutualTls>>>,
}

/// `PeerAuthentication.MutualTLS`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MutualTls {
    /// None is UNSET.
    pub mode: Option<ApiMode>,
}

/// `PeerAuthentication.MutualTLS.Mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ApiMode {
    /// Inherit.
    Unset,
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// mTLS only.
    Strict,
}

/// `AuthorizationPolicy.spec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// None or empty: the whole namespace, or the mesh from the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// A Service whose endpoints it is for, or a gateway or waypoint.
    pub target_ref: Option<TargetRef>,
    /// Several of these.
    pub target_refs: Option<Vec<TargetRef>>,
    /// None or empty: matches nothing.
    pub rules: Option<Vec<Rule>>,
    /// None is ALLOW.
    pub action: Option<Action>,
    /// For CUSTOM.
    pub provider: Option<Provider>,
}

/// `PolicyTargetReference`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group.
    pub group: Option<String>,
    /// Such as `Gateway`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: Option<String>,
}

/// `AuthorizationPolicy.ExtensionProvider`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// Of `MeshConfig.extensionProviders`.
    pub name: Option<String>,
}

/// `AuthorizationPolicy.Action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// Let through what matches, and nothing else.
    Allow,
    /// Refuse what matches.
    Deny,
    /// Log what matches.
    Audit,
    /// Ask an external authorizer.
    Custom,
}

/// `Rule`: matches when one of `from`, one of `to` and all of `when` match; what is missing matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Callers.
    pub from: Option<Vec<From>>,
    /// Operations.
    pub to: Option<Vec<To>>,
    /// Conditions.
    pub when: Option<Vec<Condition>>,
}

/// `Rule.From`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// All of its fields must match.
    pub source: Source,
}

/// `Rule.To`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    /// All of its fields must match.
    pub operation: Operation,
}

/// `Source`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Source {
    pub principals: Option<Vec<String>>,
    pub not_principals: Option<Vec<String>>,
    pub request_principals: Option<Vec<String>>,
    pub not_request_principals: Option<Vec<String>>,
    pub namespaces: Option<Vec<String>>,
    pub not_namespaces: Option<Vec<String>>,
    pub service_accounts: Option<Vec<String>>,
    pub not_service_accounts: Option<Vec<String>>,
    pub ip_blocks: Option<Vec<String>>,
    pub not_ip_blocks: Option<Vec<String>>,
    pub remote_ip_blocks: Option<Vec<String>>,
    pub not_remote_ip_blocks: Option<Vec<String>>,
}

/// `Operation`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Operation {
    pub hosts: Option<Vec<String>>,
    pub not_hosts: Option<Vec<String>>,
    pub ports: Option<Vec<String>>,
    pub not_ports: Option<Vec<String>>,
    pub methods: Option<Vec<String>>,
    pub not_methods: Option<Vec<String>>,
    pub paths: Option<Vec<String>>,
    pub not_paths: Option<Vec<String>>,
}

/// `Condition`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// An attribute such as `source.ip`.
    pub key: String,
    /// One must match.
    pub values: Option<Vec<String>>,
    /// None may match.
    pub not_values: Option<Vec<String>>,
}
