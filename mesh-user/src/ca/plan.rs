//! When an SVID is renewed. A pure plan: the clock and the dice come from outside.

use std::time::{Duration, SystemTime};

/// First wait after a failed renewal, which doubles up to [`MAX_BACKOFF`], and the shortest after a good one.
pub(super) const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// A clock that shows less than when the plan was made, by more than SVIDs are backdated, was set back: what was
/// issued is not valid yet.
const SET_BACK: Duration = Duration::from_secs(60);

/// How long before its end an issuing certificate is complained about.
const EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 86_400);

/// Whole days that an issuing certificate has left, when it is time to replace it.
pub(super) fn ends_soon(not_after: SystemTime, now: SystemTime) -> Option<u64> {
    let left = not_after.duration_since(now).unwrap_or_default();
    (left < EXPIRY_NOTICE).then_some(left.as_secs() / 86_400)
}

/// What is known about one SVID's renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// When to try next.
    pub(super) next: SystemTime,
    /// What the clock showed when this was planned.
    pub(super) made: SystemTime,
    /// Failures in a row.
    pub(super) failures: u32,
}

impl Plan {
    /// Half of the life that is left, give or take a tenth of it, so that SVIDs issued together are not renewed
    /// together. What an SVID's start is backdated by does not count: of a short life it could be more than half,
    /// and the plan would be due at once, for ever. `jitter` is in `0.0..1.0`.
    pub(super) fn after_issue(now: SystemTime, not_after: SystemTime, jitter: f64) -> Self {
        let life = not_after.duration_since(now).unwrap_or_default();
        let part = 0.4 + 0.2 * jitter.clamp(0.0, 1.0);
        Self { next: now + life.mul_f64(part).max(MIN_BACKOFF), made: now, failures: 0 }
    }

    /// Exponential backoff, half of it random; the old SVID stays in use.
    pub(super) fn after_failure(self, now: SystemTime, jitter: f64) -> Self {
        let wait = MIN_BACKOFF.saturating_mul(1 << self.failures.min(16)).min(MAX_BACKOFF);
        let wait = wait.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        Self { next: now + wait, made: now, failures: self.failures.saturating_add(1) }
    }

    /// Whether it is time, by a clock that may have been set.
    pub(super) fn is_due(&self, now: SystemTime) -> bool {
        self.next <= now || now + SET_BACK < self.made
    }

    /// How long to sleep before the next try.
    pub(super) fn wait(&self, now: SystemTime) -> Duration {
        if self.is_due(now) {
            return Duration::ZERO;
        }
        self.next.duration_since(now).unwrap_or_default()
    }
}
