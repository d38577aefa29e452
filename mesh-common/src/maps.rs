//! Keys and values of the maps. Ports named `_be` are in network byte order, `_host` in the host's.

use crate::AddrNet;

/// Bits of [`WorkloadEntry::flags`].
pub mod workload_flags {
    /// Every TCP destination is captured, not only meshed ones.
    pub const CAPTURE_ALL: u32 = 1;
    /// What TCP capture cannot see is refused.
    pub const REFUSE_UNCAPTURED: u32 = 2;
}

/// Bits of [`SockView::flags`].
pub mod socket_flags {
    /// One of meshd's own sockets: never captured, never recorded.
    pub const OWN: u32 = 1;
    /// A captured client: `peer` is its original destination, `local` its workload's address.
    pub const CAPTURED: u32 = 2;
    /// A server's accepted socket: `peer` is the real client.
    pub const SERVER: u32 = 4;
    /// An unenrolled client in the host's namespace on its way to a local workload, or a client of its own address.
    pub const HOST_CLIENT: u32 = 8;
    /// A captured client whose SYN is held until meshd has proven the upstream.
    pub const HELD: u32 = 16;
    /// A client on the kernel path: `peer` is the server, `local` the address it must leave from.
    pub const KERNEL_PATH: u32 = 32;
    /// A captured client of a pod that is not enrolled yet: its SYN waits until it is.
    pub const PENDING: u32 = 64;
    /// An enrolled workload's client of a port that is left out: `peer` is where it goes.
    pub const LEFT_OUT: u32 = 128;
}

/// Values of [`PodEntry::state`].
pub mod pod_state {
    /// Wanted in the mesh: what STRICT forbids waits until its namespace is captured.
    pub const WANTED: u32 = 1;
    /// None of the mesh's business.
    pub const FREE: u32 = 2;
    /// No pod, but a cgroup that has pods below it.
    pub const GROUP: u32 = 3;
}

/// Values of [`HeldConnect::kind`].
pub mod held_event {
    /// A SYN was held, the first or a retransmission.
    pub const HELD: u32 = 1;
    /// The application gave up while its SYN was held.
    pub const ABANDONED: u32 = 2;
}

/// Values of [`LookupConfig::mode`].
pub mod lookup_mode {
    /// Nothing is steered yet.
    pub const OFF: u32 = 0;
    /// The namespace belongs to one workload: every port is steered.
    pub const ALL_PORTS: u32 = 1;
    /// The namespace is shared (the host's): only listed ports are steered.
    pub const LISTED_PORTS: u32 = 2;
}

/// Node-wide settings, slot 0 of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The namespace meshd runs in: the host's.
    pub host_netns_cookie: u64,
    /// Bit n: some enrolled cgroup is at level n of the tree (the root is level 0).
    pub cgroup_levels: u32,
    /// Non-zero when some workload is selected by user.
    pub users_enrolled: u32,
    /// Non-zero when captured connects are held until the upstream is proven.
    pub hold: u32,
    /// Non-zero when some workloads may be refused what TCP capture cannot see.
    pub refuse_uncaptured: u32,
    /// The cgroup of meshd's own process.
    pub own_cgroup_id: u64,
    /// The cgroup below which those of pods are; 0: none.
    pub pods_cgroup_id: u64,
    /// Bit n: it may be at level n of the tree.
    pub pods_levels: u32,
    /// Non-zero when `connect` fails where it would wait for its pod to be enrolled.
    pub pods_refuse: u32,
    /// Where meshd listens in a namespace unless that port is taken, network byte order.
    pub outbound_port_be: u16,
    /// The same of inbound connections.
    pub inbound_port_be: u16,
    /// Always zero.
    pub reserved: u32,
}

/// What is known of a pod, by its cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodEntry {
    /// See [`pod_state`].
    pub state: u32,
    /// Non-zero when its network namespace is captured.
    pub captured: u32,
}

/// A namespace in which meshd listens, by netns cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetnsEntry {
    /// The workload that owns the namespace; zeroed (`slot` 0) when cgroup or user decide.
    pub owner: WorkloadEntry,
    /// Where the outbound listener is, network byte order.
    pub outbound_port_be: u16,
    /// Where the inbound listener is, network byte order.
    pub inbound_port_be: u16,
}

/// What a program must know of a workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// meshd's own number for the workload; it is never 0 and never used again for another one.
    pub slot: u32,
    /// See [`workload_flags`].
    pub flags: u32,
    /// The address its IPv4 clients are told they have; unspecified when none.
    pub local_v4: AddrNet,
    /// The address its IPv6 clients are told they have; unspecified when none.
    pub local_v6: AddrNet,
}

