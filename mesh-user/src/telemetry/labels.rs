//! The label values of Istio's standard TCP metrics and of meshd's own, as types, so that no free text
//! reaches a metric. Label sets of a workload or service are built once and shared by its connections.
//! Names and meanings: <https://istio.io/latest/docs/reference/config/metrics/>.

use std::{collections::BTreeMap, sync::Arc};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder};
use serde::{Deserialize, Serialize};

/// What Istio writes for a label that is not known.
pub const UNKNOWN: &str = "unknown";

/// Declares an enum whose variants are label values, in metrics, access log and API alike.
macro_rules! label_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The text used as a label value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    };
}

label_enum! {
    /// Which end of a connection reports a metric.
    Reporter {
        /// The client's meshd.
        Source = "source",
        /// The server's meshd.
        Destination = "destination",
    }
}

label_enum! {
    /// Seen from the enrolled workload.
    Direction {
        /// To the workload.
        Inbound = "inbound",
        /// From the workload.
        Outbound = "outbound",
    }
}

impl Direction {
    /// Which reporter a connection of this direction has.
    pub fn reporter(self) -> Reporter {
        match self {
            Self::Inbound => Reporter::Destination,
            Self::Outbound => Reporter::Source,
        }
    }
}

label_enum! {
    /// How bytes move between the two legs.
    RelayKind {
        /// rustls encrypts in this process.
        Userspace = "userspace",
        /// Kernel TLS, copy loop.
        Ktls = "ktls",
        /// Kernel TLS, pipe.
        KtlsSplice = "ktls-splice",
        /// No TLS: the mode permits plaintext.
        Plaintext = "plaintext",
        /// rustls encrypts in this process, which reads the requests.
        Http = "http",
        /// None: from socket to socket within the node.
        Kernel = "kernel",
    }
}

label_enum! {
    /// Istio's `connection_security_policy`.
    ConnectionSecurityPolicy {
        /// Both identities were proven.
        MutualTls = "mutual_tls",
        /// Plaintext.
        None = "none",
        /// The reporter cannot know.
        Unknown = "unknown",
    }
}

label_enum! {
    /// Why a connection ended, as `response_flags` in metrics and access log; `-` is a normal end.
    ResponseFlags {
        /// Both sides closed.
        None = "-",
        /// Policy said deny.
        Denied = "DENY",
        /// The other leg could not be opened.
        ConnectFailure = "CONNECT",
        /// The handshake or an identity check failed.
        TlsFailure = "TLS_FAILURE",
        /// The handshake was not done in time.
        HandshakeTimeout = "HANDSHAKE_TIMEOUT",
        /// No byte for the idle timeout.
        IdleTimeout = "IDLE_TIMEOUT",
        /// One side reset the connection.
        Reset = "RESET",
        /// FIN without `close_notify`.
        Truncated = "TRUNCATED",
        /// Allowed when it began, no longer allowed after a change of policy, trust or certificate.
        PolicyChanged = "POLICY_CHANGED",
        /// A limit of the node's configuration was reached.
        Limit = "LIMIT",
        /// meshd stopped and the drain time was over.
        Drained = "DRAINED",
        /// Any other failure; the access log's `error` says which.
        Failed = "FAILED",
    }
}

label_enum! {
    /// Role in a TLS handshake.
    HandshakeSide {
        /// meshd sent the `ClientHello`.
        Client = "client",
        /// meshd answered it.
        Server = "server",
    }
}

/// What Istio's metrics say about a workload. Build once per workload and World, share by `Arc`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkloadLabels {
    /// Name of the workload, which several pods may be.
    pub workload: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its SPIFFE ID, or `unknown` where none was proven.
    pub principal: Arc<str>,
    /// Label `app`, else the canonical service.
    pub app: Arc<str>,
    /// Label `version`.
    pub version: Arc<str>,
    /// `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, or the workload's name.
    pub canonical_service: Arc<str>,
    /// `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, or `latest`.
    pub canonical_revision: Arc<str>,
    /// The cluster it runs in.
    pub cluster: Arc<str>,
}

