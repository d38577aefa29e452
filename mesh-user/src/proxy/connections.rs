//! The table of live connections: what `meshctl connections` lists, what is decided again when policy or
//! trust changes, and what a stopping daemon drains.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    http::AskedTunnel,
    memory::{Noted, NotedContent},
    relay::{CloseReason, LiveStats},
};
use crate::{
    policy::{L4Request, Mode, WorkloadPolicy, http::Normalization},
    telemetry::{ConnectionBytes, ConnectionRecord},
    tls::{PeerRole, VerifiedPeer, VerifiedServer},
    world::WorkloadName,
};

/// Shards of the table; more than any node has workers, so that they seldom meet.
const SHARDS: usize = 16;

/// What is done about the requests on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requests {
    /// Nothing: it was decided as TCP, and no rule asked about requests.
    Uninspected,
    /// Each is decided by itself.
    Inspected,
    /// It has none: it was looked at, and is not HTTP.
    None {
        /// External authorizers that allowed it; they are not asked again.
        allowed_by: Vec<Arc<str>>,
    },
}

/// A connection on its relay.
#[derive(Debug)]
pub struct Live {
    /// Unique while the daemon runs.
    pub id: u64,
    /// What the access log will say, but for bytes and the end.
    pub record: Arc<ConnectionRecord>,
    /// The local workload.
    pub workload: WorkloadName,
    /// The workload at the other end, where an address told it.
    pub remote: Option<WorkloadName>,
    /// The proven peer; none: plaintext, or a server outside the mesh.
    pub peer: Option<(Arc<VerifiedPeer>, PeerRole)>,
    /// The proven server outside the mesh.
    pub server: Option<Arc<VerifiedServer>>,
    /// The server name the client sent.
    pub sni: Option<String>,
    /// What is done about its requests.
    pub requests: Requests,
    /// Counters, and the way to close it.
    pub stats: LiveStats,
    pub(super) metric_bytes: Arc<ConnectionBytes>,
    reported: Mutex<(u64, u64)>,
    /// The last request that was allowed, where it asked for a tunnel.
    tunnel: Mutex<Option<AskedTunnel>>,
}

/// What a connection is known by before it enters the table.
pub(super) struct Candidate {
    pub(super) record: Arc<ConnectionRecord>,
    pub(super) workload: WorkloadName,
    pub(super) remote: Option<WorkloadName>,
    pub(super) peer: Option<(Arc<VerifiedPeer>, PeerRole)>,
    pub(super) server: Option<Arc<VerifiedServer>>,
    pub(super) sni: Option<String>,
    pub(super) requests: Requests,
    pub(super) metric_bytes: Arc<ConnectionBytes>,
}

impl Live {
    /// The request that policy decides for an inbound connection.
    pub fn request(&self) -> L4Request<'_> {
        L4Request {
            peer: self.peer.as_ref().map(|(peer, _)| &peer.spiffe_id),
            src: self.record.source.address,
            dst: self.record.destination.address,
            sni: self.sni.as_deref(),
        }
    }

    /// What is remembered of an inbound connection, or of a request on it.
    pub fn noted<'a>(&'a self, mode: Mode, content: NotedContent<'a>) -> Noted<'a> {
        let (server, client) = (&self.workload, self.remote.as_ref());
        Noted { server, client, connection: self.request(), mode, content }
    }

    /// Application bytes so far: (client to server, server to client).
    pub fn bytes(&self) -> (u64, u64) {
        let (to_wire, to_app) = (self.stats.app_to_wire_bytes(), self.stats.wire_to_app_bytes());
        match self.record.direction {
            crate::telemetry::Direction::Outbound => (to_wire, to_app),
            crate::telemetry::Direction::Inbound => (to_app, to_wire),
        }
    }

    /// Notes what the last request asked for; one that is no tunnel takes the place of one that did not become one.
    pub(super) fn asked_tunnel(&self, tunnel: Option<AskedTunnel>) {
        *lock(&self.tunnel) = tunnel;
    }

    /// Why a tunnel that its requests opened is no longer allowed.
    pub(super) fn tunnel_denied(
        &self,
        policy: &WorkloadPolicy,
        normalization: Normalization,
    ) -> Option<String> {
        lock(&self.tunnel).as_ref()?.denied(policy, normalization, &self.request())
    }

    /// Carries the relay's counters over to the metrics. Called at every scrape and at the end.
    pub fn report_bytes(&self) {
        let mut reported = lock(&self.reported);
        let (to_server, to_client) = self.bytes();
        self.metric_bytes.add_client_to_server(to_server.saturating_sub(reported.0));
        self.metric_bytes.add_server_to_client(to_client.saturating_sub(reported.1));
        *reported = (to_server, to_client);
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct Connections {
    next_id: AtomicU64,
    shards: [Mutex<HashMap<u64, Arc<Live>>>; SHARDS],
}

impl Connections {
    pub(super) fn insert(&self, candidate: Candidate) -> Arc<Live> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live {
            id,
            record: candidate.record,
            workload: candidate.workload,
            remote: candidate.remote,
            peer: candidate.peer,
            server: candidate.server,
            sni: candidate.sni,
            requests: candidate.requests,
            stats: LiveStats::default(),
            metric_bytes: candidate.metric_bytes,
            reported: Mutex::default(),
            tunnel: Mutex::default(),
        });
        lock(self.shard(id)).insert(id, Arc::clone(&live));
        live
    }

    pub(super) fn remove(&self, id: u64) {
        lock(self.shard(id)).remove(&id);
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Arc<Live>>> {
        &self.shards[usize::try_from(id % SHARDS as u64).unwrap_or(0)]
    }

    /// All live connections, oldest first.
    pub fn list(&self) -> Vec<Arc<Live>> {
        let mut all: Vec<_> =
            self.shards.iter().flat_map(|s| lock(s).values().cloned().collect::<Vec<_>>()).collect();
        all.sort_unstable_by_key(|live| live.id);
        all
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Resets all of them.
    pub fn close_all(&self, reason: &CloseReason) {
        for live in self.list() {
            live.stats.close(reason.clone());
        }
    }
}

// A poisoned lock only means that some thread panicked between two map operations; the table stays usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
