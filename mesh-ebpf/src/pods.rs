//! `cgroup_skb` in both directions, only where meshd follows a kubelet: from its first moment until its namespace is
//! captured a wanted pod sends nothing to a meshed destination past meshd, and takes in nothing from outside. A pod that
//! nobody has spoken of counts as wanted: meshd says soon which are not. Connections that stand, the pod's loopback and
//! sockets in the host's namespace are left alone.
//!
//! A connect of such a pod is captured at once (`connect`), though nobody serves it yet: its SYN is dropped here until
//! its namespace is enrolled, and then goes the way of every captured one.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_sk_ancestor_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use mesh_common::{
    CgroupKey, Config, Counter, MAX_CGROUP_LEVELS, PodEntry, SockView, pod_state, socket_flags,
};

use crate::{
    context::{IPPROTO_TCP, LOOPBACK_IFINDEX, SOCK_STREAM, TCP_LISTEN, TCP_SYN_SENT, full_socket},
    enrolment::{config, netns_entry},
    guard::ports_be,
    kernel_path::is_recorded,
    maps::{PODS, count, view},
    meshed::is_destination,
    packet,
    read::read_field,
};

const PASS: i32 = 1;
const DROP: i32 = 0;

/// Whose a task or a socket is.
pub(crate) enum Pod {
    /// No pod's.
    None,
    /// A pod's that is none of the mesh's business.
    Free,
    /// A pod's that belongs in the mesh.
    Wanted { captured: bool },
    /// A pod's of which nothing is known yet.
    Unknown,
}

/// No entry: zero. An `Option` of it is read before it is written in what LLVM makes of it, which the verifier refuses.
#[inline(always)]
fn entry_of(id: u64) -> PodEntry {
    // SAFETY: only user space writes it, whole words; either of two values will do.
    unsafe { PODS.get(&CgroupKey { id }) }.copied().unwrap_or_default()
}

#[inline(always)]
fn pod(config: &Config, ancestor: impl Fn(i32) -> u64) -> Pod {
    let mut level = 0;
    while level < MAX_CGROUP_LEVELS {
        if config.pods_levels & (1 << level) != 0 && ancestor(level as i32) == config.pods_cgroup_id {
            break;
        }
        level += 1;
    }
    if level == MAX_CGROUP_LEVELS {
        return Pod::None;
    }
    let mut id = ancestor(level as i32 + 1);
    let mut entry = entry_of(id);
    // Pods of less than guaranteed quality of service lie one deeper.
    if entry.state == pod_state::GROUP {
        id = ancestor(level as i32 + 2);
        entry = entry_of(id);
    }
    // Whoever is in none of the pods' cgroups is no pod.
    if id == 0 {
        return Pod::None;
    }
    match entry.state {
        pod_state::FREE | pod_state::GROUP => Pod::Free,
        pod_state::WANTED => Pod::Wanted { captured: entry.captured != 0 },
        _ => Pod::Unknown,
    }
}

