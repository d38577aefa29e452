//! Places for handshakes under way. Those that workloads begin have places of their own, and of the others one
//! address never has more than a share: whoever begins handshakes and never ends them keeps only itself waiting.

use std::{
    future::Future,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    Mesh,
    mesh::handshake_limits,
    shares::{Place, Shares},
};
use crate::{
    ca::NoSvid,
    config::Limits,
    identity::{SpiffeId, Svid},
    telemetry::HandshakeSide,
    tls::{Established, HandshakeError, HandshakeLimits},
};

/// Why a handshake of ours with a server came to nothing.
pub(super) enum ClientFailure {
    /// There was no place for it.
    TooMany,
    /// It failed.
    Handshake(HandshakeError),
}

/// Handshakes with a server within the node's limits, in its metrics.
pub(super) async fn with_server(
    mesh: &Mesh,
    limits: &Limits,
    handshake: impl Future<Output = Result<Established, HandshakeError>>,
) -> Result<Established, ClientFailure> {
    let metrics = &mesh.metrics;
    let Some(_place) = mesh.handshakes.outbound(handshake_limits(limits).timeout).await else {
        metrics.handshake_ended(HandshakeSide::Client, Err("too_many"));
        return Err(ClientFailure::TooMany);
    };
    let _in_progress = metrics.handshake_started();
    let began = Instant::now();
    let outcome = handshake.await;
    let told = outcome.as_ref().map(|_| began.elapsed()).map_err(HandshakeError::label);
    metrics.handshake_ended(HandshakeSide::Client, told);
    outcome.map_err(ClientFailure::Handshake)
}

/// The SVID of a workload of ours for a handshake, and the limits that are left of it: the first SVID may still be on its
/// way, and is waited for as long as the handshake may last.
pub(super) async fn own_svid(
    mesh: &Mesh,
    id: &SpiffeId,
    side: HandshakeSide,
    limits: HandshakeLimits,
) -> Result<(Arc<Svid>, HandshakeLimits), NoSvid> {
    let began = Instant::now();
    let svid = mesh.svids.wait(id, limits.timeout).await;
    let svid = svid.inspect_err(|_| mesh.metrics.handshake_ended(side, Err("no_svid")))?;
    let timeout = limits.timeout.saturating_sub(began.elapsed());
    Ok((svid, HandshakeLimits { timeout, ..limits }))
}

/// The node's places, so many in each direction.
#[derive(Debug)]
pub(super) struct Handshakes {
    outbound: Semaphore,
    inbound: Semaphore,
    shares: Shares,
}

/// A place of an inbound handshake.
pub(super) struct InboundPlace<'a> {
    _of_share: Place<'a>,
    _of_all: SemaphorePermit<'a>,
}

impl Handshakes {
    pub(super) fn new(limit: usize) -> Self {
        Self { outbound: Semaphore::new(limit), inbound: Semaphore::new(limit), shares: Shares::new(limit) }
    }

    /// For a handshake of a workload of ours, or none within `patience`.
    pub(super) async fn outbound(&self, patience: Duration) -> Option<SemaphorePermit<'_>> {
        timeout(patience, self.outbound.acquire()).await.ok()?.ok()
    }

    /// For a handshake that `source` has begun, or none within `patience`.
    pub(super) async fn inbound(&self, source: IpAddr, patience: Duration) -> Option<InboundPlace<'_>> {
        let share = self.shares.of(source);
        let acquire = async { Some((share.place().await?, self.inbound.acquire().await.ok()?)) };
        let (of_share, of_all) = timeout(patience, acquire).await.ok()??;
        Some(InboundPlace { _of_share: of_share, _of_all: of_all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(10);

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn one_address_cannot_take_the_places_of_others() {
        let handshakes = Handshakes::new(8);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(handshakes.inbound(address(1), SOON).await.unwrap());
        }
        assert!(handshakes.inbound(address(1), SOON).await.is_none(), "more than its share");
        for last in 2..5 {
            for _ in 0..2 {
                held.push(handshakes.inbound(address(last), SOON).await.unwrap());
            }
        }
        assert!(handshakes.inbound(address(9), SOON).await.is_none(), "more than the limit");
        assert!(handshakes.outbound(SOON).await.is_some(), "our own workloads wait for strangers");
        held.clear();
        assert!(handshakes.inbound(address(1), SOON).await.is_some());
    }

    #[tokio::test]
    async fn the_smallest_limit_lets_one_in() {
        let handshakes = Handshakes::new(1);
        let place = handshakes.inbound(address(1), SOON).await;
        assert!(place.is_some() && handshakes.inbound(address(2), SOON).await.is_none());
    }
}
