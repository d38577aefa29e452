//! What capture is asked for: settings, limits and the plan, with the checks that need no kernel.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
};

use mesh_common::HeldConnect;

use super::{CaptureError, Form, space::PORTS};

/// Bound on addresses and excluded ports: so many per workload on average.
const PER_WORKLOAD: usize = 16;

/// How capture is set up, for the life of the daemon.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct CaptureSettings {
    /// The cgroup v2 directory below which sockets are captured: best the root of the mount.
    pub cgroup: PathBuf,
    /// Lock and pinned hooks live here; no two daemons may share it.
    pub runtime_dir: PathBuf,
    /// How outbound connections are taken.
    pub form: Form,
    /// Port of the outbound listener on loopback of every namespace, host byte order.
    pub outbound_port: u16,
    /// Port of the inbound listener on loopback of every namespace, host byte order.
    pub inbound_port: u16,
    /// Declared capacities.
    pub limits: CaptureLimits,
    /// Refuse strict workloads what TCP capture cannot see.
    pub refuse_uncaptured: bool,
    /// Let pairs of workloads on this node connect past meshd where that is allowed.
    pub kernel_path: bool,
    /// Let pods wait that are not enrolled yet; see [`super::Capture::set_pods`].
    pub pods: bool,
    /// Leave the hooks, failing closed, on a clean exit.
    pub keep_on_exit: bool,
    /// Let the programs log captures and refusals, a bounded number per second.
    pub log_programs: bool,
}

/// Declared capacities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureLimits {
    /// Enrolled workloads.
    pub workloads: u32,
    /// Meshed destinations.
    pub destinations: u32,
    /// Connections between `connect` and `accept`, and app legs, at one time.
    pub connections: u32,
    /// Held connects that wait to be taken up.
    pub held_connects: u32,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self { workloads: 1024, destinations: 65536, connections: 65536, held_connects: 4096 }
    }
}

impl CaptureLimits {
    pub(super) fn addresses(&self) -> usize {
        self.workloads as usize * PER_WORKLOAD
    }

    /// Size of the ring buffer for so many, bytes: a power of two, and a page at least.
    pub(super) fn held_ring_bytes(&self) -> u32 {
        const HEADER_BYTES: usize = 8; // BPF_RINGBUF_HDR_SZ
        const PAGE_BYTES: usize = 4096;
        let bytes = (self.held_connects as usize).saturating_mul(size_of::<HeldConnect>() + HEADER_BYTES);
        u32::try_from(bytes.max(PAGE_BYTES).next_power_of_two()).unwrap_or(1 << 31)
    }

    pub(super) fn excluded_ports(&self) -> usize {
        self.workloads as usize * PER_WORKLOAD
    }
}

/// What tells a workload's sockets from others'.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// A network namespace of its own, by path.
    Netns(PathBuf),
    /// A cgroup v2 directory; everything below it belongs to the workload.
    Cgroup(PathBuf),
    /// A user id, in the host's namespace only.
    User(u32),
}

impl Selector {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Netns(_) => "network namespace",
            Self::Cgroup(_) => "cgroup",
            Self::User(_) => "user",
        }
    }
}

/// A local workload to enrol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedWorkload {
    /// The caller's number for it, valid with this plan.
    pub id: u32,
    /// Its name, the same from plan to plan.
    pub name: String,
    /// Whose sockets are its.
    pub selector: Selector,
    /// Its addresses; the first of each family is what its clients are told they have.
    pub addresses: Vec<IpAddr>,
    /// For cgroup and user selectors: the ports it listens on, host byte order.
    pub ports: Vec<u16>,
    /// Ports others reach without meshd, host byte order.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports its clients reach without meshd, host byte order.
    pub exclude_outbound_ports: Vec<u16>,
    /// Capture every TCP destination, not only meshed ones.
    pub capture_all: bool,
    /// Its peer authentication is STRICT wherever a port has no mode of its own.
    pub strict: bool,
}

/// Everything capture must know of the world at one time.
#[derive(Clone, Debug, Default)]
pub struct CapturePlan {
    /// Local workloads.
    pub workloads: Vec<PlannedWorkload>,
    /// Meshed destinations; no port means every port. Host byte order.
    pub destinations: Vec<(IpAddr, Option<u16>)>,
}

