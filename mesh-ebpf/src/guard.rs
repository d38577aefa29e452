//! `cgroup_skb/egress`, only where the setting says so: what a workload sends to a meshed destination and capture
//! had no hand in is dropped. That is UDP, ping, packets of raw sockets, and a SYN that should have gone to
//! loopback. Connections that stand are left alone, and cost two comparisons.
//!
//! The kernels tell this hook no namespace before 6.18: a socket remembers who made it (`sock_create`); for one
//! that is older than meshd the packet's source address must say it.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use mesh_common::{AddrNet, Counter, LocalAddressKey, excluded_direction, socket_flags};

use crate::{
    context::{
        IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, LOOPBACK_IFINDEX, SOCK_STREAM, TCP_SYN_SENT,
        full_socket,
    },
    kernel_path::is_recorded,
    maps::{LOCAL_ADDRESSES, REFUSE_UNCAPTURED, count, view},
    meshed::{is_excluded, is_meshed},
    packet::{self, Packet},
    read::read_field,
};

const PASS: i32 = 1;
const DROP: i32 = 0;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMPV6_ECHO_REQUEST: u8 = 128;

#[cgroup_skb]
pub(crate) fn guard(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: a valid context; the field is readable in this hook.
    if unsafe { read_field!(skb, __sk_buff, ifindex) } == LOOPBACK_IFINDEX {
        return PASS;
    }
    let Some(socket) = full_socket(skb) else { return PASS };
    // SAFETY: a full socket.
    let (kind, protocol, state) = unsafe {
        (
            read_field!(socket, bpf_sock, type_),
            read_field!(socket, bpf_sock, protocol),
            read_field!(socket, bpf_sock, state),
        )
    };
    let is_tcp = kind == SOCK_STREAM && protocol == IPPROTO_TCP;
    // In this state a socket sends nothing but its SYN.
    if is_tcp && state != TCP_SYN_SENT {
        return PASS;
    }
    let Some(packet) = packet::read(&ctx) else { return PASS };
    let (maker, undone) = match view(socket) {
        Some(view) if view.flags & socket_flags::OWN != 0 => return PASS,
        Some(view) if view.flags & socket_flags::KERNEL_PATH != 0 => {
            let (_, port_be) = ports_be(&ctx, &packet);
            if is_recorded(view, packet.destination, port_be) && !packet.has_options {
                return PASS;
            }
            (view.slot, true)
        }
        // A captured connect goes to loopback: its SYN has no business here.
        Some(view) => (view.slot, is_tcp && view.flags & socket_flags::CAPTURED != 0),
        None => (0, false),
    };
    let slot = if maker == 0 { owner_of(packet.source) } else { maker };
    // SAFETY: only user space writes it, whole.
    let Some(flags) = (unsafe { REFUSE_UNCAPTURED.get(&slot) }) else { return PASS };
    if maker == 0 && is_kernels_own(&ctx, &packet, is_tcp) {
        return PASS;
    }
    let (source_port_be, port_be) = ports_be(&ctx, &packet);
    let refused = undone || packet.has_options || is_meshed(slot, *flags, packet.destination, port_be);
    if !refused || is_excluded(slot, source_port_be, excluded_direction::INBOUND) {
        return PASS;
    }
    count(Counter::UncapturedDropped);
    DROP
}

/// Whose namespace an address belongs to; 0: nobody's.
#[inline(always)]
fn owner_of(addr: AddrNet) -> u32 {
    // SAFETY: only user space writes it, whole.
    unsafe { LOCAL_ADDRESSES.get(&LocalAddressKey { slot: 0, addr }) }.copied().unwrap_or(0)
}

/// The kernel answers for a workload from sockets of its own that nobody made: resets, echo replies, errors,
/// neighbour discovery. None of them is an echo request or carries TCP data.
#[inline(always)]
fn is_kernels_own(ctx: &SkBuffContext, packet: &Packet, is_tcp: bool) -> bool {
    match packet.protocol {
        IPPROTO_ICMP => ctx.load::<u8>(packet.payload_at).is_ok_and(|kind| kind != ICMP_ECHO_REQUEST),
        IPPROTO_ICMPV6 => ctx.load::<u8>(packet.payload_at).is_ok_and(|kind| kind != ICMPV6_ECHO_REQUEST),
        IPPROTO_TCP if !is_tcp => !packet.has_tcp_data(ctx),
        _ => false,
    }
}

/// The two ports, where the protocol has them.
#[inline(always)]
pub(crate) fn ports_be(ctx: &SkBuffContext, packet: &Packet) -> (u16, u16) {
    if !matches!(packet.protocol, IPPROTO_TCP | IPPROTO_UDP) {
        return (0, 0);
    }
    let Ok(ports) = ctx.load::<[u8; 4]>(packet.payload_at) else { return (0, 0) };
    (u16::from_ne_bytes([ports[0], ports[1]]), u16::from_ne_bytes([ports[2], ports[3]]))
}
