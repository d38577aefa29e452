//! Why a package manager failed, read off what it said, and what to do about it. Pure text work.

use std::fmt;

use anyhow::{Error, anyhow};

/// A cause that a person can remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    NoSpace,
    Locked,
    HalfConfigured,
    NoNetwork,
    Interrupted,
}

/// What apt, dpkg and cargo say, the likeliest root of the others first.
const SIGNS: [(Cause, &[&str]); 5] = [
    (Cause::NoSpace, &["No space left on device", "have enough free space", "Disk quota exceeded"]),
    (Cause::Locked, &["Could not get lock", "Unable to lock", "Unable to acquire the dpkg frontend lock"]),
    (Cause::HalfConfigured, &["dpkg was interrupted"]),
    (
        Cause::NoNetwork,
        &[
            "Temporary failure resolving",
            "Could not resolve",
            "Couldn't resolve",
            "Network is unreachable",
            "Could not connect",
            "Cannot initiate the connection",
            "No route to host",
        ],
    ),
    (
        Cause::Interrupted,
        &[
            "Hash Sum mismatch",
            "File has unexpected size",
            "Connection reset",
            "Connection timed out",
            "Connection failed",
            "Error reading from server",
            "unexpected end of file",
            "spurious network error",
            "Failed to fetch",
            "failed to download",
        ],
    ),
];

impl Cause {
    /// The cause that a program's output names, if it is one we know.
    pub(crate) fn of(said: &str) -> Option<Self> {
        find(said).map(|(cause, _)| cause)
    }

    /// Whether the same command may succeed with fresh package lists.
    pub(crate) fn may_pass(self) -> bool {
        self == Self::Interrupted
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSpace => {
                "the disk is full: free some space (set-up and a build need about 8 GB, most of it for target/; \
                 `apt-get clean` and `cargo xtask clean` help) and run the same command again"
            }
            Self::Locked => {
                "another package manager is at work: wait until it has ended and run the same command again"
            }
            Self::HalfConfigured => {
                "an earlier installation was interrupted: run `dpkg --configure -a`, then the same command again"
            }
            Self::NoNetwork => {
                "the package archive cannot be reached: set-up downloads packages once, so connect this machine \
                 (or set its proxy: http_proxy, or Acquire::http::Proxy in apt's configuration) and run the same \
                 command again"
            }
            Self::Interrupted => {
                "a download broke off: run the same command again, what is complete is not downloaded again"
            }
        })
    }
}

/// An error of one paragraph: what failed, why, what to do, and the line that says so.
pub(crate) fn explain(what: &str, said: &str) -> Error {
    if let Some((cause, line)) = find(said) {
        return anyhow!("cannot {what}: {cause}. It said: {line}");
    }
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" / ");
    anyhow!("cannot {what}. It said: {}", if last.is_empty() { "nothing" } else { &last })
}

fn find(said: &str) -> Option<(Cause, &str)> {
    SIGNS.iter().find_map(|(cause, signs)| {
        let line = said.lines().find(|line| signs.iter().any(|sign| line.contains(sign)))?;
        Some((*cause, line.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_dpkg_and_cargo_say_names_the_cause() {
        let cases = [
            (
                "W: Failed to fetch http://deb.debian.org/x  Temporary failure resolving 'deb.debian.org'",
                Cause::NoNetwork,
            ),
            ("E: Failed to fetch http://x/y.deb  Could not connect to x:80 (10.0.0.1)", Cause::NoNetwork),
            (
                "error: failed to download from `https://x`\n  [6] Couldn't resolve host name",
                Cause::NoNetwork,
            ),
            ("E: You don't have enough free space in /var/cache/apt/archives/.", Cause::NoSpace),
            (
                "E: Failed to fetch http://x/y.deb  Error writing to file - write (28: No space left on device)",
                Cause::NoSpace,
            ),
            ("dpkg-deb: error: failed to write (No space left on device)", Cause::NoSpace),
            (
                "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (apt)",
                Cause::Locked,
            ),
            ("E: dpkg was interrupted, you must manually run 'dpkg --configure -a'", Cause::HalfConfigured),
            ("E: Failed to fetch http://x/y.deb  Hash Sum mismatch", Cause::Interrupted),
            ("Err:1 http://x y\n  Connection timed out [IP: 10.0.0.1 80]", Cause::Interrupted),
        ];
        for (said, cause) in cases {
            assert_eq!(Cause::of(said), Some(cause), "{said}");
        }
        assert_eq!(Cause::of("E: Unable to locate package wrk"), None);
    }

    #[test]
    fn an_explanation_is_one_paragraph_with_the_telling_line() {
        let said = "Reading lists\nE: Write error - write (28: No space left on device)\nE: other\n";
        let text = explain("install packages", said).to_string();
        assert!(text.starts_with("cannot install packages: the disk is full") && !text.contains('\n'));
        assert!(text.ends_with("(28: No space left on device)"));
    }

    #[test]
    fn an_unknown_failure_quotes_its_last_lines() {
        let text = explain("install packages", "a\nb\nc\nd\n").to_string();
        assert_eq!(text, "cannot install packages. It said: b / c / d");
        assert_eq!(explain("install packages", "").to_string(), "cannot install packages. It said: nothing");
    }

    #[test]
    fn only_a_broken_download_is_worth_a_second_try() {
        assert!(Cause::Interrupted.may_pass() && !Cause::NoNetwork.may_pass() && !Cause::NoSpace.may_pass());
    }
}
