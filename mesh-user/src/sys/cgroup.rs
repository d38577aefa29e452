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

/// Slices inside each other that are looked into; systemd's own trees have three or four.
const MAX_SLICES: usize = 16;

/// The cgroup that systemd has a unit in, below `root`: units lie in slices, which lie in each other. What is below another
/// unit is that unit's own business and not looked at. `None`: the unit does not run.
///
/// # Errors
/// When the tree cannot be read, or has the unit twice (`InvalidData`), which systemd's own has not.
pub fn of_unit(root: &Path, unit: &str) -> io::Result<Option<PathBuf>> {
    // A name that could be a control file's is written with an underscore in front (systemd, `cg_escape`).
    let names = [unit.to_owned(), format!("_{unit}")];
    let mut found: Option<PathBuf> = None;
    let mut slices = vec![(root.to_owned(), 0)];
    while let Some((slice, depth)) = slices.pop() {
        for name in &names {
            let path = slice.join(name);
            if !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                continue;
            }
            if let Some(first) = found.replace(path.clone()) {
                let what = format!("{unit} is {} and {}", first.display(), path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        let entries = match fs::read_dir(&slice) {
            // A slice may go while it is looked for.
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => continue,
            entries => entries?,
        };
        for entry in entries.flatten() {
            let is_slice = entry.file_name().as_encoded_bytes().ends_with(b".slice");
            if is_slice && depth < MAX_SLICES && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                slices.push((entry.path(), depth + 1));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_found_in_slices_only() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(dir.path().join(path)).unwrap();
        make("system.slice/nginx.service/worker.service");
        make("system.slice/system-getty.slice/getty.service");
        make("system.slice/_cpu.service");
        make("user.slice/user-1.slice/user@1.service/app.slice/fake.service");
        let find = |unit: &str| of_unit(dir.path(), unit);
        let at = |path: &str| Some(dir.path().join(path));
        assert_eq!(find("nginx.service").unwrap(), at("system.slice/nginx.service"));
        assert_eq!(find("getty.service").unwrap(), at("system.slice/system-getty.slice/getty.service"));
        assert_eq!(find("cpu.service").unwrap(), at("system.slice/_cpu.service"));
        for below_another in ["worker.service", "fake.service", "absent.service"] {
            assert_eq!(find(below_another).unwrap(), None, "{below_another}");
        }
        make("user.slice/nginx.service");
        assert_eq!(find("nginx.service").unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::remove_dir(dir.path().join("user.slice/nginx.service")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("system.slice/link.service")).unwrap();
        assert_eq!(find("link.service").unwrap(), None);
    }
}
