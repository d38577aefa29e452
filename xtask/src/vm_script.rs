//! A level of the tests that is one script in a virtual machine: it passes when the script ends well.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    command::{note, step},
    kernels::Series,
    libtest::Summary,
    paths,
    report::Level,
    setup, vm,
};

/// Which, and where it runs.
pub(crate) struct Script {
    /// As the summary calls it, and before each line that it says.
    pub(crate) name: &'static str,
    /// Below mesh-user/tests.
    pub(crate) file: &'static str,
    pub(crate) kernel: Series,
    pub(crate) limit: Duration,
}

impl Script {
    /// Runs it with the arguments that `prepare` makes; skipped where that, or a virtual machine, cannot be had.
    pub(crate) fn run(&self, prepare: impl FnOnce() -> Result<Vec<PathBuf>>) -> Level {
        step(&format!("{} (virtual machine)", self.name));
        let started = Instant::now();
        let kernel = match setup::for_vm(self.kernel) {
            Ok(kernel) => kernel,
            Err(error) => return Level::skipped(self.name, &format!("no virtual machine: {error:#}")),
        };
        let arguments = match prepare() {
            Ok(arguments) => arguments,
            Err(error) => return Level::skipped(self.name, &format!("{error:#}")),
        };
        let script = paths::workspace().join("mesh-user/tests").join(self.file);
        let words = [Path::new("bash"), &script].into_iter().chain(arguments.iter().map(PathBuf::as_path));
        let command = words.map(|word| word.display().to_string()).collect();
        let guest = vm::Guest {
            kernel: &kernel,
            command,
            env: Vec::new(),
            timeout: self.limit,
            clock: vm::Clock::Time,
        };
        let mut said = String::new();
        let failure = match guest.run(|line| {
            println!("{}| {line}", self.name);
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
                summary.fail(self.name, &failure);
            }
        }
        Level { name: self.name.to_owned(), summary, took: started.elapsed(), kernel: None }
    }
}
