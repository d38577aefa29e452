//! Another agent of the node: its own eBPF programs on the story's cgroup, beside meshd's (`mesh-ebpf/src/foreign`).

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{CgroupAttachMode, Program};

/// The agent's programs; detached when dropped.
pub(crate) struct Foreign {
    ebpf: Ebpf,
}

/// What its programs count, by slot.
#[derive(Clone, Copy)]
pub(crate) enum Count {
    Connects = 0,
    RttCallbacks = 1,
}

/// Beside the daemon's own objects, of which it is none.
fn object() -> PathBuf {
    let objects = std::env::var_os("MESHD_EBPF_DIR")
        .map_or_else(|| super::daemon::bin_dir().join("../bpf/bpfel-unknown-none/release"), PathBuf::from);
    objects.join("mesh-foreign")
}

impl Foreign {
    /// Attaches these of its programs to a cgroup.
    pub(crate) fn attach(cgroup: &Path, programs: &[&str]) -> anyhow::Result<Self> {
        let object = object();
        let bytes =
            std::fs::read(&object).with_context(|| format!("{}: cargo xtask build", object.display()))?;
        let mut ebpf = Ebpf::load(&bytes)?;
        let cgroup = File::open(cgroup)?;
        for name in programs {
            match ebpf.program_mut(name) {
                Some(Program::CgroupSockAddr(program)) => {
                    program.load()?;
                    program.attach(&cgroup, CgroupAttachMode::Single)?;
                }
                Some(Program::SockOps(program)) => {
                    program.load()?;
                    program.attach(&cgroup, CgroupAttachMode::Single)?;
                }
                _ => bail!("no program {name} in {}", object.display()),
            }
        }
        Ok(Self { ebpf })
    }

    /// Where its `rewrite_connect` leads what goes to meshd's port.
    pub(crate) fn lead_to(&mut self, host: Ipv4Addr, port: u16) -> anyhow::Result<()> {
        let mut target: Array<&mut MapData, u32> =
            Array::try_from(self.ebpf.map_mut("TARGET").context("no map TARGET")?)?;
        target.set(0, u32::from_ne_bytes(host.octets()), 0)?;
        target.set(1, u32::from(port.to_be()), 0)?;
        Ok(())
    }

    /// What was counted so far.
    pub(crate) fn count(&self, what: Count) -> anyhow::Result<u64> {
        let seen: Array<&MapData, u64> = Array::try_from(self.ebpf.map("SEEN").context("no map SEEN")?)?;
        Ok(seen.get(&(what as u32), 0)?)
    }
}
