//! The SVIDs of this node's workloads: readers take one without a lock, a task issues and renews them, so many at a time.
//! A renewal that fails leaves the old SVID in use; an expired one is still handed out, since the peer refuses it anyway.

mod slot;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use self::slot::Slot;
pub use self::{
    slot::NoSvid,
    status::{CertificateStatus, SvidStoreStatus},
};
use super::{
    CaError, SvidSource,
    plan::{Clock, Moment, Plan, SystemClock, Validity, ends_soon},
    revocation::is_revoked,
};
use crate::{
    identity::{SpiffeId, Svid, TrustBundles},
    sys::clock::Alarm,
    telemetry::Metrics,
};

/// How many SVIDs are asked for at the same time.
const AT_A_TIME: usize = 16;
/// How long the source may take for one.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(15);
/// Without being woken, the task looks again at least this often.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// How often an issuing certificate that ends soon is complained about.
const DAY: Duration = Duration::from_secs(86_400);

/// The SVIDs of this node's workloads.
pub struct SvidStore {
    source: Arc<dyn SvidSource>,
    clock: Box<dyn Clock>,
    slots: ArcSwap<BTreeMap<SpiffeId, Arc<Slot>>>,
    /// Writers hold this; readers never do.
    entries: Mutex<BTreeMap<SpiffeId, Entry>>,
    changed: Notify,
    tried: Notify,
    metrics: Option<Arc<Metrics>>,
}

impl fmt::Debug for SvidStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidStore").finish_non_exhaustive()
    }
}

struct Entry {
    slot: Arc<Slot>,
    plan: Plan,
    under_way: bool,
    tried: bool,
    last_success: Option<SystemTime>,
    last_error: Option<String>,
}

impl SvidStore {
    /// An empty store.
    pub fn new(source: Arc<dyn SvidSource>) -> Self {
        Self {
            source,
            clock: Box::new(SystemClock),
            slots: ArcSwap::default(),
            entries: Mutex::default(),
            changed: Notify::new(),
            tried: Notify::new(),
            metrics: None,
        }
    }

