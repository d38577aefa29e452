//! `cgroup_skb/egress`: a captured client's SYN is dropped and told to meshd, which opens and proves the wire
//! leg first and then completes the application's `connect` by simultaneous open, or refuses it. A SYN that
//! cannot be told is dropped all the same; the client's TCP sends it again. Once the daemon has been gone for a
//! while, SYNs are let go to the loopback port where nobody listens, and are refused there.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_tcp_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_tcp_sock as tcp_sock_of},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use mesh_common::{Counter, HeldConnect, SockView, held_event, socket_flags};

use crate::{
    context::{AF_INET6, LOOPBACK_IFINDEX, TCP_SYN_SENT, full_socket},
    maps::{HELD, HELD_UNTIL, count, view},
    pods,
    read::{mapped, read_address_at, read_field},
};

const PASS: i32 = 1;
const DROP: i32 = 0;

#[cgroup_skb]
pub(crate) fn hold_syn(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    // Held SYNs go to loopback: all other traffic costs this one comparison.
    // SAFETY: a valid context; the field is readable in this hook.
    if unsafe { read_field!(skb, __sk_buff, ifindex) } != LOOPBACK_IFINDEX {
        return PASS;
    }
    let Some(socket) = full_socket(skb) else { return PASS };
    // In this state a socket sends nothing but its SYN: a simultaneous open's SYN+ACK comes after it.
    // SAFETY: a full socket.
    if unsafe { read_field!(socket, bpf_sock, state) } != TCP_SYN_SENT {
        return PASS;
    }
    let Some(view) = view(socket) else { return PASS };
    if view.flags & socket_flags::HELD == 0 {
        return PASS;
    }
    if !pods::settle(view) {
        // `pods_egress` lets it wait.
        return PASS;
    }
    if !is_read() {
        count(Counter::HeldUnread);
        return PASS;
    }
    // SAFETY: the helper takes this hook's own context.
    let socket_cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    // SAFETY: a full TCP socket; the result is checked.
    let tcp = unsafe { tcp_sock_of(socket) };
    if tcp.is_null() {
        return DROP;
    }
    // SAFETY: not null. In SYN_SENT it is the SYN's own sequence number (net/ipv4/tcp_output.c,
    // `tcp_connect_init`).
    let sequence = unsafe { read_field!(tcp, bpf_tcp_sock, snd_una) };
    tell(view, socket_cookie, socket, sequence);
    DROP
}

/// Tells that the application closed a socket whose SYN is held.
#[inline(always)]
pub(crate) fn abandoned(view: &SockView, socket_cookie: u64) {
    let event = HeldConnect {
        netns_cookie: view.netns_cookie,
        socket_cookie,
        kind: held_event::ABANDONED,
        ..HeldConnect::default()
    };
    // Lost, it only lets meshd finish what nobody waits for.
    let _: Result<(), i32> = HELD.output(&event, 0);
}

/// Whether a daemon lives that takes up what is told.
#[inline(always)]
fn is_read() -> bool {
    let Some(until) = HELD_UNTIL.get(0) else { return false };
    // SAFETY: user space writes it while we read; either value will do. The helper has no conditions.
    unsafe { bpf_ktime_get_ns() < core::ptr::read_volatile(until) }
}

#[inline(always)]
fn tell(view: &SockView, socket_cookie: u64, socket: *mut bpf_sock, sequence: u32) {
    // SAFETY: a full socket; `src_port` is in host byte order (include/uapi/linux/bpf.h).
    let (client, client_port_host) = unsafe {
        let client = if read_field!(socket, bpf_sock, family) == AF_INET6 {
            read_address_at!(socket, bpf_sock, src_ip6)
        } else {
            mapped(read_field!(socket, bpf_sock, src_ip4))
        };
        (client, read_field!(socket, bpf_sock, src_port))
    };
    let held = HeldConnect {
        netns_cookie: view.netns_cookie,
        socket_cookie,
        client,
        destination: view.peer,
        kind: held_event::HELD,
        slot: view.slot,
        sequence,
        client_port_host,
        destination_port_be: view.peer_port_be,
        reserved: [0; 3],
    };
    let told = HELD.output(&held, 0).is_ok();
    count(if told { Counter::Held } else { Counter::HeldRingFull });
}
