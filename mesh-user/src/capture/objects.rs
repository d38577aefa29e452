//! The two eBPF objects: the node's, loaded once, and `sk_lookup`'s, loaded once per namespace.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::LazyLock,
};

use super::{CaptureError, CaptureSettings, hooks, kernel_path, parking::Mutex, plan::CaptureLimits, pods};
use crate::sys::bpf::MapFd;
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData, MapInfo, RingBuf},
    programs::Program,
};
use mesh_common::{ConnectionTuple, KernelConnection};

static NODE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf"));
static LOOKUP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-sk-lookup"));

/// Maps that both objects use, pinned under the runtime directory so that the second finds the first's.
pub(super) const SHARED_MAPS: [&str; 3] = ["STATS", "HOST_CLIENTS", "PEER_OF"];
/// Shared too, and taken over by the next run: its connections live on.
const LASTING_MAP: &str = kernel_path::CONNECTIONS;
pub(super) const MAP_PREFIX: &str = "map-";
/// Bound on the host's own clients' connections to local workloads that are known at one time.
const MAX_HOST_CLIENTS: u32 = 16384;
/// An LRU map keeps 128 free entries for each processor (`LOCAL_FREE_TARGET`, `kernel/bpf/bpf_lru_list.c`): a
/// small one forgets what it was just given, seen with 64 entries on 6.1.
const MIN_HOST_CLIENTS: u32 = 4096;
/// Pairs of workload and destination that are known to need no meshd; others go through it.
const KERNEL_PAIRS: u32 = 65536;
/// aya-log's info, and none.
const LOG_LEVEL: u8 = 3;
const LOG_LEVEL_OFF: u8 = 0;
const LOG_BYTES: u32 = 1 << 17;
/// A ring buffer cannot be smaller than a page.
const UNUSED_RING_BYTES: u32 = 4096;
/// Ends of connections that wait to be read: more than a thousand.
const ENDS_BYTES: u32 = 1 << 18;
/// A map holds the old set and the new one while a plan is applied.
const OLD_AND_NEW: u32 = 2;

/// Loads with the process's one loader: a new one parses the kernel's own types, megabytes of them, for nothing,
/// since our programs do not depend on them. Every setting of `set` is made anew for each load.
fn load(
    object: &'static str,
    bytes: &[u8],
    pins: &Path,
    limits: &CaptureLimits,
    set: impl FnOnce(&mut EbpfLoader<'static>),
) -> Result<Ebpf, CaptureError> {
    static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        Mutex::new(loader)
    });
    let mut loader = LOADER.lock();
    for name in SHARED_MAPS.into_iter().chain([LASTING_MAP]) {
        loader.map_pin_path(name, pins.join(format!("{MAP_PREFIX}{name}")));
    }
    let host_clients = limits.connections.clamp(MIN_HOST_CLIENTS, MAX_HOST_CLIENTS);
    loader
        .map_max_entries("HOST_CLIENTS", host_clients)
        .map_max_entries("PEER_OF", limits.connections)
        .map_max_entries(LASTING_MAP, limits.connections);
    set(&mut loader);
    loader.load(bytes).map_err(|source| CaptureError::Load { object, source: Box::new(source) })
}

/// The node's object with every program loaded.
#[derive(Debug)]
pub(super) struct NodeObject {
    ebpf: Ebpf,
}

impl NodeObject {
    pub(super) fn load(pins: &Path, settings: &CaptureSettings) -> Result<Self, CaptureError> {
        let limits = &settings.limits;
        let (level, log_bytes) =
            if settings.log_programs { (&LOG_LEVEL, LOG_BYTES) } else { (&LOG_LEVEL_OFF, UNUSED_RING_BYTES) };
        let ends_bytes = if settings.kernel_path { ENDS_BYTES } else { UNUSED_RING_BYTES };
        let per_workload = u32::try_from(limits.addresses()).unwrap_or(u32::MAX);
        let mut ebpf = load("mesh-ebpf", NODE, pins, limits, |loader| {
            loader
                // read-only data: what is never logged the verifier removes
                .override_global("AYA_LOG_LEVEL", level, true)
                .map_max_entries("AYA_LOGS", log_bytes)
                .map_max_entries("ENROLLED_NETNS", OLD_AND_NEW * (limits.workloads + 1))
                .map_max_entries("ENROLLED_CGROUPS", OLD_AND_NEW * limits.workloads)
                .map_max_entries("ENROLLED_USERS", OLD_AND_NEW * limits.workloads)
                .map_max_entries("DESTINATIONS", OLD_AND_NEW * limits.destinations)
                .map_max_entries("EXCLUDED_PORTS", OLD_AND_NEW * per_workload)
                .map_max_entries("REFUSE_UNCAPTURED", OLD_AND_NEW * limits.workloads)
                // each address is there twice: for its owner, and as local to the node
                .map_max_entries("LOCAL_ADDRESSES", 2 * OLD_AND_NEW * per_workload)
                .map_max_entries("BY_TUPLE", limits.connections)
                .map_max_entries("PODS", OLD_AND_NEW * pods::PODS)
                .map_max_entries("KERNEL_PAIRS", KERNEL_PAIRS)
                .map_max_entries("KERNEL_ENDS", ends_bytes)
                .map_max_entries("HELD", limits.held_ring_bytes());
        })?;
        for (name, _) in hooks::loaded(settings) {
            load_program(&mut ebpf, name)?;
        }
        Ok(Self { ebpf })
    }

