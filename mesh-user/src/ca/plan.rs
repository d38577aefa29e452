//! When an SVID is renewed. A pure plan: the clocks and the dice come from outside.
//!
//! Renewals are planned on a clock that counts suspend and that nobody sets. The wall clock only says whether a certificate
//! is valid: where it has been set so that the plan would come too late, the plan is made anew.

use std::time::{Duration, SystemTime};

use crate::sys::clock::{Alarm, boot_time};

/// First wait after a failed renewal, which doubles up to [`MAX_BACKOFF`], and the shortest after a good one.
pub(super) const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// Longest wait of an identity that cannot be proven: it has no SVID, or one that ended.
const MAX_BACKOFF_WITHOUT: Duration = Duration::from_secs(30);
/// However the dice fall, a failed renewal is not tried again sooner.
const LEAST_BACKOFF: Duration = Duration::from_millis(50);

/// How far two clocks may differ before an SVID counts as not valid yet; what an issuer backdates it by.
pub(super) const SKEW: Duration = Duration::from_secs(60);

/// Of the life that is left, the earliest and the latest part at which an SVID is renewed.
const EARLIEST: f64 = 0.4;
const LATEST: f64 = 0.6;
/// An SVID with less than this part of its life left should have been renewed for long.
const OVERDUE: f64 = 1.0 / 3.0;

/// What a jump of the wall clock makes due is spread by this for each SVID, at most [`MAX_SPREAD`].
const SPREAD_EACH: Duration = Duration::from_millis(10);
const MAX_SPREAD: Duration = Duration::from_secs(30);

/// How long before its end an issuing certificate is complained about.
const EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 86_400);

/// Whole days that an issuing certificate has left, when it is time to replace it.
pub(super) fn ends_soon(not_after: SystemTime, now: SystemTime) -> Option<u64> {
    let left = not_after.duration_since(now).unwrap_or_default();
    (left < EXPIRY_NOTICE).then_some(left.as_secs() / 86_400)
}

/// What both clocks show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// Since the machine started, suspend included.
    pub(super) boot: Duration,
    /// What certificates are judged by.
    pub(super) wall: SystemTime,
}

impl Moment {
    /// Now.
    pub(super) fn now() -> Self {
        Self { boot: boot_time(), wall: SystemTime::now() }
    }
}

/// Where the time comes from.
pub(super) trait Clock: Send + Sync {
    /// What both clocks show now.
    fn now(&self) -> Moment;

    /// Rings at a time that [`Self::now`] shows; none: it has to be looked at.
    fn alarm(&self) -> Option<Alarm> {
        None
    }
}

/// The machine's own.
pub(super) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Moment::now()
    }

    fn alarm(&self) -> Option<Alarm> {
        let alarm = Alarm::new().inspect_err(|error| {
            tracing::warn!(%error, "no timer that counts suspend; the clocks are looked at every half minute");
        });
        alarm.ok()
    }
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Validity {
    /// The life that is left; none: it is not valid by this clock.
    fn left(self, wall: SystemTime) -> Option<Duration> {
        let left = self.not_after.duration_since(wall).ok().filter(|left| !left.is_zero())?;
        (self.not_before <= wall + SKEW).then_some(left)
    }

    /// Whether an issuer's answer is valid now, and why not.
    pub(super) fn check(self, wall: SystemTime) -> Result<(), &'static str> {
        if self.not_after <= wall {
            Err("it has ended already; compare the clocks of this node and of the CA")
        } else if self.left(wall).is_none() {
            Err("it is not valid yet; compare the clocks of this node and of the CA")
        } else {
            Ok(())
        }
    }

    /// Whether renewal should have succeeded for long.
    pub(super) fn is_overdue(self, wall: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.left(wall).unwrap_or_default() < life.mul_f64(OVERDUE)
    }
}

/// What is known about one SVID's renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// When to try next, since the machine started.
    pub(super) next: Duration,
    /// Failures in a row.
    pub(super) failures: u32,
    /// It was brought forward already.
    hurried: bool,
}

