//! Which QEMU runs the guests. Debian 12's own, 7.2, mishandles a kernel that patches its own code while a second
//! processor runs it (seen on Linux 7.3: an int3 that nobody handles, at boot, in two of three starts); 10.0 does
//! not, and is faster. So where the installed one is older, Debian 12's backport is unpacked beside the kernels.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{
    command::{command, note, output, step},
    debian_archive::Archive,
    kernels, paths,
};

/// The oldest that was seen to get it right.
const GOOD_MAJOR: u32 = 10;
const SUITE: &str = "bookworm-backports";
/// The program and the firmware it loads; the libraries are those of the installed one.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];
const PROGRAM: &str = "qemu-system-x86_64";

/// A QEMU that starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Qemu {
    pub(crate) program: PathBuf,
    /// Where its firmware is, if not where it looks by itself.
    pub(crate) firmware: Vec<PathBuf>,
    pub(crate) major: u32,
}

impl Qemu {
    /// Whether a guest of any kernel may have more than one processor.
    pub(crate) fn patches_code_well(&self) -> bool {
        self.major >= GOOD_MAJOR
    }
}

/// The best that is here.
pub(crate) fn find() -> Option<Qemu> {
    let installed = paths::find_program(PROGRAM).and_then(|program| inspect(program, Vec::new()));
    better(installed, folder().ok().and_then(|folder| unpacked(&folder)))
}

/// Sees to it that the best there can be is here. What cannot be had is said, and the installed one used.
pub(crate) fn ensure() {
    if find().is_none_or(|qemu| qemu.patches_code_well()) {
        return;
    }
    step(&format!("QEMU {GOOD_MAJOR} (download, unpack; once)"));
    if let Err(error) = unpack() {
        note(&format!("using the installed QEMU, with one processor for Linux 7: {error:#}"));
    }
}

fn unpack() -> Result<()> {
    let root = folder()?;
    let unpacking = root.with_extension("part");
    kernels::remove_folder(&unpacking)?;
    let packages = PACKAGES.map(|name| format!("{name}/{SUITE}"));
    Archive::open(&kernels::folder()?.join("apt"))?.unpack(&packages, &unpacking)?;
    kernels::remove_folder(&root)?;
    std::fs::rename(&unpacking, &root).context("cannot put QEMU in place")?;
    unpacked(&root).map(drop).context("Debian 12's QEMU does not start here: it misses libraries")
}

fn folder() -> Result<PathBuf> {
    Ok(kernels::folder()?.join("qemu"))
}

fn unpacked(root: &Path) -> Option<Qemu> {
    let firmware = ["usr/share/qemu", "usr/share/seabios"].map(|folder| root.join(folder));
    inspect(root.join("usr/bin").join(PROGRAM), firmware.into())
}

fn inspect(program: PathBuf, firmware: Vec<PathBuf>) -> Option<Qemu> {
    let major = parse_major(&output(&mut command(&program, ["--version"])).ok()?)?;
    Some(Qemu { program, firmware, major })
}

/// The installed one where it will do, else the newer.
fn better(installed: Option<Qemu>, unpacked: Option<Qemu>) -> Option<Qemu> {
    let good = installed.as_ref().is_some_and(Qemu::patches_code_well);
    if good { installed } else { unpacked.or(installed) }
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)`
fn parse_major(version: &str) -> Option<u32> {
    version.split_once("version ")?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_off_the_first_line() {
        assert_eq!(parse_major("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n"), Some(7));
        assert_eq!(parse_major("QEMU emulator version 10.0.2 (Debian)\nCopyright"), Some(10));
        assert_eq!(parse_major("usage: qemu"), None);
    }

    #[test]
    fn the_installed_one_is_used_unless_it_is_old_and_there_is_a_newer() {
        let qemu = |major| Some(Qemu { program: "q".into(), firmware: Vec::new(), major });
        assert_eq!(better(qemu(10), qemu(11)), qemu(10));
        assert_eq!(better(qemu(7), qemu(10)), qemu(10));
        assert_eq!(better(qemu(7), None), qemu(7));
        assert_eq!(better(None, None), None);
    }
}