    pub(super) fn program(&self, name: &'static str) -> Result<OwnedFd, CaptureError> {
        program_fd(&self.ebpf, name)
    }

    pub(super) fn map<K: Pod, V: Pod>(&self, name: &'static str) -> Result<MapFd<K, V>, CaptureError> {
        map(&self.ebpf, name)
    }

    pub(super) fn ring(&mut self, name: &'static str) -> Result<RingBuf<MapData>, CaptureError> {
        RingBuf::try_from(self.take_map(name)?).map_err(|_| CaptureError::Object(name))
    }

    pub(super) fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    pub(super) fn take_map(&mut self, name: &'static str) -> Result<Map, CaptureError> {
        self.ebpf.take_map(name).ok_or(CaptureError::Object(name))
    }
}

/// Whether the connections that an earlier run pinned can be taken over.
pub(super) fn can_take_over(pins: &Path, limits: &CaptureLimits) -> bool {
    let pinned = MapData::from_pin(pins.join(lasting_pin()));
    pinned.ok().and_then(|map| map.info().ok()).is_some_and(|info| {
        info.key_size() as usize == size_of::<ConnectionTuple>()
            && info.value_size() as usize == size_of::<KernelConnection>()
            && info.max_entries() == limits.connections
    })
}

/// The name of their pin.
pub(super) fn lasting_pin() -> String {
    format!("{MAP_PREFIX}{LASTING_MAP}")
}

/// One namespace's `sk_lookup` object.
#[derive(Debug)]
pub(super) struct LookupObject {
    ebpf: Ebpf,
}

impl LookupObject {
    pub(super) fn load(pins: &Path, limits: &CaptureLimits) -> Result<Self, CaptureError> {
        let mut ebpf = load("mesh-sk-lookup", LOOKUP, pins, limits, |loader| {
            // of the node's object; this one logs nothing
            loader.override_global("AYA_LOG_LEVEL", &LOG_LEVEL_OFF, false);
        })?;
        load_program(&mut ebpf, "steer")?;
        Ok(Self { ebpf })
    }

    pub(super) fn program(&self) -> Result<OwnedFd, CaptureError> {
        program_fd(&self.ebpf, "steer")
    }

    pub(super) fn map<K: Pod, V: Pod>(&self, name: &'static str) -> Result<MapFd<K, V>, CaptureError> {
        map(&self.ebpf, name)
    }
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), CaptureError> {
    match ebpf.program_mut(name) {
        Some(Program::CgroupSockAddr(program)) => program.load(),
        Some(Program::CgroupSock(program)) => program.load(),
        Some(Program::CgroupSkb(program)) => program.load(),
        Some(Program::SockOps(program)) => program.load(),
        Some(Program::SkLookup(program)) => program.load(),
        _ => return Err(CaptureError::Object(name)),
    }
    .map_err(|source| CaptureError::Program { program: name, source: Box::new(source) })
}

fn program_fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, CaptureError> {
    let program = ebpf.program(name).ok_or(CaptureError::Object(name))?;
    let fd =
        program.fd().map_err(|source| CaptureError::Program { program: name, source: Box::new(source) })?;
    fd.as_fd().try_clone_to_owned().map_err(|source| CaptureError::Map { action: "keep", map: name, source })
}

fn map<K: Pod, V: Pod>(ebpf: &Ebpf, name: &'static str) -> Result<MapFd<K, V>, CaptureError> {
    let failed = |source| CaptureError::Map { action: "use", map: name, source };
    let data =
        map_data(ebpf.map(name).ok_or(CaptureError::Object(name))?).ok_or(CaptureError::Object(name))?;
    let info: MapInfo = data.info().map_err(|_| CaptureError::Object(name))?;
    let fd = data.fd().as_fd().try_clone_to_owned().map_err(failed)?;
    MapFd::new(fd, info.key_size(), info.value_size()).map_err(failed)
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::SkStorage(data) | Map::SockMap(data) => Some(data),
        _ => None,
    }
}
