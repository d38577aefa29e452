//! The exportable SVIDs that streams want now: one per identity, however many streams share it, renewed like any other. When
//! the last stream has ended it is kept a moment longer, so that a program that asks again and again costs one signature,
//! and is wiped then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::exportable::{ExportableSvid, IssueExportable};
use crate::{
    ca::plan::{Moment, Plan, Validity},
    identity::SpiffeId,
    sys::clock::boot_time,
};

/// How long an SVID is kept that nobody listens to.
const LINGER: Duration = Duration::from_secs(30);
/// An authority that takes longer is asked again.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(15);
/// The clock may jump while a task sleeps; it looks again at least this often.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// What is held for one identity.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    /// The newest that could be had, though it may have ended.
    pub(super) svid: Option<Arc<ExportableSvid>>,
    /// Tries so far: none means that it is too early to give up on the first.
    pub(super) tries: u64,
}

type Entries = Mutex<HashMap<SpiffeId, watch::Sender<Held>>>;

/// Keeps SVIDs for streams.
pub(super) struct Keeper {
    issuer: Arc<dyn IssueExportable>,
    entries: Arc<Entries>,
}

impl Keeper {
    pub(super) fn new(issuer: Arc<dyn IssueExportable>) -> Self {
        Self { issuer, entries: Arc::default() }
    }

    /// The SVID of `id`, now or as soon as it can be had, and its successors. Must be called in a runtime.
    pub(super) fn hold(&self, id: &SpiffeId) -> watch::Receiver<Held> {
        let mut entries = lock(&self.entries);
        if let Some(held) = entries.get(id) {
            return held.subscribe();
        }
        let (sender, receiver) = watch::channel(Held::default());
        entries.insert(id.clone(), sender.clone());
        let task = Task { id: id.clone(), held: sender, plan: Plan::at_once() };
        tokio::spawn(task.run(Arc::clone(&self.issuer), Arc::clone(&self.entries)));
        receiver
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        lock(&self.entries).len()
    }
}

fn lock(entries: &Entries) -> std::sync::MutexGuard<'_, HashMap<SpiffeId, watch::Sender<Held>>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Task {
    id: SpiffeId,
    held: watch::Sender<Held>,
    plan: Plan,
}

impl Task {
    async fn run(mut self, issuer: Arc<dyn IssueExportable>, entries: Arc<Entries>) {
        let mut pushed = issuer.pushed();
        loop {
            let now = Moment::now();
            let is_too_late = self.validity().is_some_and(|validity| self.plan.is_too_late(now, validity));
            if self.plan.is_due(now.boot) || is_too_late {
                self.renew(&*issuer).await;
            }
            let wait = self.plan.wait(boot_time()).min(MAX_SLEEP);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = next(&mut pushed) => self.plan = Plan::at_once(),
                () = self.forgotten() => {
                    // Whoever comes now holds the lock before or finds nothing after.
                    let mut entries = lock(&entries);
                    if self.held.receiver_count() == 0 {
                        entries.remove(&self.id);
                        return;
                    }
                }
            }
        }
    }

    fn validity(&self) -> Option<Validity> {
        let held = self.held.borrow();
        let svid = held.svid.as_ref()?;
        Some(Validity { not_before: svid.not_before, not_after: svid.not_after })
    }

    /// Returns when nobody has listened for a while.
    async fn forgotten(&self) {
        loop {
            self.held.closed().await;
            let came = async {
                while self.held.receiver_count() == 0 {
                    tokio::time::sleep(LINGER / 30).await;
                }
            };
            if timeout(LINGER, came).await.is_err() {
                return;
            }
        }
    }

    async fn renew(&mut self, issuer: &dyn IssueExportable) {
        let jitter = rand::random::<f64>();
        let answer = timeout(ISSUE_TIMEOUT, issuer.issue_exportable(&self.id)).await;
        let outcome = match answer {
            Ok(Ok(svid)) => Ok(svid),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the authority does not answer".to_owned()),
        };
        let now = Moment::now();
        match outcome {
            Ok(svid) => {
                self.plan = Plan::after_issue(now, svid.not_after, jitter);
                tracing::info!(spiffe_id = %self.id, serial = %svid.serial, "SVID issued for the Workload API");
                self.held.send_modify(|held| {
                    held.svid = Some(Arc::new(svid));
                    held.tries += 1;
                });
            }
            Err(error) => {
                self.plan = self.plan.after_failure(now, self.validity(), jitter);
                tracing::warn!(spiffe_id = %self.id, %error, "no SVID for the Workload API; it is tried again");
                self.held.send_modify(|held| held.tries += 1);
            }
        }
    }
}

/// The next push; never, where there are none.
async fn next(pushed: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = pushed
        && receiver.changed().await.is_ok()
    {
        return;
    }
    *pushed = None;
    std::future::pending::<()>().await;
}
