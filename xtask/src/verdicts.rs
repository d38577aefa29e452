//! What the last runs of the tests said of each test on each kernel: `target/test/verdicts.json`. A run with a filter
//! replaces only what it ran.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{paths, report::Level};

/// Where unit tests stand: they are of no kernel.
pub(crate) const ANY_KERNEL: &str = "any";

/// Whether each test passed, by kernel series. What was skipped is missing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Verdicts(pub(crate) BTreeMap<String, BTreeMap<String, bool>>);

impl Verdicts {
    pub(crate) fn load() -> Result<Self> {
        let file = file()?;
        let text = fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}: run `cargo xtask test` first", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged: remove it", file.display()))
    }

    /// Keeps what these levels say, beside what other runs said of other tests.
    pub(crate) fn keep(levels: &[Level]) -> Result<()> {
        let mut verdicts = Self::load().unwrap_or_default();
        for level in levels {
            let Some(kernel) = &level.kernel else { continue };
            let of_kernel = verdicts.0.entry(kernel.clone()).or_default();
            for verdict in &level.summary.verdicts {
                of_kernel.insert(verdict.name.clone(), verdict.passed);
            }
        }
        let file = file()?;
        fs::create_dir_all(file.parent().context("the file is in no folder")?)?;
        fs::write(&file, serde_json::to_string_pretty(&verdicts)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

fn file() -> Result<PathBuf> {
    Ok(paths::target()?.join("test/verdicts.json"))
}
