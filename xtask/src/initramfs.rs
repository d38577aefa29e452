//! The guest's first file system: busybox, the few modules that mounting the real root needs, and `init.sh`.
//! Everything else the guest runs comes from this machine's own files, read-only, through virtio-fs.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, output},
    kernels::Kernel,
    paths,
};

const INIT: &str = include_str!("guest/init.sh");
const STAGE2: &str = include_str!("guest/stage2.sh");
/// Needed before the root is there; the rest is loaded by name from the kernel's own tree.
const MODULES: [&str; 3] = ["virtio_pci", "virtiofs", "overlay"];

/// Writes the archive for one run: `settings` is sourced by both scripts, `program` is what to run.
pub(crate) fn write(kernel: &Kernel, run_dir: &Path, settings: &str, program: &str) -> Result<PathBuf> {
    let tree = run_dir.join("initramfs");
    for folder in ["bin", "modules", "dev", "proc", "sys", "host", "rw", "new", "shared"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    let busybox = paths::find_program("busybox").context("no busybox: install busybox-static")?;
    fs::copy(busybox, tree.join("bin/busybox")).context("cannot copy busybox")?;
    copy_modules(kernel, &tree.join("modules"))?;
    for (name, text) in [("init", INIT), ("stage2", STAGE2), ("settings", settings), ("program", program)] {
        let path = tree.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let archive = run_dir.join("initramfs.cpio");
    pack(&tree, &archive)?;
    fs::remove_dir_all(&tree)?;
    Ok(archive)
}

/// Copies the modules uncompressed (not every kernel unpacks them itself) with their load order.
fn copy_modules(kernel: &Kernel, into: &Path) -> Result<()> {
    let modprobe = paths::find_program("modprobe").context("no modprobe: install kmod")?;
    let mut show = command(modprobe, ["--show-depends", "--all", "-S", &kernel.release, "-d"]);
    let plan = output(show.arg(&kernel.root).args(MODULES))?;
    let mut order = String::new();
    for path in load_order(&plan) {
        let file = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        let name = file.trim_end_matches(".xz");
        if name == file {
            fs::copy(path, into.join(name)).with_context(|| format!("cannot copy {path}"))?;
        } else {
            let unpacked = command("xz", ["-dc", path]).output().context("cannot start xz")?;
            fs::write(into.join(name), unpacked.stdout)?;
        }
        order.push_str(name);
        order.push('\n');
    }
    fs::write(into.join("order"), order).context("cannot write the modules' order")
}

/// The files of `modprobe --show-depends`, each once, dependencies first; built-in ones have no file.
fn load_order(plan: &str) -> Vec<&str> {
    let mut order = Vec::new();
    for path in plan.lines().filter_map(|line| line.strip_prefix("insmod ")).map(str::trim) {
        if !order.contains(&path) {
            order.push(path);
        }
    }
    order
}

fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let file = fs::File::create(archive).with_context(|| format!("cannot create {}", archive.display()))?;
    let mut cpio = command("cpio", ["--quiet", "--null", "--create", "--format=newc", "--owner=0:0"]);
    let mut cpio = cpio
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("cannot start cpio: install cpio")?;
    let mut names = Vec::new();
    list(tree, tree, &mut names)?;
    if let Some(mut stdin) = cpio.stdin.take() {
        stdin.write_all(names.join("\0").as_bytes())?;
    }
    if !cpio.wait()?.success() {
        bail!("cpio could not write {}", archive.display());
    }
    Ok(())
}

fn list(folder: &Path, base: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        names.push(path.strip_prefix(base)?.to_string_lossy().into_owned());
        if path.is_dir() {
            list(&path, base, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_shared_by_two_modules_is_loaded_once_and_first() {
        let plan = "builtin virtio_pci\ninsmod /m/fuse.ko \ninsmod /m/virtiofs.ko \ninsmod /m/fuse.ko \n";
        assert_eq!(load_order(plan), ["/m/fuse.ko", "/m/virtiofs.ko"]);
    }
}
