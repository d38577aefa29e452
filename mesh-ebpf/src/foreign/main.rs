//! Somebody else's programs on the same cgroup, for tests only: meshd never loads this object. They count what they
//! see, ask for callbacks of their own, or refuse, as another agent of the node may.
#![no_std]
#![no_main]
#![allow(
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "programs are one function for the verifier, and the macros of aya hand contexts over by value"
)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy would lie on the stack, of which there are 512 bytes"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "widths and signs are those of the kernel's helpers"
)]

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops},
    btf_maps::Array,
    helpers::generated::bpf_sock_ops_cb_flags_set,
    macros::{btf_map, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockOpsContext},
};

/// 127.0.0.1 as it lies in memory: where captured connections go.
const LOOPBACK_V4_NET: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
const CONNECTS: u32 = 0;
const RTT_CALLBACKS: u32 = 1;

#[btf_map]
static SEEN: Array<u64, 2> = Array::new();

#[inline(always)]
fn count(slot: u32) {
    if let Some(value) = SEEN.get_ptr_mut(slot) {
        // SAFETY: the map's own value; two processors at once may lose a count, which the test does not mind.
        unsafe { *value += 1 };
    }
}

/// Sees every connect and leaves it alone.
#[cgroup_sock_addr(connect4)]
pub(crate) fn watch_connect(_: SockAddrContext) -> i32 {
    count(CONNECTS);
    1
}

/// Refuses every connect.
#[cgroup_sock_addr(connect4)]
pub(crate) fn refuse_connect(_: SockAddrContext) -> i32 {
    count(CONNECTS);
    0
}

/// Address and port, as they lie in memory, that connects to meshd are led to; a port of 0 leaves them alone.
#[btf_map]
static TARGET: Array<u32, 2> = Array::new();

/// Where meshd takes captured connects, unless its file says otherwise.
const OUTBOUND_PORT_BE: u32 = 15001_u16.to_be() as u32;

/// Undoes what meshd has written, as a load balancer of its own mind might.
#[cgroup_sock_addr(connect4)]
pub(crate) fn rewrite_connect(ctx: SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    let (Some(address_net), Some(port_be)) = (TARGET.get(0), TARGET.get(1)) else { return 1 };
    // SAFETY: the program's own context, whose fields are read and written whole.
    unsafe {
        let host_net = core::ptr::read_volatile(core::ptr::addr_of!((*ctx).user_ip4));
        let to_be = core::ptr::read_volatile(core::ptr::addr_of!((*ctx).user_port));
        if *port_be != 0 && host_net == LOOPBACK_V4_NET && to_be == OUTBOUND_PORT_BE {
            core::ptr::write_volatile(core::ptr::addr_of_mut!((*ctx).user_ip4), *address_net);
            core::ptr::write_volatile(core::ptr::addr_of_mut!((*ctx).user_port), *port_be);
            count(CONNECTS);
        }
    }
    1
}

/// Asks each socket that connects over loopback for round-trip callbacks, and counts those that come.
#[sock_ops]
pub(crate) fn watch_rtt(ctx: SockOpsContext) -> u32 {
    let ops: *mut bpf_sock_ops = ctx.ops;
    // SAFETY: the program's own context.
    let op = unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*ops).op)) };
    // SAFETY: as above.
    let remote_v4_net = unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*ops).remote_ip4)) };
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB && remote_v4_net == LOOPBACK_V4_NET {
        // SAFETY: as above; a polite neighbour keeps what others have asked for.
        unsafe {
            let flags = core::ptr::read_volatile(core::ptr::addr_of!((*ops).bpf_sock_ops_cb_flags));
            bpf_sock_ops_cb_flags_set(ops, (flags | BPF_SOCK_OPS_RTT_CB_FLAG) as i32);
        }
    } else if op == BPF_SOCK_OPS_RTT_CB {
        count(RTT_CALLBACKS);
    }
    1
}

/// Takes away what others have asked for, as a careless program does.
#[sock_ops]
pub(crate) fn forget_callbacks(ctx: SockOpsContext) -> u32 {
    // SAFETY: the program's own context.
    let op = unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*ctx.ops).op)) };
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        // SAFETY: as above.
        unsafe { bpf_sock_ops_cb_flags_set(ctx.ops, 0) };
    }
    1
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