/// Whose the current task is.
#[inline(always)]
pub(crate) fn of_current(config: &Config) -> Pod {
    if config.pods_cgroup_id == 0 {
        return Pod::None;
    }
    // SAFETY: a helper without pointers; it returns 0 where there is no such ancestor.
    pod(config, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

#[inline(always)]
fn of_socket(config: &Config, socket: *mut bpf_sock) -> Pod {
    // SAFETY: a full socket; it returns 0 where there is no such ancestor.
    pod(config, |level| unsafe { bpf_sk_ancestor_cgroup_id(socket.cast(), level) })
}

/// Whether the current task is of a pod that waits to be enrolled. The namespace must be known not to be enrolled.
#[inline(always)]
pub(crate) fn waits(config: &Config, netns_cookie: u64) -> bool {
    netns_cookie != config.host_netns_cookie
        && matches!(of_current(config), Pod::Wanted { .. } | Pod::Unknown)
}

/// Whether a captured client may go on: its pod is enrolled, and it is told now whose it is.
#[inline(always)]
pub(crate) fn settle(view: &mut SockView) -> bool {
    if view.flags & socket_flags::PENDING == 0 {
        return true;
    }
    let Some(netns) = netns_entry(view.netns_cookie) else { return false };
    // Where somebody had meshd's port it goes to another one, and this connect nowhere.
    if netns.owner.slot == 0 || config().is_none_or(|c| c.outbound_port_be != netns.outbound_port_be) {
        return false;
    }
    view.slot = netns.owner.slot;
    view.local = if view.peer.v4_net().is_some() { netns.owner.local_v4 } else { netns.owner.local_v6 };
    view.flags &= !socket_flags::PENDING;
    true
}

#[inline(always)]
fn is_tcp(socket: *mut bpf_sock) -> bool {
    // SAFETY: a full socket.
    unsafe {
        read_field!(socket, bpf_sock, type_) == SOCK_STREAM
            && read_field!(socket, bpf_sock, protocol) == IPPROTO_TCP
    }
}

#[inline(always)]
fn is_on_loopback(skb: *mut __sk_buff) -> bool {
    // SAFETY: a valid context; the field is readable in these hooks.
    unsafe { read_field!(skb, __sk_buff, ifindex) == LOOPBACK_IFINDEX }
}

/// Not of a pod: meshd's own, or in the host's namespace.
#[inline(always)]
fn is_beyond(config: &Config, view: Option<&SockView>) -> bool {
    view.is_some_and(|view| {
        view.flags & socket_flags::OWN != 0 || view.netns_cookie == config.host_netns_cookie
    })
}

#[cgroup_skb]
pub(crate) fn pods_egress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(socket) = full_socket(skb) else { return PASS };
    let tcp = is_tcp(socket);
    // In this state a socket sends nothing but its SYN.
    // SAFETY: a full socket.
    if tcp && unsafe { read_field!(socket, bpf_sock, state) } != TCP_SYN_SENT {
        return PASS;
    }
    let Some(config) = config() else { return PASS };
    if config.pods_cgroup_id == 0 {
        return PASS;
    }
    if is_on_loopback(skb) {
        return if tcp { on_loopback(config, socket) } else { PASS };
    }
    if !tcp && config.refuse_uncaptured == 0 {
        return PASS;
    }
    let view = view(socket);
    if is_beyond(config, view.as_deref()) {
        return PASS;
    }
    match of_socket(config, socket) {
        Pod::None | Pod::Free => return PASS,
        // `guard` looks after the rest.
        Pod::Wanted { captured: true } if !tcp => return PASS,
        Pod::Wanted { .. } | Pod::Unknown => {}
    }
    let Some(packet) = packet::read(&ctx) else { return DROP };
    let (_, port_be) = ports_be(&ctx, &packet);
    if !packet.has_options {
        if !is_destination(packet.destination, port_be) {
            return PASS;
        }
        if let Some(view) = view {
            let left_out = view.flags & socket_flags::LEFT_OUT != 0
                && view.peer == packet.destination
                && view.peer_port_be == port_be;
            if left_out || is_recorded(view, packet.destination, port_be) {
                return PASS;
            }
        }
    }
    count(Counter::PodDropped);
    DROP
}

/// A captured connect that waits.
#[inline(always)]
fn on_loopback(config: &Config, socket: *mut bpf_sock) -> i32 {
    let Some(view) = view(socket) else { return PASS };
    if settle(view) {
        return PASS;
    }
    // Of a pod that is not wanted any more: refused where nobody listens, and tried again by itself.
    if matches!(of_socket(config, socket), Pod::None | Pod::Free) {
        return PASS;
    }
    count(Counter::PodWaited);
    DROP
}

#[cgroup_skb]
pub(crate) fn pods_ingress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    if is_on_loopback(skb) {
        return PASS;
    }
    let Some(socket) = full_socket(skb) else { return PASS };
    let tcp = is_tcp(socket);
    // SAFETY: a full socket.
    if tcp && unsafe { read_field!(socket, bpf_sock, state) } != TCP_LISTEN {
        return PASS;
    }
    let Some(config) = config() else { return PASS };
    if config.pods_cgroup_id == 0 || (!tcp && config.refuse_uncaptured == 0) {
        return PASS;
    }
    let view = view(socket);
    if is_beyond(config, view.as_deref()) {
        return PASS;
    }
    let captured = match of_socket(config, socket) {
        Pod::None | Pod::Free => return PASS,
        Pod::Wanted { captured } => match view {
            // A pod may have got another namespace meanwhile.
            Some(view) if view.netns_cookie != 0 => {
                netns_entry(view.netns_cookie).is_some_and(|netns| netns.owner.slot != 0)
            }
            _ => captured,
        },
        Pod::Unknown => false,
    };
    if captured {
        return PASS;
    }
    count(Counter::PodDropped);
    DROP
}
