//! The maps that say who is enrolled and what is meshed, kept equal to the plan in force.

use std::{collections::HashMap, net::IpAddr};

use mesh_common::{
    ANY_PORT_BE, CgroupKey, Config, DestinationKey, ExcludedPortKey, LocalAddressKey, NetnsEntry,
    WorkloadEntry, excluded_direction, workload_flags,
};

use super::{
    CaptureError, CaptureLimits, MapUse, PlannedWorkload, maps::Synced, net::primary_net,
    objects::NodeObject, pods::PodsRoot,
};
use crate::sys::bpf::MapFd;

/// What a selector led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// The cookie of the workload's own namespace.
    Netns(u64),
    /// A cgroup's id and the levels it may be at.
    Cgroup { id: u64, levels: u32 },
    /// A user id in the host's namespace.
    User(u32),
}

/// A workload of the plan that was found.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    pub(super) workload: &'a PlannedWorkload,
    pub(super) slot: u32,
    pub(super) place: Where,
}

impl Resolved<'_> {
    fn flags(&self, refuse_uncaptured: bool) -> u32 {
        let mut flags = 0;
        if self.workload.capture_all {
            flags |= workload_flags::CAPTURE_ALL;
        }
        if self.workload.strict && refuse_uncaptured {
            flags |= workload_flags::REFUSE_UNCAPTURED;
        }
        flags
    }

    fn entry(&self, flags: u32) -> WorkloadEntry {
        let addresses = &self.workload.addresses;
        WorkloadEntry {
            slot: self.slot,
            flags,
            local_v4: primary_net(addresses, true),
            local_v6: primary_net(addresses, false),
        }
    }
}

#[derive(Debug)]
pub(super) struct Tables {
    config: MapFd<u32, Config>,
    base: Config,
    /// With what the plan in force adds.
    in_force: Config,
    netns: Synced<u64, NetnsEntry>,
    cgroups: Synced<CgroupKey, WorkloadEntry>,
    users: Synced<u32, WorkloadEntry>,
    destinations: Synced<DestinationKey, u32>,
    excluded: Synced<ExcludedPortKey, u32>,
    refused: Synced<u32, u32>,
    addresses: Synced<LocalAddressKey, u32>,
}

impl Tables {
    pub(super) fn new(node: &NodeObject, limits: &CaptureLimits, base: Config) -> Result<Self, CaptureError> {
        let workloads = limits.workloads as usize;
        let tables = Self {
            config: node.map("CONFIG")?,
            base,
            in_force: base,
            netns: Synced::new("ENROLLED_NETNS", workloads + 1, node.map("ENROLLED_NETNS")?),
            cgroups: Synced::new("ENROLLED_CGROUPS", workloads, node.map("ENROLLED_CGROUPS")?),
            users: Synced::new("ENROLLED_USERS", workloads, node.map("ENROLLED_USERS")?),
            destinations: Synced::new(
                "DESTINATIONS",
                limits.destinations as usize,
                node.map("DESTINATIONS")?,
            ),
            excluded: Synced::new("EXCLUDED_PORTS", limits.excluded_ports(), node.map("EXCLUDED_PORTS")?),
            refused: Synced::new("REFUSE_UNCAPTURED", workloads, node.map("REFUSE_UNCAPTURED")?),
            addresses: Synced::new("LOCAL_ADDRESSES", limits.addresses(), node.map("LOCAL_ADDRESSES")?),
        };
        tables.write_config(tables.base)?;
        Ok(tables)
    }

    /// Whether captured connects are held.
    pub(super) fn hold(&mut self, hold: bool) -> Result<(), CaptureError> {
        self.base.hold = u32::from(hold);
        self.write_config(self.base)
    }

    /// Which cgroups are pods'.
    pub(super) fn pods(&mut self, root: PodsRoot) -> Result<(), CaptureError> {
        self.base.pods_cgroup_id = root.id;
        self.base.pods_levels = root.levels;
        self.base.pods_refuse = u32::from(root.refuse);
        let config = Config {
            cgroup_levels: self.in_force.cgroup_levels,
            users_enrolled: self.in_force.users_enrolled,
            ..self.base
        };
        self.in_force = config;
        self.write_config(config)
    }

