//! The kernel path as the proxy sees it: which pairs of workloads may take it, what the access log says of a
//! connection that took it, and closing those that are no longer allowed. meshd touches none of their bytes.
//!
//! A pair is allowed after a connection of theirs went through meshd: so their addresses are known to reach each other
//! unchanged, the client has proven its identity once, and policy has said yes. Any doubt leaves it at that.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{Mesh, View, attempt::Attempt, destination, relay::CloseReason};
use crate::{
    capture::{KernelConnectionOf, KernelEnded, KernelEnding, KernelPairOf, KernelPath},
    config::{SameNode, Selector},
    policy::{L4Request, Mode, Verdict},
    telemetry::{Direction, RelayKind, ResponseFlags},
    world::{InboundPorts, Workload},
};

/// How such a connection is captured and relayed: not at all.
const FORM: &str = "kernel";

/// What a mesh keeps for the kernel path.
#[derive(Debug)]
pub(super) struct Kernel {
    path: Arc<KernelPath>,
    /// Why connections were closed, by [`KernelConnectionOf::id`], until their end is told.
    closed: Mutex<HashMap<u64, CloseReason>>,
}

impl Kernel {
    pub(super) fn new(path: Arc<KernelPath>) -> Self {
        Self { path, closed: Mutex::default() }
    }

    pub(super) fn generation(&self) -> u64 {
        self.path.generation()
    }

    pub(super) fn withdraw_verdicts(&self) {
        if let Err(error) = self.path.withdraw_verdicts() {
            tracing::error!(%error, "verdicts of the kernel path cannot be withdrawn: connections may be allowed that no longer are");
        }
    }

    /// What is live now; nothing, with a line in the log, where that cannot be read.
    pub(super) fn live(&self) -> Vec<KernelConnectionOf> {
        self.path.live().unwrap_or_else(|error| {
            tracing::warn!(%error, "connections on the kernel path cannot be listed");
            Vec::new()
        })
    }

    fn close(&self, connection: &KernelConnectionOf, reason: CloseReason) -> bool {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.insert(connection.id(), reason);
        match self.path.close(connection) {
            Ok(()) => true,
            Err(error) => {
                closed.remove(&connection.id());
                if error.kind() != std::io::ErrorKind::NotFound {
                    let (client, server) = (connection.client, connection.server);
                    tracing::error!(%error, %client, %server, "a connection that is no longer allowed cannot be closed");
                }
                false
            }
        }
    }
}

/// Lets further connections of this pair take the kernel path, if nothing speaks against it. `generation` is the
/// kernel path's from before `view` was taken.
pub(super) fn offer(
    mesh: &Mesh,
    view: &View,
    generation: u64,
    (client, from): (&Workload, IpAddr),
    (server, to): (&Workload, SocketAddr),
) {
    let Some(kernel) = &mesh.kernel else { return };
    if !matches!(verdict(view, (client, from), (server, to)), Some(Verdict::Allow { .. })) {
        return;
    }
    let pair = KernelPairOf { client: mesh.number(&client.name), server: mesh.number(&server.name), to };
    if let Err(error) = kernel.path.allow(&pair, generation) {
        tracing::debug!(%error, client = %client.name, server = %server.name, "a pair stays on TLS");
    }
}

/// Policy's word for a client whose identity the kernel vouches for; none: this pair is not for the kernel path.
fn verdict(
    view: &View,
    (client, from): (&Workload, IpAddr),
    (server, to): (&Workload, SocketAddr),
) -> Option<Verdict> {
    let owns_namespace = |w: &Workload| {
        w.local.as_ref().is_some_and(|local| {
            local.same_node == SameNode::Kernel && matches!(local.selector, Selector::Netns(_))
        })
    };
    // The hook cannot know from which of several addresses the kernel will let a client connect.
    let mut addresses = client.addresses.iter().filter(|a| a.is_ipv4() == from.is_ipv4());
    let only = addresses.next() == Some(&from) && addresses.next().is_none();
    let steered = matches!(server.ports, InboundPorts::AllBut(_)) && server.ports.captures(to.port());
    let policy = view.snapshot.policies.for_workload(server.id);
    if !(owns_namespace(client) && owns_namespace(server) && only && steered)
        || policy.mode(to.port()) == Mode::Disable
        || policy.inspects_requests(to.port())
        || destination::rule(view, client, to).is_some()
    {
        return None;
    }
    Some(policy.decide(&request(client, SocketAddr::new(from, 0), to)))
}

