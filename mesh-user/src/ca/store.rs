//! The SVIDs of this node's workloads: readers take one without a lock, a task renews them. A renewal that
//! fails leaves the old SVID in use; an expired one is still handed out, since the peer refuses it anyway.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    CaError, Issuer,
    plan::{Plan, ends_soon},
};
use crate::{
    identity::{SpiffeId, Svid, TrustBundles},
    telemetry::Metrics,
};

/// The clock may jump while the task sleeps; it looks again at least this often.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// The SVIDs of this node's workloads.
pub struct SvidStore {
    issuer: Box<dyn Issuer>,
    svids: ArcSwap<BTreeMap<SpiffeId, Arc<Svid>>>,
    /// Writers hold this; readers never do.
    plans: Mutex<BTreeMap<SpiffeId, Entry>>,
    changed: Notify,
    metrics: Option<Arc<Metrics>>,
}

impl fmt::Debug for SvidStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidStore").finish_non_exhaustive()
    }
}

struct Entry {
    plan: Plan,
    last_error: Option<String>,
}

/// How often an issuing certificate that ends soon is complained about.
const DAY: Duration = Duration::from_secs(86_400);

/// The store in a few figures, for metrics and health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SvidStoreStatus {
    /// Identities with an SVID that is valid now.
    pub valid: usize,
    /// Identities without an SVID, or with one that ended.
    pub missing: usize,
    /// Identities whose last renewal failed.
    pub failing: usize,
    /// Unix time of the earliest end of an SVID.
    pub earliest_end_seconds: Option<u64>,
    /// Unix time of the issuing certificate's end, where the issuer knows it.
    pub issuer_end_seconds: Option<u64>,
    /// Whether the issuing certificate ends within 30 days.
    pub issuer_ends_soon: bool,
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
    /// An empty store.
    pub fn new(issuer: impl Issuer + 'static) -> Self {
        Self {
            issuer: Box::new(issuer),
            svids: ArcSwap::default(),
            plans: Mutex::default(),
            changed: Notify::new(),
            metrics: None,
        }
    }

    /// Issues and renewals, and failures to, are counted there.
    #[must_use]
    pub fn counted_by(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// The roots that the issuer's SVIDs chain to.
    pub fn bundles(&self) -> TrustBundles {
        self.issuer.bundles()
    }

    /// The SVID in use for an identity.
    pub fn get(&self, id: &SpiffeId) -> Option<Arc<Svid>> {
        self.svids.load().get(id).cloned()
    }

    /// Issues what is missing of `ids` and forgets the others. Returns the identities that have no SVID and
    /// why; the task keeps trying for them.
    pub fn ensure(&self, ids: impl IntoIterator<Item = SpiffeId>) -> Vec<(SpiffeId, CaError)> {
        let wanted: BTreeSet<SpiffeId> = ids.into_iter().collect();
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut svids = BTreeMap::clone(&self.svids.load());
        plans.retain(|id, _| wanted.contains(id));
        svids.retain(|id, _| wanted.contains(id));
        let mut failed = Vec::new();
        for id in wanted {
            if svids.contains_key(&id) {
                continue;
            }
            let entry = plans.entry(id.clone()).or_insert_with(Entry::new);
            match self.renew(entry, &id) {
                Ok(svid) => {
                    svids.insert(id, svid);
                }
                Err(error) => failed.push((id, error)),
            }
        }
        self.svids.store(Arc::new(svids));
        drop(plans);
        self.changed.notify_one();
        failed
    }

    /// Renews what is due now. Returns each renewal's outcome, for the log.
    pub fn renew_due(&self, now: SystemTime) -> Vec<(SpiffeId, Result<Arc<Svid>, CaError>)> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcomes = Vec::new();
        for (id, entry) in plans.iter_mut().filter(|(_, e)| e.plan.is_due(now)) {
            outcomes.push((id.clone(), self.renew(entry, id)));
        }
        if outcomes.iter().any(|(_, outcome)| outcome.is_ok()) {
            let mut svids = BTreeMap::clone(&self.svids.load());
            let renewed =
                outcomes.iter().filter_map(|(id, o)| Some((id.clone(), Arc::clone(o.as_ref().ok()?))));
            svids.extend(renewed);
            self.svids.store(Arc::new(svids));
        }
        outcomes
    }

    fn renew(&self, entry: &mut Entry, id: &SpiffeId) -> Result<Arc<Svid>, CaError> {
        let outcome = entry.renew(&*self.issuer, id);
        if let Some(metrics) = &self.metrics {
            metrics.svid_renewed(outcome.is_ok());
        }
        outcome
    }

    /// Renews until `shutdown`. Signing is short work (well under a millisecond a key), so it runs in place.
    pub async fn run(&self, shutdown: CancellationToken) {
        // The first day's warning is the one of opening the CA.
        let mut daily = tokio::time::interval_at(tokio::time::Instant::now() + DAY, DAY);
        loop {
            let wait = self.next_wait(SystemTime::now());
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
                _ = daily.tick() => self.warn_of_issuer(SystemTime::now()),
            }
            for (id, outcome) in self.renew_due(SystemTime::now()) {
                match outcome {
                    Ok(svid) => tracing::info!(spiffe_id = %id, serial = %svid.serial, "SVID renewed"),
                    Err(error) => {
                        tracing::warn!(spiffe_id = %id, %error, "SVID not renewed; the old one stays");
                    }
                }
            }
        }
    }

    fn warn_of_issuer(&self, now: SystemTime) {
        if let Some(days) = self.issuer.not_after().and_then(|end| ends_soon(end, now)) {
            tracing::warn!(days, "the CA's own certificate ends soon; replace the files in its folder");
        }
    }

    fn next_wait(&self, now: SystemTime) -> Duration {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.values().map(|e| e.plan.wait(now)).min().unwrap_or(MAX_SLEEP).min(MAX_SLEEP)
    }

    /// The store in a few figures.
    pub fn summary(&self, now: SystemTime) -> SvidStoreStatus {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let svids = self.svids.load();
        let valid = svids.values().filter(|s| s.not_before <= now && now < s.not_after).count();
        let issuer_end = self.issuer.not_after();
        SvidStoreStatus {
            valid,
            missing: plans.len().saturating_sub(valid),
            failing: plans.values().filter(|e| e.last_error.is_some()).count(),
            earliest_end_seconds: svids.values().map(|s| unix_seconds(s.not_after)).min(),
            issuer_end_seconds: issuer_end.map(unix_seconds),
            issuer_ends_soon: issuer_end.is_some_and(|end| ends_soon(end, now).is_some()),
        }
    }

    /// All certificates, by identity.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let svids = self.svids.load();
        let status = |(id, entry): (&SpiffeId, &Entry)| {
            let svid = svids.get(id);
            CertificateStatus {
                spiffe_id: id.to_string(),
                serial: svid.map(|s| s.serial.clone()).unwrap_or_default(),
                not_before_seconds: svid.map_or(0, |s| unix_seconds(s.not_before)),
                not_after_seconds: svid.map_or(0, |s| unix_seconds(s.not_after)),
                next_renewal_seconds: unix_seconds(entry.plan.next),
                failures: entry.plan.failures,
                last_error: entry.last_error.clone(),
            }
        };
        plans.iter().map(status).collect()
    }
}

impl Entry {
    fn new() -> Self {
        Self { plan: Plan { next: UNIX_EPOCH, made: UNIX_EPOCH, failures: 0 }, last_error: None }
    }

    fn renew(&mut self, issuer: &dyn Issuer, id: &SpiffeId) -> Result<Arc<Svid>, CaError> {
        let jitter = rand::random::<f64>();
        match issuer.issue(id) {
            Ok(svid) => {
                self.plan = Plan::after_issue(SystemTime::now(), svid.not_after, jitter);
                self.last_error = None;
                Ok(Arc::new(svid))
            }
            Err(error) => {
                self.plan = self.plan.after_failure(SystemTime::now(), jitter);
                self.last_error = Some(error.to_string());
                Err(error)
            }
        }
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
