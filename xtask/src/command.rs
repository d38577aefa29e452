//! Running other programs: every one is named in the error when it fails, none is run through a shell.
//! Progress goes to stderr as `==> step`, so that stdout stays what a task prints.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::diagnosis;

/// What a failed program's last lines are worth keeping: a compiler's errors fit.
const COMPLAINT_LINES: usize = 60;

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

/// Runs a package manager quietly; what it complained of is in the error when it fails.
pub(crate) fn run_quietly(command: &mut Command, what: &str) -> Result<()> {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        return Err(diagnosis::explain(what, &String::from_utf8_lossy(&output.stderr)));
    }
    note(&format!("{what}: {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// How a program that was followed ended.
pub(crate) struct Followed {
    pub(crate) ended_well: bool,
    /// The last lines of its stderr.
    pub(crate) complaint: String,
}

/// Runs to completion, showing what it prints as it comes; `on_line` reads its stdout along.
pub(crate) fn follow(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<Followed> {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().with_context(|| cannot_start(command))?;
    let stdout = child.stdout.take().context("no output to read")?;
    let stderr = child.stderr.take().context("no errors to read")?;
    let complaining = thread::spawn(move || {
        let mut last = VecDeque::new();
        each_line(stderr, |line| {
            eprint!("{line}");
            if last.len() == COMPLAINT_LINES {
                last.pop_front();
            }
            last.push_back(line.to_owned());
        });
        last.into_iter().collect::<String>()
    });
    each_line(stdout, |line| {
        print!("{line}");
        on_line(line);
    });
    let ended_well = child.wait()?.success();
    let complaint = complaining.join().unwrap_or_default();
    Ok(Followed { ended_well, complaint })
}

/// Hands over each line with its end; whatever is no UTF-8 is replaced.
fn each_line(from: impl Read, mut on_line: impl FnMut(&str)) {
    let mut reader = BufReader::new(from);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
        on_line(&String::from_utf8_lossy(&bytes));
        bytes.clear();
    }
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`: is it installed and on PATH?", command.get_program().display())
}

/// The command as one would type it, for messages.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_followed_program_is_read_line_by_line_and_its_complaint_kept() {
        let mut lines = Vec::new();
        let script = "echo one; seq 100 >&2; printf two; exit 3";
        let followed = follow(&mut command("sh", ["-c", script]), |line| lines.push(line.to_owned()));
        let followed = followed.unwrap();
        assert_eq!(lines, ["one\n", "two"]);
        assert!(!followed.ended_well);
        assert!(followed.complaint.starts_with("41\n") && followed.complaint.ends_with("100\n"));
    }
}
