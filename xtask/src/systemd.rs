//! The unit file at work: `mesh-user/tests/systemd_unit.sh` in a virtual machine, under a systemd of its own.

use std::{path::Path, time::Duration};

use anyhow::ensure;

use crate::{kernels::Series, paths, report::Level, vm_script::Script};

/// One is enough: nothing in the unit depends on the kernel.
pub(crate) const KERNEL: Series = Series::V6_12;
const SCRIPT: Script = Script {
    name: "systemd unit",
    file: "systemd_unit.sh",
    kernel: KERNEL,
    limit: Duration::from_secs(10 * 60),
};
/// The machine sees this one's files, so its systemd is this one's.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// Runs it with the meshd and meshctl in a folder.
pub(crate) fn run(programs: &Path) -> Level {
    SCRIPT.run(|| {
        ensure!(Path::new(SYSTEMD).exists(), "no systemd here to run the unit with: {SYSTEMD} is missing");
        Ok(vec![programs.to_owned(), paths::workspace().join("deploy")])
    })
}