fn request(client: &Workload, src: SocketAddr, dst: SocketAddr) -> L4Request<'_> {
    L4Request { peer: Some(&client.spiffe_id), src, dst, sni: None }
}

/// The two workloads of a connection. One that began under an earlier daemon is known by its addresses, which that
/// daemon had checked.
pub(super) fn ends<'v>(
    mesh: &Mesh,
    view: &'v View,
    connection: &KernelConnectionOf,
) -> (Option<&'v Workload>, Option<&'v Workload>) {
    let find = |number: Option<u32>, address: IpAddr| {
        let named = number.and_then(|number| mesh.name(number));
        named.map_or_else(
            || view.world().by_address(address),
            |name| view.world().by_name(&name.namespace, &name.name),
        )
    };
    (
        find(connection.client_workload, connection.client.ip()),
        find(connection.server_workload, connection.server.ip()),
    )
}

/// Decides all live connections again; returns how many were closed.
pub(super) fn recheck(mesh: &Mesh, view: &View) -> usize {
    let Some(kernel) = &mesh.kernel else { return 0 };
    let mut closed = 0;
    for connection in kernel.live() {
        let why = match ends(mesh, view, &connection) {
            (Some(client), Some(server)) => {
                let from = (client, connection.client.ip());
                match verdict(view, from, (server, connection.server)) {
                    Some(Verdict::Allow { .. }) => continue,
                    Some(Verdict::Deny { reason }) => reason.to_string(),
                    None => "the kernel path is closed to it".to_owned(),
                }
            }
            // Who leaves the mesh keeps the connections that it has.
            _ => continue,
        };
        closed += usize::from(kernel.close(&connection, CloseReason::Policy(why)));
    }
    closed
}

/// Writes access log and metrics of what ends, on a thread of its own, for the life of the process.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn tell_ends(mesh: &Arc<Mesh>) -> std::io::Result<()> {
    let Some(mut ends) = mesh.kernel.as_ref().and_then(|kernel| kernel.path.take_ends()) else {
        return Ok(());
    };
    let mesh = Arc::clone(mesh);
    let read = move || {
        loop {
            for ended in ends.next_batch() {
                tell(&mesh, &ended);
            }
        }
    };
    thread::Builder::new().name("kernel-path".to_owned()).spawn(read).map(|_| ())
}

fn tell(mesh: &Arc<Mesh>, ended: &KernelEnded) {
    let view = mesh.view().clone();
    let connection = &ended.connection;
    let (client, server) = ends(mesh, &view, connection);
    let reason = mesh.kernel.as_ref().and_then(|kernel| {
        kernel.closed.lock().unwrap_or_else(PoisonError::into_inner).remove(&connection.id())
    });
    for direction in [Direction::Outbound, Direction::Inbound] {
        let mut attempt = Attempt::new(
            mesh,
            &view,
            direction,
            FORM,
            (connection.client, client),
            (connection.server, server),
        );
        attempt.began_before(ended.duration);
        let other = if direction == Direction::Outbound { server } else { client };
        attempt.record_mut().peer_spiffe_id = other.map(|w| w.spiffe_id.to_string().into());
        attempt.record_mut().relay = Some(RelayKind::Kernel);
        if let Some(server) = server {
            let policy = view.snapshot.policies.for_workload(server.id);
            attempt.set_mode(policy.mode(connection.server.port()));
            if direction == Direction::Inbound
                && let Some(client) = client
                && let Verdict::Allow { rule: Some(rule) } =
                    policy.decide(&request(client, connection.client, connection.server))
            {
                attempt.record_mut().rule = Some(rule.to_string());
            }
        }
        attempt.allow_outbound();
        let (flags, error) = match (&reason, ended.ending) {
            (Some(reason), _) => {
                attempt.revoke(reason);
                (ResponseFlags::PolicyChanged, Some(reason.to_string()))
            }
            (None, KernelEnding::Finished) => (ResponseFlags::None, None),
            (None, KernelEnding::Reset) => (ResponseFlags::Reset, None),
            (None, KernelEnding::NotConnected) => {
                (ResponseFlags::ConnectFailure, Some("the server does not answer".to_owned()))
            }
        };
        attempt.ended(RelayKind::Kernel, flags, error, (ended.sent, ended.received));
    }
}
