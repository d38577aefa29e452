//! How often and how long each scenario is measured, so that a run ends in time. Pure.

use crate::scenario::Scenario;

/// Seconds that measuring may take in a daily run, set-up and idle connections not counted.
const QUICK_BUDGET_S: usize = 100;
const QUICK_REPEATS: usize = 3;
const FULL_REPEATS: usize = 5;
const FULL_SECONDS: u32 = 5;
/// A clock of instructions says the same within a percent; in less time the handshakes at its begin would show.
const COUNTED_REPEATS: usize = 2;
const COUNTED_SECONDS: u32 = 4;
/// Scenarios that take as long as they take are repeated less in a daily run.
const QUICK_UNTIMED_REPEATS: usize = 1;

/// Repeats and lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) repeats: usize,
    pub(crate) untimed_repeats: usize,
    pub(crate) seconds: u32,
}

impl Plan {
    /// For so many subjects.
    pub(crate) fn new(quick: bool, subjects: usize, scenarios: &[Scenario]) -> Self {
        if !quick {
            return Self { repeats: FULL_REPEATS, untimed_repeats: FULL_REPEATS, seconds: FULL_SECONDS };
        }
        let timed = scenarios.iter().filter(|scenario| scenario.is_timed()).count();
        let measurements = (subjects * timed * QUICK_REPEATS).max(1);
        let seconds = u32::try_from(QUICK_BUDGET_S / measurements).unwrap_or(1).clamp(1, FULL_SECONDS);
        Self { repeats: QUICK_REPEATS, untimed_repeats: QUICK_UNTIMED_REPEATS, seconds }
    }

    /// In a machine whose clock counts instructions.
    pub(crate) fn counted() -> Self {
        Self { repeats: COUNTED_REPEATS, untimed_repeats: 1, seconds: COUNTED_SECONDS }
    }

    /// How often this scenario is measured.
    pub(crate) fn repeats_of(&self, scenario: &Scenario) -> usize {
        if scenario.is_timed() { self.repeats } else { self.untimed_repeats }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    fn daily() -> Vec<Scenario> {
        scenario::ALL.iter().copied().filter(|scenario| scenario.quick).collect()
    }

    #[test]
    fn a_daily_run_is_shorter_with_more_subjects() {
        let lengths = [3, 6, 12].map(|subjects| Plan::new(true, subjects, &daily()).seconds);
        assert!(lengths[0] > lengths[2] && lengths[2] >= 1, "{lengths:?}");
        for subjects in 1..=6 {
            let plan = Plan::new(true, subjects, &daily());
            let timed = daily().iter().filter(|scenario| scenario.is_timed()).count();
            assert!(plan.seconds as usize * plan.repeats * timed * subjects <= QUICK_BUDGET_S);
        }
    }

    #[test]
    fn a_full_run_repeats_everything() {
        let plan = Plan::new(false, 6, scenario::ALL);
        assert!(scenario::ALL.iter().all(|scenario| plan.repeats_of(scenario) == FULL_REPEATS));
    }
}
