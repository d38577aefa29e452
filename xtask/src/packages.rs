//! Debian packages: which are missing, and installing them through apt.
//! Never starts or enables a service on the machine, and never touches a package that is there already.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    command::{Followed, command, follow, note, output, step},
    diagnosis::{self, Cause},
    host::{self, Distribution},
    leftovers::Leftover,
    paths,
};

/// Something set-up needs, by the names the distributions give it: any one of them will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Need {
    alternatives: Vec<String>,
    optional: bool,
}

impl Need {
    /// `"a | b"`: `a`, or `b` where `a` does not exist. A trailing `?` makes it optional: left out where the
    /// distribution has none of them (because another package brings it there).
    pub(crate) fn parse(text: &str) -> Self {
        let (names, optional) = text.strip_suffix('?').map_or((text, false), |names| (names, true));
        Self { alternatives: names.split('|').map(|name| name.trim().to_owned()).collect(), optional }
    }
}

/// Building meshd, running its tests and the demo's programs.
pub(crate) const FOR_TESTS: &[&str] = &[
    "build-essential",
    "cmake",
    "clang",
    "pkg-config",
    "ca-certificates",
    "curl",
    "iproute2",
    "procps",
    "kmod",
    "util-linux",
    "python3",
    "python3-venv",
    "bpftool | linux-tools-generic?",
    "tcpdump",
    "nginx-light | nginx",
    "libnginx-mod-stream",
    "redis-server",
    "postgresql",
    "postgresql-contrib?",
    "mariadb-server-core",
    "mariadb-client",
    "wrk",
    "iperf3",
    "nghttp2-client",
    "haproxy",
    "nodejs",
    "default-jdk-headless",
    "python3-grpcio",
    "rsync",
    "openssl",
    "gnutls-bin",
    "golang-go",
    "openssh-server",
    "openssh-client",
    "strace",
    "libfaketime",
];

/// Building `BoringSSL`'s test runner.
pub(crate) const FOR_BOGO: &[&str] =
    &["golang-go", "golang-golang-x-crypto-dev", "debian-archive-keyring", "xz-utils"];

/// Booting stock kernels.
pub(crate) const FOR_VM: &[&str] = &[
    "qemu-system-x86",
    // Debian 12 has it inside qemu-system-common.
    "virtiofsd?",
    "busybox-static",
    "cpio",
    "kmod",
    "xz-utils",
    "debian-archive-keyring",
];

/// Units that installing the packages above would enable at boot.
const SERVICES: &[(&str, &str)] = &[
    ("nginx", "nginx.service"),
    ("nginx-light", "nginx.service"),
    ("redis-server", "redis-server.service"),
    ("postgresql", "postgresql.service"),
    ("openssh-server", "ssh.service"),
    ("iperf3", "iperf3.service"),
    ("haproxy", "haproxy.service"),
    ("rsync", "rsync.service"),
];

/// Installs what is missing of `needs`; does nothing, and needs neither root nor network, when all is there.
pub(crate) fn ensure(needs: &[Need], what_for: &str) -> Result<()> {
    let installed = installed(needs)?;
    let missing: Vec<&Need> = missing(needs, &installed);
    if missing.is_empty() {
        return Ok(());
    }
    let listed = missing.iter().map(|need| need.alternatives.join(" or ")).collect::<Vec<_>>().join(", ");
    if let Distribution::Other(name) = host::distribution() {
        bail!("{}", unknown_distribution(&name, what_for, &listed));
    }
    let mut chosen = choose(&missing);
    if chosen.is_err() && host::is_root() {
        let complaint = update()?;
        chosen = choose(&missing).map_err(|error| match Cause::of(&complaint) {
            Some(_) => diagnosis::explain("read apt's package lists", &complaint),
            None => error,
        });
    }
    let chosen = chosen?;
    if chosen.is_empty() {
        return Ok(());
    }
    if !host::is_root() {
        bail!(
            "{what_for} needs packages that are not installed, and installing them needs root. Run this as root, \
             or: apt-get install {}",
            chosen.join(" ")
        );
    }
    install(&chosen).with_context(|| format!("{what_for} needs packages: {}", chosen.join(" ")))
}

fn unknown_distribution(name: &str, what_for: &str, listed: &str) -> String {
    format!(
        "{what_for} needs packages that set-up can install on Debian and Ubuntu only, and this is {name}. By \
         Debian's names they are: {listed}"
    )
}

/// The version apt would install, if it knows the package.
pub(crate) fn candidate(package: &str) -> Option<String> {
    let policy = output(&mut command("apt-cache", ["policy", package])).ok()?;
    parse_candidate(&policy)
}

/// Whether a package is installed.
pub(crate) fn is_installed(package: &str) -> bool {
    installed(&[Need::parse(package)]).is_ok_and(|set| set.contains(package))
}

