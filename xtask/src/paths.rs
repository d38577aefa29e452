//! Where things lie: the workspace, cargo's target directory and what set-up caches in it.
//! Everything that set-up writes outside the package manager and `~/.cargo/bin` is under the target directory.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command::{command, output};

/// The workspace's root folder.
pub(crate) fn workspace() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let manifest_dir =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let manifest_dir = PathBuf::from(manifest_dir);
        manifest_dir.parent().map_or_else(|| manifest_dir.clone(), Path::to_path_buf)
    })
}

/// Cargo's target directory, wherever configuration put it.
pub(crate) fn target() -> Result<&'static Path> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = TARGET.get() {
        return Ok(path);
    }
    let mut metadata = command(cargo(), ["metadata", "--no-deps", "--offline", "--format-version=1"]);
    let json = output(metadata.current_dir(workspace()))?;
    let metadata: Metadata = serde_json::from_str(&json).context("cargo metadata printed something else")?;
    Ok(TARGET.get_or_init(|| metadata.target_directory))
}

/// Where set-up puts programs that no package brings.
pub(crate) fn tools() -> Result<PathBuf> {
    Ok(target()?.join("tools/bin"))
}

/// PATH with those programs first.
pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let folders = tools().into_iter().chain(env::split_paths(&path));
    env::join_paths(folders).unwrap_or(path)
}

/// The cargo that runs us.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// A program on PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    // Administrators' programs are missing from an ordinary user's PATH on Debian.
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}
