//! `cargo xtask tables`: fills the column `kernels` of the tables in `docs` from what the tests said. A row names its
//! tests in its column `test`, in backticks: by name, or by a beginning that ends in `::`; `the same` means the tests of
//! the row before.

use std::{collections::BTreeSet, fmt::Write, fs};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    command::note,
    paths,
    verdicts::{ANY_KERNEL, Verdicts},
};

const DOCUMENTS: [&str; 2] = ["docs/transparency.md", "docs/security-model.md"];
/// What stands for the story that most rows of the socket table share.
const CALLS: (&str, &str) = ("calls", "sockets::calls_on_sockets_see_what_they_saw_without_meshd");

pub(crate) fn run() -> Result<()> {
    let verdicts = Verdicts::load()?;
    for name in DOCUMENTS {
        let path = paths::workspace().join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        let filled = fill(&text, &verdicts).with_context(|| name.to_owned())?;
        fs::write(&path, filled).with_context(|| format!("cannot write {name}"))?;
        note(name);
    }
    Ok(())
}

/// The document with every column `kernels` as the verdicts have it.
fn fill(text: &str, verdicts: &Verdicts) -> Result<String> {
    let (mut filled, mut columns, mut before) = (String::new(), None, Vec::new());
    for line in text.lines() {
        let mut row = cells(line);
        if row.is_empty() {
            columns = None;
        } else if columns.is_none() {
            columns = Some(Columns::of(&row));
        } else if let Some(Some(Columns { test, kernels })) = columns
            && !row[0].starts_with("---")
        {
            let at_row = || format!("the row `{}`", row[0]);
            ensure!(row.len() == kernels + 1, "{} has another number of columns", at_row());
            let tests = tests(&row[test], &before);
            row[kernels] = passed_on(&tests, verdicts).with_context(at_row)?;
            before = tests;
            let _ = writeln!(filled, "| {} |", row.join(" | "));
            continue;
        }
        let _ = writeln!(filled, "{line}");
    }
    Ok(filled)
}

/// Where the two columns of a table are; `kernels` is the last one.
#[derive(Clone, Copy)]
struct Columns {
    test: usize,
    kernels: usize,
}

impl Columns {
    fn of(head: &[String]) -> Option<Self> {
        let kernels = head.len() - 1;
        (head[kernels] == "kernels")
            .then(|| head.iter().position(|name| name == "test"))?
            .map(|test| Self { test, kernels })
    }
}

