//! What the store shows of itself.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{Entry, SvidStore, ends_soon, validity};
use crate::identity::SpiffeId;

/// The store in a few figures, for metrics and health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SvidStoreStatus {
    /// Identities with an SVID that is valid now.
    pub valid: usize,
    /// Identities without an SVID, or with one that ended.
    pub missing: usize,
    /// Identities whose last renewal failed.
    pub failing: usize,
    /// Identities whose SVID is valid, but has less than a third of its life left: it should have been renewed for long.
    pub overdue: usize,
    /// Unix time of the earliest end of an SVID.
    pub earliest_end_seconds: Option<u64>,
    /// Unix time at which an SVID was issued last.
    pub last_success_seconds: Option<u64>,
    /// Unix time of the issuing certificate's end, where the issuer knows it.
    pub issuer_end_seconds: Option<u64>,
    /// Whether the issuing certificate ends within 30 days.
    pub issuer_ends_soon: bool,
    /// Why the source of SVIDs cannot be used now.
    pub source_trouble: Option<String>,
}

/// One certificate, for `meshctl certs` and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// Lower-case hex; empty: none was issued.
    pub serial: String,
    /// Unix time.
    pub not_before_seconds: u64,
    /// Unix time; 0: none was issued.
    pub not_after_seconds: u64,
    /// Unix time.
    pub next_renewal_seconds: u64,
    /// Failed renewals in a row.
    pub failures: u32,
    /// Why the last renewal failed.
    pub last_error: Option<String>,
}

impl SvidStore {
    /// The store in a few figures.
    pub fn summary(&self, now: SystemTime) -> SvidStoreStatus {
        let entries = self.entries();
        let svids: Vec<_> = entries.values().filter_map(|entry| entry.slot.svid()).collect();
        let valid: Vec<_> = svids.iter().filter(|s| s.not_before <= now && now < s.not_after).collect();
        let issuer_end = self.source.not_after();
        SvidStoreStatus {
            valid: valid.len(),
            missing: entries.len().saturating_sub(valid.len()),
            failing: entries.values().filter(|entry| entry.last_error.is_some()).count(),
            overdue: valid.iter().filter(|svid| validity(svid).is_overdue(now)).count(),
            earliest_end_seconds: svids.iter().map(|s| unix_seconds(s.not_after)).min(),
            last_success_seconds: entries.values().filter_map(|e| e.last_success).max().map(unix_seconds),
            issuer_end_seconds: issuer_end.map(unix_seconds),
            issuer_ends_soon: issuer_end.is_some_and(|end| ends_soon(end, now).is_some()),
            source_trouble: self.source.trouble(),
        }
    }

    /// All certificates, by identity.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let now = self.clock.now();
        let status = |(id, entry): (&SpiffeId, &Entry)| {
            let svid = entry.slot.svid();
            let next = now.wall + entry.plan.next.saturating_sub(now.boot);
            CertificateStatus {
                spiffe_id: id.to_string(),
                serial: svid.as_ref().map(|s| s.serial.clone()).unwrap_or_default(),
                not_before_seconds: svid.as_ref().map_or(0, |s| unix_seconds(s.not_before)),
                not_after_seconds: svid.as_ref().map_or(0, |s| unix_seconds(s.not_after)),
                next_renewal_seconds: unix_seconds(next),
                failures: entry.plan.failures,
                last_error: entry.last_error.clone(),
            }
        };
        self.entries().iter().map(status).collect()
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
