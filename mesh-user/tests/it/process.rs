//! Programs in a namespace and a cgroup: started by a thread that is in the namespace, through a shell that moves
//! itself into the cgroup first, so that a program's sockets are created where capture looks for them. Output goes to files in the story's folder, so that no pipe can fill.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup;

/// A program to start: where, as whom, with what.
pub(crate) struct Launch {
    pub(crate) label: String,
    pub(crate) argv: Vec<String>,
    pub(crate) netns: PathBuf,
    /// A cgroup of its own is made below this one.
    pub(crate) cgroup: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) user: Option<String>,
}

impl Launch {
    /// Runs as this user instead of root.
    pub(crate) fn with_user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Starts it.
    pub(crate) fn start(self) -> anyhow::Result<Program> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        super::ground::still_wanted()?;
        let unique = format!("{}-{}", self.label, NEXT.fetch_add(1, Ordering::Relaxed));
        let group = self.cgroup.join(&unique);
        cgroup::make(&group)?;
        let (out, err) = (self.logs.join(format!("{unique}.out")), self.logs.join(format!("{unique}.err")));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec \"$@\""]).arg(&group);
        if let Some(user) = &self.user {
            let account = nix::unistd::User::from_name(user)?.with_context(|| format!("no user {user}"))?;
            let (uid, gid) = (account.uid.to_string(), account.gid.to_string());
            command.args(["setpriv", "--reuid", &uid, "--regid", &gid, "--clear-groups", "--"]);
        }
        command
            .args(&self.argv)
            .current_dir("/")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?);
        let child = spawn_in(&self.netns, &mut command)
            .with_context(|| format!("starting {} in {}", self.argv.join(" "), self.netns.display()))?;
        Ok(Program { label: unique, child, group, out, err })
    }

    /// Starts it and waits for its end, at most `limit`.
    pub(crate) fn finish(self, limit: Duration) -> anyhow::Result<Finished> {
        self.start()?.finish(limit)
    }
}

/// A process belongs to the namespace of the thread that starts it.
fn spawn_in(netns: &Path, command: &mut Command) -> anyhow::Result<Child> {
    let enter_and_start = || {
        enter(netns)?;
        anyhow::Ok(command.spawn()?)
    };
    thread::scope(|scope| scope.spawn(enter_and_start).join())
        .map_err(|_| anyhow::anyhow!("the thread that starts it panicked"))?
}

/// Takes this thread, and those it starts, to a namespace. There is no way back.
pub(crate) fn enter(netns: &Path) -> anyhow::Result<()> {
    let file = File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
    setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", netns.display()))
}

/// A running program; killed with its children when dropped.
pub(crate) struct Program {
    label: String,
    child: Child,
    group: PathBuf,
    out: PathBuf,
    err: PathBuf,
}

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) label: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Its standard output, if it succeeded.
    pub(crate) fn succeeded(self) -> anyhow::Result<String> {
        ensure!(
            self.status.success(),
            "{} failed ({}): {}{}",
            self.label,
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// Everything it said, if it failed.
    pub(crate) fn failed(self) -> anyhow::Result<String> {
        ensure!(!self.status.success(), "{} succeeded and must not have: {}", self.label, self.stdout);
        Ok(self.stdout + &self.stderr)
    }
}

impl Program {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdout(&self) -> String {
        fs::read(&self.out).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read(&self.err).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// Waits until either output contains `text`.
    pub(crate) fn wait_to_say(&mut self, text: &str, limit: Duration) -> anyhow::Result<()> {
        wait_until(limit, &format!("{} to say {text:?}", self.label), || {
            if self.stdout().contains(text) || self.stderr().contains(text) {
                return Ok(true);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended ({status}) before saying {text:?}: {}{}",
                    self.label,
                    self.stdout(),
                    self.stderr()
                );
            }
            Ok(false)
        })
    }

    /// Sends a signal to the program itself.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.label))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end, at most `limit`; an overrun is an error and kills it.
    pub(crate) fn finish(mut self, limit: Duration) -> anyhow::Result<Finished> {
        let mut status = None;
        wait_until(limit, &format!("{} to end ({}{})", self.label, self.stdout(), self.stderr()), || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })
        .with_context(|| format!("it said: {}{}", self.stdout(), self.stderr()))?;
        let status = status.context("a program that ended has a status")?;
        Ok(Finished { label: self.label.clone(), status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// SIGKILL to the program and all its children, and waits until they are gone.
    pub(crate) fn kill_hard(&mut self) -> anyhow::Result<()> {
        // The program itself first: one that has only just begun moves to its cgroup by itself, and may not have yet.
        let _ = self.child.kill();
        cgroup::kill(&self.group)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.kill_hard();
        cgroup::remove(&self.group);
    }
}

/// Asks `done` every few milliseconds until it says yes or `limit` is over.
pub(crate) fn wait_until(
    limit: Duration,
    what: &str,
    mut done: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        if done()? {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// [`wait_until`] with patience for a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
