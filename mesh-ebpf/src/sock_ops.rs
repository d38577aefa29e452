//! `sock_ops`: at the moment a connection has its tuple, what the connect hook knew by socket becomes known
//! by tuple; entries go when their connection goes. Nothing here decides whether traffic passes.

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TIMEOUT_INIT, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_setsockopt, bpf_sock_ops_cb_flags_set,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{ConnectionTuple, Counter, OriginalDst, SockView, TupleKey, socket_flags};

use crate::{
    context::{Ends, TCP_SYN_SENT, read_ends},
    hold::abandoned,
    kernel_path,
    maps::{BY_TUPLE, HOST_CLIENTS, PEER_OF, count, view, view_or_create},
    read::read_field,
};

const TCP_CLOSE: u32 = 7;

#[sock_ops]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    let ctx = ctx.ops;
    // SAFETY: a valid context.
    let op = unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*ctx).op)) };
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx),
        BPF_SOCK_OPS_TIMEOUT_INIT => first_timeout(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        BPF_SOCK_OPS_STATE_CB => state_changed(ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn socket_of(ctx: *mut bpf_sock_ops) -> *mut bpf_sock {
    // SAFETY: a valid context; null when the socket is not a full one, which `maps::view` checks.
    unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*ctx).__bindgen_anon_2.sk)) }
}

#[inline(always)]
fn tuple(ctx: *mut bpf_sock_ops, addr: mesh_common::AddrNet, port_host: u32) -> TupleKey {
    // SAFETY: the helper takes this hook's own context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    TupleKey { netns_cookie, addr, port_host, reserved: 0 }
}

#[inline(always)]
fn host_client_key(ends: &Ends) -> ConnectionTuple {
    ConnectionTuple {
        client: ends.local,
        server: ends.remote,
        client_port_host: ends.local_port_host,
        server_port_host: ends.remote_port_host,
    }
}

