//! What `cargo xtask test` says at the end: a line per level, what failed, what was skipped and why, and last
//! the three counts over all levels.

use std::{fmt::Write, time::Duration};

use crate::libtest::Summary;

/// One finished level.
pub(crate) struct Level {
    pub(crate) name: String,
    pub(crate) summary: Summary,
    pub(crate) took: Duration,
}

impl Level {
    /// A level that could not run here.
    pub(crate) fn skipped(name: &str, reason: &str) -> Self {
        let summary = Summary { skipped: 1, skipped_names: vec![reason.to_owned()], ..Summary::default() };
        Self { name: name.to_owned(), summary, took: Duration::ZERO }
    }

    /// A level that broke before its tests could say anything.
    pub(crate) fn broken(name: &str, reason: &str, took: Duration) -> Self {
        let summary = Summary { failed: 1, failed_names: vec![reason.to_owned()], ..Summary::default() };
        Self { name: name.to_owned(), summary, took }
    }

    /// One line: name, counts, seconds.
    pub(crate) fn line(&self) -> String {
        let Summary { passed, failed, skipped, .. } = self.summary;
        let seconds = self.took.as_secs_f64();
        format!(
            "{:<22} {passed:>5} passed {failed:>4} failed {skipped:>4} skipped {seconds:>7.1} s",
            self.name
        )
    }
}

/// The whole report; its last line is exactly `N passed, N failed, N skipped`.
pub(crate) fn render(levels: &[Level]) -> String {
    let mut text = String::new();
    section(&mut text, "skipped", levels, |summary| &summary.skipped_names);
    section(&mut text, "failed", levels, |summary| &summary.failed_names);
    for level in levels {
        let _ = writeln!(text, "{}", level.line());
    }
    let sum = |count: fn(&Summary) -> u64| levels.iter().map(|level| count(&level.summary)).sum::<u64>();
    let passed = sum(|summary| summary.passed);
    let _ = write!(
        text,
        "{passed} passed, {} failed, {} skipped",
        failures(levels),
        sum(|summary| summary.skipped)
    );
    text
}

/// How many tests failed over all levels.
pub(crate) fn failures(levels: &[Level]) -> u64 {
    levels.iter().map(|level| level.summary.failed).sum()
}

fn section(text: &mut String, title: &str, levels: &[Level], names: fn(&Summary) -> &Vec<String>) {
    for level in levels {
        for name in names(&level.summary) {
            let _ = writeln!(text, "{title}: [{}] {name}", level.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_counts_over_all_levels() {
        let summary = Summary { passed: 7, failed: 1, failed_names: vec!["a".into()], ..Summary::default() };
        let levels = [
            Level { name: "unit".into(), summary, took: Duration::from_millis(1500) },
            Level::skipped("kernel 6.12", "no QEMU"),
            Level::broken("lint", "rustfmt", Duration::ZERO),
        ];
        let text = render(&levels);
        assert_eq!(text.lines().last(), Some("7 passed, 2 failed, 1 skipped"));
        assert!(text.contains("failed: [unit] a\n") && text.contains("skipped: [kernel 6.12] no QEMU\n"));
        assert_eq!(failures(&levels), 2);
    }
}
