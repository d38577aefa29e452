//! What every connection shares: the snapshot of the moment, certificates, TLS, metrics, limits.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    Connections, View,
    handshakes::Handshakes,
    kernel_path::{self, Kernel},
    memory::Memory,
    numbers::Numbers,
    relay::{self, RelayChoice, RelayKind, RelayOptions},
    shares::Shares,
};
use crate::{
    ca::SvidStore,
    capture::{KernelConnectionOf, KernelPath},
    config::{self, Limits},
    discovery::{Snapshot, jwks::JwksStore},
    telemetry::{AccessLog, Metrics},
    tls::{HandshakeLimits, KernelTls, TlsContext},
    world::WorkloadName,
};
use arc_swap::{ArcSwap, Guard};

/// What a [`Mesh`] is made of.
pub struct MeshParts {
    /// The snapshot to begin with.
    pub snapshot: Arc<Snapshot>,
    /// The local workloads' certificates.
    pub svids: Arc<SvidStore>,
    /// Handshakes.
    pub tls: TlsContext,
    /// What the kernel's TLS was proven to do.
    pub kernel_tls: KernelTls,
    /// The way past meshd within the node, where it may be used.
    pub kernel_path: Option<Arc<KernelPath>>,
    /// Keys of token issuers.
    pub keys: Arc<JwksStore>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The access log.
    pub access_log: AccessLog,
}

/// Shared by all connections of the daemon.
pub struct Mesh {
    view: ArcSwap<View>,
    /// The local workloads' certificates.
    pub svids: Arc<SvidStore>,
    /// Handshakes.
    pub tls: TlsContext,
    /// What the kernel's TLS was proven to do.
    pub kernel_tls: KernelTls,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The access log.
    pub access_log: AccessLog,
    /// Live connections.
    pub connections: Connections,
    numbers: Numbers,
    pub(super) kernel: Option<Kernel>,
    /// Keys of token issuers.
    pub keys: Arc<JwksStore>,
    /// What was seen lately.
    pub memory: Memory,
    pub(super) handshakes: Handshakes,
    /// Of inbound connections whose client has yet to say or prove who it is.
    pub(super) unproven: Shares,
    accepted: AtomicUsize,
}

impl Mesh {
    /// Puts the parts together.
    pub fn new(parts: MeshParts) -> Self {
        let limits = &parts.snapshot.config.limits;
        let memory = Memory::new(parts.snapshot.config.observation.entries);
        let (handshakes, connections) = (limits.concurrent_handshakes as usize, limits.connections as usize);
        Self {
            view: ArcSwap::from_pointee(View::new(parts.snapshot)),
            svids: parts.svids,
            tls: parts.tls,
            kernel_tls: parts.kernel_tls,
            metrics: parts.metrics,
            access_log: parts.access_log,
            connections: Connections::default(),
            numbers: Numbers::default(),
            kernel: parts.kernel_path.map(Kernel::new),
            keys: parts.keys,
            memory,
            handshakes: Handshakes::new(handshakes),
            unproven: Shares::new(connections.max(FEWEST_CONNECTIONS)),
            accepted: AtomicUsize::new(0),
        }
    }

    /// The snapshot of the moment, with what is derived from it.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Replaces the snapshot; the caller then decides live connections again ([`super::recheck`]).
    pub fn set_snapshot(&self, snapshot: Arc<Snapshot>) {
        self.view.store(Arc::new(View::new(snapshot)));
        self.withdraw_kernel_verdicts();
    }

    /// Has all new connections go through meshd until their pairs are allowed the kernel path anew.
    pub fn withdraw_kernel_verdicts(&self) {
        if let Some(kernel) = &self.kernel {
            kernel.withdraw_verdicts();
        }
    }

    /// To be read before the view that a verdict for the kernel path rests on.
    pub(super) fn kernel_generation(&self) -> u64 {
        self.kernel.as_ref().map_or(0, Kernel::generation)
    }

    /// Has access log and metrics tell of what ends on the kernel path.
    ///
    /// # Errors
    /// When the thread for it cannot be started.
    pub fn tell_kernel_ends(self: &Arc<Self>) -> std::io::Result<()> {
        kernel_path::tell_ends(self)
    }

    /// Whether connections within the node may take the kernel path.
    pub fn has_kernel_path(&self) -> bool {
        self.kernel.is_some()
    }

    /// Live connections on the kernel path, with the workloads of client and server where they are known.
    pub fn kernel_connections(&self) -> Vec<(KernelConnectionOf, [Option<WorkloadName>; 2])> {
        let view = self.view();
        let named = |connection: KernelConnectionOf| {
            let (client, server) = kernel_path::ends(self, &view, &connection);
            (connection, [client, server].map(|w| w.map(|w| w.name.clone())))
        };
        self.kernel.iter().flat_map(Kernel::live).map(named).collect()
    }

    /// The number by which capture knows a workload: the same for one name as long as that is in force.
    pub fn number(&self, name: &WorkloadName) -> u32 {
        self.numbers.number(name)
    }

    /// The workload behind a number of capture's.
    pub fn name(&self, number: u32) -> Option<WorkloadName> {
        self.numbers.name(number)
    }

    /// Forgets the numbers of workloads that are not on this node any more.
    pub fn forget_gone_workloads(&self) {
        let view = self.view();
        let world = view.world();
        self.numbers.retain(|name| {
            world.by_name(&name.namespace, &name.name).is_some_and(|workload| workload.local.is_some())
        });
    }

    /// The relay kind of a TLS connection.
    pub fn relay_kind(&self) -> RelayKind {
        let choice = match self.view().snapshot.config.relay {
            config::RelayChoice::Auto => RelayChoice::Auto,
            config::RelayChoice::Userspace => RelayChoice::Userspace,
            config::RelayChoice::Ktls => RelayChoice::Ktls,
            config::RelayChoice::KtlsSplice => RelayChoice::KtlsSplice,
        };
        relay::choose(choice, &self.kernel_tls)
    }

    /// A place for one more connection, or none when the node's limit is reached.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Admission> {
        let limit = self.view().snapshot.config.limits.connections as usize;
        if self.accepted.fetch_add(1, Ordering::Relaxed) < limit {
            return Some(Admission(Arc::clone(self)));
        }
        self.accepted.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Connections accepted and not ended, handshaking ones included.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// What the access log says of a connection that was not admitted.
pub(super) const OVER_LIMIT: &str = "limits.connections is reached: raise it, or find who holds so many";

/// Where the limit is small, an address has as large a share as with this one: its clients may come together.
const FEWEST_CONNECTIONS: usize = 64;

/// Counts a connection against the node's limit until it is dropped.
pub(super) struct Admission(Arc<Mesh>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.accepted.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bounds of a handshake, from the configuration.
pub(super) fn handshake_limits(limits: &Limits) -> HandshakeLimits {
    HandshakeLimits { timeout: limits.handshake_timeout(), max_bytes: limits.pre_handshake_bytes as usize }
}

/// Bounds of a relay, from the configuration.
pub(super) fn relay_options(limits: &Limits) -> RelayOptions {
    RelayOptions {
        idle_timeout: limits.idle_timeout(),
        user_timeout: limits.user_timeout(),
        keepalive_idle: limits.keepalive_idle(),
        ..RelayOptions::default()
    }
}
