//! Every metric of the daemon and its Prometheus text. Labels are enums, static names or bounded sets:
//! nothing that a peer sends can grow them without bound. What is counted per connection is resolved once
//! to a handle ([`ConnectionMetrics`]); the path that carries bytes only adds to the connection's own atomics.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use super::{
    authorizers::{AuthorizerMetrics, AuthorizerResult},
    istio::{ConnectionBytes, TcpConnection, TcpConnections},
    istio_requests::{HttpRequests, RequestMetrics},
    jwks::{KeyPlace, KeyPlaces},
    labels::{ConnectionLabels, Direction, HandshakeSide, RelayKind, ResponseFlags},
    process::ProcessCollector,
};

/// Bounds on label sets.
#[derive(Debug, Clone, Copy)]
pub struct MetricsLimits {
    /// Label sets of the Istio families.
    pub istio_label_sets: usize,
    /// Series of the Istio families of requests: a label set has one for each way in which its requests ended.
    pub istio_request_series: usize,
    /// An Istio label set without connections for this long may be dropped for a new one.
    pub istio_idle: Duration,
    /// Label sets of every other family (policies, SPIFFE IDs).
    pub other_label_sets: usize,
}

impl Default for MetricsLimits {
    fn default() -> Self {
        Self {
            istio_label_sets: 4096,
            istio_request_series: 4096,
            istio_idle: Duration::from_secs(600),
            other_label_sets: 2048,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabels {
    side: HandshakeSide,
    result: &'static str,
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SideLabels {
    side: HandshakeSide,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DenialLabels {
    policy: String,
    reason: &'static str,
    direction: Direction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RelayLabels {
    relay: RelayKind,
    direction: Direction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabels {
    map: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    event: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpiffeIdLabels {
    spiffe_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verdict: &'static str,
    response_code: ResponseCode,
}

/// An application may invent any: at most as many values as there are classes beside the registered ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ResponseCode {
    None,
    Status(u16),
    Other,
}

impl EncodeLabelValue for ResponseCode {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        match self {
            Self::None => encoder.write_str("none"),
            Self::Status(status) => write!(encoder, "{status}"),
            Self::Other => encoder.write_str("other"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// The daemon's metrics. One instance, shared by `Arc`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    limits: MetricsLimits,
    istio: Arc<TcpConnections>,
    istio_requests: Arc<HttpRequests>,
    relays: Relays,
    handshakes: Family<HandshakeLabels, Counter>,
    handshake_seconds: Family<SideLabels, Histogram, fn() -> Histogram>,
    handshakes_in_progress: Gauge,
    denials: Family<DenialLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    denial_sets: AtomicU64,
    offload_failures: Family<ReasonLabels, Counter>,
    bpf_map_entries: Family<MapLabels, Gauge>,
    bpf_map_capacity: Family<MapLabels, Gauge>,
    bpf_events: Family<EventLabels, Counter>,
    svid_expiry: Family<SpiffeIdLabels, Gauge>,
    svids: Family<StateLabels, Gauge>,
    kubernetes: KubernetesMetrics,
    /// Without labels, and absent where the issuer does not know its end.
    ca_expiry: Family<Vec<(String, String)>, Gauge>,
    svid_renewals: Family<ResultLabels, Counter>,
    workload_svids: Family<ResultLabels, Counter>,
    svid_source: SvidSourceMetrics,
    config_reloads: Family<ResultLabels, Counter>,
    config_last_reload_success: Gauge,
    config_last_reload_seconds: Gauge,
    workloads: Gauge,
    admin_refused: Family<ReasonLabels, Counter>,
    access_log_lines: Family<ResultLabels, Counter>,
    key_places: KeyPlaces,
    authorizers: AuthorizerMetrics,
}

#[derive(Debug, Clone)]
struct KubernetesMetrics {
    objects: Family<KindLabels, Gauge>,
    stale_since: Family<KindLabels, Gauge>,
}

impl KubernetesMetrics {
    fn new(r: &mut Registry) -> Self {
        Self {
            objects: register(r, "meshd_kubernetes_objects", "Objects known of the API server"),
            stale_since: register(
                r,
                "meshd_kubernetes_stale_since_seconds",
                "Unix time since when objects of the API server may be old; 0: they are as it says",
            ),
        }
    }
}

#[derive(Debug, Clone)]
struct SvidSourceMetrics {
    up: Gauge,
    last_success: Gauge,
}

impl SvidSourceMetrics {
    fn new(r: &mut Registry) -> Self {
        Self {
            up: register(
                r,
                "meshd_svid_source_up",
                "1 unless whoever issues SVIDs is known to be out of reach",
            ),
            last_success: register(
                r,
                "meshd_svid_last_success_timestamp_seconds",
                "When an SVID was issued last, Unix time; 0: never",
            ),
        }
    }
}

#[derive(Debug, Clone)]
struct Relays {
    live: Family<RelayLabels, Gauge>,
    total: Family<RelayLabels, Counter>,
}

fn handshake_histogram() -> Histogram {
    // 250 us to 8 s: one P-256 handshake takes about 1 ms of CPU on each side, the timeout's default is 10 s.
    Histogram::new((0..16).map(|n| 0.000_25 * f64::from(1_u32 << n)))
}

fn register_build(registry: &mut Registry, node: &str) {
    let build = BuildLabels { version: env!("CARGO_PKG_VERSION"), node: node.to_owned() };
    registry.register("meshd_build", "Version of meshd and the node's name", Info::new(build));
}

impl Metrics {
    /// All families registered, every fixed-label counter at zero so that rates exist from the start.
    pub fn new(node: &str, limits: MetricsLimits) -> Self {
        let mut registry = Registry::default();
        let istio = Arc::new(TcpConnections::new(limits.istio_label_sets, limits.istio_idle));
        let istio_requests = Arc::new(HttpRequests::new(
            limits.istio_label_sets,
            limits.istio_request_series,
            limits.istio_idle,
        ));
        registry.register_collector(Box::new(Arc::clone(&istio)));
        registry.register_collector(Box::new(Arc::clone(&istio_requests)));
        registry.register_collector(Box::new(ProcessCollector::new()));
        register_build(&mut registry, node);
        let r = &mut registry;
        let relays = Relays {
            // Not plain `meshd_connections`: an OpenMetrics counter's family may not share its name with a gauge.
            live: register(r, "meshd_connections_active", "Live connections by relay kind"),
            total: register(
                r,
                "meshd_connections",
                "Connections that began on, or moved to, each relay kind",
            ),
        };
        let handshake_seconds = Family::new_with_constructor(handshake_histogram as fn() -> Histogram);
        r.register(
            "meshd_handshake_seconds",
            "Duration of successful TLS handshakes",
            handshake_seconds.clone(),
        );
        let metrics = Self {
            limits,
            istio,
            istio_requests,
            relays,
            handshakes: register(
                r,
                "meshd_handshakes",
                "TLS handshakes by side, result and cause of failure",
            ),
            handshake_seconds,
            handshakes_in_progress: register(
                r,
                "meshd_handshakes_in_progress",
                "TLS handshakes begun and not ended",
            ),
            denials: register(r, "meshd_denials", "Connections denied, by policy and reason"),
            denial_sets: AtomicU64::new(0),
            requests: register(
                r,
                "meshd_http_requests",
                "Requests read, by verdict and the status that the client got",
            ),
            offload_failures: register(
                r,
                "meshd_offload_failures",
                "Connections that could not move to kernel TLS",
            ),
            bpf_map_entries: register(r, "meshd_bpf_map_entries", "Entries in each BPF map"),
            bpf_map_capacity: register(r, "meshd_bpf_map_capacity", "Capacity of each BPF map"),
            bpf_events: register(r, "meshd_bpf_events", "Events counted by the BPF programs"),
            svid_expiry: register(
                r,
                "meshd_svid_expiry_seconds",
                "End of validity of each SVID held, Unix time",
            ),
            kubernetes: KubernetesMetrics::new(r),
            svids: register(r, "meshd_svids", "Identities by the state of their SVID"),
            ca_expiry: register(r, "meshd_ca_expiry_seconds", "End of the issuing certificate, Unix time"),
            svid_renewals: register(r, "meshd_svid_renewals", "SVIDs issued or renewed, and failures to"),
            workload_svids: register(
                r,
                "meshd_workload_api_svids",
                "SVIDs handed to workloads by the Workload API",
            ),
            svid_source: SvidSourceMetrics::new(r),
            config_reloads: register(r, "meshd_config_reloads", "Reloads of configuration and policies"),
            config_last_reload_success: register(
                r,
                "meshd_config_last_reload_success",
                "1 if the last reload was accepted",
            ),
            config_last_reload_seconds: register(
                r,
                "meshd_config_last_reload_success_timestamp_seconds",
                "When configuration was last accepted, Unix time",
            ),
            workloads: register(r, "meshd_workloads", "Enrolled workloads on this node"),
            admin_refused: register(
                r,
                "meshd_admin_refused",
                "Connections to the admin socket or the metrics endpoint refused",
            ),
            access_log_lines: register(
                r,
                "meshd_access_log_lines",
                "Access log lines written, suppressed by rate, dropped",
            ),
            key_places: KeyPlaces::new(r),
            authorizers: AuthorizerMetrics::new(r),
            registry,
        };
        metrics.start_at_zero();
        metrics
    }

    fn start_at_zero(&self) {
        for direction in Direction::ALL {
            for relay in RelayKind::ALL {
                let labels = RelayLabels { relay: *relay, direction: *direction };
                drop(self.relays.live.get_or_create_owned(&labels));
                drop(self.relays.total.get_or_create_owned(&labels));
            }
        }
        for side in HandshakeSide::ALL {
            drop(self.handshakes.get_or_create_owned(&HandshakeLabels {
                side: *side,
                result: "success",
                cause: "none",
            }));
            drop(self.handshake_seconds.get_or_create_owned(&SideLabels { side: *side }));
        }
        for result in ["success", "failure"] {
            drop(self.config_reloads.get_or_create_owned(&ResultLabels { result }));
            drop(self.svid_renewals.get_or_create_owned(&ResultLabels { result }));
        }
        self.config_last_reload_success.set(1);
        self.config_last_reload_seconds.set(unix_seconds(SystemTime::now()));
    }

    /// Counts a connection as opened and gives its handle; dropping the handle counts it as closed.
    pub fn connection_opened(
        &self,
        labels: &ConnectionLabels,
        direction: Direction,
        relay: RelayKind,
    ) -> ConnectionMetrics {
        let live = self.relays.begin(relay, direction);
        ConnectionMetrics {
            tcp: self.istio.open(labels),
            relays: self.relays.clone(),
            direction,
            relay,
            live,
        }
    }

    /// The handle for the requests of a connection that meshd reads.
    pub fn requests_on(&self, labels: &ConnectionLabels) -> RequestMetrics {
        self.istio_requests.open(labels)
    }

    /// A connection ended before any relay carried it: opened and closed in one.
    pub fn connection_refused(&self, labels: &ConnectionLabels, flags: ResponseFlags) {
        self.istio.open(labels).flags = flags;
    }

    /// A handshake has begun; the guard ends it in the gauge.
    pub fn handshake_started(&self) -> HandshakeInProgress {
        self.handshakes_in_progress.inc();
        HandshakeInProgress(self.handshakes_in_progress.clone())
    }

    /// A handshake has ended: `Ok` with its duration, or `Err` with the failure's static cause
    /// (`expired`, `unknown_issuer`, `timeout`, ...).
    pub fn handshake_ended(&self, side: HandshakeSide, outcome: Result<Duration, &'static str>) {
        let (result, cause) = match outcome {
            Ok(_) => ("success", "none"),
            Err(cause) => ("failure", cause),
        };
        self.handshakes.get_or_create(&HandshakeLabels { side, result, cause }).inc();
        if let Ok(duration) = outcome {
            self.handshake_seconds.get_or_create(&SideLabels { side }).observe(duration.as_secs_f64());
        }
    }

    /// A connection was denied; `policy` is `namespace/name`, or a fixed word where no policy document said so.
    pub fn denied(&self, policy: &str, reason: &'static str, direction: Direction) {
        let labels = DenialLabels { policy: policy.to_owned(), reason, direction };
        if let Some(counter) = self.denials.get(&labels) {
            counter.inc();
            return;
        }
        // Two threads may both pass here at the bound: one set too many, not without bound.
        let labels = if self.denial_sets.fetch_add(1, Relaxed) < self.limits.other_label_sets as u64 {
            labels
        } else {
            DenialLabels { policy: "overflow".to_owned(), ..labels }
        };
        self.denials.get_or_create(&labels).inc();
    }

    /// A request has ended; `status` as the client got it, a number that HTTP has room for.
    pub fn request(&self, verdict: &'static str, status: Option<u16>) {
        let response_code = match status {
            None => ResponseCode::None,
            Some(status @ 100..=599) => ResponseCode::Status(status),
            Some(_) => ResponseCode::Other,
        };
        self.requests.get_or_create(&RequestLabels { verdict, response_code }).inc();
    }

    /// An external authorizer was asked; `provider` is a name from the node's file.
    pub fn authorizer_asked(&self, provider: &str, result: AuthorizerResult, time: Duration) {
        self.authorizers.asked(provider, result, time);
    }

    /// An external authorizer is in force, and no rule asked for it.
    pub fn authorizer_not_asked(&self, provider: &str) {
        self.authorizers.count(provider, AuthorizerResult::Disabled);
    }

    /// Kernel TLS was refused for a connection that stays on its relay, or ends, because of `reason`.
    pub fn offload_failed(&self, reason: &'static str) {
        self.offload_failures.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Use of a BPF map, as last counted.
    pub fn set_bpf_map(&self, map: &'static str, entries: u64, capacity: u64) {
        self.bpf_map_entries.get_or_create(&MapLabels { map }).set(as_gauge(entries));
        self.bpf_map_capacity.get_or_create(&MapLabels { map }).set(as_gauge(capacity));
    }

    /// A BPF program's own counter, as its absolute value.
    pub fn set_bpf_event(&self, event: &'static str, total: u64) {
        let family = &self.bpf_events;
        let counter = family.get_or_create(&EventLabels { event });
        let inner: &AtomicU64 = counter.inner();
        inner.fetch_max(total, Relaxed);
    }

    /// Replaces the SVIDs known by their SPIFFE ID and end of validity.
    pub fn set_svids<'a>(&self, svids: impl IntoIterator<Item = (&'a str, SystemTime)>) {
        self.svid_expiry.clear();
        for (spiffe_id, not_after) in svids.into_iter().take(self.limits.other_label_sets) {
            let labels = SpiffeIdLabels { spiffe_id: spiffe_id.to_owned() };
            self.svid_expiry.get_or_create(&labels).set(unix_seconds(not_after));
        }
    }

    /// Identities by what their SVID is (`valid`, `missing`, `failing`: its renewal fails, `overdue`: for long), and when the
    /// issuing certificate ends (Unix time), where that is known.
    pub fn set_svid_states(&self, states: [(&'static str, usize); 4], issuer_end_seconds: Option<u64>) {
        for (state, count) in states {
            self.svids.get_or_create(&StateLabels { state }).set(as_gauge(count as u64));
        }
        if let Some(end) = issuer_end_seconds {
            self.ca_expiry.get_or_create(&Vec::new()).set(as_gauge(end));
        }
    }

    /// Per kind that is watched at the API server: objects that are known, and since when they may be old (Unix
    /// time; 0: they are as it says).
    pub fn set_kubernetes_watch(&self, kind: &'static str, objects: u64, stale_since: Option<u64>) {
        let labels = KindLabels { kind };
        self.kubernetes.objects.get_or_create(&labels).set(as_gauge(objects));
        self.kubernetes.stale_since.get_or_create(&labels).set(as_gauge(stale_since.unwrap_or_default()));
    }

    /// Whether whoever issues SVIDs can be asked, and when one was issued last (Unix time).
    pub fn set_svid_source(&self, up: bool, last_success_seconds: Option<u64>) {
        self.svid_source.up.set(i64::from(up));
        self.svid_source.last_success.set(as_gauge(last_success_seconds.unwrap_or_default()));
    }

    /// Replaces the places that keys of token issuers are fetched from.
    pub fn set_key_places<'a>(&self, places: impl IntoIterator<Item = KeyPlace<'a>>) {
        self.key_places.set(places.into_iter().take(self.limits.other_label_sets));
    }

    /// An SVID was issued or renewed, or that failed.
    pub fn svid_renewed(&self, success: bool) {
        self.svid_renewals.get_or_create(&ResultLabels { result: outcome(success) }).inc();
    }

    /// A workload was handed an SVID: `x509` or `jwt`.
    pub fn workload_svid(&self, kind: &'static str) {
        self.workload_svids.get_or_create(&ResultLabels { result: kind }).inc();
    }

    /// Configuration or policies were read again and accepted, or refused and the old ones kept.
    pub fn config_reloaded(&self, success: bool) {
        self.config_reloads.get_or_create(&ResultLabels { result: outcome(success) }).inc();
        self.config_last_reload_success.set(i64::from(success));
        if success {
            self.config_last_reload_seconds.set(unix_seconds(SystemTime::now()));
        }
    }

    /// Number of enrolled local workloads.
    pub fn set_workloads(&self, count: usize) {
        self.workloads.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A connection to the admin socket (`credentials`, `limit`) or the metrics endpoint (`metrics_limit`) was
    /// refused.
    pub fn admin_refused(&self, reason: &'static str) {
        self.admin_refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// The counter of access log lines with this fate (`written`, `suppressed`, `dropped`).
    pub fn access_log_lines(&self, fate: &'static str) -> Counter {
        self.access_log_lines.get_or_create_owned(&ResultLabels { result: fate })
    }

    /// Label sets of the Istio families now.
    pub fn istio_label_sets(&self) -> usize {
        self.istio.label_sets()
    }

    /// The whole in `OpenMetrics` text ([`METRICS_CONTENT_TYPE`]).
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // A String never refuses a write; half an exposition without `# EOF` is refused by the scraper.
            Err(std::fmt::Error) => String::new(),
        }
    }
}

/// Media type of [`Metrics::text`].
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Relays {
    fn begin(&self, relay: RelayKind, direction: Direction) -> Gauge {
        let labels = RelayLabels { relay, direction };
        self.total.get_or_create(&labels).inc();
        let live = self.live.get_or_create_owned(&labels);
        live.inc();
        live
    }
}

/// One connection's metrics; dropped at its end.
#[derive(Debug)]
pub struct ConnectionMetrics {
    tcp: TcpConnection,
    relays: Relays,
    direction: Direction,
    relay: RelayKind,
    live: Gauge,
}

impl ConnectionMetrics {
    /// The counters that the relay adds to; share them by clone.
    pub fn bytes(&self) -> &Arc<ConnectionBytes> {
        &self.tcp.bytes
    }

    /// The relay kind now.
    pub fn relay(&self) -> RelayKind {
        self.relay
    }

    /// The connection has moved to another relay kind.
    pub fn set_relay(&mut self, relay: RelayKind) {
        if relay != self.relay {
            self.live.dec();
            self.live = self.relays.begin(relay, self.direction);
            self.relay = relay;
        }
    }

    /// Why the connection ends; to be set before the handle is dropped, `-` otherwise.
    pub fn set_response_flags(&mut self, flags: ResponseFlags) {
        self.tcp.flags = flags;
    }
}

impl Drop for ConnectionMetrics {
    fn drop(&mut self) {
        self.live.dec();
    }
}

/// A handshake counted as in progress until this is dropped.
#[derive(Debug)]
pub struct HandshakeInProgress(Gauge);

impl Drop for HandshakeInProgress {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn register<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: prometheus_client::registry::Metric + Clone + Default,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn outcome(success: bool) -> &'static str {
    if success { "success" } else { "failure" }
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unix_seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => as_gauge(since.as_secs()),
        Err(before) => -as_gauge(before.duration().as_secs()),
    }
}
