//! Reading what Rust test binaries print. Strict: a level that printed no result line has failed.

/// The counts of one level of tests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// How many `test result:` lines there were: one per test binary.
    pub(crate) results: u64,
    pub(crate) failed_names: Vec<String>,
    pub(crate) skipped_names: Vec<String>,
}

impl Summary {
    /// Takes in one line of output.
    pub(crate) fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some((passed, failed, ignored)) = parse_result(line) {
            self.passed += passed;
            self.failed += failed;
            self.skipped += ignored;
            self.results += 1;
        } else if let Some((name, verdict)) = parse_test(line) {
            if verdict == "FAILED" {
                self.failed_names.push(name.to_owned());
            } else if let Some(reason) = verdict.strip_prefix("ignored") {
                let reason = reason.trim_start_matches([',', ' ']);
                let reason = if reason.is_empty() { "ignored" } else { reason };
                self.skipped_names.push(format!("{name}: {reason}"));
            }
        }
    }

    /// Adds another program's counts.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.results += other.results;
        self.failed_names.extend(other.failed_names);
        self.skipped_names.extend(other.skipped_names);
    }

    /// Holds the program's end against what it printed: a crash, a timeout or silence is a failure.
    pub(crate) fn close(&mut self, ended_well: bool, what: &str) {
        if self.results == 0 {
            self.failed += 1;
            self.failed_names.push(format!("{what}: printed no result line"));
        } else if !ended_well && self.failed == 0 {
            self.failed += 1;
            self.failed_names.push(format!("{what}: ended with an error though no test failed"));
        }
    }
}

/// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`
fn parse_result(line: &str) -> Option<(u64, u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| -> Option<u64> {
        counts.split(';').find_map(|part| part.trim().strip_suffix(word))?.trim().parse().ok()
    };
    Some((count(" passed")?, count(" failed")?, count(" ignored")?))
}

/// `test a::b ... ok`, libtest-mimic's `test a  ... FAILED`, a doc test's `test src/a.rs - a (line 3) ... ok`.
fn parse_test(line: &str) -> Option<(&str, &str)> {
    let (name, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    Some((name.trim(), verdict.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Summary {
        let mut summary = Summary::default();
        text.lines().for_each(|line| summary.read(line));
        summary
    }

    #[test]
    fn counts_of_several_binaries_add_up() {
        let summary = read(
            "test a::b ... ok\n\
             test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\n",
        );
        assert_eq!((summary.passed, summary.failed, summary.skipped, summary.results), (6, 2, 1, 2));
    }

    #[test]
    fn failed_and_skipped_tests_are_named_with_the_reason() {
        let summary = read("test a  ... FAILED\ntest b ... ignored, no TLS here\ntest c ... ignored\n");
        assert_eq!(summary.failed_names, ["a"]);
        assert_eq!(summary.skipped_names, ["b: no TLS here", "c: ignored"]);
    }

    #[test]
    fn silence_is_a_failure() {
        let mut summary = read("running 5 tests\ntest a ... ok\n");
        summary.close(true, "unit");
        assert_eq!((summary.passed, summary.failed), (0, 1));
    }

    #[test]
    fn a_crash_after_a_good_result_line_is_a_failure() {
        let mut summary = read("test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured\n");
        summary.close(false, "unit");
        assert_eq!((summary.passed, summary.failed), (5, 1));
    }

    #[test]
    fn a_result_line_without_all_counts_is_none() {
        assert_eq!(parse_result("test result: ok. 5 passed; 0 failed"), None);
        assert_eq!(parse_result("test result: ok. many passed; 0 failed; 0 ignored"), None);
        assert_eq!(parse_result("the test result: ok. 5 passed; 0 failed; 0 ignored"), None);
    }
}
