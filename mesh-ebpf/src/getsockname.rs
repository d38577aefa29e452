//! `cgroup/getsockname4` and `getsockname6`: a captured client that the kernel says is on loopback is shown
//! its workload's own address; the port is its own already. Others are untouched.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::socket_flags;

use crate::{
    context::{is_tcp, read_address, socket_of, write_address},
    maps::view,
};

const PROCEED: i32 = 1;

#[cgroup_sock_addr(getsockname4)]
pub(crate) fn getsockname4(ctx: SockAddrContext) -> i32 {
    getsockname::<false>(ctx.sock_addr)
}

#[cgroup_sock_addr(getsockname6)]
pub(crate) fn getsockname6(ctx: SockAddrContext) -> i32 {
    getsockname::<true>(ctx.sock_addr)
}

#[inline(always)]
fn getsockname<const V6: bool>(ctx: *mut bpf_sock_addr) -> i32 {
    if !is_tcp(ctx) {
        return PROCEED;
    }
    let Some(view) = view(socket_of(ctx)) else { return PROCEED };
    if view.flags & socket_flags::CAPTURED == 0 || view.local.is_unspecified() {
        return PROCEED;
    }
    let shown = read_address::<V6>(ctx);
    // Unspecified: not connected yet. A specific address: the application bound it, and it is the truth.
    if shown.is_loopback_or_unspecified() && !shown.is_wildcard() {
        write_address::<V6>(ctx, view.local);
    }
    PROCEED
}
