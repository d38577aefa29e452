//! Shares this machine's root folder with a guest through virtio-fs. The guest mounts it read-only; writes
//! never reach it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    console, paths,
    process::{Process, dying_with_us},
};

/// Debian 13 and Ubuntu; Debian 12, inside QEMU; elsewhere.
const PLACES: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/bin/virtiofsd"];
const START_LIMIT: Duration = Duration::from_secs(10);

/// The daemon that serves files, if it is installed.
pub(crate) fn daemon() -> Option<PathBuf> {
    let installed = PLACES.iter().map(PathBuf::from).find(|path| path.is_file());
    installed.or_else(|| paths::find_program("virtiofsd"))
}

/// Starts the daemon on this machine's root folder and waits for its socket.
pub(crate) fn share_root(socket: &Path) -> Result<Process> {
    let program = daemon().context("no virtiofsd: install virtiofsd (Debian 12: qemu-system-common)")?;
    let mut daemon = dying_with_us(&program);
    // Debian 12's is QEMU's own, in C; later ones are the Rust rewrite with other options.
    if program.starts_with("/usr/lib/qemu") {
        daemon.arg(format!("--socket-path={}", socket.display()));
        daemon.args(["-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot", "-o", "log_level=err"]);
    } else {
        daemon.arg("--socket-path").arg(socket).args(["--shared-dir", "/", "--cache", "always"]);
        daemon.args(["--sandbox", "chroot", "--log-level", "error"]);
    }
    let log = socket.with_extension("log");
    daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let mut daemon = Process::spawn(&mut daemon)?;
    let deadline = Instant::now() + START_LIMIT;
    while !socket.exists() {
        if daemon.has_ended()? || Instant::now() > deadline {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("virtiofsd could not start: {}", console::tail(&said));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(daemon)
}