impl CapturePlan {
    pub(super) fn check(&self, limits: &CaptureLimits) -> Result<(), CaptureError> {
        let over = |what, count, limit, setting| {
            if count > limit {
                return Err(CaptureError::OverCapacity { what, count, limit, setting });
            }
            Ok(())
        };
        over("workloads", self.workloads.len(), limits.workloads as usize, "limits.workloads")?;
        let destinations = self.destinations.iter().collect::<HashSet<_>>().len();
        over("meshed destinations", destinations, limits.destinations as usize, "limits.destinations")?;
        let addresses = self.workloads.iter().map(|workload| workload.addresses.len()).sum();
        over("local addresses", addresses, limits.addresses(), "limits.workloads")?;
        let ports = |w: &PlannedWorkload| w.exclude_outbound_ports.len() + w.exclude_inbound_ports.len();
        let excluded = self.workloads.iter().map(ports).sum();
        over("excluded ports", excluded, limits.excluded_ports(), "limits.workloads")?;
        self.check_ports()?;
        self.check_distinct()
    }

    /// Each namespace's program knows so many ports.
    fn check_ports(&self) -> Result<(), CaptureError> {
        let mut hosted = 0;
        for workload in &self.workloads {
            let count = if matches!(workload.selector, Selector::Netns(_)) {
                workload.exclude_inbound_ports.len()
            } else {
                hosted += workload.ports.len();
                hosted
            };
            if count > PORTS {
                return Err(CaptureError::OverCapacity {
                    what: "ports in one namespace",
                    count,
                    limit: PORTS,
                    setting: "nothing (it is fixed)",
                });
            }
        }
        Ok(())
    }

    fn check_distinct(&self) -> Result<(), CaptureError> {
        let mut names = HashMap::new();
        let mut selectors = HashMap::new();
        let mut ports = HashMap::new();
        for workload in &self.workloads {
            let duplicate = |what, first: &str| CaptureError::Duplicate {
                what,
                first: first.to_owned(),
                second: workload.name.clone(),
            };
            if let Some(first) = names.insert(&workload.name, workload.name.as_str()) {
                return Err(duplicate("name", first));
            }
            if let Some(first) = selectors.insert(&workload.selector, workload.name.as_str()) {
                return Err(duplicate("selector", first));
            }
            if matches!(workload.selector, Selector::Netns(_)) {
                continue;
            }
            for port in &workload.ports {
                if let Some(first) = ports.insert(*port, workload.name.as_str()) {
                    return Err(duplicate("port in the host's namespace", first));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, selector: Selector) -> PlannedWorkload {
        PlannedWorkload {
            id: 0,
            name: name.into(),
            selector,
            addresses: vec![],
            ports: vec![],
            exclude_inbound_ports: vec![],
            exclude_outbound_ports: vec![],
            capture_all: false,
            strict: false,
        }
    }

    #[test]
    fn a_plan_over_a_limit_is_refused_with_the_limit_and_the_count() {
        let limits = CaptureLimits { workloads: 1, destinations: 1, ..CaptureLimits::default() };
        let plan = CapturePlan {
            workloads: vec![workload("a", Selector::User(1)), workload("b", Selector::User(2))],
            destinations: vec![],
        };
        let error = plan.check(&limits).unwrap_err().to_string();
        assert!(error.contains("2 workloads") && error.contains("limit of 1"), "{error}");
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let plan =
            CapturePlan { workloads: vec![], destinations: vec![(address, None), (address, Some(80))] };
        assert!(matches!(plan.check(&limits), Err(CaptureError::OverCapacity { count: 2, limit: 1, .. })));
    }

    #[test]
    fn more_ports_than_a_namespaces_program_knows_are_refused_before_anything_changes() {
        let limits = CaptureLimits::default();
        for (selector, fits) in [(Selector::Netns("/x".into()), 1024), (Selector::User(1), 1024)] {
            for (count, accepted) in [(fits, true), (fits + 1, false)] {
                let ports: Vec<u16> = (1..=count).collect();
                let mut one = workload("a", selector.clone());
                one.ports.clone_from(&ports);
                one.exclude_inbound_ports = ports;
                let plan = CapturePlan { workloads: vec![one], destinations: vec![] };
                assert_eq!(plan.check(&limits).is_ok(), accepted, "{count} of {selector:?}");
            }
        }
    }

    #[test]
    fn workloads_that_cannot_be_told_apart_are_refused() {
        for (first, second) in [
            (workload("a", Selector::User(1)), workload("a", Selector::User(2))),
            (workload("a", Selector::User(1)), workload("b", Selector::User(1))),
        ] {
            let plan = CapturePlan { workloads: vec![first, second], destinations: vec![] };
            assert!(matches!(plan.check(&CaptureLimits::default()), Err(CaptureError::Duplicate { .. })));
        }
    }
}
