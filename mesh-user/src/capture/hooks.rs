//! The node-wide hooks: attaching them to the cgroup, or putting new programs in old links' place.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{CaptureError, CaptureSettings, Form, runtime_dir::RuntimeDir};
use crate::sys::{
    bpf::{self, AttachType, LinkTarget},
    cgroup::Cgroup,
};

pub(super) const LINK_PREFIX: &str = "link-";

/// The program of the `hold` form alone: it sees every packet that leaves the cgroup.
const HOLD_HOOK: &str = "hold_syn";

/// Attached only where uncaptured traffic is refused; it too sees every packet.
const GUARD_HOOK: &str = "guard";

/// Attached only where the kernel path may be taken; they too see every packet.
const KERNEL_PATH_HOOKS: [&str; 2] = ["kernel_egress", "kernel_ingress"];

/// Attached only where a kubelet's pods are followed; they too see every packet.
const POD_HOOKS: [&str; 2] = ["pods_egress", "pods_ingress"];

/// The programs that keep others from meshd's ports.
pub(super) const BIND_HOOKS: [&str; 2] = ["bind4", "bind6"];

/// Program name in the object and where it goes. `sock_ops` and `hold_syn` before `connect`: when the first
/// connection is rewritten, its original destination is recorded, or its SYN held.
const HOOKS: [(&str, AttachType); 16] = [
    ("pods_egress", AttachType::SkbEgress),
    ("pods_ingress", AttachType::SkbIngress),
    ("kernel_egress", AttachType::SkbEgress),
    ("kernel_ingress", AttachType::SkbIngress),
    (HOLD_HOOK, AttachType::SkbEgress),
    (GUARD_HOOK, AttachType::SkbEgress),
    ("sock_ops", AttachType::SockOps),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
    ("getsockname4", AttachType::Getsockname4),
    ("getsockname6", AttachType::Getsockname6),
    ("sock_create", AttachType::SockCreate),
    ("bind4", AttachType::Bind4),
    ("bind6", AttachType::Bind6),
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
];

/// The hooks whose programs are loaded: the form is chosen later.
pub(super) fn loaded(settings: &CaptureSettings) -> impl Iterator<Item = (&'static str, AttachType)> {
    let (guards, kernel_path, pods) = (settings.refuse_uncaptured, settings.kernel_path, settings.pods);
    HOOKS.into_iter().filter(move |(name, _)| match *name {
        GUARD_HOOK => guards,
        name if POD_HOOKS.contains(&name) => pods,
        name => kernel_path || !KERNEL_PATH_HOOKS.contains(&name),
    })
}

/// The hooks that are attached.
pub(super) fn wanted(settings: &CaptureSettings) -> impl Iterator<Item = (&'static str, AttachType)> {
    let holds = settings.form == Form::Hold;
    loaded(settings).filter(move |(name, _)| holds || *name != HOLD_HOOK)
}

/// A hook's name in the runtime directory.
pub(super) fn link_name(hook: &str) -> String {
    format!("{LINK_PREFIX}{hook}")
}

/// Attaches a program to the cgroup under a pinned link. A link that an earlier run left there is updated
/// atomically; one on another cgroup is replaced after the new one is in force.
pub(super) fn ensure(
    dir: &RuntimeDir,
    cgroup: &Cgroup,
    hook: &'static str,
    at: AttachType,
    program: BorrowedFd<'_>,
) -> Result<OwnedFd, CaptureError> {
    ensure_link(dir, &link_name(hook), LinkTarget::Cgroup(cgroup.id), cgroup.dir.as_fd(), at, program)
}

pub(super) fn ensure_link(
    dir: &RuntimeDir,
    name: &str,
    wanted: LinkTarget,
    target: BorrowedFd<'_>,
    at: AttachType,
    program: BorrowedFd<'_>,
) -> Result<OwnedFd, CaptureError> {
    let failed = |action| {
        let hook = name.to_owned();
        move |source| CaptureError::Hook { action, hook, source }
    };
    let path = dir.bpf().join(name);
    let old = match bpf::get_pinned(&path) {
        Ok(link) => Some(link),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("open the pinned link of")(error)),
    };
    if let Some(old) = &old
        && bpf::link_target(old.as_fd()).map_err(failed("read the pinned link of"))? == wanted
    {
        bpf::link_update(old.as_fd(), program).map_err(failed("replace"))?;
        return old.try_clone().map_err(failed("keep"));
    }
    let new = bpf::link_create(program, target, at).map_err(failed("attach"))?;
    if let Some(old) = old {
        dir.unpin(name)?;
        // A link whose namespace or cgroup is gone cannot be detached any more, and need not be.
        let _: io::Result<()> = bpf::link_detach(old.as_fd());
    }
    bpf::pin(new.as_fd(), &path).map_err(failed("pin"))?;
    Ok(new)
}