/// The SYN is about to leave: the local port is bound, the socket is the one that called `connect`.
#[inline(always)]
fn connecting(ctx: *mut bpf_sock_ops) {
    let (socket, ends) = (socket_of(ctx), read_ends(ctx));
    mark_own_client(socket, &ends);
    let Some(view) = view(socket) else { return };
    if view.flags & (socket_flags::CAPTURED | socket_flags::HOST_CLIENT | socket_flags::KERNEL_PATH) == 0 {
        return;
    }
    // SAFETY: the program's own context; the helper takes it. The socket's flags are one word for all programs:
    // those that another one has set stay. Without ours an entry outlives its connection, and the next one from
    // that port overwrites it.
    unsafe {
        let flags = read_field!(ctx, bpf_sock_ops, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
        bpf_sock_ops_cb_flags_set(ctx, flags as i32);
    }
    if view.flags & socket_flags::CAPTURED != 0 && !ends.remote.is_loopback_or_unspecified() {
        // A program attached after ours has written another address. It passes us by; `guard` drops it where
        // the setting says so, and the far side refuses plaintext.
        count(Counter::CaptureUndone);
        return;
    }
    if view.flags & socket_flags::KERNEL_PATH != 0 {
        kernel_path::connecting(ctx, view, &ends);
    } else if view.flags & socket_flags::HELD != 0 {
        // its SYN carries all that meshd must know
    } else if view.flags & socket_flags::CAPTURED != 0 {
        let original =
            OriginalDst { addr: view.peer, port_be: view.peer_port_be, reserved: 0, slot: view.slot };
        let key = tuple(ctx, ends.local, ends.local_port_host);
        if BY_TUPLE.insert(&key, &original, u64::from(BPF_ANY)).is_err() {
            count(Counter::OriginalDstTableFull);
        }
    } else {
        let inserted = HOST_CLIENTS.insert(&host_client_key(&ends), &1, u64::from(BPF_ANY));
        count(if inserted.is_ok() { Counter::HostClient } else { Counter::HostClientTableFull });
    }
}

/// A SYN that waits for its pod to be enrolled is sent again sooner than after a second. In jiffies, 1 to 10 ms each.
const PENDING_TIMEOUT_JIFFIES: u32 = 25;
/// Of SYNs, since the sooner begun doubling would be over sooner too: two minutes where a jiffy is 1 ms.
const PENDING_SYN_COUNT: i32 = 11;
const SOL_TCP: i32 = 6;
const TCP_SYNCNT: i32 = 7;

#[inline(always)]
fn first_timeout(ctx: *mut bpf_sock_ops) {
    if view(socket_of(ctx)).is_none_or(|view| view.flags & socket_flags::PENDING == 0) {
        return;
    }
    let mut count = PENDING_SYN_COUNT;
    // SAFETY: the program's own context; `reply` is writable in this hook. The option's value is a live local. Where it
    // is refused the socket gives up sooner.
    unsafe {
        bpf_setsockopt(ctx.cast(), SOL_TCP, TCP_SYNCNT, (&raw mut count).cast(), size_of::<i32>() as i32);
        core::ptr::write_volatile(
            core::ptr::addr_of_mut!((*ctx).__bindgen_anon_1.reply),
            PENDING_TIMEOUT_JIFFIES,
        );
    }
}

/// Marks a client of its own address. `sk_lookup` cannot tell it from a stranger's forged packet, which IPv6 takes in
/// from the wire too, so it passes only what is recorded.
#[inline(always)]
fn mark_own_client(socket: *mut bpf_sock, ends: &Ends) {
    if ends.remote != ends.local || ends.remote.is_loopback_or_unspecified() {
        return;
    }
    if view(socket).is_some_and(|view| view.flags != 0) {
        return;
    }
    // Without storage it meets meshd's inbound listener: policy decides, nothing passes.
    if let Some(view) = view_or_create(socket) {
        view.flags = socket_flags::HOST_CLIENT;
    }
}

/// A server's socket is there: if its peer is one of meshd's app legs, it learns its real client.
#[inline(always)]
fn accepted(ctx: *mut bpf_sock_ops) {
    let ends = read_ends(ctx);
    let key = tuple(ctx, ends.remote, ends.remote_port_host);
    // SAFETY: copied before the entry is removed.
    let Some(peer) = (unsafe { PEER_OF.get(&key) }) else { return };
    let shown = SockView {
        netns_cookie: 0,
        flags: socket_flags::SERVER,
        slot: 0,
        peer: peer.addr,
        local: mesh_common::AddrNet::UNSPECIFIED,
        peer_port_be: peer.port_be,
        reserved: [0; 3],
    };
    let Some(view) = view_or_create(socket_of(ctx)) else {
        count(Counter::PeerStorageFailed);
        return;
    };
    *view = shown;
    count(Counter::PeerShown);
    let _: Result<(), i32> = PEER_OF.remove(&key);
}

#[inline(always)]
fn state_changed(ctx: *mut bpf_sock_ops) {
    // SAFETY: a valid context; args[1] is the new state.
    let new_state = unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*ctx).__bindgen_anon_1.args[1])) };
    if new_state != TCP_CLOSE {
        return;
    }
    let ends = read_ends(ctx);
    // SAFETY: a valid context; args[0] is the old state.
    let old_state = unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*ctx).__bindgen_anon_1.args[0])) };
    // Of a socket that is older than these programs only the record tells.
    let Some(view) = view(socket_of(ctx)) else { return kernel_path::closed(ctx, &ends, old_state) };
    let flags = view.flags;
    if flags & socket_flags::KERNEL_PATH != 0 {
        kernel_path::closed(ctx, &ends, old_state);
    } else if flags & socket_flags::HELD != 0 {
        if old_state == TCP_SYN_SENT {
            // SAFETY: the helper takes this hook's own context.
            let socket_cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
            abandoned(view, socket_cookie);
        }
    } else if flags & socket_flags::CAPTURED != 0 {
        let _: Result<(), i32> = BY_TUPLE.remove(&tuple(ctx, ends.local, ends.local_port_host));
    } else if flags & socket_flags::HOST_CLIENT != 0 {
        let _: Result<(), i32> = HOST_CLIENTS.remove(&host_client_key(&ends));
    }
}
