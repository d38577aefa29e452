//! YAML with places: parses into a type, and turns every failure into file, line, column, what, hint.
//! Used for the node's file and for policy documents.

use std::fmt;

use serde::de::DeserializeOwned;

use super::locate;

/// One thing wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// 1-based, when known.
    pub line: Option<u64>,
    /// 1-based, when known.
    pub column: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What to write instead, when that can be told.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem at a path such as `workloads[2].addresses[0]`, found in the text.
    pub fn at(text: &str, path: &str, what: impl Into<String>, hint: Option<String>) -> Self {
        let place = locate::position(text, path);
        let what = what.into();
        let what = if path.is_empty() { what } else { format!("{path}: {what}") };
        Self { line: place.map(|p| p.0), column: place.map(|p| p.1), what, hint }
    }

    /// For `path:line:column: what`.
    pub(crate) fn fmt_in(&self, file: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(file)?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.what)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

/// Parses one document; `first_line` is the line that the text starts at in its file, 1-based.
///
/// # Errors
/// The first thing that does not fit, with its place.
pub fn parse<T: DeserializeOwned>(text: &str, first_line: u64) -> Result<T, Problem> {
    serde_saphyr::from_str_with_options(text, options(text)).map_err(|error| problem(&error, first_line))
}

/// A mesh's file may be long: what parsing costs is bound to its length, not to what the crate takes for a usual one. Every
/// node that is written takes a byte at least, and at most two events; what aliases make of it counts too.
pub(super) fn options(text: &str) -> serde_saphyr::Options {
    let usual = serde_saphyr::Budget::default();
    serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_nodes: usual.max_nodes.max(text.len()),
            max_events: usual.max_events.max(text.len().saturating_mul(2)),
            max_total_scalar_bytes: usual.max_total_scalar_bytes.max(text.len()),
        },
    }
}

fn problem(error: &serde_saphyr::Error, first_line: u64) -> Problem {
    let error = error.without_snippet();
    let place = error.location().filter(|l| l.line() > 0);
    let hint = match error {
        serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => nearest(field, expected),
        serde_saphyr::Error::SerdeUnknownVariant { variant, expected, .. } => nearest(variant, expected),
        _ => None,
    };
    Problem {
        line: place.map(|l| l.line() + first_line - 1),
        column: place.map(|l| l.column()),
        what: describe(error),
        hint,
    }
}

/// The cause without the place, which the caller prints first.
fn describe(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error {
        Error::SerdeUnknownField { field, .. } => format!("unknown field {field:?}"),
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("unknown value {variant:?}, expected one of {}", expected.join(", "))
        }
        Error::SerdeMissingField { field, .. } => format!("missing field {field:?}"),
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            format!("found {unexpected}, expected {expected}")
        }
        Error::Message { msg, .. } | Error::ExternalMessage { msg, .. } => msg.clone(),
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("field {key:?} appears twice"),
        other => other.to_string(),
    }
}

/// The known name that looks most like a wrong one, when one does.
fn nearest(wrong: &str, known: &[&str]) -> Option<String> {
    let best = known
        .iter()
        .map(|name| (strsim::jaro_winkler(&wrong.to_lowercase(), &name.to_lowercase()), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((score, name)) if score > 0.75 => Some(format!("did you mean {name:?}?")),
        _ if known.is_empty() => None,
        _ => Some(format!("known here: {}", known.join(", "))),
    }
}
