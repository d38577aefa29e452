//! Running other programs: every one is named in the error when it fails, none is run through a shell.
//! Progress goes to stderr as `==> step`, so that stdout stays what a task prints.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// Announces a step that may take a while.
pub(crate) fn step(what: &str) {
    eprintln!("==> {what}");
}

/// A remark under the current step.
pub(crate) fn note(what: &str) {
    eprintln!("    {what}");
}

/// A command with its arguments.
pub(crate) fn command<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs to completion with our own stdout and stderr.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Runs to completion and returns stdout; stderr is part of the error when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", line(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs quietly; the step's last lines of output are shown only when it fails.
pub(crate) fn run_quietly(command: &mut Command, what: &str) -> Result<()> {
    let started = Instant::now();
    output(command).with_context(|| format!("cannot {what}"))?;
    note(&format!("{what}: {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`: is it installed and on PATH?", command.get_program().display())
}

/// The command as one would type it, for messages.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
