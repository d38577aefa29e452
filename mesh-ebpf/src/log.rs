//! Logging by aya-log, for debugging: what was captured and what was refused. Off by default, and then
//! compiled away by the verifier, because the level is read-only data set before loading. Bounded per second
//! and CPU, so that a flood of connections is no flood of lines.

use aya_ebpf::{btf_maps::PerCpuArray, helpers::generated::bpf_ktime_get_ns, macros::btf_map};
use aya_log_ebpf::macro_support::{Level, level_enabled};
use mesh_common::AddrNet;

const LINES_PER_SECOND_AND_CPU: u64 = 64;
const SECOND_NS: u64 = 1_000_000_000;

#[repr(C)]
pub(crate) struct Budget {
    window_start_ns: u64,
    used: u64,
}

#[btf_map]
static LOG_BUDGET: PerCpuArray<Budget, 1> = PerCpuArray::new();

/// Whether one more line may be written; counts it.
#[inline(always)]
pub(crate) fn may_log() -> bool {
    if !level_enabled(Level::Info) {
        return false;
    }
    let Some(budget) = LOG_BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: the slot belongs to this CPU; a lost count lets one line more through. A helper without arguments.
    unsafe {
        let now_ns = bpf_ktime_get_ns();
        if now_ns - (*budget).window_start_ns > SECOND_NS {
            (*budget).window_start_ns = now_ns;
            (*budget).used = 0;
        }
        (*budget).used += 1;
        (*budget).used <= LINES_PER_SECOND_AND_CPU
    }
}

/// An address as aya-log prints it.
#[inline(always)]
pub(crate) fn octets(address: AddrNet) -> [u8; 16] {
    // SAFETY: sixteen bytes in network order either way.
    unsafe { core::mem::transmute(address.words_net) }
}

/// Logs what became of a `connect` to `$address`, port `$port_be`, of the workload with `$slot`.
macro_rules! log_connect {
    ($what:literal, $slot:expr, $address:expr, $port_be:expr) => {
        if $crate::log::may_log() {
            aya_log_ebpf::info!(
                (),
                "{} slot={} destination={:i} port={}",
                $what,
                $slot,
                $crate::log::octets($address),
                u16::from_be($port_be)
            );
        }
    };
}

/// Logs something without an address.
macro_rules! log_event {
    ($what:literal, $netns_cookie:expr) => {
        if $crate::log::may_log() {
            aya_log_ebpf::info!((), "{} netns={}", $what, $netns_cookie);
        }
    };
}

pub(crate) use {log_connect, log_event};
