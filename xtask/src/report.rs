//! What `cargo xtask test` says at the end, and last what matters most, since CI shows only the end of it: what
//! was skipped and why, what each failed test said, their names, a line per level, the three counts.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use crate::libtest::{Failure, Summary};

/// Lines shown of one failed test, and of all together; each gets some even when many failed.
const TEXT_LINES: usize = 60;
const ALL_TEXT_LINES: usize = 600;
const FEWEST_TEXT_LINES: usize = 10;
/// As many skipped tests of one reason are named; more are counted.
const NAMED_SKIPS: usize = 3;

/// One finished level.
pub(crate) struct Level {
    pub(crate) name: String,
    pub(crate) summary: Summary,
    pub(crate) took: Duration,
    /// The kernel series it speaks for, or [`crate::verdicts::ANY_KERNEL`]; none: for no test by name.
    pub(crate) kernel: Option<String>,
}

impl Level {
    /// A level that could not run here.
    pub(crate) fn skipped(name: &str, reason: &str) -> Self {
        let mut summary = Summary::default();
        summary.skip(name, reason);
        Self { name: name.to_owned(), summary, took: Duration::ZERO, kernel: None }
    }

    /// A level that broke before its tests could say anything.
    pub(crate) fn broken(name: &str, reason: &str, took: Duration) -> Self {
        let mut summary = Summary::default();
        summary.fail("could not be built or started", reason);
        Self { name: name.to_owned(), summary, took, kernel: None }
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
    write_skips(&mut text, levels);
    write_failures(&mut text, levels);
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

/// A line per level and reason.
fn write_skips(text: &mut String, levels: &[Level]) {
    for level in levels {
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for skip in &level.summary.skips {
            reasons.entry(&skip.reason).or_default().push(&skip.name);
        }
        for (reason, names) in reasons {
            let _ = write!(text, "skipped: [{}] {}: {reason}", level.name, names.len());
            if names.len() <= NAMED_SKIPS && names != [level.name.as_str()] {
                let _ = write!(text, " ({})", names.join(", "));
            }
            text.push('\n');
        }
    }
}

/// What each failed test said, then all their names.
fn write_failures(text: &mut String, levels: &[Level]) {
    let all = || {
        levels.iter().flat_map(|level| level.summary.failures.iter().map(|failure| (&level.name, failure)))
    };
    let lines_each = (ALL_TEXT_LINES / all().count().max(1)).clamp(FEWEST_TEXT_LINES, TEXT_LINES);
    for (level, Failure { name, text: said }) in all() {
        let _ = writeln!(text, "\n---- [{level}] {name} ----");
        let said = said.trim_matches(['\r', '\n']);
        let said = if said.is_empty() { "(it said nothing)" } else { said };
        let _ = writeln!(text, "{}", shorten(said, lines_each));
    }
    if all().next().is_some() {
        text.push('\n');
    }
    for (level, failure) in all() {
        let _ = writeln!(text, "failed: [{level}] {}", failure.name);
    }
}

/// At most so many lines: the first ones, which name the failure, and the last ones, which are nearest to it.
fn shorten(text: &str, limit: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= limit {
        return lines.join("\n");
    }
    let (head, tail) = (limit / 2, limit - limit / 2 - 1);
    let left_out = format!("... {} lines left out ...", lines.len() - head - tail);
    [&lines[..head], &[left_out.as_str()], &lines[lines.len() - tail..]].concat().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(name: &str, text: &str) -> Level {
        let mut summary = Summary::default();
        summary.passed = 7;
        summary.fail(name, text);
        Level { name: "unit".into(), summary, took: Duration::from_millis(1500), kernel: None }
    }

    #[test]
    fn the_last_line_is_the_counts_over_all_levels() {
        let levels = [
            failed("a", "left: 1"),
            Level::skipped("integration 6.12", "no QEMU"),
            Level::broken("lint", "rustfmt", Duration::ZERO),
        ];
        let text = render(&levels);
        assert_eq!(text.lines().last(), Some("7 passed, 2 failed, 1 skipped"));
        assert!(text.contains("skipped: [integration 6.12] 1: no QEMU\n"));
        assert_eq!(failures(&levels), 2);
    }

    #[test]
    fn a_failed_test_is_named_at_the_end_after_what_it_said() {
        let text = render(&[failed("a::b", "thread panicked\n  left: 1\n")]);
        let said = text.find("---- [unit] a::b ----\nthread panicked\n  left: 1\n").unwrap();
        assert!(said < text.find("failed: [unit] a::b\n").unwrap());
        assert!(render(&[failed("a", "")]).contains("(it said nothing)"));
    }

    #[test]
    fn skipped_tests_are_grouped_by_level_and_reason() {
        let mut summary = Summary::default();
        for name in ["a", "b", "c", "d"] {
            summary.skip(name, "no TLS here");
        }
        summary.skip("e", "no network");
        let text = render(&[Level { name: "native".into(), summary, took: Duration::ZERO, kernel: None }]);
        assert!(
            text.starts_with(
                "skipped: [native] 4: no TLS here\nskipped: [native] 1: no network (e)\nnative "
            )
        );
    }

    #[test]
    fn a_long_failure_keeps_its_first_and_last_lines() {
        let long = (1..=100).map(|number| number.to_string()).collect::<Vec<_>>().join("\n");
        let short = shorten(&long, 10);
        assert_eq!(short, "1\n2\n3\n4\n5\n... 91 lines left out ...\n97\n98\n99\n100");
        assert_eq!(shorten("1\n2", 2), "1\n2");
    }
}
