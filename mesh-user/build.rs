//! Puts the compiled eBPF object where `capture` embeds it: `$OUT_DIR/mesh-ebpf`.
//!
//! Compiling it is `cargo xtask build`'s work, since it wants another compiler and target. This script must
//! never build, download or guess: it copies one file or says which command makes it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

const OBJECT: &str = "bpf/bpfel-unknown-none/release/mesh-ebpf";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MESHD_EBPF_OBJECT");
    let Some(out_dir) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        println!("cargo::error=OUT_DIR is not set: run this through cargo");
        return ExitCode::FAILURE;
    };
    let object = object_path(&out_dir);
    println!("cargo::rerun-if-changed={}", object.display());
    match fs::copy(&object, out_dir.join("mesh-ebpf")) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            println!(
                "cargo::error=no eBPF object at {} ({error}): run `cargo xtask build`, which compiles it, \
                 or set MESHD_EBPF_OBJECT to one",
                object.display()
            );
            ExitCode::FAILURE
        }
    }
}

/// `MESHD_EBPF_OBJECT`, else the object in the target directory that this build uses (wherever
/// `CARGO_TARGET_DIR` or cargo's configuration put it), else in the workspace's own.
fn object_path(out_dir: &Path) -> PathBuf {
    if let Some(path) = env::var_os("MESHD_EBPF_OBJECT") {
        return PathBuf::from(path);
    }
    // OUT_DIR is <target dir>[/<triple>]/<profile>/build/<package>-<hash>/out
    let in_target_dir =
        out_dir.ancestors().skip(4).take(2).map(|dir| dir.join(OBJECT)).find(|path| path.is_file());
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    in_target_dir.unwrap_or_else(|| manifest_dir.join("../target").join(OBJECT))
}
