//! The unit file at work: `mesh-user/tests/systemd_unit.sh` in a virtual machine, under a systemd of its own.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    command::{note, step},
    kernels::Series,
    libtest::Summary,
    paths,
    report::Level,
    setup, vm,
};

/// One is enough: nothing in the unit depends on the kernel.
pub(crate) const KERNEL: Series = Series::V6_12;
const NAME: &str = "systemd unit";
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// The machine sees this one's files, so its systemd is this one's.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// Runs it with the meshd and meshctl in a folder.
pub(crate) fn run(programs: &Path) -> Level {
    step("systemd's unit (virtual machine)");
    if !Path::new(SYSTEMD).exists() {
        return Level::skipped(NAME, &format!("no systemd here to run the unit with: {SYSTEMD} is missing"));
    }
    let kernel = match setup::for_vm(KERNEL) {
        Ok(kernel) => kernel,
        Err(error) => return Level::skipped(NAME, &format!("no virtual machine: {error:#}")),
    };
    let started = Instant::now();
    let script = paths::workspace().join("mesh-user/tests/systemd_unit.sh");
    let words = [Path::new("bash"), &script, programs, &paths::workspace().join("deploy")];
    let command = words.map(|word| word.display().to_string()).into();
    let guest =
        vm::Guest { kernel: &kernel, command, env: Vec::new(), timeout: LIMIT, clock: vm::Clock::Time };
    let mut said = String::new();
    let failure = match guest.run(|line| {
        println!("systemd| {line}");
        said.push_str(line);
        said.push('\n');
    }) {
        Ok(outcome) if outcome.exit_code == 0 => None,
        Ok(outcome) => Some(format!("{said}exit code {}", outcome.exit_code)),
        Err(error) => Some(format!("{said}{error:#}")),
    };
    let mut summary = Summary::default();
    match failure {
        None => summary.passed = 1,
        Some(failure) => {
            note(&failure);
            summary.fail(NAME, &failure);
        }
    }
    Level { name: NAME.to_owned(), summary, took: started.elapsed(), kernel: None }
}