impl Plan {
    /// To be tried now.
    pub(super) fn at_once() -> Self {
        Self { next: Duration::ZERO, failures: 0, hurried: true }
    }

    /// Half of the life that is left, give or take a tenth of it, so that SVIDs issued together are not renewed
    /// together. What an SVID's start is backdated by does not count: of a short life it could be more than half,
    /// and the plan would be due at once, for ever. `jitter` is in `0.0..1.0`.
    pub(super) fn after_issue(now: Moment, not_after: SystemTime, jitter: f64) -> Self {
        let life = not_after.duration_since(now.wall).unwrap_or_default();
        let wait = life.mul_f64(EARLIEST + (LATEST - EARLIEST) * jitter.clamp(0.0, 1.0));
        Self { next: now.boot + wait.max(MIN_BACKOFF), failures: 0, hurried: false }
    }

    /// Exponential backoff with full jitter; the old SVID stays in use. The less of its life is left, the sooner it is
    /// tried again.
    pub(super) fn after_failure(self, now: Moment, validity: Option<Validity>, jitter: f64) -> Self {
        let most = match validity.and_then(|validity| validity.left(now.wall)) {
            Some(left) => (left / 4).clamp(MIN_BACKOFF, MAX_BACKOFF),
            None => MAX_BACKOFF_WITHOUT,
        };
        let wait = MIN_BACKOFF.saturating_mul(1 << self.failures.min(16)).min(most);
        let wait = wait.mul_f64(jitter.clamp(0.0, 1.0)).max(LEAST_BACKOFF);
        Self { next: now.boot + wait, failures: self.failures.saturating_add(1), ..self }
    }

    /// How long to sleep until it is time.
    pub(super) fn wait(&self, boot: Duration) -> Duration {
        self.next.saturating_sub(boot)
    }

    /// Whether it is time.
    pub(super) fn is_due(&self, boot: Duration) -> bool {
        self.next <= boot
    }

    /// Whether the wall clock was set so that the plan would come too late. A clock that runs on never shows this: what is
    /// left of a life shrinks slower than what is left of a part of it.
    pub(super) fn is_too_late(&self, now: Moment, validity: Validity) -> bool {
        if self.hurried || self.failures > 0 {
            return false;
        }
        match validity.left(now.wall) {
            Some(left) => self.next.saturating_sub(now.boot) > left.mul_f64(LATEST).max(MIN_BACKOFF),
            None => true,
        }
    }

