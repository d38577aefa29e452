//! Whose socket is this? The namespace decides first, then the task's cgroup, then, in the host's
//! namespace only, its user (a number that means nothing in another container).

use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_uid_gid};
use mesh_common::{CgroupKey, Config, MAX_CGROUP_LEVELS, NetnsEntry, WorkloadEntry};

use crate::maps::{CONFIG, ENROLLED_CGROUPS, ENROLLED_NETNS, ENROLLED_USERS};

pub(crate) enum Enrolment {
    /// Not ours: leave it alone.
    None,
    /// Ours, and meshd listens on this loopback port of its namespace.
    Workload { entry: &'static WorkloadEntry, outbound_port_be: u16 },
    /// Ours, in a namespace where meshd has no listener.
    NoListener { entry: &'static WorkloadEntry },
}

#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

#[inline(always)]
pub(crate) fn netns_entry(netns_cookie: u64) -> Option<&'static NetnsEntry> {
    // SAFETY: entries are only written by user space, whole; one that is replaced while it is read shows
    // either workload, both enrolled.
    unsafe { ENROLLED_NETNS.get(&netns_cookie) }
}

#[inline(always)]
fn by_cgroup(levels: u32) -> Option<&'static WorkloadEntry> {
    let mut found = None;
    let mut level = 0;
    // The deepest enrolled ancestor wins.
    while level < MAX_CGROUP_LEVELS {
        if levels & (1 << level) != 0 {
            // SAFETY: a helper without pointers; it returns 0 where there is no such ancestor.
            let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
            // SAFETY: as in `netns_entry`.
            let entry = unsafe { ENROLLED_CGROUPS.get(&CgroupKey { id }) };
            if entry.is_some() {
                found = entry;
            }
        }
        level += 1;
    }
    found
}

#[inline(always)]
fn by_user() -> Option<&'static WorkloadEntry> {
    // SAFETY: a helper without arguments; the lower half is the user id.
    let uid = unsafe { bpf_get_current_uid_gid() } as u32;
    // SAFETY: as in `netns_entry`.
    unsafe { ENROLLED_USERS.get(&uid) }
}

/// Decides for the current task and its socket's namespace.
#[inline(always)]
pub(crate) fn enrolment(netns_cookie: u64) -> Enrolment {
    let netns = netns_entry(netns_cookie);
    if let Some(netns) = netns
        && netns.owner.slot != 0
    {
        return Enrolment::Workload { entry: &netns.owner, outbound_port_be: netns.outbound_port_be };
    }
    let Some(config) = config() else { return Enrolment::None };
    let mut entry = if config.cgroup_levels != 0 { by_cgroup(config.cgroup_levels) } else { None };
    if entry.is_none() && config.users_enrolled != 0 && netns_cookie == config.host_netns_cookie {
        entry = by_user();
    }
    match (entry, netns) {
        (None, _) => Enrolment::None,
        (Some(entry), Some(netns)) => Enrolment::Workload { entry, outbound_port_be: netns.outbound_port_be },
        (Some(entry), None) => Enrolment::NoListener { entry },
    }
}
