//! `meshctl bugreport`: what somebody needs who is to help, from the daemon where one runs and from the node in any case.
//! No secret goes in: the admin API has none, files are named and only some are read, and what is read as text (the node's
//! file, the journal) passes [`redact`] first.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use anyhow::Context;
use mesh_user::{admin::AdminClient, config::Config};
use regex::Regex;

use crate::offline;

/// Of one part; the rest is cut.
const MOST_BYTES: u64 = 4 << 20;
const JOURNAL_LINES: &str = "5000";

/// Asked of the daemon: the part's name and the path.
const ASKED: [(&str, &str); 8] = [
    ("status.json", "/v1/status"),
    ("workloads.json", "/v1/workloads"),
    ("connections.json", "/v1/connections?limit=1000"),
    ("certs.json", "/v1/certs"),
    ("policies.json", "/v1/policies"),
    ("jwks.json", "/v1/jwks"),
    ("check.json", "/v1/check"),
    ("metrics.txt", "/metrics"),
];

/// Of the node.
const READ: [(&str, &str); 8] = [
    ("kernel.txt", "/proc/version"),
    ("os-release.txt", "/etc/os-release"),
    ("cpu-and-memory.txt", "/proc/meminfo"),
    ("modules.txt", "/proc/modules"),
    ("lockdown.txt", "/sys/kernel/security/lockdown"),
    ("unprivileged-bpf.txt", "/proc/sys/kernel/unprivileged_bpf_disabled"),
    ("mounts.txt", "/proc/self/mountinfo"),
    ("bpf-jit.txt", "/proc/sys/net/core/bpf_jit_enable"),
];

/// Collects everything; a part that cannot be had says why in its place.
pub(crate) fn run(
    runtime_dir: &Path,
    config: &Path,
    folder: Option<&Path>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let parts = collect(runtime_dir, config)?;
    let Some(folder) = folder else {
        for (name, text) in &parts {
            writeln!(out, "==> {name} <==\n{text}\n")?;
        }
        return Ok(());
    };
    // What is there is not ours to write over.
    fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in &parts {
        let path = folder.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    writeln!(out, "wrote {} files to {}", parts.len(), folder.display())?;
    Ok(())
}

fn collect(runtime_dir: &Path, config: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let mut parts = vec![(
        "about.txt".to_owned(),
        format!("meshctl {}, {}, {}", env!("CARGO_PKG_VERSION"), runtime_dir.display(), config.display()),
    )];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = AdminClient::new(runtime_dir);
    runtime.block_on(async {
        for (name, path) in ASKED {
            let said = client.text(path).await.unwrap_or_else(|error| format!("(not had: {error})"));
            parts.push((name.to_owned(), said));
        }
    });
    parts.push(("node.yaml".to_owned(), read(config)));
    parts.push(("policies.yaml".to_owned(), policies(config)));
    for (name, path) in READ {
        parts.push((name.to_owned(), read(Path::new(path))));
    }
    parts.push(("runtime-folder.txt".to_owned(), listing(runtime_dir)));
    let journal = ["--unit=meshd", "--no-pager", "--lines", JOURNAL_LINES, "--output=short-iso"];
    parts.push(("journal.txt".to_owned(), command("journalctl", &journal)));
    Ok(parts.into_iter().map(|(name, text)| (name, redact(&text))).collect())
}

fn not_had(error: &dyn std::fmt::Display) -> String {
    format!("(not had: {error})")
}

/// The beginning of a file.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => not_had(&error),
    }
}

/// The documents in force as files; those of a cluster are the API server's to show.
fn policies(config: &Path) -> String {
    let files = Config::load(config).map_err(anyhow::Error::from);
    let files = files.and_then(|config| offline::policy_files(&config.policies_dir));
    match files {
        Ok(files) => {
            let texts: Vec<_> =
                files.iter().map(|file| format!("# {}\n{}\n---\n", file.display(), read(file))).collect();
            texts.concat()
        }
        Err(error) => not_had(&error),
    }
}

/// Names below a folder, two levels deep: the pins among them.
fn listing(folder: &Path) -> String {
    let mut names = Vec::new();
    let mut folders: Vec<(PathBuf, u8)> = vec![(folder.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                names.push(format!("{}: {error}", folder.display()));
                continue;
            }
        };
        for entry in entries.flatten().take(10_000) {
            names.push(entry.path().display().to_string());
            if depth < 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    names.sort();
    names.join("\n")
}

fn command(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let most = usize::try_from(MOST_BYTES).unwrap_or(usize::MAX);
            let skip = text.len().saturating_sub(most);
            let start = (skip..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text[start..].to_owned()
        }
        Err(error) => not_had(&error),
    }
}

