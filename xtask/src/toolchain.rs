//! The compiler and linker for the eBPF programs.
//!
//! Any rustc will do that has the standard library's sources (core is built for the BPF target; the
//! nightly-only flags are unlocked by `RUSTC_BOOTSTRAP`) and an LLVM no newer than bpf-linker's, which reads
//! the compiler's bitcode. What is installed is preferred to what must be fetched.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, note, output, run, step},
    packages::{self, Need},
    paths,
};

/// bpf-linker's release, and the LLVM versions it can be built with, newest first.
const BPF_LINKER_VERSION: &str = "0.13.0";
const LINKER_LLVM: [u32; 3] = [23, 22, 21];
/// The workspace's `rust-version`.
const OLDEST_RUSTC: (u32, u32) = (1, 89);

/// What compiles and links the eBPF programs.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

/// A rustc with the standard library's sources.
#[derive(Debug, Clone)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) version: (u32, u32),
    pub(crate) llvm: u32,
}

/// Finds compiler and linker, installing what is missing.
pub(crate) fn ensure() -> Result<Toolchain> {
    if let Some(toolchain) = installed_toolchain() {
        return Ok(toolchain);
    }
    let mut compilers = compilers();
    if compilers.is_empty() {
        install_sources()?;
        compilers = self::compilers();
    }
    let mut linkers: Vec<u32> = LINKER_LLVM.into_iter().filter(|llvm| llvm_available(*llvm)).collect();
    linkers.sort_unstable_by(|a, b| b.cmp(a));
    let fits = |compiler: &Compiler| linkers.iter().copied().find(|llvm| *llvm >= compiler.llvm);
    let Some((compiler, llvm)) =
        compilers.iter().find_map(|compiler| Some((compiler.clone(), fits(compiler)?)))
    else {
        bail!(
            "no LLVM that bpf-linker {BPF_LINKER_VERSION} can use is available for the compilers with sources \
             ({}): it needs one of the packages llvm-N-dev with N of {LINKER_LLVM:?} and at least the \
             compiler's, or a bpf-linker on PATH",
            describe(&compilers)
        );
    };
    Ok(Toolchain { compiler, linker: install_linker(llvm)? })
}

/// A compiler and a linker that are both here and fit.
fn installed_toolchain() -> Option<Toolchain> {
    let linkers: Vec<(PathBuf, u32)> = linker_candidates()
        .into_iter()
        .filter_map(|path| Some((path.clone(), linker_llvm(&path)?)))
        .collect();
    compilers().into_iter().find_map(|compiler| {
        let (linker, _) = linkers.iter().find(|(_, llvm)| *llvm >= compiler.llvm)?;
        Some(Toolchain { linker: linker.clone(), compiler })
    })
}

/// Compilers with sources that are here: rustup's nightlies, the distribution's, rustup's default.
fn compilers() -> Vec<Compiler> {
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
    let mut minors: Vec<u32> = (OLDEST_RUSTC.1..OLDEST_RUSTC.1 + 60).collect();
    minors.reverse();
    minors
        .iter()
        .map(|minor| PathBuf::from(format!("/usr/bin/rustc-1.{minor}")))
        .filter(|path| path.exists())
        .collect()
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

/// Fetches sources for a compiler: Debian's newest, Ubuntu's versioned ones, else rustup's component.
fn install_sources() -> Result<()> {
    let new_enough =
        |package: &str| packages::candidate(package).is_some_and(|version| is_new_enough(&version));
    if new_enough("rustc-web") && packages::candidate("rust-web-src").is_some() {
        let needs = ["rustc-web", "rust-web-src", "rust-web-clippy?"].map(Need::parse);
        return packages::ensure(&needs, "compiling the eBPF programs");
    }
    if paths::find_program("rustup").is_some() {
        step("rustup component add rust-src");
        return run(&mut command("rustup", ["component", "add", "rust-src"])).context(
            "no compiler here has the standard library's sources, which the eBPF programs need, and rustup \
             cannot fetch them: is there a network?",
        );
    }
    let minor = (OLDEST_RUSTC.1..OLDEST_RUSTC.1 + 60).find(|minor| {
        packages::candidate(&format!("rustc-1.{minor}")).is_some()
            && packages::candidate(&format!("rust-1.{minor}-src")).is_some()
    });
    let Some(minor) = minor else {
        bail!(
            "no rustc {}.{} or newer with the standard library's sources can be found or installed: install \
             rustup and run `rustup component add rust-src`",
            OLDEST_RUSTC.0,
            OLDEST_RUSTC.1
        );
    };
    let needs = [format!("rustc-1.{minor}"), format!("rust-1.{minor}-src")];
    packages::ensure(&needs.map(|name| Need::parse(&name)), "compiling the eBPF programs")
}

/// Whether a Debian version such as `1.96.0+dfsg1-1` is at least the oldest rustc.
fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    matches!((parts.next().flatten(), parts.next().flatten()), (Some(major), Some(minor)) if (major, minor) >= OLDEST_RUSTC)
}

