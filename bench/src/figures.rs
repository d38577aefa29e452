//! What is measured, and what becomes of several measurements of the same thing. Pure.

use serde::{Deserialize, Serialize};

/// One thing measured once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: String,
    pub(crate) value: f64,
}

impl Figure {
    pub(crate) fn new(name: &'static str, unit: impl Into<String>, value: f64) -> Self {
        Self { name, unit: unit.into(), value }
    }
}

/// Work done per second; the only figure of which more is better.
pub(crate) const THROUGHPUT: &str = "throughput";

/// Whether more of this figure is better.
pub(crate) fn more_is_better(figure: &str) -> bool {
    figure == THROUGHPUT
}

/// What a machine whose clock counts instructions, a nanosecond each, says truly: its processor time as instructions,
/// counts, and memory. How long something took would be no time of any processor.
pub(crate) fn in_instructions(figures: &[Figure]) -> Vec<Figure> {
    figures.iter().filter_map(counted).collect()
}

fn counted(figure: &Figure) -> Option<Figure> {
    let name = match figure.name {
        "cpu" => "instructions",
        "cpu in softirq" => "instructions in softirq",
        "cpu of all programs" => "instructions of all programs",
        "cpu of the proxies" => "instructions of the proxies",
        "cpu of the client's proxy" => "instructions of the client's proxy",
        "cpu of the server's proxy" => "instructions of the server's proxy",
        name if name.starts_with("context switches") || name.starts_with("memory") => {
            return Some(Figure::new(name, figure.unit.clone(), figure.value));
        }
        _ => return None,
    };
    let (time, work) = figure.unit.split_once('/')?;
    // A microsecond is a thousand of them; a second for each gigabyte is one for each byte.
    let (scale, work) = match (time, work) {
        ("us", work) => (1000.0, work),
        ("s", "GB") => (1.0, "byte"),
        _ => return None,
    };
    Some(Figure::new(name, format!("per {work}"), figure.value * scale))
}

/// Several measurements of the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// None without a measurement.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }

    /// How far the measurements lie apart, as a part of their median.
    pub(crate) fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / self.median.abs() }
    }
}

/// A count as a number to divide by.
#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds' work fit")]
pub(crate) fn count(value: u64) -> f64 {
    value as f64
}

/// Three significant digits, without an exponent.
pub(crate) fn show(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => grouped(value),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_instructions_says_nothing_about_time() {
        let figures = [
            Figure::new(THROUGHPUT, "requests/s", 5.0),
            Figure::new("p50", "us", 3.0),
            Figure::new("cpu", "us/request", 81.25),
            Figure::new("cpu of the proxies", "s/GB", 1.5),
            Figure::new("context switches", "per request", 2.0),
            Figure::new("memory of the proxies", "KiB/connection", 9.5),
        ];
        let counted = in_instructions(&figures);
        let seen: Vec<_> = counted.iter().map(|f| (f.name, f.unit.as_str(), f.value)).collect();
        assert_eq!(
            seen,
            [
                ("instructions", "per request", 81_250.0),
                ("instructions of the proxies", "per byte", 1.5),
                ("context switches", "per request", 2.0),
                ("memory of the proxies", "KiB/connection", 9.5),
            ]
        );
    }

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        let summary = Summary::of(&[4.0, 1.0, 10.0, 2.0]).unwrap();
        assert_eq!(summary, Summary { median: 3.0, min: 1.0, max: 10.0 });
        assert_eq!(Summary::of(&[5.0, 1.0, 3.0]).unwrap().median, 3.0);
    }

    #[test]
    fn nothing_measured_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN, f64::INFINITY]), None);
    }

    #[test]
    fn spread_is_relative_to_the_median() {
        assert_eq!(Summary { median: 10.0, min: 9.0, max: 11.0 }.spread(), 0.2);
        assert_eq!(Summary { median: 0.0, min: 0.0, max: 0.0 }.spread(), 0.0);
    }

    #[test]
    fn numbers_keep_three_digits_and_group_thousands() {
        let shown: Vec<_> =
            [1_234_567.4, 999.5, 100.0, 12.345, 1.234, 0.01234, 0.0, -4321.0].map(show).into();
        assert_eq!(shown, ["1 234 567", "1 000", "100", "12.3", "1.23", "0.012", "0", "-4 321"]);
    }
}
