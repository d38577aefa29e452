//! Whether a destination is meshed for a workload: what is captured over TCP, and what the guard looks after.

use mesh_common::{
    ANY_PORT_BE, AddrNet, DestinationKey, ExcludedPortKey, LocalAddressKey, excluded_direction,
    workload_flags,
};

use crate::maps::{DESTINATIONS, EXCLUDED_PORTS, LOCAL_ADDRESSES};

/// Slot 0: of any local workload with a namespace of its own.
#[inline(always)]
pub(crate) fn is_local_address(slot: u32, addr: AddrNet) -> bool {
    LOCAL_ADDRESSES.get_ptr(&LocalAddressKey { slot, addr }).is_some()
}

#[inline(always)]
pub(crate) fn is_excluded(slot: u32, port_be: u16, direction: u16) -> bool {
    EXCLUDED_PORTS.get_ptr(&ExcludedPortKey { slot, port_be, direction }).is_some()
}

/// Whether an enrolled workload lives there, whoever asks.
#[inline(always)]
pub(crate) fn is_destination(addr: AddrNet, port_be: u16) -> bool {
    DESTINATIONS.get_ptr(&DestinationKey { addr, port_be, reserved: 0 }).is_some()
        || DESTINATIONS.get_ptr(&DestinationKey { addr, port_be: ANY_PORT_BE, reserved: 0 }).is_some()
}

#[inline(always)]
pub(crate) fn is_meshed(slot: u32, workload_flags: u32, addr: AddrNet, port_be: u16) -> bool {
    let mut meshed = workload_flags & workload_flags::CAPTURE_ALL != 0;
    if !meshed {
        meshed = is_destination(addr, port_be);
    }
    meshed && !is_excluded(slot, port_be, excluded_direction::OUTBOUND) && !is_local_address(slot, addr)
}
