//! Set-up, as far as a task needs it. Every step is skipped when its result is there, so that a second run
//! needs neither root nor network.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::{
    bpftool,
    command::{command, note, run, step},
    ebpf, host,
    kernels::{self, Kernel, Series},
    packages::{self, FOR_TESTS, FOR_VM, Need},
    paths, qemu, vm,
};

/// What building and the tests and demo on this machine's own kernel need.
pub(crate) fn for_tests() -> Result<()> {
    packages::ensure(&needs(FOR_TESTS), "building and testing meshd")?;
    bpftool::ensure()
}

/// What a virtual machine with this kernel needs.
pub(crate) fn for_vm(series: Series) -> Result<Kernel> {
    if !host::is_root() {
        bail!("virtual machines share this machine's files, root's too: run this as root");
    }
    packages::ensure(&needs(FOR_VM), "virtual machines")?;
    if let Some(missing) = vm::missing() {
        bail!("{missing}");
    }
    let kernel = kernels::ensure(series)?;
    if !vm::is_accelerated() {
        qemu::ensure();
    }
    Ok(kernel)
}

/// The eBPF object, then meshd and meshctl.
pub(crate) fn build() -> Result<()> {
    ebpf::build()?;
    step("meshd and meshctl (release)");
    let mut cargo = command(paths::cargo(), ["build", "--release", "--bin", "meshd", "--bin", "meshctl"]);
    run(cargo.current_dir(paths::workspace())).context("cannot build meshd and meshctl")?;
    note(&format!("{}", paths::target()?.join("release/meshd").display()));
    Ok(())
}

/// Removes what set-up cached; packages and `~/.cargo/bin` stay, and so do cargo's own build outputs.
pub(crate) fn clean() -> Result<()> {
    let target = paths::target()?;
    for folder in [kernels::folder()?]
        .into_iter()
        .chain(["tools", "bpf", "fuzz", "bogo", "kube", "kubelet", "stories"].map(|name| target.join(name)))
    {
        if folder.exists() {
            step(&format!("remove {}", folder.display()));
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    Ok(())
}

/// Their alternatives and options, parsed.
pub(crate) fn needs(names: &[&str]) -> Vec<Need> {
    names.iter().map(|name| Need::parse(name)).collect()
}
