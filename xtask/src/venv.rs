//! Python programs from `PyPI`, each in a virtual environment of its own under the target directory.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    command::{command, run_quietly},
    once::make_once,
    paths,
};

/// Installs `requirement`, as `pip` names it, where it is not there; the environment's folder. `options` are pip's.
pub(crate) fn ensure(name: &str, python: &Path, options: &[&str], requirement: &str) -> Result<PathBuf> {
    let folder = paths::target()?.join("tools").join(name);
    // Its scripts begin with its own path: one that was moved is made anew.
    let (stamp, wanted) = (folder.join("installed"), format!("{requirement} in {}", folder.display()));
    make_once(&stamp, &wanted, &format!("{requirement} from PyPI"), |folder| {
        make(folder, python, options, requirement)
    })?;
    Ok(folder)
}

/// Installs `requirement` in an environment that is not there yet.
pub(crate) fn make(folder: &Path, python: &Path, options: &[&str], requirement: &str) -> Result<()> {
    run_quietly(command(python, ["-m", "venv"]).arg(folder), "make a virtual environment")?;
    let mut pip = command(folder.join("bin/pip"), ["install", "--quiet", "--only-binary=:all:"]);
    run_quietly(pip.args(options).arg(requirement), &format!("install {requirement}"))
}
