//! A client of the SPIFFE Workload API that is not ours: `PyPI`'s `spiffe`, in a virtual environment under the target
//! directory. A machine that cannot have it runs everything else.

use std::path::Path;

use crate::{command::note, venv};

/// As `pip` names it. Other versions work; one is tested.
const REQUIREMENT: &str = "spiffe==0.3.2";

/// Programs of other users run it too, who may not see into a home where another Python may lie.
const PYTHON: &str = "/usr/bin/python3";

/// Installs it, or says why its stories are skipped.
pub(crate) fn ensure() {
    if let Err(error) = venv::ensure("spiffe", Path::new(PYTHON), &[], REQUIREMENT) {
        note(&format!("no py-spiffe, and the stories with it are skipped: {error:#}"));
    }
}
