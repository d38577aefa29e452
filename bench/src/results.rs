//! What a run found, as it is written to `latest.json`: rows of one figure of one subject in one scenario.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::figures::{Figure, Summary};

/// The subject that all others are compared to.
pub(crate) const PLAIN: &str = "plain";

/// One figure over all repeats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) subject: String,
    pub(crate) scenario: String,
    pub(crate) figure: String,
    pub(crate) unit: String,
    #[serde(flatten)]
    pub(crate) summary: Summary,
    /// None where plain TCP has no such figure.
    pub(crate) ratio_to_plain: Option<f64>,
    /// The same against the other meshes of the run, by their names.
    pub(crate) ratio_to_peers: BTreeMap<String, f64>,
    pub(crate) repeats: usize,
}

/// System calls of a subject's proxies, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SyscallRow {
    pub(crate) subject: String,
    pub(crate) scenario: String,
    pub(crate) syscall: String,
    pub(crate) unit: String,
    pub(crate) calls: f64,
}

/// Where and when it was measured, and how quiet the machine was.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) started: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) commit: String,
    /// Busy time of the whole machine before anything was started.
    pub(crate) background_cpu_percent: f64,
    /// Time that the hypervisor gave to others while measuring.
    pub(crate) stolen_percent: f64,
    pub(crate) repeats: usize,
    pub(crate) seconds_each: u32,
    pub(crate) quick: bool,
}

/// Everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) environment: Environment,
    /// What was there to measure, and what was not and why.
    pub(crate) notes: Vec<String>,
    /// Measurements that did not come to an end.
    pub(crate) failures: Vec<String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) syscalls: Vec<SyscallRow>,
}

impl Results {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} holds no results of this version", path.display()))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn row(&self, subject: &str, scenario: &str, figure: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.subject == subject && r.scenario == scenario && r.figure == figure)
    }

    /// In order of first appearance.
    pub(crate) fn subjects(&self) -> Vec<&str> {
        in_order(self.rows.iter().map(|row| row.subject.as_str()))
    }

    /// In order of first appearance.
    pub(crate) fn scenarios(&self) -> Vec<&str> {
        in_order(self.rows.iter().map(|row| row.scenario.as_str()))
    }
}

fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

type Key = (String, String, &'static str);

/// Measurements as they come in.
#[derive(Default)]
pub(crate) struct Samples {
    order: Vec<Key>,
    values: BTreeMap<Key, (String, Vec<f64>)>,
}

impl Samples {
    pub(crate) fn add(&mut self, subject: &str, scenario: &str, figures: &[Figure]) {
        for figure in figures {
            let key = (subject.to_owned(), scenario.to_owned(), figure.name);
            if !self.values.contains_key(&key) {
                self.order.push(key.clone());
            }
            let entry = self.values.entry(key).or_insert_with(|| (figure.unit.clone(), Vec::new()));
            entry.1.push(figure.value);
        }
    }

    /// All rows; `peers` are the meshes that ratios are given to.
    pub(crate) fn rows(&self, peers: &[&str]) -> Vec<Row> {
        let median = |subject: &str, (_, scenario, figure): &Key| {
            let (_, values) = self.values.get(&(subject.to_owned(), scenario.clone(), figure))?;
            Some(Summary::of(values)?.median).filter(|median| *median != 0.0)
        };
        let row = |key: &Key| {
            let (unit, values) = self.values.get(key)?;
            let summary = Summary::of(values)?;
            let ratio = |other: &str| Some(summary.median / median(other, key)?);
            let others = peers.iter().filter(|peer| **peer != key.0);
            Some(Row {
                subject: key.0.clone(),
                scenario: key.1.clone(),
                figure: key.2.to_owned(),
                unit: unit.clone(),
                summary,
                ratio_to_plain: ratio(PLAIN),
                ratio_to_peers: others.filter_map(|p| Some(((*p).to_owned(), ratio(p)?))).collect(),
                repeats: values.len(),
            })
        };
        self.order.iter().filter_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_to_plain_and_to_each_peer() {
        let mut samples = Samples::default();
        for (subject, values) in
            [("plain", [1.0, 2.0, 9.0]), ("meshd", [3.0, 3.0, 3.0]), ("envoy", [6.0, 5.0, 7.0])]
        {
            for value in values {
                samples.add(subject, "rr1", &[Figure::new("p50", "us", value)]);
            }
        }
        let rows = samples.rows(&["envoy"]);
        assert_eq!(rows.iter().map(|r| r.subject.as_str()).collect::<Vec<_>>(), ["plain", "meshd", "envoy"]);
        assert_eq!(rows[1].ratio_to_plain, Some(1.5));
        assert_eq!(rows[1].ratio_to_peers, BTreeMap::from([("envoy".to_owned(), 0.5)]));
        assert!(rows[2].ratio_to_peers.is_empty(), "no ratio to itself");
        assert_eq!(rows[1].repeats, 3);
    }

    #[test]
    fn a_figure_that_plain_lacks_or_that_is_zero_there_has_no_ratio() {
        let mut samples = Samples::default();
        samples.add("plain", "rr1", &[Figure::new("cpu", "us", 0.0)]);
        samples.add("meshd", "rr1", &[Figure::new("cpu", "us", 5.0), Figure::new("memory", "KiB", 3.0)]);
        assert!(
            samples.rows(&[]).iter().filter(|r| r.subject == "meshd").all(|r| r.ratio_to_plain.is_none())
        );
    }

    #[test]
    fn results_survive_their_file() {
        let mut samples = Samples::default();
        samples.add("plain", "rr1", &[Figure::new("p50", "us", 1.5)]);
        let results = Results { rows: samples.rows(&[]), notes: vec!["x".into()], ..Results::default() };
        let text = serde_json::to_string(&results).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
        let row: serde_json::Value =
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["rows"][0].clone();
        assert_eq!((row["median"].as_f64(), row["min"].as_f64()), (Some(1.5), Some(1.5)));
    }
}
