//! Programs of a few lines in other languages: what such a program sees is what its language's own library makes of
//! sockets. They are run from the source tree, or from `target/stories` where xtask has compiled them; an emulated kernel
//! sees both.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::netns::Place;
use super::process::Launch;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/scripts").join(name)
}

/// A Python script, by the distribution's own interpreter and nothing but its library.
pub(crate) fn python(place: &Place, name: &str, args: &[&str]) -> Launch {
    launch(place, &["/usr/bin/python3", "-I"], name, args)
}

/// A Node.js script.
pub(crate) fn node(place: &Place, name: &str, args: &[&str]) -> Launch {
    launch(place, &["node"], name, args)
}

/// A Java program, compiled.
pub(crate) fn java(place: &Place, class: &str, args: &[&str]) -> anyhow::Result<Launch> {
    compiled(&format!("{class}.class"))?;
    let folder = folder_of_compiled()?;
    // One compiler does for a program of seconds.
    let java = ["java", "-XX:TieredStopAtLevel=1", "-cp", &folder.to_string_lossy(), class];
    Ok(place.launch(class, &[&java, args].concat()))
}

/// A Go program, compiled.
pub(crate) fn go(place: &Place, name: &str, args: &[&str]) -> anyhow::Result<Launch> {
    let program = compiled(name)?;
    Ok(place.launch(name, &[&[&*program.to_string_lossy()], args].concat()))
}

/// A program of this name, where xtask has compiled it.
pub(crate) fn compiled(name: &str) -> anyhow::Result<PathBuf> {
    let path = folder_of_compiled()?.join(name);
    ensure!(path.exists(), "no {}: cargo xtask test compiles it", path.display());
    Ok(path)
}

/// Beside target/release or target/debug.
fn folder_of_compiled() -> anyhow::Result<PathBuf> {
    let bin = super::daemon::bin_dir();
    let target = bin.parent().with_context(|| format!("{} is no build's folder", bin.display()))?;
    Ok(target.join("stories"))
}

fn launch(place: &Place, interpreter: &[&str], name: &str, args: &[&str]) -> Launch {
    let path = file(name);
    let path = path.to_string_lossy();
    place.launch(name, &[interpreter, &[&path], args].concat())
}
