//! When a bundle endpoint is asked again. Pure.
//!
//! Sources: SPIFFE Federation sections 4.1 and 6.2, SPIFFE Trust Domain and Bundle section 6.2.

use std::time::Duration;

/// Where the bundle does not say, as the standard recommends.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Whatever the bundle says.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Between attempts while there is no bundle at all: nobody of the trust domain is believed until there is one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const FIRST_RETRY_AT_MOST: Duration = Duration::from_secs(60);
/// Failures make the interval longer up to this, where the bundle's own is not longer.
const RETRY_AT_MOST: Duration = Duration::from_secs(3600);

/// How long to wait after an attempt, when `failures` in a row failed. `hint` is the known bundle's; `random`, from 0 to 1,
/// takes up to a tenth off, so that nodes that started together do not ask together for ever.
pub(super) fn delay(has_bundle: bool, hint: Option<Duration>, failures: u32, random: f64) -> Duration {
    let interval = hint.unwrap_or(INTERVAL).clamp(SHORTEST, LONGEST);
    let times = |n: u32| 2_u32.saturating_pow(n.saturating_sub(1));
    let whole = match (failures, has_bundle) {
        (0, _) => interval,
        (n, false) => FIRST_RETRY.saturating_mul(times(n)).min(FIRST_RETRY_AT_MOST),
        (n, true) => interval.saturating_mul(times(n)).min(RETRY_AT_MOST.max(interval)),
    };
    whole.mul_f64(1.0 - random.clamp(0.0, 1.0) / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_followed_within_bounds_and_failures_wait_longer() {
        let hint = |seconds| Some(Duration::from_secs(seconds));
        for (has_bundle, hint, failures, random, expected_ms) in [
            (true, None, 0, 0.0, 300_000),
            (true, hint(600), 0, 0.0, 600_000),
            (true, hint(600), 0, 1.0, 540_000),
            (true, hint(0), 0, 0.0, 5_000),
            (true, hint(u64::MAX), 0, 0.0, 86_400_000),
            (true, hint(600), 1, 0.0, 600_000),
            (true, hint(600), 2, 0.0, 1_200_000),
            (true, hint(600), 20, 0.0, 3_600_000),
            (true, hint(7200), u32::MAX, 0.0, 7_200_000),
            (false, None, 1, 0.0, 1_000),
            (false, None, 3, 0.5, 3_800),
            (false, None, u32::MAX, 0.0, 60_000),
        ] {
            let delay = delay(has_bundle, hint, failures, random);
            assert_eq!(
                delay,
                Duration::from_millis(expected_ms),
                "{has_bundle} {hint:?} {failures} {random}"
            );
        }
    }
}
