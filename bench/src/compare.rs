//! What changed between two runs beyond their noise. Pure.
//! The noise of a figure is how far its repeats lay apart in either run, and never less than a floor.

use crate::{
    figures::more_is_better,
    results::{Results, Row},
};

/// Two medians closer than this are the same, however calm the repeats were.
const FLOOR: f64 = 0.05;

/// A figure that moved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) subject: String,
    pub(crate) scenario: String,
    pub(crate) figure: String,
    pub(crate) unit: String,
    pub(crate) before: f64,
    pub(crate) after: f64,
    /// `after / before - 1`.
    pub(crate) relative: f64,
    /// The part that both runs' repeats explain.
    pub(crate) noise: f64,
    pub(crate) worse: bool,
}

/// The outcome of [`compare`].
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Comparison {
    pub(crate) changes: Vec<Change>,
    /// Rows that both runs have.
    pub(crate) compared: usize,
    /// Rows that only the earlier run has: a figure that vanished is no improvement.
    pub(crate) missing: Vec<String>,
}

/// Compares rows of the same subject, scenario and figure.
pub(crate) fn compare(before: &Results, after: &Results) -> Comparison {
    let mut comparison = Comparison::default();
    for old in &before.rows {
        match after.row(&old.subject, &old.scenario, &old.figure) {
            None => comparison.missing.push(format!("{} {} {}", old.subject, old.scenario, old.figure)),
            Some(new) => {
                comparison.compared += 1;
                comparison.changes.extend(change(old, new));
            }
        }
    }
    comparison
}

fn change(old: &Row, new: &Row) -> Option<Change> {
    let (before, after) = (old.summary.median, new.summary.median);
    if before == 0.0 {
        return None;
    }
    let noise = old.summary.spread().max(new.summary.spread()).max(FLOOR);
    let relative = after / before - 1.0;
    let apart = old.summary.max < new.summary.min || new.summary.max < old.summary.min;
    (relative.abs() > noise && apart).then(|| Change {
        subject: old.subject.clone(),
        scenario: old.scenario.clone(),
        figure: old.figure.clone(),
        unit: old.unit.clone(),
        before,
        after,
        relative,
        noise,
        worse: (relative < 0.0) == more_is_better(&old.figure),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{figures::Figure, results::Samples};

    fn results(figure: &'static str, values: &[f64]) -> Results {
        let mut samples = Samples::default();
        for value in values {
            samples.add("meshd", "rr1", &[Figure::new(figure, "unit", *value)]);
        }
        Results { rows: samples.rows(&[]), ..Results::default() }
    }

    fn changes(figure: &'static str, before: &[f64], after: &[f64]) -> Vec<(bool, i32)> {
        let found = compare(&results(figure, before), &results(figure, after)).changes;
        #[expect(clippy::cast_possible_truncation, reason = "percents")]
        let percent = |change: f64| (change * 100.0).round() as i32;
        found.iter().map(|c| (c.worse, percent(c.relative))).collect()
    }

    #[test]
    fn more_cpu_is_worse_and_more_throughput_is_better() {
        let (low, high) = (&[100.0, 101.0, 99.0], &[150.0, 151.0, 149.0]);
        assert_eq!(changes("cpu", low, high), [(true, 50)]);
        assert_eq!(changes("cpu", high, low), [(false, -33)]);
        assert_eq!(changes("throughput", low, high), [(false, 50)]);
        assert_eq!(changes("throughput", high, low), [(true, -33)]);
    }

    #[test]
    fn a_change_within_the_repeats_spread_is_noise() {
        assert_eq!(changes("cpu", &[100.0, 70.0, 130.0], &[140.0, 139.0, 141.0]), []);
        assert_eq!(changes("cpu", &[100.0, 100.0, 100.0], &[104.0, 104.0, 104.0]), [], "below the floor");
    }

    #[test]
    fn overlapping_repeats_are_never_a_change() {
        assert_eq!(changes("cpu", &[100.0, 99.0, 112.0], &[120.0, 111.0, 121.0]), []);
    }

    #[test]
    fn a_figure_that_vanished_is_named() {
        let found = compare(&results("cpu", &[1.0]), &Results::default());
        assert_eq!((found.compared, found.missing), (0, vec!["meshd rr1 cpu".to_owned()]));
    }
}
