//! What the service counts. Labels are static names: nothing that a caller sends makes a new series.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Issued {
    authentication: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: &'static str,
}

/// Counters of one service.
#[derive(Debug)]
pub struct ServiceMetrics {
    registry: Registry,
    issued: Family<Issued, Counter>,
    refused: Family<Refused, Counter>,
    duration: Histogram,
    connections: Gauge,
    watchers: Gauge,
    issuer_end: Gauge,
    clock_ahead: Gauge,
}

impl ServiceMetrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("meshd_ca");
        let metrics = Self {
            issued: Family::default(),
            refused: Family::default(),
            duration: Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0]),
            connections: Gauge::default(),
            watchers: Gauge::default(),
            issuer_end: Gauge::default(),
            clock_ahead: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("issued", "Certificates issued", metrics.issued.clone());
        registry.register("refused", "Requests and connections refused", metrics.refused.clone());
        registry.register_with_unit(
            "issue_duration",
            "Time from a request to its certificate",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register("connections", "Connections now", metrics.connections.clone());
        registry.register("watchers", "Agents that watch trust now", metrics.watchers.clone());
        registry.register(
            "issuer_end_timestamp_seconds",
            "When the certificate that issues ends; 0: not known",
            metrics.issuer_end.clone(),
        );
        registry.register(
            "clock_ahead_seconds",
            "How far the wall clock is ahead of the time that has passed; above 0 nothing is withdrawn or forgotten",
            metrics.clock_ahead.clone(),
        );
        Self { registry, ..metrics }
    }

    pub(super) fn issued(&self, authentication: &'static str, took: Duration) {
        self.issued.get_or_create(&Issued { authentication }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// Counts a refusal.
    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    pub(super) fn connection(&self, change: i64) {
        self.connections.inc_by(change);
    }

    /// Connections now.
    pub fn connections(&self) -> i64 {
        self.connections.get()
    }

    /// Certificates issued since the start.
    pub fn issued_total(&self) -> u64 {
        ["kubernetes_token", "join_token", "certificate", "unix_peer"]
            .map(|authentication| self.issued.get_or_create(&Issued { authentication }).get())
            .iter()
            .sum()
    }

    /// In `OpenMetrics` text.
    pub(super) fn text(
        &self,
        watchers: u64,
        issuer_end: Option<SystemTime>,
        clock_ahead: Duration,
    ) -> String {
        self.clock_ahead.set(clock_ahead.as_secs().try_into().unwrap_or(i64::MAX));
        self.watchers.set(watchers.try_into().unwrap_or(i64::MAX));
        let end = issuer_end.and_then(|end| end.duration_since(UNIX_EPOCH).ok());
        self.issuer_end.set(end.and_then(|end| end.as_secs().try_into().ok()).unwrap_or_default());
        let mut out = String::new();
        // Writing to a string does not fail.
        let _infallible = text::encode(&mut out, &self.registry);
        out
    }
}
