//! What a `DestinationRule` says about anything but TLS: read for its shape, so that a misspelt field is refused, and never
//! enforced.

#![allow(dead_code, reason = "nothing of it is enforced")]
#![allow(clippy::struct_field_names, reason = "the names are Istio's")]

use std::collections::BTreeMap;

use serde::Deserialize;

/// A block of the API whose fields are all optional.
macro_rules! shapes {
    ($($(#[doc = $doc:literal])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub(super) struct $name {
            $($field: Option<$type>,)*
        }
    )*};
}

/// As protobuf writes it in JSON: `10s`.
type Duration = String;

shapes! {
    /// `LoadBalancerSettings`.
    LoadBalancer {
        simple: Simple,
        consistent_hash: ConsistentHash,
        locality_lb_setting: Locality,
        zone_aware_lb_setting: ZoneAware,
        backend_utilization: BackendUtilization,
        warmup_duration_secs: Duration,
        warmup: Warmup,
    }
    /// `LoadBalancerSettings.ConsistentHashLB`.
    ConsistentHash {
        http_header_name: String,
        http_cookie: HttpCookie,
        use_source_ip: bool,
        http_query_parameter_name: String,
        ring_hash: RingHash,
        maglev: Maglev,
        minimum_ring_size: u64,
    }
    /// Its cookie.
    HttpCookie { name: String, path: String, ttl: Duration, attributes: Vec<Attribute> }
    /// One of the cookie's attributes.
    Attribute { name: String, value: String }
    /// `RingHash`.
    RingHash { minimum_ring_size: u64 }
    /// `MagLev`.
    Maglev { table_size: u64 }
    /// `LocalityLoadBalancerSetting`.
    Locality {
        distribute: Vec<Distribute>,
        failover: Vec<Failover>,
        failover_priority: Vec<String>,
        enabled: bool,
    }
    /// `LocalityLoadBalancerSetting.Distribute`.
    Distribute { from: String, to: BTreeMap<String, u32> }
    /// `LocalityLoadBalancerSetting.Failover`.
    Failover { from: String, to: String }
    /// `ZoneAwareLoadBalancerSetting`.
    ZoneAware {
        enabled: bool,
        failover: Vec<Failover>,
        failover_priority: Vec<String>,
        min_cluster_size: u64,
    }
    /// Load by the backends' own reports.
    BackendUtilization {
        error_utilization_penalty_percent: u32,
        metric_names_for_computing_utilization: Vec<String>,
        weight_expiration_period: Duration,
        weight_stabilization_period: Duration,
        weight_update_period: Duration,
    }
    /// `WarmupConfiguration`.
    Warmup { duration: Duration, minimum_percent: f64, aggression: f64 }
    /// `ConnectionPoolSettings`.
    ConnectionPool { tcp: TcpPool, http: HttpPool }
    /// `ConnectionPoolSettings.TCPSettings`.
    TcpPool {
        max_connections: i32,
        connect_timeout: Duration,
        tcp_keepalive: TcpKeepalive,
        max_connection_duration: Duration,
        idle_timeout: Duration,
    }
    /// `TcpKeepalive`.
    TcpKeepalive { probes: u32, time: Duration, interval: Duration }
    /// `ConnectionPoolSettings.HTTPSettings`.
    HttpPool {
        http1_max_pending_requests: i32,
        http2_max_requests: i32,
        max_requests_per_connection: i32,
        max_retries: i32,
        idle_timeout: Duration,
        h2_upgrade_policy: H2UpgradePolicy,
        use_client_protocol: bool,
        max_concurrent_streams: i32,
        http2_keep_alive: Http2KeepAlive,
    }
    /// `ConnectionKeepalive`.
    Http2KeepAlive { interval: Duration, timeout: Duration }
    /// `OutlierDetection`.
    OutlierDetection {
        consecutive_errors: i32,
        split_external_local_origin_errors: bool,
        consecutive_local_origin_failures: u32,
        consecutive_gateway_errors: u32,
        consecutive5xx_errors: u32,
        interval: Duration,
        base_ejection_time: Duration,
        max_ejection_percent: i32,
        min_health_percent: i32,
        outlier_detection_http_error_codes: Vec<u32>,
    }
    /// `TunnelSettings`.
    Tunnel { protocol: String, target_host: String, target_port: u32 }
    /// `ProxyProtocol`.
    ProxyProtocol { version: ProxyProtocolVersion }
    /// `RetryBudget`.
    RetryBudget { percent: f64, min_retry_concurrency: u32, budget_interval: Duration }
}

/// `LoadBalancerSettings.SimpleLB`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Simple {
    Unspecified,
    LeastConn,
    Random,
    Passthrough,
    RoundRobin,
    LeastRequest,
}

/// `HTTPSettings.H2UpgradePolicy`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum H2UpgradePolicy {
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// `ProxyProtocol.VERSION`.
#[derive(Debug, Deserialize)]
pub(super) enum ProxyProtocolVersion {
    V1,
    V2,
}
