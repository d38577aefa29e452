//! `sk_lookup`, one instance per workload namespace: connections from outside go to meshd's inbound
//! listener in that namespace. An empty listener slot drops; it never lets a connection through.
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
#![feature(asm_experimental_arch)]

#[path = "../read.rs"]
mod read;
#[path = "../word.rs"]
mod word;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_sk_lookup, sk_action::SK_DROP, sk_action::SK_PASS},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SockMap},
    macros::{btf_map, sk_lookup},
    programs::SkLookupContext,
};
use mesh_common::{
    AddrNet, ConnectionTuple, Counter, KernelConnection, LISTENER_SLOT_V4, LISTENER_SLOT_V6, LookupConfig,
    PeerView, PortKey, TupleKey, lookup_mode,
};

use crate::read::{mapped, read_address_at, read_field};

const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
const LOOPBACK_IFINDEX: u32 = 1;
const PLACEHOLDER: usize = 1024;
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
static LOOKUP_CONFIG: Array<LookupConfig, 1> = Array::new();
#[btf_map]
static LISTENERS: SockMap<2> = SockMap::new();
/// Ports that are passed (mode `ALL_PORTS`) or steered (mode `LISTED_PORTS`).
#[btf_map]
static PORTS: HashMap<PortKey, u32, PLACEHOLDER, SPARSE> = HashMap::new();
/// Shared with the node-wide programs.
#[btf_map]
static STATS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();
/// Shared with the node-wide programs.
#[btf_map]
static HOST_CLIENTS: LruHashMap<ConnectionTuple, u64, PLACEHOLDER> = LruHashMap::new();
/// Shared with the node-wide programs.
#[btf_map]
static KERNEL_CONNECTIONS: HashMap<ConnectionTuple, KernelConnection, PLACEHOLDER, SPARSE> = HashMap::new();
/// Shared with the node-wide programs.
#[btf_map]
static PEER_OF: HashMap<TupleKey, PeerView, PLACEHOLDER> = HashMap::new();

struct Arrival {
    remote: AddrNet,
    local: AddrNet,
    remote_port_host: u32,
    local_port_host: u32,
    is_v6: bool,
}

#[sk_lookup]
pub(crate) fn steer(ctx: SkLookupContext) -> u32 {
    let raw = ctx.lookup;
    // SAFETY: a valid context.
    if unsafe { read_field!(raw, bpf_sk_lookup, protocol) } != IPPROTO_TCP {
        return SK_PASS;
    }
    let Some(config) = LOOKUP_CONFIG.get(0) else { return SK_DROP };
    let arrival = read_arrival(raw);
    // SAFETY: a valid context.
    let from_loopback = unsafe { read_field!(raw, bpf_sk_lookup, ingress_ifindex) } == LOOPBACK_IFINDEX;
    let pass = match config.mode {
        lookup_mode::ALL_PORTS => {
            // A workload that connects to its own address shows its interface, not loopback, and is known by its
            // record: so may a stranger who forges that address.
            from_loopback || is_app_leg(config.netns_cookie, &arrival) || passed_port(&arrival)
        }
        lookup_mode::LISTED_PORTS => {
            !is_listed(&arrival)
                || arrival.remote.is_loopback_or_unspecified()
                || is_app_leg(config.netns_cookie, &arrival)
        }
        _ => true,
    };
    if pass || is_host_client(&arrival) {
        return SK_PASS;
    }
    if config.mode == lookup_mode::ALL_PORTS && is_on_kernel_path(config.netns_cookie, &arrival) {
        return SK_PASS;
    }
    let slot = if arrival.is_v6 { LISTENER_SLOT_V6 } else { LISTENER_SLOT_V4 };
    if LISTENERS.redirect_sk_lookup(&ctx, slot, 0).is_err() {
        count(Counter::DroppedNoListener);
        return SK_DROP;
    }
    count(Counter::Steered);
    SK_PASS
}

#[inline(always)]
fn is_listed(arrival: &Arrival) -> bool {
    PORTS.get_ptr(&PortKey { port_host: arrival.local_port_host }).is_some()
}

#[inline(always)]
fn passed_port(arrival: &Arrival) -> bool {
    let listed = is_listed(arrival);
    if listed {
        count(Counter::PassedExcluded);
    }
    listed
}

/// meshd's own connection to the application.
#[inline(always)]
fn is_app_leg(netns_cookie: u64, arrival: &Arrival) -> bool {
    let key =
        TupleKey { netns_cookie, addr: arrival.remote, port_host: arrival.remote_port_host, reserved: 0 };
    arrival.remote == arrival.local && PEER_OF.get_ptr(&key).is_some()
}

impl Arrival {
    #[inline(always)]
    fn tuple(&self) -> ConnectionTuple {
        ConnectionTuple {
            client: self.remote,
            server: self.local,
            client_port_host: self.remote_port_host,
            server_port_host: self.local_port_host,
        }
    }
}

/// A client that policy allows this workload, recorded on its way here. That it arrived is written down: until then
/// the client takes no answer.
#[inline(always)]
fn is_on_kernel_path(netns_cookie: u64, arrival: &Arrival) -> bool {
    let Some(record) = KERNEL_CONNECTIONS.get_ptr_mut(&arrival.tuple()) else { return false };
    // SAFETY: a value of the map's, of which words are read and written whole; the namespace is set when it is made.
    unsafe {
        if core::ptr::read_volatile(core::ptr::addr_of!((*record).server_netns)) != netns_cookie {
            return false;
        }
        core::ptr::write_volatile(core::ptr::addr_of_mut!((*record).admitted), 1);
    }
    count(Counter::PassedKernelPath);
    true
}

#[inline(always)]
fn is_host_client(arrival: &Arrival) -> bool {
    let known = HOST_CLIENTS.get_ptr(&arrival.tuple()).is_some();
    if known {
        count(Counter::PassedHostClient);
    }
    known
}

#[inline(always)]
fn read_arrival(raw: *mut bpf_sk_lookup) -> Arrival {
    // SAFETY: the program's own context. `remote_port` is 16 bits in network byte order followed by zeros
    // (include/uapi/linux/bpf.h).
    unsafe {
        let is_v6 = read_field!(raw, bpf_sk_lookup, family) == AF_INET6;
        let (remote, local) = if is_v6 {
            (
                read_address_at!(raw, bpf_sk_lookup, remote_ip6),
                read_address_at!(raw, bpf_sk_lookup, local_ip6),
            )
        } else {
            (
                mapped(read_field!(raw, bpf_sk_lookup, remote_ip4)),
                mapped(read_field!(raw, bpf_sk_lookup, local_ip4)),
            )
        };
        Arrival {
            remote,
            local,
            remote_port_host: u32::from(u16::from_be(read_field!(raw, bpf_sk_lookup, remote_port) as u16)),
            local_port_host: read_field!(raw, bpf_sk_lookup, local_port),
            is_v6,
        }
    }
}

#[inline(always)]
fn count(counter: Counter) {
    if let Some(value) = STATS.get_ptr_mut(counter as u32) {
        // SAFETY: a value of the map's, changed here only.
        unsafe { word::add(value, 1) };
    }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
