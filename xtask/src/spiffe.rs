//! A client of the SPIFFE Workload API that is not ours: `PyPI`'s `spiffe`, in a virtual environment under the target
//! directory. A machine that cannot have it runs everything else.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    command::{command, note, run_quietly, step},
    paths,
};

/// As `pip` names it. Other versions work; one is tested.
const REQUIREMENT: &str = "spiffe==0.3.2";

/// Installs it, or says why its stories are skipped.
pub(crate) fn ensure() {
    if let Err(error) = try_ensure() {
        note(&format!("no py-spiffe, and the stories with it are skipped: {error:#}"));
    }
}

fn try_ensure() -> Result<()> {
    let folder = paths::target()?.join("tools/spiffe");
    let stamp = folder.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == REQUIREMENT) {
        return Ok(());
    }
    step(&format!("{REQUIREMENT} from PyPI"));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    // Programs of other users run it too, who may not see into a home where another Python may lie.
    let python = Path::new("/usr/bin/python3");
    run_quietly(command(python, ["-m", "venv"]).arg(&folder), "make a virtual environment")?;
    let pip = folder.join("bin/pip");
    run_quietly(
        &mut command(pip, ["install", "--quiet", "--only-binary=:all:", REQUIREMENT]),
        "install py-spiffe",
    )?;
    fs::write(&stamp, REQUIREMENT).with_context(|| format!("cannot write {}", stamp.display()))
}