/// Private keys, tokens, and the values that a node's file sends to authorizers. meshd logs none of them; what others wrote
/// beside it might.
fn redact(text: &str) -> String {
    static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let pattern = |pattern: &str| Regex::new(pattern).ok();
        [
            (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)", "[private key]"),
            // RFC 7519: three parts, the first two of them JSON in base64.
            (r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", "[token]"),
            (r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}", "$1 [token]"),
            (r"(?i)((?:token|password|secret|authorization|api[_-]?key)[\x22']?\s*[:=]\s*)[\x22']?[^\s\x22',}\]]{8,}[\x22']?", "$1[redacted]"),
            // A private JWK's parts (RFC 7518).
            (r#"("(?:d|p|q|dp|dq|qi|k)"\s*:\s*")[A-Za-z0-9_-]{8,}""#, "$1[key]\""),
        ]
        .into_iter()
        .filter_map(|(from, to)| Some((pattern(from)?, to)))
        .collect()
    });
    let mut text = text.to_owned();
    for (pattern, instead) in PATTERNS.iter() {
        text = pattern.replace_all(&text, *instead).into_owned();
    }
    headers(&text)
}

/// `includeAdditionalHeadersInCheck` may hold a password: its values are left out line by line, whatever they look like.
fn headers(text: &str) -> String {
    const FIELD: &str = "includeAdditionalHeadersInCheck:";
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut kept = Vec::new();
    let mut below: Option<usize> = None;
    for line in text.lines() {
        if below.is_some_and(|at| !line.trim().is_empty() && indent(line) <= at) {
            below = None;
        }
        match (below, line.find(FIELD)) {
            (Some(_), _) => {
                let name = line.split(':').next().unwrap_or_default();
                kept.push(if line.contains(':') { format!("{name}: [redacted]") } else { String::new() });
            }
            (None, Some(at)) => {
                below = Some(indent(line));
                kept.push(if line[at + FIELD.len()..].trim().is_empty() {
                    line.to_owned()
                } else {
                    format!("{}{FIELD} [redacted]", &line[..at])
                });
            }
            (None, None) => kept.push(line.to_owned()),
        }
    }
    kept.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out_and_the_rest_is_kept() {
        let jwt = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlc2ln";
        let key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI\n-----END EC PRIVATE KEY-----";
        for (text, secret, kept) in [
            (format!("before {jwt} after"), jwt, "before [token] after"),
            (format!("x {key} y"), "MHcCAQEEI", "x [private key] y"),
            ("-----BEGIN PRIVATE KEY-----\nMIGHAg and no end".to_owned(), "MIGHAg", "[private key]"),
            ("authorization: Bearer abcdefgh12345678".to_owned(), "abcdefgh12345678", "[token]"),
            ("{\"password\": \"hunter2hunter2\"}".to_owned(), "hunter2", "[redacted]"),
            ("{\"kty\":\"EC\",\"d\":\"c2VjcmV0c2VjcmV0\"}".to_owned(), "c2VjcmV0", "\"kty\":\"EC\""),
            (
                "a:\n  includeAdditionalHeadersInCheck:\n    x-check: short\n  timeout: 1s\n".to_owned(),
                "short",
                "timeout: 1s",
            ),
            ("a: { includeAdditionalHeadersInCheck: { x: short } }\nb: 1\n".to_owned(), "short", "b: 1"),
        ] {
            let report = redact(&text);
            assert!(!report.contains(secret) && report.contains(kept), "{text} gave {report}");
        }
        let harmless = "tokenFile: /etc/x\nca:\n  provider: meshd-ca\n-----BEGIN CERTIFICATE-----\nMIIB\n";
        assert!(redact(harmless).contains("MIIB") && redact(harmless).contains("tokenFile: /etc/x"));
    }

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(redact("Basic dXNlcjpwYXNzd29yZA=="), "Basic [token]");
        assert_eq!(redact("api_key = 0123456789abcdef"), "api_key = [redacted]");
    }

    #[test]
    fn a_folder_that_exists_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let error = run(dir.path(), Path::new("/nonexistent"), Some(dir.path()), &mut Vec::new());
        assert!(format!("{:#}", error.unwrap_err()).contains("cannot make"));
    }

    #[test]
    fn without_a_daemon_the_report_says_so_and_has_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        run(dir.path(), &dir.path().join("none"), None, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("==> status.json <==\n(not had: meshd is not running"), "{text}");
        assert!(text.contains("==> kernel.txt <==\nLinux version"), "{text}");
    }
}
