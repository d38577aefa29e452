//! Programs of a few lines in other languages: what such a program sees is what its language's own library makes of
//! sockets. They are run from the source tree, which an emulated kernel sees as well.

use std::path::{Path, PathBuf};

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

fn launch(place: &Place, interpreter: &[&str], name: &str, args: &[&str]) -> Launch {
    let path = file(name);
    let path = path.to_string_lossy();
    place.launch(name, &[interpreter, &[&path], args].concat())
}
