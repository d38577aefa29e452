//! The runtime directory: a lock that only one daemon holds, and a bpffs in which hooks outlive it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::CaptureError;
use crate::sys::{bpf, mount};

#[derive(Debug)]
pub(super) struct RuntimeDir {
    root: PathBuf,
    /// Held for the life of the daemon; the kernel releases it when the process dies.
    _lock: Flock<File>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaptureError {
    let path = path.to_path_buf();
    move |source| CaptureError::RuntimeDir { action, path, source }
}

fn make_dir(path: &Path) -> Result<(), CaptureError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))
}

impl RuntimeDir {
    /// Takes the lock, or says who has it.
    pub(super) fn lock(root: &Path) -> Result<Self, CaptureError> {
        make_dir(root)?;
        let root = fs::canonicalize(root).map_err(failed("find", root))?;
        let path = root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { root, _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(CaptureError::AlreadyRunning(root)),
            Err((_, errno)) => Err(failed("lock", &path)(errno.into())),
        }
    }

    /// Where pins are.
    pub(super) fn bpf(&self) -> PathBuf {
        self.root.join("bpf")
    }

    /// Sees to it that `bpf` is a bpffs.
    pub(super) fn mount(&self) -> Result<(), CaptureError> {
        let path = self.bpf();
        make_dir(&path)?;
        if !mount::is_bpffs(&path).map_err(failed("examine", &path))? {
            mount::mount_bpffs(&path).map_err(failed("mount a bpffs on", &path))?;
        }
        Ok(())
    }

    /// Names of the pins that begin with `prefix`.
    pub(super) fn pins(&self, prefix: &str) -> Result<Vec<String>, CaptureError> {
        let path = self.bpf();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &path)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("list", &path))?.file_name();
            if let Some(name) = name.to_str().filter(|name| name.starts_with(prefix)) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Removes a pin that may be absent.
    pub(super) fn unpin(&self, name: &str) -> Result<(), CaptureError> {
        let path = self.bpf().join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Detaches a pinned hook, whoever else holds it, and removes the pin.
    pub(super) fn detach(&self, name: &str) -> Result<(), CaptureError> {
        let hook = |source| CaptureError::Hook { action: "detach", hook: name.to_owned(), source };
        match bpf::get_pinned(&self.bpf().join(name)) {
            Ok(link) => match bpf::link_detach(link.as_fd()) {
                // Its namespace or cgroup is gone, and with it the attachment.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT)) => {}
                result => result.map_err(hook)?,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(hook(error)),
        }
        self.unpin(name)
    }

    /// Detaches every hook and removes all that this directory was used for.
    pub(super) fn remove_all(&self) -> Result<(), CaptureError> {
        let path = self.bpf();
        // A bpffs has files of its own; only what meshd pinned is removed.
        for prefix in [super::hooks::LINK_PREFIX, super::space::LINK_PREFIX] {
            for name in self.pins(prefix)? {
                self.detach(&name)?;
            }
        }
        for name in self.pins(super::objects::MAP_PREFIX)? {
            self.unpin(&name)?;
        }
        if path.exists() {
            if mount::is_mount_point(&path).map_err(failed("examine", &path))? {
                mount::unmount(&path).map_err(failed("unmount", &path))?;
            }
            fs::remove_dir(&path).map_err(failed("remove", &path))?;
        }
        let lock = self.root.join("lock");
        fs::remove_file(&lock).map_err(failed("remove", &lock))?;
        // Others (the admin socket's owner) may still have files here.
        let _: io::Result<()> = fs::remove_dir(&self.root);
        Ok(())
    }
}