fn llvm_available(llvm: u32) -> bool {
    let package = format!("llvm-{llvm}-dev");
    packages::is_installed(&package) || packages::candidate(&package).is_some()
}

/// Where a bpf-linker may be: ours first, then PATH, then cargo's folder when PATH lacks it.
fn linker_candidates() -> Vec<PathBuf> {
    let ours = paths::target().ok().map(|target| target.join("tools/bin/bpf-linker"));
    let cargos = cargo_home().map(|home| home.join("bin/bpf-linker"));
    let candidates = [ours, paths::find_program("bpf-linker"), cargos];
    candidates.into_iter().flatten().filter(|path| path.is_file()).collect()
}

fn cargo_home() -> Option<PathBuf> {
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or(home)
}

/// The LLVM a bpf-linker reads bitcode with; the published binaries have it linked in and are always new.
fn linker_llvm(linker: &Path) -> Option<u32> {
    output(&mut command(linker, ["--version"])).ok()?;
    let libraries = output(&mut command("ldd", [linker])).unwrap_or_default();
    Some(parse_linked_llvm(&libraries).unwrap_or(LINKER_LLVM[0]))
}

fn parse_linked_llvm(ldd: &str) -> Option<u32> {
    let name = ldd.lines().find_map(|line| line.trim().strip_prefix("libLLVM"))?;
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn install_linker(llvm: u32) -> Result<PathBuf> {
    let names = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    let libraries = ["zlib1g-dev", "libzstd-dev", "libxml2-dev"].map(str::to_owned);
    let needs: Vec<Need> = names.iter().chain(&libraries).map(|name| Need::parse(name)).collect();
    packages::ensure(&needs, "building bpf-linker")?;
    let in_cargo_home = cargo_home().filter(|home| !home.join("bin/bpf-linker").exists());
    let root = in_cargo_home.map_or_else(|| paths::target().map(|target| target.join("tools")), Ok)?;
    step(&format!("cargo install bpf-linker {BPF_LINKER_VERSION} for LLVM {llvm} (once; a minute or two)"));
    let mut install =
        command(paths::cargo(), ["install", "bpf-linker", "--locked", "--version", BPF_LINKER_VERSION]);
    install.args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"]).arg(&root);
    install.env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
    run(&mut install).context("cannot install bpf-linker: is there a network?")?;
    note(&format!("bpf-linker is in {}", root.join("bin").display()));
    Ok(root.join("bin/bpf-linker"))
}

fn describe(compilers: &[Compiler]) -> String {
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
        assert!(is_new_enough("1.96.0+dfsg1-1~deb12u2"));
        assert!(is_new_enough("1.100.0+dfsg1-1"));
        assert!(!is_new_enough("1.85.0+dfsg3-1~deb12u3"));
        assert!(!is_new_enough("unknown"));
    }

    #[test]
    fn the_linkers_llvm_is_read_off_its_libraries() {
        assert_eq!(
            parse_linked_llvm("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)\n"),
            Some(22)
        );
        assert_eq!(parse_linked_llvm("\tlibLLVM-21.so.1 => /usr/lib/libLLVM-21.so.1 (0x7f)\n"), Some(21));
        assert_eq!(parse_linked_llvm("\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n"), None);
    }
}