impl WorkloadLabels {
    /// Labels for a known workload; `principal` is the proven (or own) SPIFFE ID.
    pub fn new(
        workload: &str,
        namespace: &str,
        principal: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Self {
        let first =
            |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key).filter(|v| !v.is_empty())).cloned();
        let canonical = first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
            .unwrap_or_else(|| workload.to_owned());
        let revision =
            first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
                .unwrap_or_else(|| "latest".to_owned());
        Self {
            workload: workload.into(),
            namespace: namespace.into(),
            principal: principal.unwrap_or(UNKNOWN).into(),
            app: first(&["app"]).unwrap_or_else(|| canonical.clone()).into(),
            version: first(&["version"]).unwrap_or_else(|| UNKNOWN.to_owned()).into(),
            canonical_service: canonical.into(),
            canonical_revision: revision.into(),
            cluster: UNKNOWN.into(),
        }
    }

    /// The same with the cluster it runs in.
    #[must_use]
    pub fn in_cluster(self, cluster: &str) -> Self {
        Self { cluster: cluster.into(), ..self }
    }

    /// Every label the same: `unknown`, or the overflow bucket's name.
    pub fn all(value: &str) -> Self {
        let v: Arc<str> = value.into();
        Self {
            workload: v.clone(),
            namespace: v.clone(),
            principal: v.clone(),
            app: v.clone(),
            version: v.clone(),
            canonical_service: v.clone(),
            canonical_revision: v.clone(),
            cluster: v,
        }
    }

    /// A peer that is no known workload; a proven identity is still told.
    pub fn unknown(principal: Option<&str>) -> Self {
        let mut labels = Self::all(UNKNOWN);
        if let Some(principal) = principal {
            labels.principal = principal.into();
        }
        labels
    }
}

/// What Istio's metrics say about the destination service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// Full name, for example `db.shop.svc.cluster.local`.
    pub host: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
}

impl ServiceLabels {
    /// Labels of a service; `host` is `<name>.<namespace>.svc.<trust domain>` by Istio's habit.
    pub fn new(host: &str, name: &str, namespace: &str) -> Self {
        Self { host: host.into(), name: name.into(), namespace: namespace.into() }
    }

    /// Every label the same: `unknown`, or the overflow bucket's name.
    pub fn all(value: &str) -> Self {
        Self::new(value, value, value)
    }
}

/// The label set of one connection (without `response_flags`, which only its end knows).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectionLabels {
    /// Which end reports.
    pub reporter: Reporter,
    /// The client.
    pub source: Arc<WorkloadLabels>,
    /// The server.
    pub destination: Arc<WorkloadLabels>,
    /// The service that the client called.
    pub service: Arc<ServiceLabels>,
    /// Whether both identities were proven.
    pub security: ConnectionSecurityPolicy,
}

impl ConnectionLabels {
    /// Where connections are counted once too many label sets exist.
    pub(crate) fn overflow(reporter: Reporter, security: ConnectionSecurityPolicy) -> Self {
        Self {
            reporter,
            source: Arc::new(WorkloadLabels::all("overflow")),
            destination: Arc::new(WorkloadLabels::all("overflow")),
            service: Arc::new(ServiceLabels::all("overflow")),
            security,
        }
    }

    /// What series are listed by.
    pub(crate) fn sort_key(&self) -> impl Ord {
        (
            self.reporter.as_str(),
            Arc::clone(&self.source.namespace),
            Arc::clone(&self.source.workload),
            Arc::clone(&self.destination.namespace),
            Arc::clone(&self.destination.workload),
            self.security.as_str(),
        )
    }
}

/// A connection's labels with its response flags and protocol: what one Istio series carries.
pub(crate) struct IstioLabels<'a> {
    connection: &'a ConnectionLabels,
    flags: ResponseFlags,
    protocol: &'static str,
}

impl<'a> IstioLabels<'a> {
    pub(crate) fn of_connections(connection: &'a ConnectionLabels, flags: ResponseFlags) -> Self {
        Self { connection, flags, protocol: "tcp" }
    }

    /// `protocol` is `http` or `grpc`.
    pub(crate) fn of_requests(
        connection: &'a ConnectionLabels,
        flags: ResponseFlags,
        protocol: &'static str,
    ) -> Self {
        Self { connection, flags, protocol }
    }
}

impl EncodeLabelSet for IstioLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        let Self { connection: c, flags, protocol } = self;
        let (source, destination) = (&c.source, &c.destination);
        let pairs: [(&str, &str); 22] = [
            ("reporter", c.reporter.as_str()),
            ("source_workload", &source.workload),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_app", &source.app),
            ("source_version", &source.version),
            ("source_canonical_service", &source.canonical_service),
            ("source_canonical_revision", &source.canonical_revision),
            ("source_cluster", &source.cluster),
            ("destination_workload", &destination.workload),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_app", &destination.app),
            ("destination_version", &destination.version),
            ("destination_service", &c.service.host),
            ("destination_service_name", &c.service.name),
            ("destination_service_namespace", &c.service.namespace),
            ("destination_canonical_service", &destination.canonical_service),
            ("destination_canonical_revision", &destination.canonical_revision),
            ("destination_cluster", &destination.cluster),
            ("request_protocol", protocol),
            ("response_flags", flags.as_str()),
        ];
        for pair in &pairs {
            prometheus_client::encoding::EncodeLabel::encode(pair, encoder.encode_label())?;
        }
        let security = ("connection_security_policy", c.security);
        prometheus_client::encoding::EncodeLabel::encode(&security, encoder.encode_label())
    }
}
