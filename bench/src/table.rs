//! Results and comparisons as text for a terminal. Pure.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use crate::{
    compare::Comparison,
    figures::show,
    results::{Results, Row},
};

/// A line per figure, a column per subject, a table per scenario.
pub(crate) fn results(results: &Results) -> String {
    let subjects = results.subjects();
    let mut text = String::new();
    for scenario in results.scenarios() {
        let mut table = empty();
        let mut header = vec![scenario.to_owned()];
        header.extend(subjects.iter().map(|subject| (*subject).to_owned()));
        table.set_header(header);
        let of_scenario: Vec<&Row> = results.rows.iter().filter(|row| row.scenario == scenario).collect();
        let mut figures: Vec<(&str, &str)> = Vec::new();
        for row in &of_scenario {
            if !figures.iter().any(|(name, _)| *name == row.figure) {
                figures.push((&row.figure, &row.unit));
            }
        }
        for (figure, unit) in figures {
            let mut line = vec![format!("{figure} ({unit})")];
            line.extend(
                subjects.iter().map(|s| results.row(s, scenario, figure).map_or_else(String::new, cell)),
            );
            table.add_row(line);
        }
        align_numbers(&mut table);
        let _ = writeln!(text, "{table}\n");
    }
    for failure in &results.failures {
        let _ = writeln!(text, "failed: {failure}");
    }
    text
}

fn cell(row: &Row) -> String {
    let summary = row.summary;
    let range = if row.repeats > 1 {
        format!(" [{} .. {}]", show(summary.min), show(summary.max))
    } else {
        String::new()
    };
    let ratio = row.ratio_to_plain.map_or_else(String::new, |ratio| format!("  x{ratio:.2}"));
    format!("{}{range}{ratio}", show(summary.median))
}

/// A line per subject and scenario with what its proxies call most.
pub(crate) fn syscalls(results: &Results) -> Vec<String> {
    let mut lines: Vec<(String, f64, String)> = Vec::new();
    for row in &results.syscalls {
        let title = format!("system calls {}, {} {}", row.scenario, row.subject, row.unit);
        let shown =
            if row.calls >= 0.05 { format!("  {} {:.2}", row.syscall, row.calls) } else { String::new() };
        match lines.iter_mut().find(|line| line.0 == title) {
            Some(line) => {
                line.1 += row.calls;
                line.2.push_str(&shown);
            }
            None => lines.push((title, row.calls, shown)),
        }
    }
    lines.into_iter().map(|(title, total, list)| format!("{title}: {}{list}", show(total))).collect()
}

/// What moved, worst first.
pub(crate) fn comparison(comparison: &Comparison) -> String {
    let mut changes: Vec<_> = comparison.changes.iter().collect();
    changes.sort_by(|a, b| b.worse.cmp(&a.worse).then(b.relative.abs().total_cmp(&a.relative.abs())));
    let mut text = String::new();
    if !changes.is_empty() {
        let mut table = empty();
        table.set_header(["", "subject", "scenario", "figure", "before", "after", "change", "noise"]);
        for change in &changes {
            table.add_row([
                if change.worse { "WORSE" } else { "better" }.to_owned(),
                change.subject.clone(),
                change.scenario.clone(),
                format!("{} ({})", change.figure, change.unit),
                show(change.before),
                show(change.after),
                format!("{:+.0} %", change.relative * 100.0),
                format!("{:.0} %", change.noise * 100.0),
            ]);
        }
        let _ = writeln!(text, "{table}");
    }
    for missing in &comparison.missing {
        let _ = writeln!(text, "only in the first: {missing}");
    }
    let worse = changes.iter().filter(|change| change.worse).count();
    let better = changes.len() - worse;
    let _ = write!(
        text,
        "{} figures compared: {worse} worse, {better} better beyond the noise",
        comparison.compared
    );
    text
}

fn empty() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn align_numbers(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{figures::Figure, results::Samples};

    #[test]
    fn the_table_shows_median_range_and_ratio() {
        let mut samples = Samples::default();
        for (subject, values) in [("plain", [80.0, 90.0]), ("meshd", [170.0, 170.0])] {
            for value in values {
                samples.add(subject, "rr1", &[Figure::new("p50", "us", value)]);
            }
        }
        let text = results(&Results { rows: samples.rows(&[]), ..Results::default() });
        assert!(text.contains("p50 (us)"), "{text}");
        assert!(text.contains("85.0 [80.0 .. 90.0]  x1.00"), "{text}");
        assert!(text.contains("170 [170 .. 170]  x2.00"), "{text}");
    }
}
