//! A program cannot tell that meshd is there: what it sees with meshd is compared with what it saw without, and what
//! differs is named. `docs/transparency.md` lists every row and its story.

use crate::it::capture::Capture;
use crate::it::ground::Ground;
use crate::it::mesh::{MARKER, Mesh};

pub(super) mod programs;
mod proxies;
mod shells;
pub(super) mod sockets;
mod stores;

/// [`Mesh::watched`] for programs that move more at once than a capture of whole packets can hold.
fn watched(mesh: &Mesh, name: &str, act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let capture = Capture::start_of_heads(&mesh.wire, name)?;
    act()?;
    let tap = capture.stop()?;
    anyhow::ensure!(tap.packets() > 0, "nothing was on the wire");
    tap.must_not_show(MARKER)
}

/// A strict mesh, not started, that holds connects also where the canary is off and form `auto` does not.
fn given(ground: &Ground) -> anyhow::Result<Mesh> {
    let mut mesh = Mesh::given(ground)?;
    for node in [&mut mesh.a, &mut mesh.b] {
        node.capture.insert("form".into(), "hold".into());
    }
    Ok(mesh)
}

/// The same, started.
fn running(ground: &Ground) -> anyhow::Result<Mesh> {
    let mut mesh = given(ground)?;
    mesh.start()?;
    Ok(mesh)
}
