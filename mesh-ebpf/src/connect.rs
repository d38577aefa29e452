//! `cgroup/connect4` and `connect6`: an enrolled workload's TCP `connect` to a meshed destination goes to
//! meshd's listener on loopback; the socket remembers where it wanted to go. Everything else is untouched.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use mesh_common::{
    AddrNet, Config, Counter, LOOPBACK_V4_NET, OWN_PRIORITY, SockView, WorkloadEntry, socket_flags,
};

use crate::{
    context::{
        LOOPBACK_IFINDEX, device_of, is_tcp, priority_of, read_address, read_port_be, socket_of,
        write_address, write_port_be,
    },
    enrolment::{Enrolment, config, enrolment},
    kernel_path,
    log::log_connect,
    maps::{count, view, view_or_create},
    meshed::{is_destination, is_local_address, is_meshed},
    pods,
};

const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;
const REFUSE: i32 = 0;
const PROCEED: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<false>(ctx.sock_addr)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<true>(ctx.sock_addr)
}

#[inline(always)]
fn connect<const V6: bool>(ctx: *mut bpf_sock_addr) -> i32 {
    if !is_tcp(ctx) {
        return PROCEED;
    }
    let socket = socket_of(ctx);
    // A socket may connect again after AF_UNSPEC; what it was shown before is void.
    if let Some(view) = view(socket) {
        if view.flags & socket_flags::OWN != 0 {
            return PROCEED;
        }
        view.flags = 0;
    }
    let destination = read_address::<V6>(ctx);
    let port_be = read_port_be(ctx);
    if destination.is_loopback_or_unspecified() {
        return PROCEED;
    }
    // SAFETY: the helper takes this hook's own context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    match enrolment(netns_cookie) {
        Enrolment::None => match config() {
            Some(config) if pods::waits(config, netns_cookie) => {
                before_enrolment::<V6>(ctx, socket, config, netns_cookie, destination)
            }
            _ => host_client(socket, netns_cookie, destination),
        },
        Enrolment::NoListener { entry } if wants(entry, destination, port_be) => {
            count(Counter::RefusedNoListener);
            log_connect!("connect refused: no listener", entry.slot, destination, port_be);
            refuse()
        }
        Enrolment::Workload { entry, outbound_port_be } if wants(entry, destination, port_be) => {
            if !matches!(device_of(socket), 0 | LOOPBACK_IFINDEX) {
                count(Counter::DeviceBoundRefused);
                log_connect!("connect refused: bound to a device", entry.slot, destination, port_be);
                return unreachable();
            }
            if let Some(admitted) = kernel_path::admitted(socket, netns_cookie, entry, destination, port_be)
                && let Some(stored) = view_or_create(socket)
            {
                *stored = admitted;
                return PROCEED;
            }
            let local = if destination.v4_net().is_some() { entry.local_v4 } else { entry.local_v6 };
            let holds = config().is_some_and(|config| config.hold != 0);
            let view = SockView {
                netns_cookie,
                flags: if holds {
                    socket_flags::CAPTURED | socket_flags::HELD
                } else {
                    socket_flags::CAPTURED
                },
                slot: entry.slot,
                peer: destination,
                local,
                peer_port_be: port_be,
                reserved: [0; 3],
            };
            capture::<V6>(ctx, socket, &view, outbound_port_be)
        }
        Enrolment::Workload { .. } => left_out(socket, destination, port_be),
        Enrolment::NoListener { .. } => PROCEED,
    }
}

/// `pods_egress` must know that this SYN goes past meshd by right.
#[inline(always)]
fn left_out(socket: *mut bpf_sock, destination: AddrNet, port_be: u16) -> i32 {
    let gates = config().is_some_and(|config| config.pods_cgroup_id != 0);
    if gates
        && is_destination(destination, port_be)
        && let Some(view) = view_or_create(socket)
    {
        view.flags = socket_flags::LEFT_OUT;
        view.peer = destination;
        view.peer_port_be = port_be;
    }
    PROCEED
}

/// A pod that is wanted, or that nobody has spoken of: a connect to a meshed destination is captured already, and waits
/// for somebody to serve it; what is not meshed would go past meshd in any case. Of a pod that turns out to be none of
/// ours it is refused then. Left as it is, one of a pod that turns out to be wanted could only wait in vain.
#[inline(always)]
fn before_enrolment<const V6: bool>(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    config: &Config,
    netns_cookie: u64,
    destination: AddrNet,
) -> i32 {
    let port_be = read_port_be(ctx);
    if !is_destination(destination, port_be) {
        return PROCEED;
    }
    if config.pods_refuse != 0 {
        count(Counter::PodRefused);
        log_connect!("connect refused: the pod is not enrolled yet", 0, destination, port_be);
        return refuse();
    }
    if !matches!(device_of(socket), 0 | LOOPBACK_IFINDEX) {
        count(Counter::DeviceBoundRefused);
        return unreachable();
    }
    let flags = socket_flags::CAPTURED | socket_flags::PENDING;
    let view = SockView {
        netns_cookie,
        flags: if config.hold != 0 { flags | socket_flags::HELD } else { flags },
        slot: 0,
        peer: destination,
        local: AddrNet::UNSPECIFIED,
        peer_port_be: port_be,
        reserved: [0; 3],
    };
    capture::<V6>(ctx, socket, &view, config.outbound_port_be)
}

#[inline(always)]
fn capture<const V6: bool>(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    view: &SockView,
    outbound_port_be: u16,
) -> i32 {
    let Some(stored) = view_or_create(socket) else {
        count(Counter::StorageFailed);
        log_connect!("connect refused: no storage", view.slot, view.peer, view.peer_port_be);
        return refuse();
    };
    *stored = *view;
    let loopback = if view.peer.v4_net().is_some() {
        AddrNet::from_v4_net(LOOPBACK_V4_NET)
    } else {
        AddrNet::LOOPBACK_V6
    };
    if !write_address::<V6>(ctx, loopback) {
        return refuse();
    }
    write_port_be(ctx, outbound_port_be);
    count(Counter::Captured);
    log_connect!("connect captured", view.slot, view.peer, view.peer_port_be);
    PROCEED
}

/// Marks an unenrolled host client on its way to a local workload; `sock_ops` records the connection. Another
/// meshd's wire leg is none: it must meet our inbound listener.
#[inline(always)]
fn host_client(socket: *mut bpf_sock, netns_cookie: u64, destination: AddrNet) -> i32 {
    let is_host = config().is_some_and(|config| config.host_netns_cookie == netns_cookie);
    if is_host && priority_of(socket) != OWN_PRIORITY && is_local_address(0, destination) {
        // Without storage the probe meets meshd's inbound listener: policy decides, nothing passes.
        if let Some(view) = view_or_create(socket) {
            view.flags = socket_flags::HOST_CLIENT;
        }
    }
    PROCEED
}

#[inline(always)]
fn wants(entry: &WorkloadEntry, destination: AddrNet, port_be: u16) -> bool {
    is_meshed(entry.slot, entry.flags, destination, port_be)
}

/// Bound to the wire's device a socket cannot reach meshd on loopback: without this its SYN would look for
/// 127.0.0.1 on the wire until it gives up.
#[inline(always)]
fn unreachable() -> i32 {
    // SAFETY: as in `refuse`; EHOSTUNREACH is what the socket would be told three seconds later.
    unsafe { bpf_set_retval(-EHOSTUNREACH) };
    REFUSE
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: a constant within [-4095, 0], as the verifier of 7.3 wants. ECONNREFUSED is a clean failure
    // for every client tried; EAGAIN and its like make some believe that they are connected.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}
