//! The kernel path: pairs of workloads on this node whose connections go straight from socket to socket. User space
//! says which pairs, lists what is live, closes what is no longer allowed, and hears what has ended. Whether a pair
//! may is not decided here.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use aya::maps::{MapData, RingBuf};
use mesh_common::{
    ConnectionTuple, KernelConnection, KernelEnd, KernelPair, KernelPairKey, KernelPathConfig,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};

use super::{CaptureError, CaptureLimits, WorkloadNet, maps::Shared, objects::NodeObject, parking::Mutex};
use crate::sys::{
    bpf::{MapFd, read_pod},
    sock_diag,
};

pub(super) const CONNECTIONS: &str = "KERNEL_CONNECTIONS";
const ENDS: &str = "KERNEL_ENDS";
/// The programs wake us earlier where much waits.
const LOOK_EVERY_MS: u16 = 250;
/// Ended connections handed over at once.
const BATCH: usize = 4096;
// include/net/tcp_states.h
const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_SENT: u32 = 2;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_CLOSE_WAIT: u32 = 8;

/// Two workloads of the plan in force, by [`super::PlannedWorkload::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelPairOf {
    /// The client.
    pub client: u32,
    /// The server.
    pub server: u32,
    /// The server's own address and port.
    pub to: SocketAddr,
}

/// A connection on the kernel path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelConnectionOf {
    /// The client's end.
    pub client: SocketAddr,
    /// The server's end.
    pub server: SocketAddr,
    /// The client's workload in the plan in force; none: it began under an earlier daemon, or its workload is gone.
    pub client_workload: Option<u32>,
    /// The server's, likewise.
    pub server_workload: Option<u32>,
    record: KernelConnection,
}

impl KernelConnectionOf {
    /// How long it has lived.
    pub fn age(&self) -> Duration {
        monotonic_now().saturating_sub(Duration::from_nanos(self.record.started_ns))
    }

    /// What tells it from any other, of any time.
    pub fn id(&self) -> u64 {
        self.record.client_cookie
    }
}

/// How a connection on the kernel path has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelEnding {
    /// Both ends closed.
    Finished,
    /// By a reset, from either end.
    Reset,
    /// It was never established.
    NotConnected,
}

/// A connection on the kernel path that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelEnded {
    /// Which.
    pub connection: KernelConnectionOf,
    /// How.
    pub ending: KernelEnding,
    /// How long it lived.
    pub duration: Duration,
    /// Application bytes from client to server. May be one short where a client that had closed waited for its server's
    /// end in vain.
    pub sent: u64,
    /// Application bytes from server to client, with the same reserve.
    pub received: u64,
}

/// The kernel path of one daemon.
pub struct KernelPath {
    config: MapFd<u32, KernelPathConfig>,
    pairs: MapFd<KernelPairKey, KernelPair>,
    connections: MapFd<ConnectionTuple, KernelConnection>,
    shared: Arc<Shared>,
    nets: ArcSwap<HashMap<u64, Arc<WorkloadNet>>>,
    generation: AtomicU64,
    run: u64,
    room: u64,
    ends: Mutex<Option<RingBuf<MapData>>>,
}