/// A table row's cells; none: no table row.
fn cells(line: &str) -> Vec<String> {
    let Some(inner) = line.trim().strip_prefix('|').and_then(|rest| rest.strip_suffix('|')) else {
        return Vec::new();
    };
    inner.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// What a row's cell names.
fn tests(cell: &str, before: &[String]) -> Vec<String> {
    let quoted = cell.split('`').skip(1).step_by(2);
    let mut tests: Vec<String> =
        quoted.filter(|name| name.contains("::") || name.contains('_')).map(str::to_owned).collect();
    tests.retain(|name| name != "relay_kernel");
    let words: Vec<&str> = cell.split(|c: char| !c.is_alphanumeric()).collect();
    if words.contains(&CALLS.0) {
        tests.push(CALLS.1.to_owned());
    }
    if words.windows(2).any(|pair| pair == ["the", "same"]) {
        tests.extend(before.iter().cloned());
    }
    tests
}

/// The kernels on which all of these ran and passed.
fn passed_on(tests: &[String], verdicts: &Verdicts) -> Result<String> {
    let of_kernels: Vec<(&str, BTreeSet<&str>)> = verdicts
        .0
        .iter()
        .map(|(kernel, of_kernel)| {
            let ran = |test: &&String| {
                let mut matching = of_kernel.iter().filter(|(name, _)| is_named(name, test)).peekable();
                matching.peek().is_some() && matching.all(|(_, passed)| *passed)
            };
            (kernel.as_str(), tests.iter().filter(ran).map(String::as_str).collect())
        })
        .collect();
    let (pure, kernels): (Vec<_>, Vec<_>) = of_kernels.iter().partition(|(kernel, _)| *kernel == ANY_KERNEL);
    let pure = pure.first().map(|(_, tests)| tests.clone()).unwrap_or_default();
    for test in tests {
        if !of_kernels.iter().any(|(_, passed)| passed.contains(test.as_str())) {
            bail!("no kernel passed `{test}`, or nothing has that name");
        }
    }
    let stories: Vec<&str> = tests.iter().map(String::as_str).filter(|test| !pure.contains(test)).collect();
    if stories.is_empty() {
        return Ok(if tests.is_empty() { String::new() } else { ANY_KERNEL.to_owned() });
    }
    let passed: Vec<&str> = kernels
        .iter()
        .filter(|(_, passed)| stories.iter().all(|test| passed.contains(test)))
        .map(|(kernel, _)| *kernel)
        .collect();
    Ok(if passed.len() == kernels.len() { "all".to_owned() } else { in_order(passed).join(", ") })
}

/// A topic is a beginning; a test may be named without its module.
fn is_named(name: &str, test: &str) -> bool {
    if test.ends_with("::") { name.starts_with(test) } else { name.contains(test) }
}

/// 6.1 before 6.12.
fn in_order(mut kernels: Vec<&str>) -> Vec<&str> {
    kernels.sort_by_key(|kernel| {
        kernel.split('.').map(|part| part.parse().unwrap_or(u32::MAX)).collect::<Vec<_>>()
    });
    kernels
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn verdicts(of: &[(&str, &[(&str, bool)])]) -> Verdicts {
        let named = |tests: &[(&str, bool)]| {
            tests.iter().map(|(name, passed)| ((*name).to_owned(), *passed)).collect::<BTreeMap<_, _>>()
        };
        Verdicts(of.iter().map(|(kernel, tests)| ((*kernel).to_owned(), named(tests))).collect())
    }

    #[test]
    fn a_row_gets_the_kernels_on_which_all_its_tests_passed() {
        let said = verdicts(&[
            (ANY_KERNEL, &[("tls::tests::is_pure", true), ("xtask::bypass::other", true)]),
            ("6.1", &[("bypass::one", true), ("relay::is_two::ktls", false), ("relay::is_two::plain", true)]),
            ("6.12", &[("bypass::one", true), ("relay::is_two::ktls", true)]),
            ("7.3", &[("relay::is_two::ktls", true)]),
        ]);
        let text = "Prose.\n\n| attempt | test | kernels |\n|---|---|---|\n\
                    | a | `bypass::one` | |\n| b | `relay::is_two` | old |\n| c | `is_pure`, the same | |\n\
                    | d | `is_pure` | |\n| e | `bypass::`, `is_two` | |\n| f | none | all |\n\n| x | y |\n|---|---|\n| `z_z` | w |\n";
        let filled = fill(text, &said).unwrap();
        let kernels: Vec<String> = filled
            .lines()
            .filter(|line| line.ends_with('|'))
            .map(|line| cells(line).pop().unwrap())
            .collect();
        assert_eq!(
            kernels,
            ["kernels", "---", "6.1, 6.12", "6.12, 7.3", "6.12, 7.3", "any", "6.12", "", "y", "---", "w"]
        );
        assert_eq!(fill(&filled, &said).unwrap(), filled);
    }

    #[test]
    fn a_test_that_is_not_there_is_named() {
        let said = verdicts(&[("6.1", &[("a::b", true), ("a::c", false)])]);
        for name in ["a::missing", "a::c"] {
            let text = format!("| attempt | test | kernels |\n|---|---|---|\n| row | `{name}` | |\n");
            let error = format!("{:#}", fill(&text, &said).unwrap_err());
            assert!(error.contains(name) && error.contains("row"), "{error}");
        }
    }

    #[test]
    fn all_kernels_are_all() {
        let said = verdicts(&[("6.1", &[("a::b", true)]), ("6.12", &[("a::b", true)])]);
        assert_eq!(passed_on(&["a::b".to_owned()], &said).unwrap(), "all");
        assert_eq!(in_order(vec!["6.12", "6.1", "7.3"]), ["6.1", "6.12", "7.3"]);
    }
}
