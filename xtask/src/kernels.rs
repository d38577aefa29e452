//! Stock Debian kernels for the virtual machines, unpacked under `<target>/kernels/<series>/`.
//!
//! They are never installed, and nothing here knows where they come from: that is `kernel_packages`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    command::{command, note, output, step},
    debian_archive::Archive,
    kernel_packages, paths,
};

/// A line of kernels that we test on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Series {
    /// Debian 12's own kernel: the oldest that meshd supports.
    V6_1,
    /// Debian 13's kernel, as Debian 12 gets it.
    V6_12,
    /// The newest Debian packages, from Debian 13's backports.
    V7_3,
}

/// Every series, oldest first.
pub(crate) const ALL: [Series; 3] = [Series::V6_1, Series::V6_12, Series::V7_3];

impl Series {
    /// The name on the command line, in reports and in file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_3 => "7.3",
        }
    }

    /// What stands around the version in the image package's name.
    pub(crate) fn package_pattern(self) -> (&'static str, &'static str) {
        match self {
            Self::V6_1 => ("linux-image-6.1.0-", "-cloud-amd64"),
            Self::V6_12 => ("linux-image-6.12.", "+deb12-cloud-amd64"),
            Self::V7_3 => ("linux-image-7.3.", "+deb13-cloud-amd64"),
        }
    }
}

/// For clap: a series by its name.
pub(crate) fn parse_series(name: &str) -> Result<Series, String> {
    let known = ALL.map(Series::name).join(", ");
    ALL.into_iter().find(|series| series.name() == name).ok_or_else(|| format!("known kernels are {known}"))
}

/// An unpacked kernel with a depmod'ed module tree.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// `uname -r`.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// The folder whose `lib/modules/<release>` holds the modules.
    pub(crate) root: PathBuf,
}

/// The kernel, downloaded if it is not here yet.
pub(crate) fn ensure(series: Series) -> Result<Kernel> {
    let folder = folder()?;
    let root = folder.join(series.name());
    if let Some(kernel) = unpacked(&root) {
        return Ok(kernel);
    }
    step(&format!("kernel {} (download, unpack; once)", series.name()));
    let unpacking = folder.join(format!("{}.part", series.name()));
    remove_folder(&unpacking)?;
    Archive::open(&folder.join("apt"))
        .and_then(|archive| kernel_packages::download(series, &archive, &unpacking))
        .with_context(|| format!("cannot get kernel {}", series.name()))?;
    index_modules(&unpacking)?;
    remove_folder(&root)?;
    fs::rename(&unpacking, &root).context("cannot put the kernel in place")?;
    unpacked(&root).with_context(|| format!("the package left no kernel under {}", root.display()))
}

/// Where kernels are kept.
pub(crate) fn folder() -> Result<PathBuf> {
    Ok(paths::target()?.join("kernels"))
}

fn unpacked(root: &Path) -> Option<Kernel> {
    let release =
        fs::read_dir(root.join("lib/modules")).ok()?.next()?.ok()?.file_name().into_string().ok()?;
    // Some packages put the image under boot/, newer ones beside the modules.
    let places = [format!("boot/vmlinuz-{release}"), format!("lib/modules/{release}/vmlinuz")];
    let image = places.iter().map(|place| root.join(place)).find(|path| path.is_file())?;
    root.join("lib/modules").join(&release).join("modules.dep").is_file().then_some(())?;
    Some(Kernel { release, image, root: root.to_path_buf() })
}

/// Gives the tree one shape (`lib/modules` on every series) and writes `modules.dep`.
fn index_modules(root: &Path) -> Result<()> {
    if root.join("usr/lib/modules").is_dir() && !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).context("cannot link lib to usr/lib")?;
    }
    let modules = root.join("lib/modules");
    let entries =
        fs::read_dir(&modules).with_context(|| format!("no modules under {}", modules.display()))?;
    // Unpacking them once here saves an emulated guest ten seconds of it on every start.
    let packed = command("find", [modules.as_os_str()])
        .args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"])
        .output();
    if !packed.is_ok_and(|output| output.status.success()) {
        note("the modules stay compressed: guests start more slowly");
    }
    for release in entries {
        let depmod = paths::find_program("depmod").context("no depmod: install kmod")?;
        output(command(depmod, ["-b"]).arg(root).arg(release?.file_name()))?;
    }
    note(&format!("unpacked under {}", root.display()));
    Ok(())
}

pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_series_names_the_known_ones() {
        assert_eq!(parse_series("6.12"), Ok(Series::V6_12));
        assert_eq!(parse_series("5.10"), Err("known kernels are 6.1, 6.12, 7.3".to_owned()));
    }
}