    /// Issues and renewals, and failures to, are counted there.
    #[must_use]
    pub fn counted_by(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// What the source's SVIDs are held against, now and after each change.
    pub fn trust(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.source.trust()
    }

    /// What the source says of trust has been put into force. `bundles` are that and what files say: an own SVID that they
    /// take back is renewed at once.
    pub fn trust_in_force(&self, trust: &Arc<TrustBundles>, bundles: &TrustBundles) {
        self.source.trust_in_force(trust);
        let mut revoked = 0;
        for (id, entry) in self.entries().iter_mut().filter(|(_, entry)| !entry.under_way) {
            if entry.slot.svid().is_some_and(|svid| is_revoked(&svid.chain, id.trust_domain(), bundles)) {
                entry.plan = Plan::at_once();
                revoked += 1;
            }
        }
        if revoked > 0 {
            tracing::warn!(revoked, "SVIDs of this node have been revoked; they are renewed now");
            self.changed.notify_one();
        }
    }

    /// The SVID in use for an identity.
    pub fn get(&self, id: &SpiffeId) -> Option<Arc<Svid>> {
        self.slots.load().get(id)?.svid()
    }

    /// The SVID in use for an identity; the first one is waited for while it is on its way.
    ///
    /// # Errors
    /// When nobody here has this identity, or none has come within `patience`.
    pub async fn wait(&self, id: &SpiffeId, patience: Duration) -> Result<Arc<Svid>, NoSvid> {
        let slot = self.slots.load().get(id).cloned().ok_or(NoSvid::NotWanted)?;
        if let Some(svid) = slot.svid() {
            return Ok(svid);
        }
        if let Ok(svid) = timeout(patience, slot.first()).await {
            return Ok(svid);
        }
        let why = self.entries().get(id).and_then(|entry| entry.last_error.clone());
        Err(why.map_or(NoSvid::UnderWay, NoSvid::Failing))
    }

    /// These identities are to have SVIDs, and no other: what is missing is asked for by [`Self::run`].
    pub fn ensure(&self, ids: impl IntoIterator<Item = SpiffeId>) {
        let wanted: BTreeSet<SpiffeId> = ids.into_iter().collect();
        let mut entries = self.entries();
        entries.retain(|id, _| wanted.contains(id));
        for id in wanted {
            entries.entry(id).or_insert_with(Entry::new);
        }
        let slots = entries.iter().map(|(id, entry)| (id.clone(), Arc::clone(&entry.slot))).collect();
        self.slots.store(Arc::new(slots));
        drop(entries);
        self.changed.notify_one();
        self.tried.notify_waiters();
    }

    /// Waits until each identity has been asked for once, whatever came of it. False: `patience` was over before.
    pub async fn tried_once(&self, patience: Duration) -> bool {
        let all_tried = async {
            loop {
                let mut tried = std::pin::pin!(self.tried.notified());
                tried.as_mut().enable();
                if self.entries().values().all(|entry| entry.tried) {
                    return;
                }
                tried.await;
            }
        };
        timeout(patience, all_tried).await.is_ok()
    }

    /// Issues and renews until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let alarm = self.clock.alarm();
        let mut pushed = self.source.pushed();
        // The first day's warning is the one of opening the CA.
        let mut daily = tokio::time::interval_at(Instant::now() + DAY, DAY);
        let mut due = VecDeque::new();
        let mut under_way = FuturesUnordered::new();
        loop {
            if due.is_empty() {
                due = self.due();
            }
            while under_way.len() < AT_A_TIME
                && let Some(id) = due.pop_front()
            {
                under_way.push(self.issue(id));
            }
            let wake_at = self.clock.now().boot + MAX_SLEEP;
            let wake_at = if due.is_empty() { self.next_due().min(wake_at) } else { wake_at };
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                () = self.changed.notified() => due.extend(self.due()),
                () = sleep(&*self.clock, alarm.as_ref(), wake_at) => due.extend(self.due()),
                _ = daily.tick() => self.warn_of_issuer(SystemTime::now()),
                () = other_svids(&mut pushed) => self.renew_all(),
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<SpiffeId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be asked for now; each is in one queue only.
    fn due(&self) -> VecDeque<SpiffeId> {
        let now = self.clock.now();
        let mut entries = self.entries();
        let late = |entry: &Entry| Some(entry.validity()?).filter(|v| entry.plan.is_too_late(now, *v));
        let count = entries.values().filter(|entry| late(entry).is_some()).count();
        if count > 0 {
            tracing::info!(count, "the clock was set; SVIDs are renewed sooner");
        }
        let mut due = VecDeque::new();
        for (id, entry) in entries.iter_mut().filter(|(_, entry)| !entry.under_way) {
            if let Some(validity) = late(entry) {
                entry.plan = Plan::brought_forward(now, validity, count, rand::random());
            }
            if entry.plan.is_due(now.boot) {
                entry.under_way = true;
                due.push_back(id.clone());
            }
        }
        due
    }

    fn next_due(&self) -> Duration {
        let entries = self.entries();
        let waiting = entries.values().filter(|entry| !entry.under_way);
        waiting.map(|entry| entry.plan.next).min().unwrap_or(Duration::MAX)
    }

    fn renew_all(&self) {
        for entry in self.entries().values_mut().filter(|entry| !entry.under_way) {
            entry.plan = Plan::at_once();
        }
        self.changed.notify_one();
    }

    async fn issue(&self, id: SpiffeId) {
        let began = Instant::now();
        let answer = timeout(ISSUE_TIMEOUT, self.source.issue(&id)).await;
        let answer = answer.unwrap_or(Err(CaError::Timeout(ISSUE_TIMEOUT)));
        let outcome = answer.and_then(|svid| self.checked(&id, svid));
        if let Some(metrics) = &self.metrics {
            metrics.svid_renewed(outcome.is_ok());
        }
        let now = self.clock.now();
        let mut entries = self.entries();
        // Nobody may want it any more.
        if let Some(entry) = entries.get_mut(&id) {
            match outcome {
                Ok(svid) => {
                    let elapsed = began.elapsed();
                    tracing::info!(spiffe_id = %id, serial = %svid.serial, ?elapsed, "SVID issued");
                    entry.succeeded(svid, now);
                }
                Err(error) => {
                    let old = entry.slot.svid().is_some();
                    tracing::warn!(spiffe_id = %id, %error, old_stays = old, "no SVID was issued; it is tried again");
                    entry.failed(&error, now);
                }
            }
        }
        drop(entries);
        self.tried.notify_waiters();
    }

    /// Whatever the source, what it gave is an SVID of this identity and valid by this node's clock.
    fn checked(&self, id: &SpiffeId, svid: Svid) -> Result<Svid, CaError> {
        let sign = |what: String| CaError::Sign { subject: id.to_string(), what };
        if svid.spiffe_id != *id {
            return Err(sign(format!("the answer is an SVID of {}", svid.spiffe_id)));
        }
        validity(&svid).check(self.clock.now().wall).map_err(|what| sign(what.to_owned()))?;
        Ok(svid)
    }

    fn warn_of_issuer(&self, now: SystemTime) {
        if let Some(days) = self.source.not_after().and_then(|end| ends_soon(end, now)) {
            tracing::warn!(days, "the CA's own certificate ends soon; replace the files in its folder");
        }
    }
}

impl Entry {
    fn new() -> Self {
        Self {
            slot: Arc::default(),
            plan: Plan::at_once(),
            under_way: false,
            tried: false,
            last_success: None,
            last_error: None,
        }
    }

    fn validity(&self) -> Option<Validity> {
        self.slot.svid().map(|svid| validity(&svid))
    }

    fn succeeded(&mut self, svid: Svid, now: Moment) {
        self.plan = Plan::after_issue(now, svid.not_after, rand::random());
        (self.under_way, self.tried) = (false, true);
        (self.last_success, self.last_error) = (Some(now.wall), None);
        self.slot.put(svid);
    }

    fn failed(&mut self, error: &CaError, now: Moment) {
        self.plan = self.plan.after_failure(now, self.validity(), rand::random());
        (self.under_way, self.tried) = (false, true);
        self.last_error = Some(error.to_string());
    }
}

fn validity(svid: &Svid) -> Validity {
    Validity { not_before: svid.not_before, not_after: svid.not_after }
}

/// Ends early when the wall clock was set.
async fn sleep(clock: &dyn Clock, alarm: Option<&Alarm>, until: Duration) {
    if let Some(alarm) = alarm
        && alarm.ring(until).await.is_ok()
    {
        return;
    }
    tokio::time::sleep(until.saturating_sub(clock.now().boot).min(MAX_SLEEP)).await;
}

/// Pends for ever where the source pushes nothing.
async fn other_svids(pushed: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = pushed {
        if receiver.changed().await.is_ok() {
            return;
        }
        *pushed = None;
    }
    std::future::pending::<()>().await;
}
