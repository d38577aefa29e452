//! cargo-deny for the licence check, built once where it is not installed: without optimisation and without the
//! features that checking licences, bans and sources does not use.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    command::{command, follow, note, step},
    diagnosis, paths,
};

const VERSION: &str = "0.20.2";

/// The program, installed under target/ if it is nowhere.
pub(crate) fn ensure() -> Result<PathBuf> {
    let root = paths::target()?.join("tools");
    let ours = paths::tools()?.join("cargo-deny");
    let found = paths::find_program("cargo-deny").or_else(|| ours.is_file().then(|| ours.clone()));
    if let Some(program) = found {
        return Ok(program);
    }
    step(&format!("cargo install cargo-deny {VERSION} (once; a minute or two)"));
    let mut install = command(paths::cargo(), ["install", "cargo-deny", "--locked", "--version", VERSION]);
    install.args(["--debug", "--no-default-features", "--root"]).arg(&root);
    install.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_OPT_LEVEL", "0");
    let ended = follow(&mut install, |_| ())?;
    if !ended.ended_well {
        return Err(diagnosis::explain("install cargo-deny", &ended.complaint));
    }
    note(&format!("cargo-deny is in {}", root.join("bin").display()));
    Ok(ours)
}
