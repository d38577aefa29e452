//! `cgroup/bind4` and `bind6`: in a namespace where meshd listens, nobody else binds its ports. Otherwise
//! a program could wait there for captured connections while meshd is down. Where the setting says so, no
//! datagram socket binds a port of its own choice, so that nobody is served past meshd.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use mesh_common::{Counter, excluded_direction, socket_flags, workload_flags};

use crate::{
    context::{is_tcp, read_address, read_port_be, socket_of},
    enrolment::{Enrolment, config, enrolment, netns_entry},
    log::log_event,
    maps::{count, view},
    meshed::is_excluded,
    pods,
};

const EPERM: i32 = 1;
const EADDRINUSE: i32 = 98;

#[cgroup_sock_addr(bind4)]
pub(crate) fn bind4(ctx: SockAddrContext) -> i32 {
    bind::<false>(ctx.sock_addr)
}

#[cgroup_sock_addr(bind6)]
pub(crate) fn bind6(ctx: SockAddrContext) -> i32 {
    bind::<true>(ctx.sock_addr)
}

#[inline(always)]
fn bind<const V6: bool>(ctx: *mut bpf_sock_addr) -> i32 {
    let port_be = read_port_be(ctx);
    if port_be == 0 {
        return 1;
    }
    if !is_tcp(ctx) {
        return bind_datagram::<V6>(ctx, port_be);
    }
    // SAFETY: the helper takes this hook's own context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    let (outbound_port_be, inbound_port_be) = match netns_entry(netns_cookie) {
        Some(netns) => (netns.outbound_port_be, netns.inbound_port_be),
        // In a pod that is not enrolled yet meshd will want these.
        None => match config() {
            Some(config) if pods::waits(config, netns_cookie) => {
                (config.outbound_port_be, config.inbound_port_be)
            }
            _ => return 1,
        },
    };
    let reserved = port_be == outbound_port_be || port_be == inbound_port_be;
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

/// A port that the kernel picks is a client's.
#[inline(always)]
fn bind_datagram<const V6: bool>(ctx: *mut bpf_sock_addr, port_be: u16) -> i32 {
    let address = read_address::<V6>(ctx);
    let local_only = address.is_loopback_or_unspecified() && !address.is_wildcard();
    if local_only || config().is_none_or(|config| config.refuse_uncaptured == 0) {
        return 1;
    }
    // SAFETY: the helper takes this hook's own context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    let entry = match enrolment(netns_cookie) {
        Enrolment::None => return 1,
        Enrolment::Workload { entry, .. } | Enrolment::NoListener { entry } => entry,
    };
    if entry.flags & workload_flags::REFUSE_UNCAPTURED == 0
        || is_excluded(entry.slot, port_be, excluded_direction::INBOUND)
    {
        return 1;
    }
    count(Counter::UncapturedBindRefused);
    log_event!("datagram port refused", netns_cookie);
    // SAFETY: as above.
    unsafe { bpf_set_retval(-EPERM) };
    0
}
