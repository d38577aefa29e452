//! Compiles the eBPF programs: one object, `<target>/bpf/bpfel-unknown-none/release/mesh-ebpf`, which
//! mesh-user's build script embeds. Has a target directory of its own, so that it and the daemon's build never
//! wait for each other or throw each other's work away.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{command, run, step},
    paths,
    toolchain::{self, Toolchain},
};

const TARGET: &str = "bpfel-unknown-none";
/// BTF describes map types and program signatures to the kernel; it is made from debug information.
const RUSTFLAGS: &str = "-Cdebuginfo=2\x1f-Clink-arg=--btf";

/// Compiles and returns the object.
pub(crate) fn build() -> Result<PathBuf> {
    let toolchain = toolchain::ensure()?;
    let (major, minor) = toolchain.compiler.version;
    step(&format!("eBPF programs ({} {major}.{minor})", toolchain.compiler.rustc.display()));
    run(&mut cargo(&toolchain, "build")?).context("cannot compile the eBPF programs")?;
    let object = paths::target()?.join("bpf").join(TARGET).join("release/mesh-ebpf");
    ensure!(object.is_file(), "the eBPF build left no object at {}", object.display());
    Ok(object)
}

/// The lint of the eBPF programs: clippy where this compiler has one of its own (another version's cannot
/// read its libraries), else the compiler's warnings. Also says which it is.
///
/// Warnings do not fail it: a flag that denies them would compile core anew.
pub(crate) fn lint() -> Result<(&'static str, Command)> {
    let toolchain = toolchain::ensure()?;
    let mut check = cargo(&toolchain, "check")?;
    let driver = toolchain.compiler.rustc.with_file_name("clippy-driver");
    if !driver.is_file() {
        return Ok(("mesh-ebpf's warnings (its compiler has no clippy)", check));
    }
    // What cargo-clippy does, with a driver that is not the active toolchain's.
    check.env("RUSTC_WORKSPACE_WRAPPER", driver).env("CLIPPY_ARGS", "");
    Ok(("clippy mesh-ebpf", check))
}

fn cargo(toolchain: &Toolchain, subcommand: &str) -> Result<Command> {
    let mut cargo =
        command(paths::cargo(), [subcommand, "--release", "-Zbuild-std=core", "--target", TARGET]);
    // The workspace's default members leave this crate out: its own folder selects it.
    cargo.current_dir(paths::workspace().join("mesh-ebpf"));
    cargo.env("RUSTC", &toolchain.compiler.rustc).env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_TARGET_DIR", paths::target()?.join("bpf"));
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS).env_remove("RUSTFLAGS");
    // Set by the `cargo run` that started us; they would override the compiler chosen here.
    cargo.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
    Ok(cargo)
}
