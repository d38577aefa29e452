//! Reading what Rust test binaries print. Strict: a level that printed no result line has failed.

/// A failed test and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// A test that did not run, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    pub(crate) name: String,
    pub(crate) reason: String,
}

/// A test that ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) name: String,
    pub(crate) passed: bool,
}

/// The counts of one level of tests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// How many `test result:` lines there were: one per test binary.
    pub(crate) results: u64,
    pub(crate) failures: Vec<Failure>,
    pub(crate) skips: Vec<Skip>,
    pub(crate) verdicts: Vec<Verdict>,
    /// The failure whose block is being read.
    block: Option<usize>,
}

impl Summary {
    /// Takes in one line of output.
    pub(crate) fn read(&mut self, raw: &str) {
        let line = raw.trim();
        if let Some((passed, failed, ignored)) = parse_result(line) {
            self.passed += passed;
            self.failed += failed;
            self.skipped += ignored;
            self.results += 1;
            self.block = None;
        } else if let Some(index) = parse_block(line).and_then(|name| self.last_failure(name)) {
            self.block = Some(index);
        } else if line == "failures:" {
            self.block = None;
        } else if let Some(failure) = self.block.and_then(|index| self.failures.get_mut(index)) {
            failure.text.push_str(raw.trim_end());
            failure.text.push('\n');
        } else if let Some((name, verdict)) = parse_test(line) {
            let passed = verdict == "ok";
            if passed || verdict == "FAILED" {
                self.verdicts.push(Verdict { name: name.to_owned(), passed });
            }
            if verdict == "FAILED" {
                self.failures.push(Failure { name: name.to_owned(), text: String::new() });
            } else if let Some(reason) = verdict.strip_prefix("ignored") {
                let reason = reason.trim_start_matches([',', ' ']);
                let reason = if reason.is_empty() { "ignored" } else { reason };
                self.skips.push(Skip { name: name.to_owned(), reason: reason.to_owned() });
            }
        }
    }

    /// Counts something that failed without a result line saying so.
    pub(crate) fn fail(&mut self, name: &str, text: &str) {
        self.failed += 1;
        self.failures.push(Failure { name: name.to_owned(), text: text.to_owned() });
    }

    /// Counts something that was left out without a result line saying so.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        self.skipped += 1;
        self.skips.push(Skip { name: name.to_owned(), reason: reason.to_owned() });
    }

    /// Adds another program's counts.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.results += other.results;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
        self.verdicts.extend(other.verdicts);
        self.block = None;
    }

    /// Holds the program's end against what it printed: a crash, a timeout or silence is a failure, which
    /// `said` explains.
    pub(crate) fn close(&mut self, ended_well: bool, what: &str, said: &str) {
        if self.results == 0 {
            self.fail(&format!("{what}: printed no result line"), said);
        } else if !ended_well && self.failed == 0 {
            self.fail(&format!("{what}: ended with an error though no test failed"), said);
        }
    }

    /// The latest of this name: several binaries may have a test of one name.
    fn last_failure(&self, name: &str) -> Option<usize> {
        self.failures.iter().rposition(|failure| failure.name == name)
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

/// The head of a failed test's text: libtest's `---- a::b stdout ----`, libtest-mimic's `---- a::b ----`.
fn parse_block(line: &str) -> Option<&str> {
    let name = line.strip_prefix("---- ")?.strip_suffix(" ----")?;
    Some(name.strip_suffix(" stdout").unwrap_or(name))
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
    fn skipped_tests_are_named_with_the_reason() {
        let summary = read("test b ... ignored, no TLS here\ntest c ... ignored\n");
        let skips: Vec<_> =
            summary.skips.iter().map(|skip| (skip.name.as_str(), skip.reason.as_str())).collect();
        assert_eq!(skips, [("b", "no TLS here"), ("c", "ignored")]);
    }

    /// What both harnesses print for two failed tests.
    fn two_failures(first_head: &str, second_head: &str) -> Vec<Failure> {
        read(&format!(
            "test a::b ... FAILED\ntest c ... FAILED\n\nfailures:\n\n{first_head}\n\
             thread 'a::b' panicked at src/a.rs:1:\n  left: 1\n\n{second_head}\nError: no route\n\n\n\
             failures:\n    a::b\n    c\n\ntest result: FAILED. 0 passed; 2 failed; 0 ignored\n"
        ))
        .failures
    }

    #[test]
    fn failed_tests_keep_their_text() {
        for heads in [("---- a::b stdout ----", "---- c stdout ----"), ("---- a::b ----", "---- c ----")] {
            let failures = two_failures(heads.0, heads.1);
            let names: Vec<_> = failures.iter().map(|failure| failure.name.as_str()).collect();
            assert_eq!(names, ["a::b", "c"]);
            assert_eq!(failures[0].text.trim(), "thread 'a::b' panicked at src/a.rs:1:\n  left: 1");
            assert_eq!(failures[1].text.trim(), "Error: no route");
        }
    }

    #[test]
    fn a_failures_text_is_not_read_as_results() {
        let summary = read(
            "test a ... FAILED\nfailures:\n---- a stdout ----\ntest other ... FAILED\n---- x ----\n\
             failures:\n    a\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n",
        );
        assert_eq!(summary.failures.len(), 1);
        assert_eq!(summary.failures[0].text, "test other ... FAILED\n---- x ----\n");
    }

    #[test]
    fn silence_is_a_failure_that_quotes_what_was_said() {
        let mut summary = read("running 5 tests\ntest a ... ok\n");
        summary.close(true, "unit", "error[E0425]: no such thing");
        assert_eq!((summary.passed, summary.failed), (0, 1));
        assert_eq!(summary.failures[0].text, "error[E0425]: no such thing");
    }

    #[test]
    fn a_crash_after_a_good_result_line_is_a_failure() {
        let mut summary = read("test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured\n");
        summary.close(false, "unit", "");
        assert_eq!((summary.passed, summary.failed), (5, 1));
    }

    #[test]
    fn a_result_line_without_all_counts_is_none() {
        assert_eq!(parse_result("test result: ok. 5 passed; 0 failed"), None);
        assert_eq!(parse_result("test result: ok. many passed; 0 failed; 0 ignored"), None);
        assert_eq!(parse_result("the test result: ok. 5 passed; 0 failed; 0 ignored"), None);
    }
}