impl std::fmt::Debug for KernelPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelPath").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl KernelPath {
    /// Closed, until [`KernelPath::withdraw_verdicts`] opens it.
    pub(super) fn new(
        node: &mut NodeObject,
        limits: &CaptureLimits,
        shared: Arc<Shared>,
    ) -> Result<Self, CaptureError> {
        let path = Self {
            config: node.map("KERNEL_PATH")?,
            pairs: node.map("KERNEL_PAIRS")?,
            connections: node.map(CONNECTIONS)?,
            shared,
            nets: ArcSwap::default(),
            generation: AtomicU64::new(0),
            run: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)),
            room: limits.connections.into(),
            ends: Mutex::new(Some(node.ring(ENDS)?)),
        };
        // Those of an earlier daemon live on.
        let failed = |action, map| move |source| CaptureError::Map { action, map, source };
        let used = path.connections.count().map_err(failed("count", CONNECTIONS))? as u64;
        node.map::<u32, u64>("KERNEL_USED")?.insert(&0, &used).map_err(failed("write", "KERNEL_USED"))?;
        Ok(path)
    }

    pub(super) fn set_nets(&self, nets: HashMap<u64, Arc<WorkloadNet>>) {
        self.nets.store(Arc::new(nets));
    }

    /// To be read before the policy that a verdict rests on is: a verdict of an earlier generation is void.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// From now on all connects go through meshd until pairs are allowed anew. To be called after what verdicts rest
    /// on has changed; live connections are the caller's to decide again.
    ///
    /// # Errors
    /// The map's. The path is as it was then.
    pub fn withdraw_verdicts(&self) -> io::Result<()> {
        let generation = self.generation() + 1;
        self.config.insert(&0, &KernelPathConfig { generation, run: self.run, room: self.room })?;
        self.generation.store(generation, Ordering::Release);
        // Void already; they only make room.
        let mut void = Vec::new();
        self.pairs.for_each_key(|key| {
            void.push(*key);
            Ok(())
        })?;
        void.iter().try_for_each(|key| self.pairs.remove(key).map(drop))
    }

    /// Lets connects of the pair go straight, until verdicts are withdrawn. `generation` is the one in which the pair
    /// was decided. Only workloads with a namespace of their own are let: for others this does nothing.
    ///
    /// # Errors
    /// The map's.
    pub fn allow(&self, pair: &KernelPairOf, generation: u64) -> io::Result<()> {
        let slots = self.shared.slots.load();
        let slot = |id| slots.iter().find(|(_, owner)| owner.id == id && owner.netns.is_some());
        let (Some((client, _)), Some((server, owner))) = (slot(pair.client), slot(pair.server)) else {
            return Ok(());
        };
        let key = KernelPairKey {
            client_slot: *client,
            port_be: pair.to.port().to_be(),
            reserved: 0,
            server: pair.to.ip().into(),
        };
        let server_netns = owner.netns.unwrap_or_default();
        self.pairs.insert(&key, &KernelPair { generation, server_netns, server_slot: *server, reserved: 0 })
    }

    /// What is live now.
    ///
    /// # Errors
    /// The map's.
    pub fn live(&self) -> io::Result<Vec<KernelConnectionOf>> {
        let mut live = Vec::new();
        self.connections.for_each_key(|tuple| {
            // It may have ended meanwhile.
            if let Some(record) = self.connections.get(tuple)? {
                live.push(self.connection(tuple, record));
            }
            Ok(())
        })?;
        Ok(live)
    }

    /// Closes a connection: the client sees a reset, the server `ECONNABORTED`. One whose server's end is gone its client
    /// sees aborted.
    ///
    /// # Errors
    /// `NotFound` where it has ended already or no namespace of its is enrolled any more; else the kernel's.
    pub fn close(&self, connection: &KernelConnectionOf) -> io::Result<()> {
        let KernelConnectionOf { client, server, record, .. } = *connection;
        let at_server = self.destroy(record.server_netns, server, client, None);
        // Its reset may not have arrived yet, or never will.
        match self.destroy(record.client_netns, client, server, Some(record.client_cookie)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => at_server,
            result => result,
        }
    }

    fn destroy(
        &self,
        cookie_of_netns: u64,
        local: SocketAddr,
        remote: SocketAddr,
        cookie: Option<u64>,
    ) -> io::Result<()> {
        let nets = self.nets.load();
        let net = nets.get(&cookie_of_netns).ok_or(io::ErrorKind::NotFound)?;
        net.netns().run_in(|| sock_diag::destroy(local, remote, cookie))?
    }

    /// What tells of ended connections, once.
    pub fn take_ends(self: &Arc<Self>) -> Option<KernelEnds> {
        let ring = self.ends.lock().take()?;
        Some(KernelEnds { path: Arc::clone(self), ring })
    }

    fn connection(&self, tuple: &ConnectionTuple, record: KernelConnection) -> KernelConnectionOf {
        let end = |addr: mesh_common::AddrNet, port_host: u32| {
            SocketAddr::new(addr.into(), u16::try_from(port_host).unwrap_or_default())
        };
        let slots = self.shared.slots.load();
        let workload = |slot| slots.get(slot).filter(|_| record.run == self.run).map(|owner| owner.id);
        KernelConnectionOf {
            client: end(tuple.client, tuple.client_port_host),
            server: end(tuple.server, tuple.server_port_host),
            client_workload: workload(&record.client_slot),
            server_workload: workload(&record.server_slot),
            record,
        }
    }
}

/// Tells of ended connections.
pub struct KernelEnds {
    path: Arc<KernelPath>,
    ring: RingBuf<MapData>,
}

impl KernelEnds {
    /// Those that ended since the last call; waits a little where there are none. Blocks: for a thread of its own.
    pub fn next_batch(&mut self) -> Vec<KernelEnded> {
        // Woken or not, there may be some.
        let _ =
            poll(&mut [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOOK_EVERY_MS));
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(event) = self.ring.next()
        {
            // Only our own programs write here, whole events of one size.
            if let Some(end) = read_pod::<KernelEnd>(&event) {
                batch.push(ended(&self.path, &end));
            }
        }
        batch
    }
}

fn ended(path: &KernelPath, end: &KernelEnd) -> KernelEnded {
    let ending = match end.state {
        TCP_SYN_SENT => KernelEnding::NotConnected,
        TCP_ESTABLISHED | TCP_CLOSE_WAIT | TCP_FIN_WAIT1 => KernelEnding::Reset,
        _ => KernelEnding::Finished,
    };
    let connection = path.connection(&end.tuple, end.connection);
    let duration = Duration::from_nanos(end.ended_ns.saturating_sub(end.connection.started_ns));
    KernelEnded { connection, ending, duration, sent: end.sent, received: end.received }
}

/// The clock of `bpf_ktime_get_ns`.
fn monotonic_now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