fn installed(needs: &[Need]) -> Result<BTreeSet<String>> {
    if paths::find_program("dpkg-query").is_none() {
        return Ok(BTreeSet::new());
    }
    let mut query = command("dpkg-query", ["-W", "-f=${Package} ${db:Status-Status}\n"]);
    query.args(needs.iter().flat_map(|need| &need.alternatives));
    // Exits 1 when some name is unknown; what it knows is on stdout all the same.
    let output = query.output().context("cannot start dpkg-query")?;
    Ok(parse_installed(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_installed(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.strip_suffix(" installed")).map(str::to_owned).collect()
}

fn missing<'a>(needs: &'a [Need], installed: &BTreeSet<String>) -> Vec<&'a Need> {
    needs.iter().filter(|need| !need.alternatives.iter().any(|name| installed.contains(name))).collect()
}

/// Of every need the first name that apt can install; an optional need without one is left out.
fn choose(missing: &[&Need]) -> Result<Vec<String>> {
    let mut chosen = Vec::new();
    for need in missing {
        match need.alternatives.iter().find(|name| candidate(name).is_some()) {
            Some(name) => chosen.push(name.clone()),
            None if need.optional => {}
            None => bail!("apt knows no package {}; try `apt-get update`", need.alternatives.join(" or ")),
        }
    }
    Ok(chosen)
}

fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

/// Reads the package lists anew and returns apt's complaints: it counts an archive that it cannot reach as success,
/// and one that we do not need may be out of reach.
pub(crate) fn update() -> Result<String> {
    step("apt-get update");
    let mut apt = command("apt-get", ["-q", "update"]);
    Ok(follow(apt.env("DEBIAN_FRONTEND", "noninteractive"), |_| ())?.complaint)
}

fn install(packages: &[String]) -> Result<()> {
    step(&format!("apt-get install {}", packages.join(" ")));
    let policy = deny_services()?;
    let first = apt_install(packages)?;
    if !first.ended_well {
        // Stale lists name versions that the mirror no longer has.
        if Cause::of(&first.complaint).is_some_and(|cause| !cause.may_pass()) {
            return Err(diagnosis::explain("install them", &first.complaint));
        }
        note("it failed; trying again after apt-get update");
        update()?;
        let second = apt_install(packages)?;
        if !second.ended_well {
            return Err(diagnosis::explain("install them", &second.complaint));
        }
    }
    drop(policy);
    disable_services(packages);
    Ok(())
}

fn apt_install(packages: &[String]) -> Result<Followed> {
    let mut apt = command("apt-get", ["-q", "-y", "--no-install-recommends", "-o", "Acquire::Retries=3"]);
    apt.arg("install").args(packages);
    follow(apt.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_SUSPEND", "1"), |_| ())
}

/// Packages enable their services at boot; the ones we brought are for tests only.
fn disable_services(packages: &[String]) {
    let Some(systemctl) = paths::find_program("systemctl") else { return };
    for (package, unit) in SERVICES {
        if packages.iter().any(|installed| installed == package) {
            // Fails harmlessly where the package has no such unit.
            let _ = command(&systemctl, ["--quiet", "disable", unit]).output();
        }
    }
}

/// Keeps maintainer scripts from starting services until the guard is dropped; a policy of the machine's own
/// stays, one that a killed set-up left is ours.
fn deny_services() -> Result<Option<Leftover>> {
    const POLICY: &str = "#!/bin/sh\n# cargo xtask setup, while it installs packages\nexit 101\n";
    let path = Path::new("/usr/sbin/policy-rc.d");
    if path.exists() && fs::read_to_string(path).is_ok_and(|text| text != POLICY) {
        return Ok(None);
    }
    let guard = Leftover::new(path.to_path_buf());
    fs::write(path, POLICY)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Some(guard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_whose_files_are_in_place_count_as_installed() {
        let text = "curl installed\nwrk config-files\nxz-utils not-installed\n";
        assert_eq!(parse_installed(text), BTreeSet::from(["curl".to_owned()]));
    }

    #[test]
    fn any_alternative_satisfies_a_need() {
        let needs = [Need::parse("nginx-light | nginx"), Need::parse("wrk"), Need::parse("virtiofsd?")];
        let installed = BTreeSet::from(["nginx".to_owned()]);
        assert_eq!(missing(&needs, &installed), [&needs[1], &needs[2]]);
        assert!(needs[2].optional && !needs[1].optional);
    }

    #[test]
    fn an_unknown_distribution_is_told_the_packages() {
        let text = unknown_distribution("Fedora Linux 42", "building meshd", "cmake, wrk");
        assert!(text.contains("this is Fedora Linux 42") && text.ends_with("cmake, wrk"));
    }

    #[test]
    fn a_package_without_candidate_is_not_available() {
        assert_eq!(
            parse_candidate("x:\n  Installed: (none)\n  Candidate: 1:2.3-4\n"),
            Some("1:2.3-4".into())
        );
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }
}
