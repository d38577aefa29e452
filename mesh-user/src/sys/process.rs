//! What others may see of this process.

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// No core file, no ptrace by the same user, `/proc/self/mem` for root only: for a process that holds an authority's keys.
/// Source: `PR_SET_DUMPABLE` in prctl(2), `RLIMIT_CORE` in setrlimit(2).
///
/// # Errors
/// When the kernel refuses.
pub fn forbid_dumps() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    Ok(())
}
