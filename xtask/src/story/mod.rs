//! The demo's story in five acts: real programs in namespaces, before and after meshd, with the packets shown.
//! It believes nothing: each act states what must be seen and fails the whole story when it is not.
//! Runs as root on the kernel it finds; a virtual machine runs the same function.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};

mod acts;
mod cast;
mod nodes;
mod speech;
mod stage;
mod wiretap;

use cast::Cast;
use speech::Speech;
use stage::Stage;

/// Plays the story with the `meshd` and `meshctl` in `bin_dir`. An error if any act did not show what it claims.
pub(crate) fn run(bin_dir: &Path, colour: bool) -> Result<()> {
    // Programs on the stage run in another folder than this one.
    let bin_dir = &bin_dir.canonicalize()?;
    for name in ["meshd", "meshctl"] {
        ensure!(bin_dir.join(name).exists(), "{} is not built", bin_dir.join(name).display());
    }
    let begun = Instant::now();
    let speech = Speech::new(colour);
    let stage = Stage::build()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    speech.title(&format!("meshd on Linux {}", kernel.trim()));
    Speech::say(
        "Five pods on two nodes, as network namespaces on one bridge. Unmodified nginx, curl, redis, PostgreSQL.",
    );
    let cast = Cast::enter(&stage)?;
    acts::before(&stage, &cast, &speech)?;
    let nodes = nodes::Nodes::start(&stage, bin_dir, &cast, &speech)?;
    acts::after(&stage, &cast, &nodes, &speech)?;
    acts::denied_caller(&stage, &cast, &nodes, &speech)?;
    acts::outsider(&stage, &cast, &nodes, &speech)?;
    acts::policy_change(&stage, &cast, &nodes, &speech)?;
    speech.title(&format!("The end: every act showed what it claims, in {} s", begun.elapsed().as_secs()));
    Ok(())
}