    fn write_config(&self, config: Config) -> Result<(), CaptureError> {
        self.config.insert(&0, &config).map_err(|source| CaptureError::Map {
            action: "write",
            map: "CONFIG",
            source,
        })
    }

    pub(super) fn map_use(&self) -> Vec<MapUse> {
        vec![
            self.netns.map_use(),
            self.cgroups.map_use(),
            self.users.map_use(),
            self.destinations.map_use(),
            self.excluded.map_use(),
            self.refused.map_use(),
            self.addresses.map_use(),
        ]
    }

    /// Keeps everybody but meshd from these ports, before any workload is enrolled.
    pub(super) fn reserve(&mut self, listening: &HashMap<u64, NetnsEntry>) -> Result<(), CaptureError> {
        self.netns.sync(listening)
    }

    /// Destinations before workloads: a workload is enrolled when everything about it is known.
    pub(super) fn sync(
        &mut self,
        resolved: &[Resolved<'_>],
        destinations: &[(IpAddr, Option<u16>)],
        listening: HashMap<u64, NetnsEntry>,
    ) -> Result<(), CaptureError> {
        let meshed = destinations.iter().map(|(ip, port)| (destination_key(*ip, *port), 1)).collect();
        self.destinations.sync(&meshed)?;
        self.excluded.sync(&excluded_ports(resolved))?;
        self.addresses.sync(&local_addresses(resolved))?;
        let refuses = self.base.refuse_uncaptured != 0;
        self.refused.sync(&refused(resolved, refuses))?;

        let mut netns = listening;
        let mut cgroups = HashMap::new();
        let mut users = HashMap::new();
        let mut config = self.base;
        for found in resolved {
            let entry = found.entry(found.flags(refuses));
            match found.place {
                Where::Netns(cookie) => {
                    netns.entry(cookie).or_default().owner = entry;
                }
                Where::Cgroup { id, levels } => {
                    cgroups.insert(CgroupKey { id }, entry);
                    config.cgroup_levels |= levels;
                }
                Where::User(uid) => {
                    users.insert(uid, entry);
                    config.users_enrolled = 1;
                }
            }
        }
        self.netns.sync(&netns)?;
        self.cgroups.sync(&cgroups)?;
        self.users.sync(&users)?;
        self.in_force = config;
        self.write_config(config)
    }
}

fn destination_key(ip: IpAddr, port: Option<u16>) -> DestinationKey {
    DestinationKey { addr: ip.into(), port_be: port.map_or(ANY_PORT_BE, u16::to_be), reserved: 0 }
}

fn excluded_ports(resolved: &[Resolved<'_>]) -> HashMap<ExcludedPortKey, u32> {
    let mut excluded = HashMap::new();
    for found in resolved {
        let workload = found.workload;
        for (ports, direction) in [
            (&workload.exclude_outbound_ports, excluded_direction::OUTBOUND),
            (&workload.exclude_inbound_ports, excluded_direction::INBOUND),
        ] {
            let key = |port: &u16| ExcludedPortKey { slot: found.slot, port_be: port.to_be(), direction };
            excluded.extend(ports.iter().map(|port| (key(port), 1)));
        }
    }
    excluded
}

/// Slots that are refused what capture cannot see, with their flags.
fn refused(resolved: &[Resolved<'_>], refuse_uncaptured: bool) -> HashMap<u32, u32> {
    let flags = resolved.iter().map(|found| (found.slot, found.flags(refuse_uncaptured)));
    flags.filter(|(_, flags)| flags & workload_flags::REFUSE_UNCAPTURED != 0).collect()
}

/// A workload with a namespace of its own is never captured on the way to itself, and is where the host's
/// probes go. In the host's namespace every process has the same addresses, so neither may hold there.
fn local_addresses(resolved: &[Resolved<'_>]) -> HashMap<LocalAddressKey, u32> {
    let mut addresses = HashMap::new();
    for found in resolved.iter().filter(|found| matches!(found.place, Where::Netns(_))) {
        for address in &found.workload.addresses {
            for slot in [0, found.slot] {
                addresses.insert(LocalAddressKey { slot, addr: (*address).into() }, found.slot);
            }
        }
    }
    addresses
}
