//! When a place of keys is asked again. Pure.

use std::time::Duration;

/// When keys are fetched; the defaults are Istio's where it has one (pilot `jwks_resolver.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// After a fetch that went well.
    pub refresh: Duration,
    /// After the first failure; doubles with each that follows.
    pub retry: Duration,
    /// The longest wait after failures.
    pub retry_at_most: Duration,
    /// At least this between fetches that tokens with unknown keys ask for: anybody can send such tokens.
    pub between_hints: Duration,
    /// Keys that could not be confirmed for this long are dropped.
    pub keep: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(20 * 60),
            retry: Duration::from_secs(1),
            retry_at_most: Duration::from_secs(60),
            between_hints: Duration::from_secs(30),
            keep: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Schedule {
    /// How long to wait after a fetch, when `failures` in a row failed. `random`, from 0 to 1, takes up to a tenth off: the
    /// nodes of a mesh that started together do not ask together for ever.
    pub(super) fn delay(&self, failures: u32, random: f64) -> Duration {
        let whole = match failures {
            0 => self.refresh,
            n => self.retry.saturating_mul(2_u32.saturating_pow(n - 1)).min(self.retry_at_most),
        };
        whole.mul_f64(1.0 - random.clamp(0.0, 1.0) / 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_wait_longer_and_longer_up_to_a_bound() {
        let schedule = Schedule::default();
        for (failures, random, expected_ms) in [
            (0, 0.0, 1_200_000),
            (0, 1.0, 1_080_000),
            (1, 0.0, 1_000),
            (2, 0.0, 2_000),
            (4, 0.5, 7_600),
            (7, 0.0, 60_000),
            (u32::MAX, 1.0, 54_000),
        ] {
            assert_eq!(
                schedule.delay(failures, random),
                Duration::from_millis(expected_ms),
                "{failures} {random}"
            );
        }
    }
}
