//! Compilers that can build the eBPF programs: any rustc will do that has the standard library's sources, since
//! core is built for the BPF target. `RUSTC_BOOTSTRAP` unlocks the flags that only nightlies take.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, output, run, step},
    host,
    packages::{self, Need},
    paths,
};

/// The workspace's `rust-version`.
const OLDEST_RUSTC: (u32, u32) = (1, 89);
/// Minor versions that Ubuntu's versioned packages are looked for in.
const MINORS: std::ops::Range<u32> = OLDEST_RUSTC.1..OLDEST_RUSTC.1 + 60;

/// A rustc with the standard library's sources.
#[derive(Debug, Clone)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) version: (u32, u32),
    pub(crate) llvm: u32,
}

/// Compilers with sources that are here: rustup's nightlies, the distribution's, rustup's default.
pub(crate) fn installed() -> Vec<Compiler> {
    let mut paths: Vec<PathBuf> = rustup_toolchains().iter().filter_map(|name| rustup_rustc(name)).collect();
    paths.push("/usr/bin/rustc".into());
    paths.extend(versioned_rustcs());
    if let Ok(path) = output(&mut command("rustup", ["which", "rustc"])) {
        paths.push(path.trim().into());
    }
    paths.iter().filter_map(|path| inspect(path)).collect()
}

fn rustup_toolchains() -> Vec<String> {
    let list = output(&mut command("rustup", ["toolchain", "list"])).unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("nightly")).map(str::to_owned).collect()
}

fn rustup_rustc(toolchain: &str) -> Option<PathBuf> {
    let path = output(&mut command("rustup", ["which", "--toolchain", toolchain, "rustc"])).ok()?;
    Some(path.trim().into())
}

/// Ubuntu's `rustc-1.NN` packages, newest first.
fn versioned_rustcs() -> Vec<PathBuf> {
    let paths = MINORS.rev().map(|minor| PathBuf::from(format!("/usr/bin/rustc-1.{minor}")));
    paths.filter(|path| path.exists()).collect()
}

fn inspect(rustc: &Path) -> Option<Compiler> {
    let (version, llvm) = parse_rustc_version(&output(&mut command(rustc, ["-vV"])).ok()?)?;
    let sysroot = output(&mut command(rustc, ["--print", "sysroot"])).ok()?;
    let sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    (version >= OLDEST_RUSTC && sources.is_file()).then(|| Compiler {
        rustc: rustc.to_path_buf(),
        version,
        llvm,
    })
}

fn parse_rustc_version(text: &str) -> Option<((u32, u32), u32)> {
    let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let mut release = field("release:")?.split('.').map(str::parse);
    let version = (release.next()?.ok()?, release.next()?.ok()?);
    Some((version, field("LLVM version:")?.split('.').next()?.parse().ok()?))
}

/// Installs a compiler with sources: Debian's newest, else the sources for rustup's, else Ubuntu's versioned one.
pub(crate) fn install_one() -> Result<()> {
    if !is_new_enough("rustc-web") && host::is_root() {
        // The lists may be old or, in a container, empty; where there is no network the rest still works.
        let _ = packages::update();
    }
    if is_new_enough("rustc-web") && packages::candidate("rust-web-src").is_some() {
        return install(&["rustc-web", "rust-web-src", "rust-web-clippy?"]);
    }
    if paths::find_program("rustup").is_some() {
        step("rustup component add rust-src");
        return run(&mut command("rustup", ["component", "add", "rust-src"])).context(
            "no compiler here has the standard library's sources, which the eBPF programs need, and rustup \
             cannot fetch them: is there a network?",
        );
    }
    let names = MINORS.rev().map(|minor| (format!("rustc-1.{minor}"), format!("rust-1.{minor}-src")));
    let available = |name: &String| packages::candidate(name).is_some();
    let mut available = names.filter(|(compiler, sources)| available(compiler) && available(sources));
    let Some((compiler, sources)) = available.next() else {
        let (major, minor) = OLDEST_RUSTC;
        bail!(
            "no rustc {major}.{minor} or newer with the standard library's sources can be found or installed: \
             install rustup and run `rustup component add rust-src`"
        );
    };
    install(&[&compiler, &sources])
}

fn install(names: &[&str]) -> Result<()> {
    let needs: Vec<Need> = names.iter().map(|name| Need::parse(name)).collect();
    packages::ensure(&needs, "compiling the eBPF programs")
}

/// Whether apt would install a package at least as new as the oldest rustc.
fn is_new_enough(package: &str) -> bool {
    packages::candidate(package).and_then(|version| parse_debian_version(&version)) >= Some(OLDEST_RUSTC)
}

/// Major and minor of a version such as `1.96.0+dfsg1-1`.
fn parse_debian_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// For messages.
pub(crate) fn describe(compilers: &[Compiler]) -> String {
    let one = |compiler: &Compiler| {
        let (major, minor) = compiler.version;
        format!("{} {major}.{minor} with LLVM {}", compiler.rustc.display(), compiler.llvm)
    };
    compilers.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_is_known_by_its_version_and_its_llvm() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_rustc_version(text), Some(((1, 96), 22)));
        assert_eq!(parse_rustc_version("release: 1.98.0-nightly\nLLVM version: 23.1\n"), Some(((1, 98), 23)));
        assert_eq!(parse_rustc_version("rustc"), None);
    }

    #[test]
    fn a_debian_version_is_compared_by_number() {
        assert_eq!(parse_debian_version("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert!(parse_debian_version("1.100.0+dfsg1-1") >= Some(OLDEST_RUSTC));
        assert!(parse_debian_version("1.85.0+dfsg3-1~deb12u3") < Some(OLDEST_RUSTC));
        assert_eq!(parse_debian_version("unknown"), None);
    }
}
