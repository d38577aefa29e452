//! The report: one page that needs nothing beside itself. Bars are medians, the line over each is the range of the
//! repeats; bars are drawn here and put into the page by a template.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use minijinja::{Environment, context};
use serde::Serialize;

use crate::{
    figures::{more_is_better, show},
    results::{Results, Row},
    scenario,
};

const TEMPLATE: &str = include_str!("report.html");
/// Width of the longest bar or range.
const WIDTH: f64 = 420.0;

#[derive(Serialize)]
struct Section {
    name: String,
    about: String,
    charts: Vec<Chart>,
    syscalls: Vec<Calls>,
}

#[derive(Serialize)]
struct Chart {
    figure: String,
    unit: String,
    better: &'static str,
    height: usize,
    bars: Vec<Bar>,
}

#[derive(Serialize)]
struct Bar {
    subject: String,
    class: &'static str,
    y: usize,
    width: f64,
    from: f64,
    to: f64,
    value: String,
    range: String,
    ratio: String,
}

#[derive(Serialize)]
struct Calls {
    subject: String,
    unit: String,
    total: String,
    list: String,
}

/// Writes the page.
pub(crate) fn write(results: &Results, path: &Path) -> Result<()> {
    std::fs::write(path, page(results)?).with_context(|| format!("cannot write {}", path.display()))
}

fn page(results: &Results) -> Result<String> {
    let sections: Vec<_> = results.scenarios().into_iter().map(|name| section(results, name)).collect();
    let mut templates = Environment::new();
    templates.add_template("report.html", TEMPLATE)?;
    let page = templates.get_template("report.html")?;
    Ok(page.render(context! {
        environment => results.environment, notes => results.notes, failures => results.failures,
        sections => sections,
    })?)
}

fn section(results: &Results, name: &str) -> Section {
    let rows: Vec<&Row> = results.rows.iter().filter(|row| row.scenario == name).collect();
    let mut figures: Vec<&str> = Vec::new();
    for row in &rows {
        if !figures.contains(&row.figure.as_str()) {
            figures.push(&row.figure);
        }
    }
    let of_figure = |figure: &&str| rows.iter().copied().filter(|r| r.figure == **figure).collect::<Vec<_>>();
    Section {
        name: name.to_owned(),
        about: scenario::ALL.iter().find(|s| s.name == name).map_or("", |s| s.about).to_owned(),
        charts: figures.iter().map(|figure| chart(&of_figure(figure))).collect(),
        syscalls: syscalls(results, name),
    }
}

fn chart(rows: &[&Row]) -> Chart {
    const STEP: usize = 24;
    let longest = rows.iter().map(|row| row.summary.max).fold(0.0, f64::max);
    let scale = |value: f64| if longest > 0.0 { (value / longest * WIDTH).max(0.0) } else { 0.0 };
    let bar = |(index, row): (usize, &&Row)| Bar {
        subject: row.subject.clone(),
        class: class(&row.subject),
        y: index * STEP,
        width: scale(row.summary.median),
        from: scale(row.summary.min),
        to: scale(row.summary.max),
        value: show(row.summary.median),
        range: format!("{} .. {}", show(row.summary.min), show(row.summary.max)),
        ratio: ratios(row),
    };
    let first = rows.first();
    let figure = first.map_or_else(String::new, |row| row.figure.clone());
    Chart {
        better: if more_is_better(&figure) { "more is better" } else { "less is better" },
        unit: first.map_or_else(String::new, |row| row.unit.clone()),
        figure,
        height: rows.len() * STEP,
        bars: rows.iter().enumerate().map(bar).collect(),
    }
}

fn class(subject: &str) -> &'static str {
    match subject {
        "plain" => "plain",
        name if name.starts_with("meshd") => "meshd",
        _ => "peer",
    }
}

fn ratios(row: &Row) -> String {
    let plain = row.ratio_to_plain.map(|ratio| format!("{ratio:.2} x plain"));
    let peers = row.ratio_to_peers.iter().map(|(peer, ratio)| format!("{ratio:.2} x {peer}"));
    plain.filter(|_| row.subject != "plain").into_iter().chain(peers).collect::<Vec<_>>().join(", ")
}

/// The most frequent calls of each subject.
fn syscalls(results: &Results, scenario: &str) -> Vec<Calls> {
    let mut by_subject: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for row in results.syscalls.iter().filter(|row| row.scenario == scenario) {
        by_subject.entry(&row.subject).or_default().push(row);
    }
    let calls = |(subject, mut rows): (&str, Vec<&crate::results::SyscallRow>)| {
        rows.sort_by(|a, b| b.calls.total_cmp(&a.calls));
        let shown = rows.iter().filter(|row| row.calls >= 0.005);
        Calls {
            subject: subject.to_owned(),
            unit: rows.first().map_or_else(String::new, |row| row.unit.clone()),
            total: show(rows.iter().map(|row| row.calls).sum()),
            list: shown.map(|row| format!("{} {:.2}", row.syscall, row.calls)).collect::<Vec<_>>().join(", "),
        }
    };
    by_subject.into_iter().map(calls).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        figures::Figure,
        results::{Samples, SyscallRow},
    };

    fn results() -> Results {
        let mut samples = Samples::default();
        for (subject, values) in [("plain", [50.0, 100.0]), ("meshd-userspace", [150.0, 250.0])] {
            for value in values {
                samples.add(subject, "rr1", &[Figure::new("p50", "us", value)]);
            }
        }
        let call = SyscallRow {
            subject: "meshd-userspace".into(),
            scenario: "rr1".into(),
            syscall: "epoll_wait".into(),
            unit: "per request".into(),
            calls: 4.0,
        };
        let notes = vec!["<script>alert(1)</script>".to_owned()];
        Results { rows: samples.rows(&[]), syscalls: vec![call], notes, ..Results::default() }
    }

    #[test]
    fn bars_are_to_scale() {
        let results = results();
        let section = section(&results, "rr1");
        let bars = &section.charts[0].bars;
        assert_eq!((bars[1].from, bars[1].width, bars[1].to), (252.0, 336.0, 420.0));
        assert_eq!(bars[0].width, 126.0);
        assert_eq!(bars[1].ratio, "2.67 x plain");
    }

    #[test]
    fn the_page_stands_alone_and_escapes_what_it_shows() {
        let page = page(&results()).unwrap();
        for part in ["<svg", "p50", "meshd-userspace", "epoll_wait 4.00", "&lt;script&gt;"] {
            assert!(page.contains(part), "{part} is missing");
        }
        for outside in ["http://", "https://", "<script", "<link"] {
            assert!(!page.contains(outside), "{outside} leads outside");
        }
    }
}
