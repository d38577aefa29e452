//! Istio security policy: parsing, compilation per workload, decisions. Pure: no I/O, no clock.
//! A verdict depends only on the compiled documents and what was proven about the connection.
//!
//! Sources: <https://istio.io/latest/docs/reference/config/security/authorization-policy/>,
//! <https://istio.io/latest/docs/reference/config/security/peer_authentication/>,
//! <https://istio.io/latest/docs/reference/config/security/request_authentication/>.

mod aliases;
pub mod api;
mod compile;
mod conflicts;
mod connection;
mod decide;
pub mod destination_rule;
mod documents;
mod explain;
pub mod http;
pub mod impact;
mod jwt_rules;
pub mod lint;
mod list;
mod matcher;
mod namespaces;
mod notes;
mod observe;
mod ports;
mod providers;
#[cfg(test)]
mod reference;
mod replay;
pub mod request_authentication;
mod rule;
mod status;
mod targets;
#[cfg(test)]
mod tests;
pub mod traffic;
mod validate;
mod values;

use std::{fmt, net::SocketAddr, sync::Arc};

use serde::{Serialize, Serializer};

pub use compile::{CompiledPolicies, WorkloadPolicy};
pub use decide::HttpVerdict;
pub use documents::{AuthorizationPolicy, PeerAuthentication, PolicyError, PolicySet};
pub use explain::{Explanation, PolicyExplanation, RuleExplanation};
pub use observe::{DryRun, Observed};
pub use providers::AuthorizerKind;
pub use replay::Outcome;
pub use request_authentication::RequestAuthentication;

use crate::identity::SpiffeId;

/// Peer authentication of a workload's port, inheritance resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// mTLS only.
    Strict,
    /// mTLS or plaintext.
    Permissive,
    /// Plaintext only: connections pass through.
    Disable,
}

/// What is known about an inbound connection when it is decided.
#[derive(Debug, Clone, Copy)]
pub struct L4Request<'a> {
    /// The identity that the handshake proved; none: plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// The client's address.
    pub src: SocketAddr,
    /// The workload's own address and port (after service translation).
    pub dst: SocketAddr,
    /// Server name that the client sent in TLS.
    pub sni: Option<&'a str>,
}

/// The answer for a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "camelCase")]
pub enum Verdict {
    /// Let through.
    Allow {
        /// The ALLOW rule that matched; none: no ALLOW policy applies to the workload.
        rule: Option<RuleRef>,
    },
    /// Refuse.
    Deny {
        /// Why.
        reason: DenyReason,
    },
}

impl Verdict {
    /// Whether the connection may proceed.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow { rule: Some(rule) } => write!(f, "allowed by {rule}"),
            Self::Allow { rule: None } => f.write_str("allowed: no ALLOW policy applies"),
            Self::Deny { reason } => write!(f, "denied: {reason}"),
        }
    }
}

/// Why a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DenyReason {
    /// The mode is STRICT and the client spoke plaintext.
    StrictPlaintext,
    /// A rule of a DENY policy matched.
    Rule(RuleRef),
    /// A rule of a CUSTOM policy matched, and its external authorizer was not asked.
    CustomUnavailable(RuleRef),
    /// A rule of a CUSTOM policy matched, and its external authorizer did not allow it.
    Custom {
        /// The rule.
        rule: RuleRef,
        /// The authorizer's name.
        provider: Arc<str>,
        /// Why it could not be asked or followed; none: it denied.
        error: Option<String>,
    },
    /// ALLOW policies apply and no rule of theirs matched.
    NoAllowMatched,
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StrictPlaintext => f.write_str("STRICT: plaintext"),
            Self::Rule(rule) => write!(f, "{rule}"),
            Self::CustomUnavailable(rule) => write!(f, "{rule}: its external authorizer was not asked"),
            Self::Custom { rule, provider, error: None } => write!(f, "{rule}: {provider} denies"),
            Self::Custom { rule, provider, error: Some(error) } => write!(f, "{rule}: {provider} {error}"),
            Self::NoAllowMatched => f.write_str("no ALLOW policy matched"),
        }
    }
}

impl Serialize for DenyReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A rule in a policy document, shown as `namespace/name rule[i]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuleRef {
    /// The policy's namespace.
    pub namespace: Arc<str>,
    /// The policy's name.
    pub name: Arc<str>,
    /// Index in `spec.rules`.
    pub rule: usize,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} rule[{}]", self.namespace, self.name, self.rule)
    }
}

impl Serialize for RuleRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a document is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyScope {
    /// In the root namespace without a selector.
    Mesh,
    /// A namespace without a selector.
    Namespace,
    /// With a selector.
    Workload,
}

impl fmt::Display for PolicyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
        })
    }
}

/// What became of one document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Such as `AuthorizationPolicy`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it was read.
    pub file: String,
    /// What it is written for.
    pub scope: PolicyScope,
    /// `ALLOW`, `DENY`, `STRICT`, ...; empty for kinds without one.
    pub action: String,
    /// Workloads on this node that it applies to; a `PeerAuthentication` that a closer one overrides counts.
    pub workloads: usize,
    /// Whether it takes part in decisions at all.
    pub accepted: bool,
    /// What of it is not enforced, and what happens instead. Empty: all of it is enforced.
    pub not_enforced: Vec<String>,
    /// Documents of its level that it competes with, and which counts.
    pub conflicts: Vec<String>,
}
