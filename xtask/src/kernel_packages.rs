//! Finds and downloads Debian's kernel packages with an apt state of our own, which knows the suites they live
//! in and verifies them with Debian's archive keys. The machine's own sources, lists and packages are neither
//! read nor changed, so it works on any release and on Ubuntu.

use std::{cmp::Reverse, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, output, run_quietly},
    kernels::{Series, remove_folder},
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Archive and suite of every series.
const SUITES: [(&str, &str); 4] = [
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian", "bookworm-backports"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
    ("http://deb.debian.org/debian", "trixie-backports"),
];

/// Downloads the newest kernel of a series and unpacks it.
pub(crate) fn download(series: Series, apt_dir: &Path, into: &Path) -> Result<()> {
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
        .max_by_key(|(version, name)| (version.clone(), Reverse(name.len())))
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
}
