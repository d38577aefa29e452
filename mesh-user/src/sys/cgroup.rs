//! cgroup v2 directories: their ids and their depth, as the programs see them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use mesh_common::MAX_CGROUP_LEVELS;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::peer::FileId;

/// The kernel gives the tree's true root this inode number (`kernfs_create_root`).
const ROOT_INODE: u64 = 1;

/// An open cgroup v2 directory.
#[derive(Debug)]
pub struct Cgroup {
    /// The directory, for attaching programs.
    pub dir: File,
    /// The kernel's id for it.
    pub id: u64,
    /// Bit n: the cgroup may be at level n. One bit, unless a cgroup namespace hides the true root.
    pub levels: u32,
}

impl Cgroup {
    /// Opens a cgroup v2 directory; a path on another file system is `InvalidInput`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        if !is_cgroup2(&path)? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not in a cgroup v2 file system", path.display()),
            ));
        }
        let dir = File::open(&path)?;
        let id = dir.metadata()?.ino();
        Ok(Self { levels: levels(&path)?, dir, id })
    }
}

/// Whether a path lies in a cgroup v2 file system.
pub fn is_cgroup2(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

fn levels(path: &Path) -> io::Result<u32> {
    let mut depth = 0_u32;
    let mut top = path.to_path_buf();
    while let Some(parent) = top.parent().map(Path::to_path_buf) {
        if !is_cgroup2(&parent)? {
            break;
        }
        top = parent;
        depth += 1;
    }
    if depth >= MAX_CGROUP_LEVELS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is more than {MAX_CGROUP_LEVELS} levels deep", path.display()),
        ));
    }
    let at_least = u32::MAX << depth;
    Ok(if fs::metadata(&top)?.ino() == ROOT_INODE { 1 << depth } else { at_least })
}

/// Whether a cgroup is the root of the whole tree, which no cgroup namespace hides.
pub fn is_true_root(path: &Path) -> io::Result<bool> {
    Ok(is_cgroup2(path)? && fs::metadata(path)?.ino() == ROOT_INODE)
}

/// A cgroup's path as `/proc/PID/cgroup` would show it to this process; `None` if no mount leads to it.
pub fn path_in_tree(path: &Path) -> io::Result<Option<PathBuf>> {
    let path = fs::canonicalize(path)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // mount id, parent id, device, root, mount point, ..., "-", file system (proc_pid_mountinfo(5))
    Ok(mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, mounted_at) = (fields.next()?, fields.next()?);
        let below = path.strip_prefix(mounted_at).ok()?;
        right.starts_with("cgroup2 ").then(|| Path::new(root).join(below))
    }))
}

/// A cgroup that /proc shows at this path, and those above it up to the root of a mount that leads there: the deepest
/// first. Empty: no mount does.
pub fn lineage(in_tree: &Path) -> io::Result<Vec<FileId>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // As in `path_in_tree`.
    let place = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, mounted_at) = (fields.next()?, fields.next()?);
        let below = in_tree.strip_prefix(root).ok()?;
        // What lies outside of our cgroup namespace has no name here.
        let named = below.components().all(|part| matches!(part, Component::Normal(_)));
        (right.starts_with("cgroup2 ") && named).then(|| (Path::new(mounted_at), below))
    });
    let Some((mount, below)) = place else { return Ok(Vec::new()) };
    below.ancestors().map(|part| FileId::of(&mount.join(part))).collect()
}

/// The cgroup v2 of this process.
///
/// # Errors
/// `NotFound` where no cgroup v2 is mounted or the mount does not lead to it.
pub fn own() -> io::Result<Cgroup> {
    let absent = || io::Error::new(io::ErrorKind::NotFound, "this process's cgroup v2 cannot be found");
    let membership = fs::read_to_string("/proc/self/cgroup")?;
    // The unified hierarchy's line (cgroups(7)).
    let path = membership.lines().find_map(|line| line.strip_prefix("0::/")).ok_or_else(absent)?;
    Cgroup::open(&cgroup2_mount()?.ok_or_else(absent)?.join(path))
}

/// The root of the first cgroup v2 mount, if there is one.
pub fn cgroup2_mount() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    }))
}