/// A cgroup v2 id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CgroupKey {
    /// The kernel's id, which is the directory's inode number.
    pub id: u64,
}

/// A meshed destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DestinationKey {
    /// The address.
    pub addr: AddrNet,
    /// The port, network byte order; [`crate::ANY_PORT_BE`] for all.
    pub port_be: u16,
    /// Always zero.
    pub reserved: u16,
}

/// Values of [`ExcludedPortKey::direction`].
pub mod excluded_direction {
    /// Its clients reach this port of others.
    pub const OUTBOUND: u16 = 0;
    /// Others reach this port of its own.
    pub const INBOUND: u16 = 1;
}

/// A port that is reached without meshd.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExcludedPortKey {
    /// [`WorkloadEntry::slot`].
    pub slot: u32,
    /// Network byte order.
    pub port_be: u16,
    /// See [`excluded_direction`].
    pub direction: u16,
}

/// An address of a local workload. The value of its entry is its owner's slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LocalAddressKey {
    /// [`WorkloadEntry::slot`] of its owner, or 0: it belongs to some workload with a namespace of its own.
    pub slot: u32,
    /// The address.
    pub addr: AddrNet,
}

/// A local port of a namespace (host byte order) in its `sk_lookup` maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// Host byte order, as `bpf_sk_lookup.local_port` is.
    pub port_host: u32,
}

/// What a socket's user is shown, in the socket's own storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockView {
    /// The namespace of a captured client.
    pub netns_cookie: u64,
    /// See [`socket_flags`].
    pub flags: u32,
    /// [`WorkloadEntry::slot`] of a captured client; where uncaptured traffic may be refused, of whoever made
    /// the socket.
    pub slot: u32,
    /// The peer's address as the application knows it.
    pub peer: AddrNet,
    /// The application's own address; unspecified: show the kernel's.
    pub local: AddrNet,
    /// The peer's port, network byte order.
    pub peer_port_be: u16,
    /// Always zero.
    pub reserved: [u16; 3],
}

/// One end of a connection within a namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TupleKey {
    /// The namespace.
    pub netns_cookie: u64,
    /// The address of that end.
    pub addr: AddrNet,
    /// Its port, host byte order.
    pub port_host: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Where a captured connection wanted to go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OriginalDst {
    /// The address.
    pub addr: AddrNet,
    /// The port, network byte order.
    pub port_be: u16,
    /// Always zero.
    pub reserved: u16,
    /// [`WorkloadEntry::slot`] of the client.
    pub slot: u32,
}

/// A captured `connect` that waits, as the programs tell it through the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldConnect {
    /// The client's namespace.
    pub netns_cookie: u64,
    /// The client's socket; the kernel never uses the number again.
    pub socket_cookie: u64,
    /// The client's own end on loopback.
    pub client: AddrNet,
    /// Where the application wants to go.
    pub destination: AddrNet,
    /// See [`held_event`].
    pub kind: u32,
    /// [`WorkloadEntry::slot`] of the client.
    pub slot: u32,
    /// Sequence number of the SYN, host byte order.
    pub sequence: u32,
    /// The client's port, host byte order.
    pub client_port_host: u32,
    /// The destination's port, network byte order.
    pub destination_port_be: u16,
    /// Always zero.
    pub reserved: [u16; 3],
}

/// The real client behind one of meshd's app legs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerView {
    /// The client's address.
    pub addr: AddrNet,
    /// The client's port, network byte order.
    pub port_be: u16,
    /// Always zero.
    pub reserved: u16,
}

/// A connection between two ends on this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConnectionTuple {
    /// The client's address.
    pub client: AddrNet,
    /// The workload's address.
    pub server: AddrNet,
    /// The client's port, host byte order.
    pub client_port_host: u32,
    /// The workload's port, host byte order.
    pub server_port_host: u32,
}

/// The kernel path as a whole, slot 0 of `KERNEL_PATH`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelPathConfig {
    /// Verdicts of another generation are void; 0: the path is closed.
    pub generation: u64,
    /// Changes with every run of the daemon: the slots in records of another run mean nothing.
    pub run: u64,
    /// Connections that may be recorded at one time.
    pub room: u64,
}

/// A client workload and where it wants to go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KernelPairKey {
    /// [`WorkloadEntry::slot`] of the client.
    pub client_slot: u32,
    /// The server's port, network byte order.
    pub port_be: u16,
    /// Always zero.
    pub reserved: u16,
    /// The server's own address.
    pub server: AddrNet,
}