    /// The plan for an SVID whose plan is too late, one of `count`: for one that is valid a part of what is left, for others
    /// at once, but not all at the same time.
    pub(super) fn brought_forward(now: Moment, validity: Validity, count: usize, jitter: f64) -> Self {
        if validity.left(now.wall).is_some() {
            return Self::after_issue(now, validity.not_after, jitter);
        }
        let others = u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX);
        let spread = SPREAD_EACH.saturating_mul(others).min(MAX_SPREAD);
        Self { next: now.boot + spread.mul_f64(jitter.clamp(0.0, 1.0)), failures: 0, hurried: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(boot: Duration, wall: SystemTime) -> Moment {
        Moment { boot, wall }
    }

    fn start() -> Moment {
        at(DAY, SystemTime::UNIX_EPOCH + 10_000 * DAY)
    }

    fn day_from(moment: Moment) -> Validity {
        Validity { not_before: moment.wall - SKEW, not_after: moment.wall + DAY }
    }

    #[test]
    fn renewal_is_due_around_half_the_life_whatever_the_wall_clock_shows() {
        for (jitter, part) in [(0.0, 0.4), (0.5, 0.5), (1.0, 0.6)] {
            let plan = Plan::after_issue(start(), start().wall + DAY, jitter);
            let off = plan.next.abs_diff(start().boot + DAY.mul_f64(part));
            assert!(off < Duration::from_millis(1), "{jitter}");
            assert!(!plan.is_due(plan.next.saturating_sub(MIN_BACKOFF)) && plan.is_due(plan.next));
        }
        for left in [Duration::ZERO, Duration::from_millis(10), MIN_BACKOFF] {
            let plan = Plan::after_issue(start(), start().wall + left, 0.0);
            assert!(!plan.is_due(start().boot), "due at once, for ever: {left:?}");
        }
    }

    #[test]
    fn failures_back_off_with_full_jitter_up_to_a_quarter_of_what_is_left() {
        let hour = Duration::from_secs(3600);
        for (left, most) in
            [(Some(DAY), 300), (Some(hour / 60), 15), (Some(Duration::from_secs(2)), 1), (None, 30)]
        {
            let validity = left.map(|left| Validity { not_after: start().wall + left, ..day_from(start()) });
            let mut plan = Plan::at_once();
            let mut waits = Vec::new();
            for _ in 0..40 {
                let least = plan.after_failure(start(), validity, 0.0).next.abs_diff(start().boot);
                assert_eq!(least, LEAST_BACKOFF);
                plan = plan.after_failure(start(), validity, 1.0);
                waits.push(plan.next.abs_diff(start().boot).as_secs());
            }
            assert_eq!(waits[0], 1);
            assert_eq!((waits[39], plan.failures), (most, 40), "{left:?}");
        }
    }

    #[test]
    fn the_wall_clock_brings_a_renewal_forward_only_where_it_would_come_too_late() {
        let hours = |h: u32| Duration::from_secs(u64::from(h) * 3600);
        let validity = day_from(start());
        let plan = Plan::after_issue(start(), validity.not_after, 1.0);
        let (boot, wall) = (start().boot, start().wall);
        for (what, now, too_late) in [
            ("nothing happened", start(), false),
            ("time goes by", at(boot + hours(10), wall + hours(10)), false),
            ("suspended over the plan", at(boot + hours(20), wall + hours(20)), false),
            ("set forward an hour", at(boot, wall + hours(1)), true),
            ("set forward past the end", at(boot, wall + hours(30)), true),
            ("set back within what is backdated", at(boot, wall - SKEW), false),
            ("set back before the start", at(boot, wall - hours(1)), true),
            ("set back a little after a while", at(boot + hours(10), wall + hours(9)), false),
        ] {
            assert_eq!(plan.is_too_late(now, validity), too_late, "{what}");
        }
        let gone = at(boot, wall + hours(30));
        assert!(!plan.after_failure(gone, Some(validity), 1.0).is_too_late(gone, validity), "a stampede");
        assert!(!Plan::brought_forward(gone, validity, 1, 1.0).is_too_late(gone, validity), "for ever");
    }

    #[test]
    fn what_a_jump_makes_due_is_spread() {
        let validity = day_from(start());
        let gone = at(start().boot, start().wall + 2 * DAY);
        assert_eq!(
            Plan::brought_forward(gone, validity, 1, 1.0).next,
            gone.boot,
            "one alone has not to wait"
        );
        let last = Plan::brought_forward(gone, validity, 1000, 1.0).next.abs_diff(gone.boot);
        assert_eq!(last, SPREAD_EACH * 999);
        let less = at(start().boot, start().wall + DAY / 2);
        let part = Plan::brought_forward(less, validity, 1000, 0.0).next.abs_diff(less.boot);
        assert_eq!(part, DAY.mul_f64(0.5 * EARLIEST), "a valid one has time");
    }

    #[test]
    fn renewal_is_overdue_long_before_the_end() {
        let validity = Validity { not_before: start().wall, not_after: start().wall + DAY };
        for (hours, overdue) in [(0, false), (15, false), (17, true), (30, true)] {
            let wall = start().wall + Duration::from_secs(hours * 3600);
            assert_eq!(validity.is_overdue(wall), overdue, "{hours}");
        }
    }
}
