//! Reading and writing the kernel's contexts word by word.
//!
//! The verifier wants every access at a constant offset from the context pointer and of the field's own
//! width, so reads are volatile: the compiler must neither merge them nor compute an address first.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_addr, bpf_sock_ops},
    helpers::generated::bpf_sk_fullsock,
};
use mesh_common::AddrNet;

use crate::read::{mapped, read_address_at, read_field};

pub(crate) const AF_INET6: u32 = 10;
/// `include/net/tcp_states.h`.
pub(crate) const TCP_SYN_SENT: u32 = 2;
pub(crate) const TCP_LISTEN: u32 = 10;
pub(crate) const SOCK_STREAM: u32 = 1;
pub(crate) const SOCK_DGRAM: u32 = 2;
pub(crate) const SOCK_RAW: u32 = 3;
pub(crate) const IPPROTO_ICMP: u32 = 1;
pub(crate) const IPPROTO_TCP: u32 = 6;
pub(crate) const IPPROTO_UDP: u32 = 17;
pub(crate) const IPPROTO_ICMPV6: u32 = 58;
/// The loopback interface in every namespace (net/core/dev.c: it is registered first).
pub(crate) const LOOPBACK_IFINDEX: u32 = 1;

/// Reads a 64-bit field of a context, as `read_field` does.
macro_rules! read_wide {
    ($ctx:expr, $kind:ty, $field:ident) => {{
        let value: u64;
        core::arch::asm!("{0} = *(u64 *)({1} + {2})", out(reg) value, in(reg) $ctx,
            const core::mem::offset_of!($kind, $field), options(nostack));
        value
    }};
}
pub(crate) use read_wide;

/// The address of a `bpf_sock_addr`. `V6` says which hook runs, not which family the socket has.
#[inline(always)]
pub(crate) fn read_address<const V6: bool>(ctx: *mut bpf_sock_addr) -> AddrNet {
    // SAFETY: the kernel hands every program a valid context; the fields are readable in these hooks.
    unsafe {
        if V6 {
            AddrNet {
                words_net: [
                    read_volatile(addr_of!((*ctx).user_ip6[0])),
                    read_volatile(addr_of!((*ctx).user_ip6[1])),
                    read_volatile(addr_of!((*ctx).user_ip6[2])),
                    read_volatile(addr_of!((*ctx).user_ip6[3])),
                ],
            }
        } else {
            AddrNet::from_v4_net(read_volatile(addr_of!((*ctx).user_ip4)))
        }
    }
}

/// Writes the address and port of a `bpf_sock_addr`. In a v4 hook the address must be v4-mapped; any other
/// is left out, and the call returns false.
#[inline(always)]
pub(crate) fn write_address<const V6: bool>(ctx: *mut bpf_sock_addr, address: AddrNet) -> bool {
    // SAFETY: as above; these fields are writable in the connect, getpeername and getsockname hooks.
    unsafe {
        if V6 {
            write_volatile(addr_of_mut!((*ctx).user_ip6[0]), address.words_net[0]);
            write_volatile(addr_of_mut!((*ctx).user_ip6[1]), address.words_net[1]);
            write_volatile(addr_of_mut!((*ctx).user_ip6[2]), address.words_net[2]);
            write_volatile(addr_of_mut!((*ctx).user_ip6[3]), address.words_net[3]);
            true
        } else if let Some(v4_net) = address.v4_net() {
            write_volatile(addr_of_mut!((*ctx).user_ip4), v4_net);
            true
        } else {
            false
        }
    }
}

#[inline(always)]
pub(crate) fn read_port_be(ctx: *mut bpf_sock_addr) -> u16 {
    // SAFETY: as above. The field is 32 bits wide, the port is in its first two bytes.
    unsafe { read_volatile(addr_of!((*ctx).user_port)) as u16 }
}

#[inline(always)]
pub(crate) fn write_port_be(ctx: *mut bpf_sock_addr, port_be: u16) {
    // SAFETY: as above.
    unsafe { write_volatile(addr_of_mut!((*ctx).user_port), u32::from(port_be)) };
}

#[inline(always)]
pub(crate) fn is_tcp(ctx: *mut bpf_sock_addr) -> bool {
    // SAFETY: as above.
    unsafe {
        read_volatile(addr_of!((*ctx).type_)) == SOCK_STREAM
            && read_volatile(addr_of!((*ctx).protocol)) == IPPROTO_TCP
    }
}

#[inline(always)]
pub(crate) fn socket_of(ctx: *mut bpf_sock_addr) -> *mut bpf_sock {
    // SAFETY: as above.
    unsafe { read_volatile(addr_of!((*ctx).__bindgen_anon_1.sk)) }
}

/// A socket's `SO_PRIORITY`.
#[inline(always)]
pub(crate) fn priority_of(socket: *mut bpf_sock) -> u32 {
    // SAFETY: the context's own full socket, which the verifier knows to be one.
    unsafe { read_field!(socket, bpf_sock, priority) }
}

/// The device that a socket is bound to; 0: none.
#[inline(always)]
pub(crate) fn device_of(socket: *mut bpf_sock) -> u32 {
    // SAFETY: as above.
    unsafe { read_field!(socket, bpf_sock, bound_dev_if) }
}

/// The address a socket is bound to; unspecified: none.
#[inline(always)]
pub(crate) fn bound_address(socket: *mut bpf_sock) -> AddrNet {
    // SAFETY: as above.
    unsafe {
        if read_field!(socket, bpf_sock, family) == AF_INET6 {
            read_address_at!(socket, bpf_sock, src_ip6)
        } else {
            mapped(read_field!(socket, bpf_sock, src_ip4))
        }
    }
}

/// The socket that sends a packet, if it is a whole one.
#[inline(always)]
pub(crate) fn full_socket(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: a valid context; both pointers are checked before they are used.
    unsafe {
        let socket = read_volatile(addr_of!((*skb).__bindgen_anon_2.sk));
        if socket.is_null() {
            return None;
        }
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() { None } else { Some(socket) }
    }
}

/// One connection's two ends as `sock_ops` sees them; ports in host byte order.
pub(crate) struct Ends {
    pub(crate) local: AddrNet,
    pub(crate) remote: AddrNet,
    pub(crate) local_port_host: u32,
    pub(crate) remote_port_host: u32,
}

#[inline(always)]
pub(crate) fn read_ends(ctx: *mut bpf_sock_ops) -> Ends {
    // SAFETY: the program's own context. `remote_port` is in network byte order, `local_port` in the host's
    // (include/uapi/linux/bpf.h).
    unsafe {
        let (local, remote) = if read_field!(ctx, bpf_sock_ops, family) == AF_INET6 {
            (read_address_at!(ctx, bpf_sock_ops, local_ip6), read_address_at!(ctx, bpf_sock_ops, remote_ip6))
        } else {
            (
                mapped(read_field!(ctx, bpf_sock_ops, local_ip4)),
                mapped(read_field!(ctx, bpf_sock_ops, remote_ip4)),
            )
        };
        Ends {
            local,
            remote,
            local_port_host: read_field!(ctx, bpf_sock_ops, local_port),
            remote_port_host: u32::from_be(read_field!(ctx, bpf_sock_ops, remote_port)),
        }
    }
}
