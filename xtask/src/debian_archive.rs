//! Packages that are unpacked under target/ and never installed, through an apt state of our own, which knows the
//! suites they live in and verifies them with Debian's archive keys. The machine's own sources, lists and packages
//! are neither read nor changed, so it works on any release and on Ubuntu.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, output, run_quietly},
    kernels::remove_folder,
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Archive and suite of every kernel series; Debian 12's newer QEMU is in one of them.
const SUITES: [(&str, &str); 4] = [
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian", "bookworm-backports"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
    ("http://deb.debian.org/debian", "trixie-backports"),
];

/// Debian's archive with fresh lists.
pub(crate) struct Archive {
    apt_dir: PathBuf,
}

impl Archive {
    /// Reads the package lists anew; `apt_dir` keeps them.
    pub(crate) fn open(apt_dir: &Path) -> Result<Self> {
        Self::with("deb", &SUITES, apt_dir)
    }

    /// The same of Debian 12's source packages.
    pub(crate) fn open_sources(apt_dir: &Path) -> Result<Self> {
        Self::with("deb-src", &SUITES[..1], apt_dir)
    }

    fn with(kind: &str, suites: &[(&str, &str)], apt_dir: &Path) -> Result<Self> {
        prepare_apt(apt_dir, kind, suites)?;
        let archive = Self { apt_dir: apt_dir.to_path_buf() };
        // Without it apt counts a suite that it could not reach as success.
        let mut update = archive.apt("apt-get");
        update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        run_quietly(&mut update, "read the package lists of Debian's archive")?;
        Ok(archive)
    }

    /// Names that match a regular expression.
    pub(crate) fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let found = output(self.apt("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(found.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    /// What apt prints about a package's dependencies.
    pub(crate) fn depends(&self, package: &str) -> Result<String> {
        output(self.apt("apt-cache").args(["depends", "--important", package]))
    }

    /// Downloads packages (`name` or `name/suite`) and unpacks them into a folder.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let debs = into.join("debs");
        fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
        let mut fetch = self.apt("apt-get");
        run_quietly(
            fetch.arg("download").args(packages).current_dir(&debs),
            &format!("download {}", packages.join(" ")),
        )?;
        for entry in fs::read_dir(&debs)? {
            output(command("dpkg", ["-x"]).arg(entry?.path()).arg(into))?;
        }
        remove_folder(&debs)
    }

    /// Downloads a source package's files into a folder.
    pub(crate) fn fetch_source(&self, package: &str, into: &Path) -> Result<()> {
        let mut fetch = self.apt("apt-get");
        fetch.args(["source", "--download-only", "--only-source", package]).current_dir(into);
        run_quietly(&mut fetch, &format!("download the source of {package}"))
    }

    fn apt(&self, program: &str) -> Command {
        apt(&self.apt_dir, program)
    }
}

fn prepare_apt(apt_dir: &Path, kind: &str, suites: &[(&str, &str)]) -> Result<()> {
    if !Path::new(KEYRING).is_file() {
        bail!("no {KEYRING} to verify Debian's packages with: install debian-archive-keyring");
    }
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt_dir.join(folder))?;
    }
    let lines = suites
        .iter()
        .map(|(archive, suite)| format!("{kind} [signed-by={KEYRING} arch=amd64] {archive} {suite} main\n"));
    fs::write(apt_dir.join("sources.list"), lines.collect::<String>())
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
