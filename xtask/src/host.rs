//! What machine this is: distribution and rights. Reads, never changes anything.

use std::{fs, path::Path};

use crate::{command::command, paths};

/// The distribution, as far as set-up treats it differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Distribution {
    /// Debian, Ubuntu or one that says it is like them: has apt and their package names.
    DebianLike(String),
    /// Anything else, by the name it gives itself.
    Other(String),
}

/// Reads `/etc/os-release`.
pub(crate) fn distribution() -> Distribution {
    parse_os_release(&fs::read_to_string("/etc/os-release").unwrap_or_default())
}

/// Whether this process may install packages, create namespaces and load eBPF programs.
pub(crate) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_uid(&status) == Some(0)
}

/// Whether this kernel has TLS, loading the module if it is one (which containers may not).
pub(crate) fn has_kernel_tls() -> bool {
    let statistics = Path::new("/proc/net/tls_stat");
    if !statistics.exists()
        && let Some(modprobe) = paths::find_program("modprobe")
    {
        let _ = command(modprobe, ["-q", "tls"]).output();
    }
    statistics.exists()
}

/// This machine's kernel as `6.12`; none where it does not say.
pub(crate) fn kernel_series() -> Option<String> {
    parse_series(&fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
}

fn parse_series(release: &str) -> Option<String> {
    let mut parts = release.trim().split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    Some(format!("{}.{}", parts.next()?, parts.next()?))
}

fn parse_os_release(text: &str) -> Distribution {
    let field = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned()).unwrap_or_default()
    };
    let name = field("PRETTY_NAME");
    let ids = format!("{} {}", field("ID"), field("ID_LIKE"));
    if ids.split_whitespace().any(|id| id == "debian" || id == "ubuntu") {
        Distribution::DebianLike(name)
    } else {
        Distribution::Other(if name.is_empty() { "an unknown distribution".to_owned() } else { name })
    }
}

fn effective_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_series() {
        assert_eq!(parse_series("6.18.44-fc-v595\n").as_deref(), Some("6.18"));
        assert_eq!(parse_series("7.3-rc1").as_deref(), Some("7.3"));
        assert_eq!(parse_series("linux"), None);
    }

    #[test]
    fn debian_and_its_derivatives_are_known_by_id_or_id_like() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n";
        assert_eq!(
            parse_os_release(debian),
            Distribution::DebianLike("Debian GNU/Linux 12 (bookworm)".into())
        );
        let mint = "PRETTY_NAME=\"Linux Mint 22\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n";
        assert_eq!(parse_os_release(mint), Distribution::DebianLike("Linux Mint 22".into()));
    }

    #[test]
    fn other_distributions_keep_their_name() {
        let fedora = "PRETTY_NAME=\"Fedora Linux 42\"\nID=fedora\n";
        assert_eq!(parse_os_release(fedora), Distribution::Other("Fedora Linux 42".into()));
        assert_eq!(parse_os_release(""), Distribution::Other("an unknown distribution".into()));
    }

    #[test]
    fn the_effective_uid_is_the_second_field() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }
}
