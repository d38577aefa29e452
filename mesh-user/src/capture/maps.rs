//! The maps that live connections use, and what the programs counted.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aya::{
    Pod,
    maps::{MapData, PerCpuArray},
};
use mesh_common::{Counter, OriginalDst, PeerView, SockView, TupleKey, socket_flags};

use super::{CaptureError, CaptureLimits, hold::Desk, objects::NodeObject};
use crate::sys::bpf::MapFd;

/// What the programs counted since they were loaded, summed over CPUs, in [`Counter::ALL`]'s order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats(Vec<u64>);

impl Stats {
    /// One counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// Every counter's label and value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().map(|counter| (counter.label(), self.get(*counter)))
    }
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUse {
    /// The map's name.
    pub map: &'static str,
    /// Entries in it.
    pub used: usize,
    /// Entries it is declared for.
    pub capacity: usize,
}

/// Who stands behind a slot now.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotOwner {
    pub(super) id: u32,
    /// The cookie of the namespace that is its own.
    pub(super) netns: Option<u64>,
    pub(super) local_v4: Option<std::net::IpAddr>,
    pub(super) local_v6: Option<std::net::IpAddr>,
}

/// From Linux 7 a socket's storage is allocated without waiting, which may fail now and then with memory to
/// spare, and always on a processor without cmpxchg16b (`kmalloc_nolock`, mm/slub.c; seen on 7.3.4).
const STORAGE_TRIES: u32 = 64;

/// What every namespace's handle shares.
pub(super) struct Shared {
    pub(super) by_tuple: MapFd<TupleKey, OriginalDst>,
    pub(super) peer_of: MapFd<TupleKey, PeerView>,
    view: MapFd<i32, SockView>,
    stats: PerCpuArray<MapData, u64>,
    pub(super) slots: ArcSwap<HashMap<u32, SlotOwner>>,
    pub(super) desk: Arc<Desk>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(node: &mut NodeObject, limits: &CaptureLimits) -> Result<Self, CaptureError> {
        Ok(Self {
            by_tuple: node.map("BY_TUPLE")?,
            peer_of: node.map("PEER_OF")?,
            view: node.map("VIEW")?,
            stats: PerCpuArray::try_from(node.take_map("STATS")?)
                .map_err(|_| CaptureError::Object("STATS"))?,
            slots: ArcSwap::default(),
            desk: Arc::new(Desk::new(limits.held_connects.max(1) as usize)),
        })
    }

    /// Marks a socket as meshd's own, before it connects or binds: the programs leave it alone. Nobody else
    /// can write this map.
    pub(super) fn mark_own(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let own = SockView { flags: socket_flags::OWN, ..SockView::default() };
        let mut tries_left = STORAGE_TRIES;
        loop {
            tries_left -= 1;
            match self.view.insert(&socket.as_raw_fd(), &own) {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && tries_left > 0 => {
                    std::thread::yield_now();
                }
                result => return result,
            }
        }
    }

    pub(super) fn stats(&self) -> Result<Stats, CaptureError> {
        let mut sums = Vec::with_capacity(Counter::COUNT);
        for counter in Counter::ALL {
            let values = self.stats.get(&(*counter as u32), 0).map_err(|error| CaptureError::Map {
                action: "read",
                map: "STATS",
                source: io::Error::other(error),
            })?;
            sums.push(values.iter().sum());
        }
        Ok(Stats(sums))
    }
}

/// The key of one end of a connection.
pub(super) fn tuple_key(netns_cookie: u64, end: SocketAddr) -> TupleKey {
    TupleKey { netns_cookie, addr: end.ip().into(), port_host: end.port().into(), reserved: 0 }
}

/// A map that only this daemon writes, with what is in it.
#[derive(Debug)]
pub(super) struct Synced<K, V> {
    name: &'static str,
    capacity: usize,
    fd: MapFd<K, V>,
    current: HashMap<K, V>,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Synced<K, V> {
    pub(super) fn new(name: &'static str, capacity: usize, fd: MapFd<K, V>) -> Self {
        Self { name, capacity, fd, current: HashMap::new() }
    }

    /// Adds and changes first, then removes, so that what stays is never missing in between.
    pub(super) fn sync(&mut self, wanted: &HashMap<K, V>) -> Result<(), CaptureError> {
        let failed = |source| CaptureError::Map { action: "write", map: self.name, source };
        for (key, value) in wanted {
            if self.current.get(key) != Some(value) {
                self.fd.insert(key, value).map_err(failed)?;
                self.current.insert(*key, *value);
            }
        }
        let stale: Vec<K> = self.current.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in stale {
            self.fd.remove(&key).map_err(failed)?;
            self.current.remove(&key);
        }
        Ok(())
    }

    pub(super) fn map_use(&self) -> MapUse {
        MapUse { map: self.name, used: self.current.len(), capacity: self.capacity }
    }
}
