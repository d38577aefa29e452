//! Children that never outlive us: killed when their handle is dropped, and by the kernel when we die.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    process::{Child, Command},
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result};

use crate::command::{self, command};

/// A command that the kernel kills when this process ends, even by SIGKILL.
pub(crate) fn dying_with_us(program: impl AsRef<OsStr>) -> Command {
    let mut command = command("setpriv", ["--pdeathsig", "KILL", "--"]);
    command.arg(program);
    command
}

/// A child that is killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start `{}`", command::line(command)))?;
        Ok(Self(child))
    }

    /// Whether it has ended already.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }

    /// Its stdout by lines, as they come; whatever is no UTF-8 is replaced.
    pub(crate) fn lines(&mut self) -> Result<mpsc::Receiver<String>> {
        let stdout = self.0.stdout.take().context("its output is not piped to us")?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Ok(receiver)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
