//! What is enrolled now, and how the next plan takes its place: listeners and map entries first, hooks
//! last, removals at the end. Nothing is ever taken away before its successor is in force.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use mesh_common::{Config, NetnsEntry};

use super::{
    CaptureError, CapturePlan, CaptureSettings, EnrolledNamespace, Form, HeldConnects, KernelPath, MapUse,
    PlannedWorkload, PodGates, Selector, hold, hooks,
    maps::{Shared, SlotOwner},
    net::{InboundOwner, primary},
    objects::{self, MAP_PREFIX, NodeObject, SHARED_MAPS},
    pods::PodTable,
    program_log::ProgramLog,
    runtime_dir::RuntimeDir,
    space::{self, Space},
    tables::{Resolved, Tables, Where},
};
use crate::sys::{
    cgroup::{self, Cgroup},
    netns::NetNs,
};

/// What [`super::Capture::apply`] changed.
#[derive(Debug, Default)]
pub struct Applied {
    /// Namespaces that are captured from now on, with listeners to serve.
    pub namespaces: Vec<EnrolledNamespace>,
    /// Cookies of namespaces that are not captured any more: stop serving their listeners.
    pub removed: Vec<u64>,
    /// Ids of the workloads that are enrolled now.
    pub enrolled: Vec<u32>,
    /// Workloads that are not enrolled, or only as they were before, and why.
    pub failed: Vec<(u32, CaptureError)>,
}

#[derive(Debug)]
pub(super) struct State {
    settings: CaptureSettings,
    dir: RuntimeDir,
    cgroup: Cgroup,
    host: Arc<NetNs>,
    node: NodeObject,
    shared: Arc<Shared>,
    tables: Tables,
    pods: PodTable,
    links: Vec<OwnedFd>,
    _program_log: Option<ProgramLog>,
    held: Option<hold::Reader>,
    kernel_path: Option<Arc<KernelPath>>,
    spaces: BTreeMap<u64, Space>,
    /// Slots by workload name: a workload keeps its slot from plan to plan.
    slots: HashMap<String, (u32, Where)>,
    next_slot: u32,
    /// What calls that ended by an error have changed.
    unreported: Applied,
}

impl State {
    pub(super) fn load(settings: &CaptureSettings) -> Result<Self, CaptureError> {
        let dir = RuntimeDir::lock(&settings.runtime_dir)?;
        dir.mount()?;
        let cgroup = Cgroup::open(&settings.cgroup)
            .map_err(|source| CaptureError::Cgroup { path: settings.cgroup.clone(), source })?;
        let host = Arc::new(NetNs::current().map_err(CaptureError::OwnNamespace)?);
        for name in SHARED_MAPS {
            // An earlier run's maps stay with its programs until those are replaced.
            dir.unpin(&format!("{MAP_PREFIX}{name}"))?;
        }
        if !objects::can_take_over(&dir.bpf(), &settings.limits) {
            dir.unpin(&objects::lasting_pin())?;
        }
        let mut node = NodeObject::load(&dir.bpf(), settings)?;
        let program_log =
            if settings.log_programs { Some(ProgramLog::start(node.ebpf_mut())?) } else { None };
        let shared = Arc::new(Shared::new(&mut node, &settings.limits)?);
        let kernel_path = settings
            .kernel_path
            .then(|| KernelPath::new(&mut node, &settings.limits, Arc::clone(&shared)).map(Arc::new))
            .transpose()?;
        let pods = PodTable::new(&node)?;
        let tables = Tables::new(&node, &settings.limits, base_config(settings, &host)?)?;
        let mut state = Self {
            settings: settings.clone(),
            dir,
            cgroup,
            host,
            node,
            shared,
            tables,
            pods,
            links: Vec::new(),
            _program_log: program_log,
            held: None,
            kernel_path,
            spaces: BTreeMap::new(),
            slots: HashMap::new(),
            next_slot: 1,
            unreported: Applied::default(),
        };
        state.choose(settings.form)?;
        Ok(state)
    }

    pub(super) fn form(&self) -> Form {
        self.settings.form
    }

    pub(super) fn choose(&mut self, form: Form) -> Result<(), CaptureError> {
        if form == Form::Hold && self.held.is_none() {
            let desk = Arc::clone(&self.shared.desk);
            self.held = Some(hold::Reader::start(&mut self.node, desk)?);
        }
        self.settings.form = form;
        self.tables.hold(form == Form::Hold)
    }

