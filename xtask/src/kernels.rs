//! Stock Debian kernels for the virtual machines, unpacked under `<target>/kernels/<series>/`.
//!
//! They are downloaded with an apt state of our own that knows the suites they live in, verified with
//! Debian's archive keys, and never installed: the machine's apt sources, lists and packages stay untouched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, note, output, run_quietly, step},
    paths,
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Archive and suite of every series.
const SUITES: [(&str, &str); 4] = [
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian", "bookworm-backports"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
    ("http://deb.debian.org/debian", "trixie-backports"),
];

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
    fn package_pattern(self) -> (&'static str, &'static str) {
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
    download(series, &folder.join("apt"), &unpacking)
        .with_context(|| format!("cannot get kernel {}; is there a network?", series.name()))?;
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

fn download(series: Series, apt_dir: &Path, into: &Path) -> Result<()> {
    let debs = into.join("debs");
    fs::create_dir_all(&debs)?;
    prepare_apt(apt_dir)?;
    run_quietly(apt(apt_dir, "apt-get").arg("update"), "read the package lists of Debian's kernel suites")?;
    let names =
        output(apt(apt_dir, "apt-cache").args(["search", "--names-only", "^linux-image-.*-cloud-amd64"]))?;
    let Some(image) = newest_image(series, names.lines().filter_map(|line| line.split(' ').next())) else {
        bail!(
            "Debian's suites have no package like {}*{}",
            series.package_pattern().0,
            series.package_pattern().1
        );
    };
    let depends = output(apt(apt_dir, "apt-cache").args(["depends", "--important", &image]))?;
    let packages: Vec<String> = std::iter::once(image).chain(parts(&depends)).collect();
    let mut fetch = apt(apt_dir, "apt-get");
    run_quietly(
        fetch.arg("download").args(&packages).current_dir(&debs),
        &format!("download {}", packages.join(" ")),
    )?;
    for entry in fs::read_dir(&debs)? {
        output(command("dpkg", ["-x"]).arg(entry?.path()).arg(into))?;
    }
    remove_folder(&debs)
}

/// The newest image package of a series; of two of one version the signed one, which is the shorter name.
fn newest_image<'a>(series: Series, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let (before, after) = series.package_pattern();
    let version = |name: &str| -> Option<Vec<u32>> {
        let name = name.strip_suffix("-unsigned").unwrap_or(name);
        let number = name.strip_prefix(before)?.strip_suffix(after)?;
        number.split('.').map(|part| part.parse().ok()).collect()
    };
    let known = names.filter_map(|name| Some((version(name)?, name)));
    known
        .max_by_key(|(version, name)| (version.clone(), std::cmp::Reverse(name.len())))
        .map(|(_, name)| name.to_owned())
}

/// The packages that newer image packages are split into (base: the list of built-in modules).
fn parts(depends: &str) -> impl Iterator<Item = String> {
    const PARTS: [&str; 3] = ["linux-base-", "linux-binary-", "linux-modules-"];
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.filter(|name| PARTS.iter().any(|part| name.starts_with(part))).map(str::to_owned)
}

fn prepare_apt(apt_dir: &Path) -> Result<()> {
    if !Path::new(KEYRING).is_file() {
        bail!("no {KEYRING} to verify Debian's packages with: install debian-archive-keyring");
    }
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt_dir.join(folder))?;
    }
    let line = |(archive, suite): (&str, &str)| {
        format!("deb [signed-by={KEYRING} arch=amd64] {archive} {suite} main\n")
    };
    fs::write(apt_dir.join("sources.list"), SUITES.map(line).concat())
        .context("cannot write the list of suites")
}

/// apt with our own state: the machine's sources and lists are neither read nor changed, its proxy settings are.
fn apt(apt_dir: &Path, program: &str) -> Command {
    let mut apt = Command::new(program);
    let folder = |name: &str, path: &str| format!("{name}={}", apt_dir.join(path).display());
    let options = [
        folder("Dir::State", "state"),
        folder("Dir::Cache", "cache"),
        folder("Dir::Etc::SourceList", "sources.list"),
        "Dir::Etc::SourceParts=/dev/null".into(),
        "Dir::Etc::Preferences=/dev/null".into(),
        "Dir::Etc::PreferencesParts=/dev/null".into(),
        "Dir::State::status=/dev/null".into(),
        "APT::Architecture=amd64".into(),
        "APT::Sandbox::User=root".into(),
        "Acquire::Languages=none".into(),
        "Acquire::Retries=3".into(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
    ];
    for option in options {
        apt.arg("-o").arg(option);
    }
    apt
}

/// Gives the tree one shape (`lib/modules` on every series) and writes `modules.dep`.
fn index_modules(root: &Path) -> Result<()> {
    if root.join("usr/lib/modules").is_dir() && !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).context("cannot link lib to usr/lib")?;
    }
    let modules = root.join("lib/modules");
    let entries =
        fs::read_dir(&modules).with_context(|| format!("no modules under {}", modules.display()))?;
    for release in entries {
        let depmod = paths::find_program("depmod").context("no depmod: install kmod")?;
        output(command(depmod, ["-b"]).arg(root).arg(release?.file_name()))?;
    }
    note(&format!("unpacked under {}", root.display()));
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<()> {
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
    fn the_newest_image_is_chosen_by_number_not_by_text() {
        let names = [
            "linux-image-6.12.95+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-dbg",
            "linux-image-6.12.90+deb12.1-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
        ];
        let newest = |series| newest_image(series, names.into_iter());
        assert_eq!(newest(Series::V6_12).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(Series::V7_3).as_deref(), Some("linux-image-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest(Series::V6_1), None);
    }

    #[test]
    fn an_unsigned_image_is_taken_where_it_alone_is_newest() {
        let names = ["linux-image-6.1.0-55-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64-unsigned"];
        let newest = newest_image(Series::V6_1, names.into_iter());
        assert_eq!(newest.as_deref(), Some("linux-image-6.1.0-56-cloud-amd64-unsigned"));
    }

    #[test]
    fn a_split_image_brings_its_parts() {
        let depends = "linux-image-7.3.4\n  Depends: linux-base-7.3.4\n  Depends: linux-binary-7.3.4\n \
                       |Depends: dracut\n  Depends: linux-modules-7.3.4\n";
        let expected = ["linux-base-7.3.4", "linux-binary-7.3.4", "linux-modules-7.3.4"];
        assert_eq!(parts(depends).collect::<Vec<_>>(), expected);
        assert_eq!(parts("linux-image-6.1.0-56\n  Depends: linux-base\n  Depends: kmod\n").count(), 0);
    }

    #[test]
    fn an_unknown_series_names_the_known_ones() {
        assert_eq!(parse_series("6.12"), Ok(Series::V6_12));
        assert_eq!(parse_series("5.10"), Err("known kernels are 6.1, 6.12, 7.3".to_owned()));
    }
}