/// Policy allows this pair, and nothing of it needs meshd in between.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelPair {
    /// [`KernelPathConfig::generation`] it was decided in.
    pub generation: u64,
    /// The only namespace in which that address may answer.
    pub server_netns: u64,
    /// [`WorkloadEntry::slot`] of the server.
    pub server_slot: u32,
    /// Always zero.
    pub reserved: u32,
}

/// A connection on the kernel path, recorded by the client's socket until it closes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelConnection {
    /// When it began, nanoseconds of the monotonic clock.
    pub started_ns: u64,
    /// The client's socket.
    pub client_cookie: u64,
    /// The client's namespace.
    pub client_netns: u64,
    /// The only namespace that may answer.
    pub server_netns: u64,
    /// [`KernelPathConfig::run`] of the daemon that the slots are of.
    pub run: u64,
    /// [`WorkloadEntry::slot`] of the client.
    pub client_slot: u32,
    /// [`WorkloadEntry::slot`] of the server.
    pub server_slot: u32,
    /// Sequence number of the client's SYN, host byte order.
    pub sequence: u32,
    /// Non-zero once the SYN has arrived in `server_netns`.
    pub admitted: u32,
}

/// A connection on the kernel path has ended, as the programs tell it through the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelEnd {
    /// Its ends.
    pub tuple: ConnectionTuple,
    /// What was recorded of it.
    pub connection: KernelConnection,
    /// When it ended, nanoseconds of the monotonic clock.
    pub ended_ns: u64,
    /// Application bytes from client to server.
    pub sent: u64,
    /// Application bytes from server to client.
    pub received: u64,
    /// The client's TCP state before, as in `include/net/tcp_states.h`.
    pub state: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Settings of one namespace's `sk_lookup` program, slot 0 of `LOOKUP_CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupConfig {
    /// The namespace that this instance serves.
    pub netns_cookie: u64,
    /// See [`lookup_mode`].
    pub mode: u32,
    /// Always zero.
    pub reserved: u32,
}

#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($name:ident)+) => { $(
            // SAFETY: repr(C), integers only, padding spelled out as `reserved`, every bit pattern valid.
            unsafe impl aya::Pod for super::$name {}
        )+ };
    }
    pod!(Config PodEntry NetnsEntry WorkloadEntry CgroupKey DestinationKey ExcludedPortKey LocalAddressKey PortKey SockView TupleKey
         OriginalDst PeerView ConnectionTuple LookupConfig HeldConnect KernelPathConfig KernelPairKey KernelPair
         KernelConnection KernelEnd);
}

/// Fails to compile if a struct has padding: its size must be the sum of its fields'.
const _: () = {
    assert!(size_of::<Config>() == 8 * 3 + 4 * 6 + 2 * 2 + 4);
    assert!(size_of::<PodEntry>() == 4 * 2);
    assert!(size_of::<WorkloadEntry>() == 4 * 2 + 16 * 2);
    assert!(size_of::<NetnsEntry>() == size_of::<WorkloadEntry>() + 2 * 2);
    assert!(size_of::<DestinationKey>() == 16 + 2 * 2);
    assert!(size_of::<ExcludedPortKey>() == 4 + 2 * 2);
    assert!(size_of::<SockView>() == 8 + 4 * 2 + 16 * 2 + 2 * 4);
    assert!(size_of::<HeldConnect>() == 8 * 2 + 16 * 2 + 4 * 4 + 2 * 4);
    assert!(size_of::<TupleKey>() == 8 + 16 + 4 * 2);
    assert!(size_of::<OriginalDst>() == 16 + 2 * 2 + 4);
    assert!(size_of::<PeerView>() == 16 + 2 * 2);
    assert!(size_of::<ConnectionTuple>() == 16 * 2 + 4 * 2);
    assert!(size_of::<LookupConfig>() == 8 + 4 * 2);
    assert!(size_of::<KernelPathConfig>() == 8 * 3);
    assert!(size_of::<KernelPairKey>() == 4 + 2 * 2 + 16);
    assert!(size_of::<KernelPair>() == 8 * 2 + 4 * 2);
    assert!(size_of::<KernelConnection>() == 8 * 5 + 4 * 4);
    assert!(
        size_of::<KernelEnd>()
            == size_of::<ConnectionTuple>() + size_of::<KernelConnection>() + 8 * 3 + 4 * 2
    );
};
