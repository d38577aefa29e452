//! Puts the compiled eBPF objects where `capture` embeds them: `$OUT_DIR/mesh-ebpf`, `$OUT_DIR/mesh-sk-lookup`; and
//! makes messages and services of `proto/*.proto`, without protoc.
//!
//! Compiling them is `cargo xtask build`'s work, since it wants another compiler and target. This script must
//! never build them, download or guess: it copies two files or says which command makes them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

const OBJECTS_DIR: &str = "bpf/bpfel-unknown-none/release";
const OBJECTS: [&str; 2] = ["mesh-ebpf", "mesh-sk-lookup"];
const PROTOS: [&str; 4] = ["cri", "istio_ca", "meshd_ca", "spiffe_workload"];
/// Messages that hold private keys or tokens, and those around them.
const SECRET: [&str; 6] = [
    ".X509SVID",
    ".X509SVIDResponse",
    ".JWTSVID",
    ".JWTSVIDResponse",
    ".ValidateJWTSVIDRequest",
    ".meshd.ca.v1.MintResponse",
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MESHD_EBPF_DIR");
    let Some(out_dir) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        println!("cargo::error=OUT_DIR is not set: run this through cargo");
        return ExitCode::FAILURE;
    };
    let dir = objects_dir(&out_dir);
    for name in OBJECTS {
        let object = dir.join(name);
        println!("cargo::rerun-if-changed={}", object.display());
        if let Err(error) = fs::copy(&object, out_dir.join(name)) {
            println!(
                "cargo::error=no eBPF object at {} ({error}): run `cargo xtask build`, which compiles it, \
                 or set MESHD_EBPF_DIR to where the objects are",
                object.display()
            );
            return ExitCode::FAILURE;
        }
    }
    if let Err(error) = generate() {
        println!("cargo::error=proto/*.proto: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn generate() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = PROTOS.map(|name| format!("proto/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}

/// `MESHD_EBPF_DIR`, else the folder in the target directory that this build uses (wherever
/// `CARGO_TARGET_DIR` or cargo's configuration put it), else in the workspace's own.
fn objects_dir(out_dir: &Path) -> PathBuf {
    if let Some(path) = env::var_os("MESHD_EBPF_DIR") {
        return PathBuf::from(path);
    }
    // OUT_DIR is <target dir>[/<triple>]/<profile>/build/<package>-<hash>/out
    let in_target_dir =
        out_dir.ancestors().skip(4).take(2).map(|dir| dir.join(OBJECTS_DIR)).find(|path| path.is_dir());
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    in_target_dir.unwrap_or_else(|| manifest_dir.join("../target").join(OBJECTS_DIR))
}
