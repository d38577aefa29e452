//! `DestinationRule`: how a client's connections to a host are secured. Parsing, which rule counts for a connection, and
//! what it asks for. No file is read here, and nothing is decided about who may connect.
//!
//! Sources: <https://istio.io/latest/docs/reference/config/networking/destination-rule/>;
//! istio/istio `pilot/pkg/model/{push_context,destination_rule,sidecar}.go`.

mod api;
mod host;
mod notes;
mod select;
#[cfg(test)]
mod tests;
mod tls;
mod traffic;
mod validate;
mod way;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use time::OffsetDateTime;

use crate::world::Workload;

pub(super) use api::DestinationRuleSpec;
pub use host::of as host_name;
pub use select::{Applied, DestinationRules};
pub use tls::{ClientFiles, ClientTls, Origination};
pub use way::{Way, narrowed};

/// A parsed `DestinationRule`, as far as it is about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRule {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// None counts as the oldest.
    pub created: Option<OffsetDateTime>,
    /// As it is written.
    pub host: String,
    /// Namespaces whose workloads it is for; empty: all.
    pub export_to: BTreeSet<String>,
    /// Labels of the workloads of its namespace that it is for; none: every workload.
    pub selector: Option<BTreeMap<String, String>>,
    /// None: it has no `trafficPolicy`, so that a younger rule's counts.
    pub policy: Option<TlsPolicy>,
    /// What of it is not enforced.
    notes: Vec<String>,
}

/// What a `trafficPolicy` says about TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsPolicy {
    tls: Option<ClientTls>,
    /// A port that is listed without TLS has the default, not the policy's.
    ports: Vec<(u16, Option<ClientTls>)>,
}

impl TlsPolicy {
    /// For a port of the service; none: as without a rule.
    fn of_port(&self, port: u16) -> Option<&ClientTls> {
        let listed = self.ports.iter().find(|(listed, _)| *listed == port);
        listed.map_or(self.tls.as_ref(), |(_, tls)| tls.as_ref())
    }

    fn all(&self) -> impl Iterator<Item = &ClientTls> {
        self.tls.iter().chain(self.ports.iter().filter_map(|(_, tls)| tls.as_ref()))
    }
}

impl DestinationRule {
    /// Checks a document.
    ///
    /// # Errors
    /// Path of the field and what is wrong with it.
    pub(super) fn new(
        namespace: &str,
        name: &str,
        created: Option<OffsetDateTime>,
        spec: &DestinationRuleSpec,
    ) -> Result<Self, (String, String)> {
        validate::destination_rule(namespace, spec)?;
        let policy = spec.traffic_policy.as_ref().map(|policy| TlsPolicy {
            tls: policy.tls.as_ref().map(ClientTls::new),
            ports: policy
                .port_level_settings
                .iter()
                .flatten()
                .filter_map(|settings| {
                    let number = settings.port.as_ref()?.number?;
                    Some((u16::try_from(number).ok()?, settings.tls.as_ref().map(ClientTls::new)))
                })
                .collect(),
        });
        let selector = spec.workload_selector.as_ref();
        Ok(Self {
            namespace: namespace.into(),
            name: name.into(),
            created,
            host: spec.host.clone(),
            export_to: spec.export_to.iter().flatten().cloned().collect(),
            selector: selector.map(|selector| selector.match_labels.clone().unwrap_or_default()),
            policy,
            notes: notes::not_enforced(spec),
        })
    }

    /// What of it is not enforced, one line each.
    pub fn not_enforced(&self) -> &[String] {
        &self.notes
    }

    /// Whether it says anything about TLS.
    pub fn is_enforced(&self) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.all().next().is_some() || !policy.ports.is_empty())
    }

    /// Whether it reaches a client: by its export and its selector, whatever host that connects to.
    pub(super) fn may_concern(&self, client: &Workload) -> bool {
        let within = client.namespace() == &*self.namespace;
        if let Some(labels) = &self.selector {
            return within && client.has_labels(labels);
        }
        let to = |namespace: &str| self.export_to.contains(namespace);
        self.export_to.is_empty() || to("*") || to(client.namespace()) || within && to(".")
    }

    fn says_plaintext(&self) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.all().any(|tls| *tls == ClientTls::Disable))
    }

    /// Its mode, or several of them, for people.
    pub fn modes(&self) -> String {
        let mut modes: Vec<_> = self.policy.iter().flat_map(TlsPolicy::all).map(ClientTls::mode).collect();
        modes.dedup();
        modes.join(",")
    }

    /// TLS to servers themselves that it asks for.
    pub fn originations(&self) -> impl Iterator<Item = &Arc<Origination>> {
        self.policy.iter().flat_map(TlsPolicy::all).filter_map(|tls| match tls {
            ClientTls::Originate(origination) => Some(origination),
            ClientTls::Disable | ClientTls::IstioMutual { .. } => None,
        })
    }
}
