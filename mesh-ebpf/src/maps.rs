//! The maps of the node-wide programs. Sizes here are overridden: meshd sets the declared capacities
//! when it loads the object.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use mesh_common::{
    CgroupKey, Config, ConnectionTuple, Counter, DestinationKey, ExcludedPortKey, HeldConnect,
    KernelConnection, KernelEnd, KernelPair, KernelPairKey, KernelPathConfig, LocalAddressKey, NetnsEntry,
    OriginalDst, PeerView, PodEntry, SockView, TupleKey, WorkloadEntry,
};

use crate::word;

const PLACEHOLDER: usize = 1024;
/// Sets that only user space writes grow with what is in them.
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub(crate) static STATS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();
#[btf_map]
pub(crate) static VIEW: SkStorage<SockView> = SkStorage::new();
#[btf_map]
pub(crate) static ENROLLED_NETNS: HashMap<u64, NetnsEntry, PLACEHOLDER, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static ENROLLED_CGROUPS: HashMap<CgroupKey, WorkloadEntry, PLACEHOLDER, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static ENROLLED_USERS: HashMap<u32, WorkloadEntry, PLACEHOLDER, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static DESTINATIONS: HashMap<DestinationKey, u32, PLACEHOLDER, SPARSE> = HashMap::new();
/// Workloads, by slot, that are refused what TCP capture cannot see, with their flags.
#[btf_map]
pub(crate) static REFUSE_UNCAPTURED: HashMap<u32, u32, PLACEHOLDER, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static EXCLUDED_PORTS: HashMap<ExcludedPortKey, u32, PLACEHOLDER, SPARSE> = HashMap::new();
/// (slot, address): the addresses of a workload itself; slot 0: of any local workload with its own namespace.
#[btf_map]
pub(crate) static LOCAL_ADDRESSES: HashMap<LocalAddressKey, u32, PLACEHOLDER, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static BY_TUPLE: HashMap<TupleKey, OriginalDst, PLACEHOLDER> = HashMap::new();
#[btf_map]
pub(crate) static PEER_OF: HashMap<TupleKey, PeerView, PLACEHOLDER> = HashMap::new();
/// The oldest make room: entries outlive their connection where another program took our callback away.
#[btf_map]
pub(crate) static HOST_CLIENTS: LruHashMap<ConnectionTuple, u64, PLACEHOLDER> = LruHashMap::new();

/// What is known of pods, enrolled or not. A pod without an entry is nobody's yet.
#[btf_map]
pub(crate) static PODS: HashMap<CgroupKey, PodEntry, PLACEHOLDER, SPARSE> = HashMap::new();

#[btf_map]
pub(crate) static KERNEL_PATH: Array<KernelPathConfig, 1> = Array::new();
/// Verdicts of user space: without one a connect goes through meshd.
#[btf_map]
pub(crate) static KERNEL_PAIRS: HashMap<KernelPairKey, KernelPair, PLACEHOLDER, SPARSE> = HashMap::new();
/// Live connections on the kernel path; outlives the daemon.
#[btf_map]
pub(crate) static KERNEL_CONNECTIONS: HashMap<ConnectionTuple, KernelConnection, PLACEHOLDER, SPARSE> =
    HashMap::new();
/// How many there are.
#[btf_map]
pub(crate) static KERNEL_USED: Array<u64, 1> = Array::new();
/// Connections that ended; bytes.
#[btf_map]
pub(crate) static KERNEL_ENDS: RingBuf<KernelEnd, { 1 << 18 }> = RingBuf::new();

/// Held connects on their way to meshd; bytes.
#[btf_map]
pub(crate) static HELD: RingBuf<HeldConnect, { 1 << 18 }> = RingBuf::new();

/// Until when, in nanoseconds of the monotonic clock, held connects are read by a daemon that lives.
#[btf_map]
pub(crate) static HELD_UNTIL: Array<u64, 1> = Array::new();

/// Adds one to this CPU's share of a counter. Programs of `connect` are preempted by each other.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = STATS.get_ptr_mut(counter as u32) {
        // SAFETY: a value of the map's, changed here only.
        unsafe { word::add(value, 1) };
    }
}

/// The view stored with a socket, if any.
#[inline(always)]
pub(crate) fn view(socket: *mut bpf_sock) -> Option<&'static mut SockView> {
    storage(socket, 0)
}

/// From Linux 7 on an allocation that may not wait fails now and then with memory to spare.
const STORAGE_TRIES: u32 = 4;

/// The view stored with a socket, made (zeroed) if there is none; `None` when there is no memory.
#[inline(always)]
pub(crate) fn view_or_create(socket: *mut bpf_sock) -> Option<&'static mut SockView> {
    for _ in 0..STORAGE_TRIES {
        if let Some(view) = storage(socket, u64::from(BPF_SK_STORAGE_GET_F_CREATE)) {
            return Some(view);
        }
    }
    None
}

#[inline(always)]
fn storage(socket: *mut bpf_sock, flags: u64) -> Option<&'static mut SockView> {
    if socket.is_null() {
        return None;
    }
    let map = core::ptr::addr_of!(VIEW).cast_mut().cast();
    // SAFETY: `socket` comes from the hook's context and is not null. The value lives as long as the socket,
    // which the kernel holds while the program runs. Two programs on one socket could meet only in
    // getpeername against connect, and both only read or write whole words.
    unsafe {
        bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), flags).cast::<SockView>().as_mut()
    }
}
