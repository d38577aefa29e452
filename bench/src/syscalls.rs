//! System calls of a subject's proxies per request, connection or megabyte, counted by `strace` in a pass of its own:
//! what is traced is much slower, so nothing else is taken from that pass.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{stage::wait_until, subject::Subject};

/// Calls by name.
pub(crate) type Counts = Vec<(String, u64)>;

/// Counts what the proxies call while `work` runs; none without proxies.
pub(crate) fn count<T>(subject: &Subject, work: impl FnOnce() -> Result<T>) -> Result<Option<(Counts, T)>> {
    let pids = subject.proxy_pids()?;
    if pids.is_empty() {
        return Ok(None);
    }
    let out = subject.ground.dir().join("strace.txt");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&out);
    for pid in &pids {
        strace.args(["-p", &pid.to_string()]);
    }
    let mut strace = strace
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting strace (package strace)")?;
    let attached = wait_until("strace to attach", || {
        ensure!(strace.try_wait()?.is_none(), "strace may not trace the proxies");
        Ok(pids.iter().all(|pid| is_traced(*pid)))
    });
    let worked = attached.and_then(|()| work());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(strace.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).context("ending strace")?;
    strace.wait()?;
    let text = fs::read_to_string(&out).context("reading what strace counted")?;
    Ok(Some((parse(&text), worked?)))
}

fn is_traced(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut statuses = tasks.map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default());
    statuses.all(|status| !status.contains("TracerPid:\t0\n"))
}

/// Lines of a number and a name.
fn parse(text: &str) -> Counts {
    let row = |line: &str| {
        let mut fields = line.split_whitespace();
        let (calls, name) = (fields.next()?.parse().ok()?, fields.next()?);
        (name != "total" && fields.next().is_none()).then(|| (name.to_owned(), calls))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_by_name_and_the_total_is_none() {
        let text = "    calls syscall\n--------- ----------------\n     4023 epoll_wait\n      812 recvfrom\n\
                    --------- ----------------\n     4835 total\n";
        assert_eq!(parse(text), [("epoll_wait".to_owned(), 4023), ("recvfrom".to_owned(), 812)]);
    }
}
