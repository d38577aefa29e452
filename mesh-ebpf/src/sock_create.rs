//! `cgroup/sock_create`: MPTCP sockets are refused to enrolled workloads, because the hooks see a subflow's
//! socket while the application holds another; programs fall back to TCP on EPROTONOSUPPORT. Where the setting
//! says so, whatever TCP capture cannot see is refused too, and each socket remembers whose it is.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock,
    programs::SockContext,
};
use mesh_common::{Counter, workload_flags};

use crate::{
    context::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM},
    enrolment::{Enrolment, config, enrolment},
    log::log_event,
    maps::{count, view_or_create},
    pods::{self, Pod},
    read::read_field,
};

const IPPROTO_MPTCP: u32 = 262;
const EPERM: i32 = 1;
const EPROTONOSUPPORT: i32 = 93;
const REFUSE: i32 = 0;
const PROCEED: i32 = 1;

#[cgroup_sock(sock_create)]
pub(crate) fn sock_create(ctx: SockContext) -> i32 {
    // SAFETY: a valid context; the fields are readable in this hook.
    let (kind, protocol) =
        unsafe { (read_field!(ctx.sock, bpf_sock, type_), read_field!(ctx.sock, bpf_sock, protocol)) };
    let refuses = config().is_some_and(|config| config.refuse_uncaptured != 0);
    let gates = config().is_some_and(|config| config.pods_cgroup_id != 0);
    if protocol != IPPROTO_MPTCP && !refuses && !gates {
        return PROCEED;
    }
    // SAFETY: the helper takes this hook's own context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.sock.cast()) };
    let entry = match enrolment(netns_cookie) {
        Enrolment::None => return of_pod(ctx.sock, netns_cookie, kind, protocol),
        Enrolment::Workload { entry, .. } | Enrolment::NoListener { entry } => entry,
    };
    if protocol == IPPROTO_MPTCP {
        count(Counter::MptcpRefused);
        log_event!("MPTCP socket refused", netns_cookie);
        return unsupported();
    }
    if entry.flags & workload_flags::REFUSE_UNCAPTURED != 0 && !is_known(kind, protocol) && !is_meshd() {
        count(Counter::UncapturedSocketRefused);
        log_event!("socket refused: capture cannot see it", netns_cookie);
        return if kind == SOCK_RAW { not_permitted() } else { unsupported() };
    }
    // The packet hook knows no namespace. Without storage the packet's source address must say whose it is.
    if let Some(view) = view_or_create(ctx.sock) {
        view.slot = entry.slot;
        view.netns_cookie = netns_cookie;
    }
    PROCEED
}

/// A pod's that is not enrolled yet, or that shares the host's namespace: the packet hooks must know which.
#[inline(always)]
fn of_pod(socket: *mut bpf_sock, netns_cookie: u64, kind: u32, protocol: u32) -> i32 {
    let Some(config) = config() else { return PROCEED };
    let wanted = match pods::of_current(config) {
        Pod::None | Pod::Free => return PROCEED,
        Pod::Wanted { .. } => true,
        Pod::Unknown => false,
    };
    if netns_cookie != config.host_netns_cookie {
        if protocol == IPPROTO_MPTCP {
            count(Counter::MptcpRefused);
            return unsupported();
        }
        if wanted && config.refuse_uncaptured != 0 && !is_known(kind, protocol) && !is_meshd() {
            count(Counter::UncapturedSocketRefused);
            return if kind == SOCK_RAW { not_permitted() } else { unsupported() };
        }
    }
    // Without storage its listener takes nothing until the pod is captured.
    if let Some(view) = view_or_create(socket) {
        view.netns_cookie = netns_cookie;
    }
    PROCEED
}

/// What capture or the guard sees: TCP, UDP, and the echo sockets of ping.
#[inline(always)]
fn is_known(kind: u32, protocol: u32) -> bool {
    match kind {
        SOCK_STREAM => protocol == IPPROTO_TCP,
        SOCK_DGRAM => matches!(protocol, IPPROTO_UDP | IPPROTO_ICMP | IPPROTO_ICMPV6),
        _ => false,
    }
}

/// meshd answers held connects over a raw socket in the workload's namespace. Nothing else tells it from the
/// workload before the socket exists; a cgroup's id is never used again.
#[inline(always)]
fn is_meshd() -> bool {
    // SAFETY: a helper without arguments.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    config().is_some_and(|config| config.own_cgroup_id == cgroup_id)
}

/// What a process without `CAP_NET_RAW` is told.
#[inline(always)]
fn not_permitted() -> i32 {
    // SAFETY: a constant within [-4095, 0], as the verifier wants.
    unsafe { bpf_set_retval(-EPERM) };
    REFUSE
}

/// What a kernel without the protocol says.
#[inline(always)]
fn unsupported() -> i32 {
    // SAFETY: as above.
    unsafe { bpf_set_retval(-EPROTONOSUPPORT) };
    REFUSE
}
