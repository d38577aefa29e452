//! `cgroup/bind4` and `bind6`: in a namespace where meshd listens, nobody else binds its ports. Otherwise
//! a program could wait there for captured connections while meshd is down.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use mesh_common::{Counter, socket_flags};

use crate::{
    context::{is_tcp, read_port_be, socket_of},
    enrolment::netns_entry,
    log::log_event,
    maps::{count, view},
};

const EADDRINUSE: i32 = 98;

#[cgroup_sock_addr(bind4)]
pub(crate) fn bind4(ctx: SockAddrContext) -> i32 {
    bind(ctx.sock_addr)
}

#[cgroup_sock_addr(bind6)]
pub(crate) fn bind6(ctx: SockAddrContext) -> i32 {
    bind(ctx.sock_addr)
}

#[inline(always)]
fn bind(ctx: *mut bpf_sock_addr) -> i32 {
    let port_be = read_port_be(ctx);
    if port_be == 0 || !is_tcp(ctx) {
        return 1;
    }
    // SAFETY: the helper takes this hook's own context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    let Some(netns) = netns_entry(netns_cookie) else { return 1 };
    let reserved = port_be == netns.outbound_port_be || port_be == netns.inbound_port_be;
    let own = view(socket_of(ctx)).is_some_and(|view| view.flags & socket_flags::OWN != 0);
    if !reserved || own {
        return 1;
    }
    count(Counter::BindRefused);
    log_event!("bind to meshd's port refused", netns_cookie);
    // SAFETY: a constant within [-4095, 0], as the verifier wants.
    unsafe { bpf_set_retval(-EADDRINUSE) };
    0
}
