//! Types that meshd's eBPF programs and its user space share: map keys, map values and constants.
//! Everything here is `no_std`, `repr(C)` without implicit padding (a map key with undefined bytes would
//! never be found again), and says its byte order in its name or doc.
#![no_std]
// A program is verified as one function; a call left over would be a second one.
#![allow(clippy::inline_always)]

mod address;
mod counter;
mod maps;

pub use address::{AddrNet, LOOPBACK_V4_NET};
pub use counter::Counter;
pub use maps::{
    CgroupKey, Config, ConnectionTuple, DestinationKey, ExcludedPortKey, HeldConnect, KernelConnection,
    KernelEnd, KernelPair, KernelPairKey, KernelPathConfig, LocalAddressKey, LookupConfig, NetnsEntry,
    OriginalDst, PeerView, PodEntry, PortKey, SockView, TupleKey, WorkloadEntry, excluded_direction,
    held_event, lookup_mode, pod_state, socket_flags, workload_flags,
};

/// Port 0 in a [`DestinationKey`]: every port of that address is meshed.
pub const ANY_PORT_BE: u16 = 0;

/// Levels of the cgroup v2 tree that enrolment by cgroup can look at; deeper ancestors are not seen.
pub const MAX_CGROUP_LEVELS: u32 = 32;

/// Slot of the IPv4 listener in a namespace's listener map.
pub const LISTENER_SLOT_V4: u32 = 0;
/// Slot of the IPv6 listener in a namespace's listener map.
pub const LISTENER_SLOT_V6: u32 = 1;

/// `SO_PRIORITY` of every socket that a meshd makes to connect with, so that another meshd on the node does not
/// take it for a client of the host. A process that sets it gains nothing: it is only checked more. The low
/// four bits are zero, which every queueing discipline takes for best effort.
pub const OWN_PRIORITY: u32 = 0x6d65_7300;
