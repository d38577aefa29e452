//! Programs of a few lines in other languages: what such a program sees is what its language's own library makes of
//! sockets. They are run from the source tree, which an emulated kernel sees as well.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::ground::Ground;
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

/// A Go program of one file and the standard library, built into the story's folder; its path.
pub(crate) fn go(ground: &Ground, name: &str) -> anyhow::Result<String> {
    let (program, cache) = (ground.dir().join("go-program"), ground.dir().join("go-cache"));
    let built = Command::new("go")
        .args(["build", "-o"])
        .args([&program, &file(name)])
        .env("GO111MODULE", "off")
        .env("GOCACHE", cache)
        .output()
        .context("`go`, of the package golang-go")?;
    ensure!(built.status.success(), "{name}: {}", String::from_utf8_lossy(&built.stderr));
    Ok(program.to_string_lossy().into_owned())
}

fn launch(place: &Place, interpreter: &[&str], name: &str, args: &[&str]) -> Launch {
    let path = file(name);
    let path = path.to_string_lossy();
    place.launch(name, &[interpreter, &[&path], args].concat())
}