    pub(super) fn set_pods(&mut self, gates: PodGates) -> Result<(), CaptureError> {
        // Entries first: where the root is new, none of them is taken for unknown.
        let root = self.pods.set(gates)?;
        self.tables.pods(root)
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    pub(super) fn kernel_path(&self) -> Option<Arc<KernelPath>> {
        self.kernel_path.clone()
    }

    pub(super) fn cgroup_path(&self) -> PathBuf {
        self.settings.cgroup.clone()
    }

    pub(super) fn map_use(&self) -> Result<Vec<MapUse>, CaptureError> {
        let mut rows = self.tables.map_use();
        rows.push(self.pods.map_use());
        for (map, entries) in
            [("BY_TUPLE", self.shared.by_tuple.count()), ("PEER_OF", self.shared.peer_of.count())]
        {
            let used = entries.map_err(|source| CaptureError::Map { action: "count", map, source })?;
            rows.push(MapUse { map, used, capacity: self.settings.limits.connections as usize });
        }
        Ok(rows)
    }

    pub(super) fn apply(&mut self, plan: &CapturePlan) -> Result<Applied, CaptureError> {
        plan.check(&self.settings.limits)?;
        let mut applied = std::mem::take(&mut self.unreported);
        match self.carry_out(plan, &mut applied) {
            Ok(()) => Ok(applied),
            Err(error) => {
                // Listeners that exist but that nobody was given yet: the next success hands them over.
                applied.failed.clear();
                self.unreported = applied;
                Err(error)
            }
        }
    }

    fn carry_out(&mut self, plan: &CapturePlan, applied: &mut Applied) -> Result<(), CaptureError> {
        if self.links.is_empty() {
            self.reserve_ports(plan)?;
        }
        let mut resolved = Vec::with_capacity(plan.workloads.len());
        let mut cookies = HashMap::new();
        for workload in &plan.workloads {
            match self.resolve(workload, &mut cookies, applied) {
                Ok(found) => resolved.push(found),
                Err(error) => applied.failed.push((workload.id, error)),
            }
        }
        let first = self.links.is_empty();
        self.publish(&resolved)?;
        for space in self.spaces.values_mut() {
            space.attach(&self.dir)?;
        }
        self.tables.sync(&resolved, &plan.destinations, self.listening())?;
        self.pods.set_captured(captured(&resolved))?;
        self.attach_hooks()?;
        self.spaces.values_mut().for_each(Space::is_reserved);
        self.remove_others(&resolved, applied)?;
        if first && applied.failed.is_empty() {
            self.remove_stale_links()?;
        }
        applied.enrolled = resolved.iter().map(|found| found.workload.id).collect();
        Ok(())
    }

    /// An earlier run's bind hooks would keep our listeners from their ports, since they do not know our sockets.
    /// Ours take their place with the same ports reserved: at no time can anybody else have them.
    fn reserve_ports(&mut self, plan: &CapturePlan) -> Result<(), CaptureError> {
        let entry = ports_entry(self.settings.outbound_port, self.settings.inbound_port);
        let cookie = |selector: &Selector| match selector {
            // One that cannot be opened is reported when it is resolved.
            Selector::Netns(path) => NetNs::open(path).ok().map(|netns| netns.cookie()),
            Selector::Cgroup(_) | Selector::User(_) => Some(self.host.cookie()),
        };
        let reserved =
            plan.workloads.iter().filter_map(|workload| Some((cookie(&workload.selector)?, entry)));
        let reserved: HashMap<_, _> = reserved.collect();
        self.tables.reserve(&reserved)?;
        for (hook, at) in hooks::wanted(&self.settings).filter(|(hook, _)| hooks::BIND_HOOKS.contains(hook)) {
            let program = self.node.program(hook)?;
            hooks::ensure(&self.dir, &self.cgroup, hook, at, program.as_fd())?;
        }
        Ok(())
    }

    /// Finds a workload's namespace, cgroup or user, and listens where meshd must.
    fn resolve<'a>(
        &mut self,
        workload: &'a PlannedWorkload,
        cookies: &mut HashMap<u64, String>,
        applied: &mut Applied,
    ) -> Result<Resolved<'a>, CaptureError> {
        let place = self.locate(workload, applied)?;
        if let Where::Netns(cookie) = place
            && let Some(first) = cookies.insert(cookie, workload.name.clone())
        {
            return Err(CaptureError::Duplicate {
                what: "network namespace",
                first,
                second: workload.name.clone(),
            });
        }
        let slot = match self.slots.entry(workload.name.clone()) {
            Entry::Occupied(entry) if entry.get().1 == place => entry.get().0,
            entry => {
                let slot = self.next_slot;
                self.next_slot += 1;
                entry.insert_entry((slot, place));
                slot
            }
        };
        Ok(Resolved { workload, slot, place })
    }

    fn locate(&mut self, workload: &PlannedWorkload, applied: &mut Applied) -> Result<Where, CaptureError> {
        let failed = |source| CaptureError::Selector {
            workload: workload.name.clone(),
            kind: workload.selector.kind(),
            source,
        };
        match &workload.selector {
            Selector::Netns(path) => match NetNs::open(path) {
                Ok(netns) => {
                    let place = Where::Netns(netns.cookie());
                    self.open_space(netns, false, &workload.name, applied)?;
                    Ok(place)
                }
                Err(source) => match self.slots.get(&workload.name) {
                    // The name is gone, the namespace lives on: what was captured stays captured.
                    Some((_, place @ Where::Netns(cookie))) if self.spaces.contains_key(cookie) => {
                        let place = *place;
                        applied.failed.push((workload.id, failed(source)));
                        Ok(place)
                    }
                    _ => Err(failed(source)),
                },
            },
            Selector::Cgroup(path) => {
                let cgroup = Cgroup::open(path).map_err(failed)?;
                self.open_host_space(&workload.name, applied)?;
                Ok(Where::Cgroup { id: cgroup.id, levels: cgroup.levels })
            }
            Selector::User(uid) => {
                self.open_host_space(&workload.name, applied)?;
                Ok(Where::User(*uid))
            }
        }
    }

    fn open_host_space(&mut self, workload: &str, applied: &mut Applied) -> Result<(), CaptureError> {
        if self.spaces.contains_key(&self.host.cookie()) {
            return Ok(());
        }
        let host = NetNs::current().map_err(CaptureError::OwnNamespace)?;
        self.open_space(host, true, workload, applied)
    }

    fn open_space(
        &mut self,
        netns: NetNs,
        shared_by_port: bool,
        workload: &str,
        applied: &mut Applied,
    ) -> Result<(), CaptureError> {
        let cookie = netns.cookie();
        if let Some(space) = self.spaces.get(&cookie) {
            if space.shared_by_port == shared_by_port {
                return Ok(());
            }
            return Err(CaptureError::Duplicate {
                what: "network namespace (the host's belongs to cgroup and user selectors)",
                first: "the host".to_owned(),
                second: workload.to_owned(),
            });
        }
        let (space, listeners) =
            Space::open(netns, shared_by_port, workload, &self.settings, &self.shared, &self.dir)?;
        let held = (self.settings.form == Form::Hold)
            .then(|| HeldConnects::new(Arc::clone(&self.shared.desk), Arc::clone(&space.net)));
        applied.namespaces.push(EnrolledNamespace { net: space.net.clone(), listeners, held });
        self.spaces.insert(cookie, space);
        Ok(())
    }

    /// The ports in each namespace, whose owners are not known here.
    fn listening(&self) -> HashMap<u64, NetnsEntry> {
        let entry = |space: &Space| ports_entry(space.net.outbound_port(), space.net.inbound_port());
        self.spaces.iter().map(|(cookie, space)| (*cookie, entry(space))).collect()
    }

    /// Tells live connections who stands behind a slot and a port now.
    fn publish(&mut self, resolved: &[Resolved<'_>]) -> Result<(), CaptureError> {
        let mut slots = HashMap::new();
        let mut by_port = HashMap::new();
        for found in resolved {
            let workload = found.workload;
            let owner = SlotOwner {
                id: workload.id,
                netns: match found.place {
                    Where::Netns(cookie) => Some(cookie),
                    Where::Cgroup { .. } | Where::User(_) => None,
                },
                local_v4: primary(&workload.addresses, true),
                local_v6: primary(&workload.addresses, false),
            };
            slots.insert(found.slot, owner);
            if let Where::Netns(cookie) = found.place {
                if let Some(space) = self.spaces.get_mut(&cookie) {
                    space.set_ports(workload.exclude_inbound_ports.iter().copied())?;
                    space.net.set_inbound(InboundOwner::One(workload.id));
                }
            } else {
                by_port.extend(workload.ports.iter().map(|port| (*port, workload.id)));
                for port in &workload.exclude_inbound_ports {
                    by_port.remove(port);
                }
            }
        }
        self.shared.slots.store(Arc::new(slots));
        if let Some(path) = &self.kernel_path {
            path.set_nets(self.spaces.iter().map(|(cookie, space)| (*cookie, space.net.clone())).collect());
        }
        if let Some(host) = self.spaces.get_mut(&self.host.cookie()).filter(|space| space.shared_by_port) {
            host.set_ports(by_port.keys().copied())?;
            host.net.set_inbound(InboundOwner::ByPort(by_port));
        }
        Ok(())
    }

    fn attach_hooks(&mut self) -> Result<(), CaptureError> {
        if !self.links.is_empty() {
            return Ok(());
        }
        let mut links = Vec::new();
        let mut names = HashSet::new();
        for (hook, at) in hooks::wanted(&self.settings) {
            let program = self.node.program(hook)?;
            links.push(hooks::ensure(&self.dir, &self.cgroup, hook, at, program.as_fd())?);
            names.insert(hooks::link_name(hook));
        }
        // An earlier run's: of another form or setting, or of a version that had other hooks.
        for name in self.dir.pins(hooks::LINK_PREFIX)? {
            if !names.contains(&name) {
                self.dir.detach(&name)?;
            }
        }
        self.links = links;
        Ok(())
    }

    /// Ends capture in namespaces that no workload of the plan needs.
    fn remove_others(
        &mut self,
        resolved: &[Resolved<'_>],
        applied: &mut Applied,
    ) -> Result<(), CaptureError> {
        let needed: HashSet<u64> = resolved
            .iter()
            .map(|found| if let Where::Netns(cookie) = found.place { cookie } else { self.host.cookie() })
            .collect();
        let gone: Vec<u64> = self.spaces.keys().filter(|cookie| !needed.contains(cookie)).copied().collect();
        for cookie in gone {
            self.dir.detach(&space::link_name(cookie))?;
            self.spaces.remove(&cookie);
            self.shared.desk.close(cookie);
            applied.namespaces.retain(|namespace| namespace.net.cookie() != cookie);
            applied.removed.push(cookie);
        }
        let names: HashSet<&str> = resolved.iter().map(|found| found.workload.name.as_str()).collect();
        self.slots.retain(|name, _| names.contains(name.as_str()));
        Ok(())
    }

    /// Removes what an earlier run left in namespaces that are not enrolled any more.
    fn remove_stale_links(&self) -> Result<(), CaptureError> {
        let kept: HashSet<String> = self.spaces.keys().map(|cookie| space::link_name(*cookie)).collect();
        for name in self.dir.pins(space::LINK_PREFIX)? {
            if !kept.contains(&name) {
                self.dir.detach(&name)?;
            }
        }
        Ok(())
    }

    pub(super) fn shutdown(&mut self) -> Result<(), CaptureError> {
        if self.settings.keep_on_exit {
            return Ok(());
        }
        self.links.clear();
        self.spaces.clear();
        self.dir.remove_all()
    }
}

/// What the programs must know before any workload is enrolled.
fn base_config(settings: &CaptureSettings, host: &NetNs) -> Result<Config, CaptureError> {
    let mut config = Config {
        host_netns_cookie: host.cookie(),
        outbound_port_be: settings.outbound_port.to_be(),
        inbound_port_be: settings.inbound_port.to_be(),
        ..Config::default()
    };
    if settings.refuse_uncaptured {
        let failed = |source| CaptureError::Cgroup { path: "/proc/self/cgroup".into(), source };
        config.refuse_uncaptured = 1;
        config.own_cgroup_id = cgroup::own().map_err(failed)?.id;
    }
    Ok(config)
}

/// Paths of the namespaces that are captured.
fn captured(resolved: &[Resolved<'_>]) -> HashSet<PathBuf> {
    let path = |found: &Resolved<'_>| match &found.workload.selector {
        Selector::Netns(path) => Some(path.clone()),
        Selector::Cgroup(_) | Selector::User(_) => None,
    };
    resolved.iter().filter_map(path).collect()
}

fn ports_entry(outbound_port: u16, inbound_port: u16) -> NetnsEntry {
    NetnsEntry {
        outbound_port_be: outbound_port.to_be(),
        inbound_port_be: inbound_port.to_be(),
        ..NetnsEntry::default()
    }
}
