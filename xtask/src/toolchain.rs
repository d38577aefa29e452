//! The compiler and linker for the eBPF programs, which must fit: bpf-linker reads the compiler's bitcode with
//! an LLVM of its own, which may be newer than the compiler's but not older. What is installed is preferred to
//! what must be fetched; an installed linker is never replaced.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::{
    command::{command, follow, note, output, step},
    compilers::{self, Compiler},
    diagnosis,
    packages::{self, Need},
    paths,
};

/// bpf-linker's release, and the LLVM versions it can be built with, newest first.
const BPF_LINKER_VERSION: &str = "0.13.0";
const LINKER_LLVM: [u32; 3] = [23, 22, 21];

/// What compiles and links the eBPF programs.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

/// Finds compiler and linker, installing what is missing.
pub(crate) fn ensure() -> Result<Toolchain> {
    if let Some(toolchain) = installed_toolchain() {
        return Ok(toolchain);
    }
    if let Some((compiler, llvm)) = buildable() {
        return Ok(Toolchain { compiler, linker: install_linker(&llvm)? });
    }
    compilers::install_one()?;
    if let Some(toolchain) = installed_toolchain() {
        return Ok(toolchain);
    }
    let Some((compiler, llvm)) = buildable() else {
        bail!(
            "no LLVM that bpf-linker {BPF_LINKER_VERSION} can use is available for the compilers with sources \
             ({}): it needs one of the packages llvm-N-dev with N of {LINKER_LLVM:?} and at least the \
             compiler's, or a bpf-linker on PATH",
            compilers::describe(&compilers::installed())
        );
    };
    Ok(Toolchain { compiler, linker: install_linker(&llvm)? })
}

/// Where the LLVM that a linker is built with comes from.
#[derive(Debug, PartialEq, Eq)]
enum Llvm {
    /// The distribution's packages of this version.
    Packages(u32),
    /// A library that a rustup toolchain brings, and its folder.
    Bundled { version: u32, library: String, folder: PathBuf },
}

/// A compiler that is here, and the newest LLVM that a linker for it can be built with: the distribution's, which
/// outlives updates of rustup, else the compiler's own.
fn buildable() -> Option<(Compiler, Llvm)> {
    let available: Vec<u32> = LINKER_LLVM.into_iter().filter(|llvm| llvm_available(*llvm)).collect();
    let fitting = |compiler: &Compiler| available.iter().copied().find(|llvm| *llvm >= compiler.llvm);
    let compilers = compilers::installed();
    let packaged = compilers
        .iter()
        .find_map(|compiler| fitting(compiler).map(|version| (compiler.clone(), Llvm::Packages(version))));
    packaged.or_else(|| {
        compilers.iter().find_map(|compiler| bundled(compiler).map(|llvm| (compiler.clone(), llvm)))
    })
}

/// The LLVM beside a rustup toolchain's compiler.
fn bundled(compiler: &Compiler) -> Option<Llvm> {
    let folder = compiler.rustc.parent()?.parent()?.join("lib");
    let names =
        fs::read_dir(&folder).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let library = bundled_library(names)?;
    let version = compiler.llvm;
    LINKER_LLVM.contains(&version).then_some(Llvm::Bundled { version, library, folder })
}

/// `libLLVM-22-rust-1.95.0-stable.so`, by the name a linker takes.
fn bundled_library(mut names: impl Iterator<Item = String>) -> Option<String> {
    names.find_map(|name| {
        let library = name.strip_prefix("lib")?.strip_suffix(".so")?;
        library.starts_with("LLVM-").then(|| library.to_owned())
    })
}

/// A compiler and a linker that are both here and fit.
fn installed_toolchain() -> Option<Toolchain> {
    let linkers: Vec<(PathBuf, u32)> = linker_candidates()
        .into_iter()
        .filter_map(|path| Some((path.clone(), linker_llvm(&path)?)))
        .collect();
    compilers::installed().into_iter().find_map(|compiler| {
        let (linker, _) = linkers.iter().find(|(_, llvm)| *llvm >= compiler.llvm)?;
        Some(Toolchain { linker: linker.clone(), compiler })
    })
}

fn llvm_available(llvm: u32) -> bool {
    let package = format!("llvm-{llvm}-dev");
    packages::is_installed(&package) || packages::candidate(&package).is_some()
}

/// Where a bpf-linker may be: ours first, then PATH, then cargo's folder when PATH lacks it.
fn linker_candidates() -> Vec<PathBuf> {
    let ours = paths::tools().ok().map(|tools| tools.join("bpf-linker"));
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

fn install_linker(llvm: &Llvm) -> Result<PathBuf> {
    let mut needs: Vec<Need> =
        ["zlib1g-dev", "libzstd-dev", "libxml2-dev"].iter().map(|name| Need::parse(name)).collect();
    let (Llvm::Packages(version) | Llvm::Bundled { version, .. }) = llvm;
    if let Llvm::Packages(version) = llvm {
        needs.extend(
            [format!("llvm-{version}-dev"), format!("libpolly-{version}-dev")].map(|n| Need::parse(&n)),
        );
    }
    packages::ensure(&needs, "building bpf-linker")?;
    let in_cargo_home = cargo_home().filter(|home| !home.join("bin/bpf-linker").exists());
    let root = in_cargo_home.map_or_else(|| paths::target().map(|target| target.join("tools")), Ok)?;
    step(&format!(
        "cargo install bpf-linker {BPF_LINKER_VERSION} for LLVM {version} (once; a minute or two)"
    ));
    let mut install =
        command(paths::cargo(), ["install", "bpf-linker", "--locked", "--version", BPF_LINKER_VERSION]);
    install.args(["--no-default-features", "--root"]).arg(&root).arg("--features");
    match llvm {
        Llvm::Packages(_) => {
            install.arg(format!("llvm-{version}")).env("LLVM_PREFIX", format!("/usr/lib/llvm-{version}"));
        }
        Llvm::Bundled { library, folder, .. } => {
            let folder = folder.display();
            let flags = format!("-Lnative={folder}\x1f-l{library}\x1f-Clink-arg=-Wl,-rpath,{folder}");
            install.arg(format!("llvm-{version},no-llvm-linking")).env("CARGO_ENCODED_RUSTFLAGS", flags);
        }
    }
    install.env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    let ended = follow(&mut install, |_| ())?;
    if !ended.ended_well {
        return Err(diagnosis::explain("install bpf-linker", &ended.complaint));
    }
    note(&format!("bpf-linker is in {}", root.join("bin").display()));
    Ok(root.join("bin/bpf-linker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolchains_own_llvm_is_found_among_its_libraries() {
        let names = [
            "librustc_driver-6.so",
            "libLLVM.so.22.1-rust-1.95.0-stable",
            "libLLVM-22-rust-1.95.0-stable.so",
        ];
        let library = bundled_library(names.map(str::to_owned).into_iter());
        assert_eq!(library.as_deref(), Some("LLVM-22-rust-1.95.0-stable"));
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
