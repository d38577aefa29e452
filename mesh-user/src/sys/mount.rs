//! Mounting and recognising a bpffs. Nothing else is ever mounted.

use std::{io, os::unix::fs::MetadataExt, path::Path};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Whether a directory lies in a bpffs.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a bpffs on a directory; only root may enter it.
pub fn mount_bpffs(path: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpffs"), path, Some("bpf"), flags, Some("mode=0700"))?;
    Ok(())
}

/// Whether something is mounted on a directory.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(std::fs::metadata(path)?.dev() != std::fs::metadata(parent)?.dev())
}

/// Unmounts a directory, also while something still uses it.
pub fn unmount(path: &Path) -> io::Result<()> {
    umount2(path, MntFlags::MNT_DETACH)?;
    Ok(())
}
