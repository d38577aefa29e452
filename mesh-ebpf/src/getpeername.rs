//! `cgroup/getpeername4` and `getpeername6` (also what `accept` returns): a captured client is shown where
//! it wanted to go, a server its real client. Sockets that meshd has nothing to do with are untouched.

use aya_ebpf::{
    bindings::bpf_sock_addr, helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use mesh_common::{TupleKey, socket_flags};

use crate::{
    context::{is_tcp, read_address, read_port_be, socket_of, write_address, write_port_be},
    maps::{PEER_OF, view},
};

const PROCEED: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername::<false>(ctx.sock_addr)
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername::<true>(ctx.sock_addr)
}

#[inline(always)]
fn getpeername<const V6: bool>(ctx: *mut bpf_sock_addr) -> i32 {
    if !is_tcp(ctx) {
        return PROCEED;
    }
    if let Some(view) = view(socket_of(ctx)) {
        if view.flags & (socket_flags::CAPTURED | socket_flags::SERVER) != 0
            && write_address::<V6>(ctx, view.peer)
        {
            write_port_be(ctx, view.peer_port_be);
        }
        return PROCEED;
    }
    // No storage: the accepted socket's could not be had. The app leg's own entry says the same.
    let key = TupleKey {
        // SAFETY: the helper takes this hook's own context.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.cast()) },
        addr: read_address::<V6>(ctx),
        port_host: u32::from(u16::from_be(read_port_be(ctx))),
        reserved: 0,
    };
    // SAFETY: the entry may be replaced while it is read only if the port is used again, after this
    // connection is gone.
    if let Some(peer) = unsafe { PEER_OF.get(&key) }
        && write_address::<V6>(ctx, peer.addr)
    {
        write_port_be(ctx, peer.port_be);
    }
    PROCEED
}
