//! A world as capture needs it. Pure but for the look-up of user names and of systemd's units.

use std::{net::IpAddr, os::unix::fs::MetadataExt as _, path::Path};

use nix::unistd::User;

use crate::{
    capture::{CapturePlan, PlannedWorkload, Selector},
    config,
    discovery::Snapshot,
    policy::Mode,
    proxy::Mesh,
    runtime::{PodPlace, PodPlaces, PodUid},
    sys::cgroup,
    world::{InboundPorts, Workload, WorkloadName, World},
};

/// A local workload that cannot be planned, and why.
pub(super) type Unplanned = (WorkloadName, String);

/// What to capture for the snapshot's world, of cgroups below `root`. Workloads whose user does not exist and units that do
/// not run are left out and reported, as are pods of which `places` does not say where they live.
pub(super) fn plan(
    mesh: &Mesh,
    snapshot: &Snapshot,
    root: &Path,
    places: &PodPlaces,
) -> (CapturePlan, Vec<Unplanned>) {
    let world = &snapshot.world;
    let mut workloads = Vec::new();
    let mut unplanned = Vec::new();
    for workload in world.local_workloads() {
        match planned(mesh, workload, root, places) {
            Some(Ok(plan)) => {
                let strict = snapshot.policies.for_workload(workload.id).default_mode() == Mode::Strict;
                workloads.push(PlannedWorkload { strict, ..plan });
            }
            Some(Err(why)) => unplanned.push((workload.name.clone(), why)),
            None => {}
        }
    }
    let destinations = world.capture_destinations().into_iter().map(|d| (d.address, d.port)).collect();
    (CapturePlan { workloads, destinations }, unplanned)
}

fn planned(
    mesh: &Mesh,
    workload: &Workload,
    root: &Path,
    places: &PodPlaces,
) -> Option<Result<PlannedWorkload, String>> {
    let local = workload.local.as_ref()?;
    let selector = match selector(&local.selector, root, places) {
        Ok(selector) => selector,
        Err(why) => return Some(Err(why)),
    };
    let (ports, exclude_inbound_ports) = match &workload.ports {
        InboundPorts::AllBut(excluded) => (Vec::new(), excluded.clone()),
        InboundPorts::Only(ports) => (ports.clone(), Vec::new()),
    };
    let addresses: Vec<IpAddr> = workload.addresses.clone();
    Some(Ok(PlannedWorkload {
        id: mesh.number(&workload.name),
        name: workload.name.to_string(),
        selector,
        addresses,
        ports,
        exclude_inbound_ports,
        exclude_outbound_ports: local.exclude_outbound_ports.clone(),
        capture_all: false,
        strict: false,
    }))
}

fn selector(selector: &config::Selector, root: &Path, places: &PodPlaces) -> Result<Selector, String> {
    Ok(match selector {
        config::Selector::Netns(path) => Selector::Netns(path.clone()),
        config::Selector::Cgroup(path) => Selector::Cgroup(path.clone()),
        config::Selector::Unit(unit) => match cgroup::of_unit(root, unit) {
            Ok(Some(path)) => Selector::Cgroup(path),
            Ok(None) => return Err(format!("systemd has no cgroup of unit {unit} below {}", root.display())),
            Err(error) => return Err(format!("the cgroup of unit {unit} cannot be found: {error}")),
        },
        config::Selector::Pod(uid) => match places.get(&PodUid(uid.as_str().into())) {
            Some(PodPlace::Netns(path)) => Selector::Netns(path.clone()),
            Some(PodPlace::Unknown(why)) => {
                return Err(format!("it is not known where pod {uid} lives: {why}"));
            }
            None => return Err(format!("pod {uid} has not been looked for yet")),
        },
        config::Selector::User(user) => match user.parse() {
            Ok(uid) => Selector::User(uid),
            Err(_) => match User::from_name(user) {
                Ok(Some(found)) => Selector::User(found.uid.as_raw()),
                Ok(None) => return Err(format!("there is no user {user:?} on this node")),
                Err(error) => return Err(format!("user {user:?} cannot be looked up: {error}")),
            },
        },
    })
}

/// Which cgroup each unit is in now, by its kernel's id: a unit that is restarted gets another one.
pub(super) fn units(world: &World, root: &Path) -> Vec<Option<u64>> {
    let units = world.local_workloads().filter_map(|w| w.local.as_ref()?.selector.unit());
    units.map(|unit| Some(cgroup::of_unit(root, unit).ok()??.metadata().ok()?.ino())).collect()
}
