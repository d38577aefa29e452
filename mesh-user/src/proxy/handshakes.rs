//! Places for handshakes under way. Those that workloads begin have places of their own, and of the others one
//! address never has more than a share: whoever begins handshakes and never ends them keeps only itself waiting.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::timeout,
};

/// One address has at most the limit divided by this.
const SHARES: usize = 4;

/// The node's places, so many in each direction.
#[derive(Debug)]
pub(super) struct Handshakes {
    outbound: Semaphore,
    inbound: Semaphore,
    share: usize,
    sources: Mutex<HashMap<IpAddr, Source>>,
}

/// The places of one address, while it has or wants any.
#[derive(Debug)]
struct Source {
    places: Arc<Semaphore>,
    users: usize,
}

/// A place of an inbound handshake. Its permits go before the address is forgotten.
pub(super) struct InboundPlace<'a> {
    _of_share: OwnedSemaphorePermit,
    _of_all: SemaphorePermit<'a>,
    _using: Using<'a>,
}

impl Handshakes {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            outbound: Semaphore::new(limit),
            inbound: Semaphore::new(limit),
            share: (limit / SHARES).max(1),
            sources: Mutex::default(),
        }
    }

    /// For a handshake of a workload of ours, or none within `patience`.
    pub(super) async fn outbound(&self, patience: Duration) -> Option<SemaphorePermit<'_>> {
        timeout(patience, self.outbound.acquire()).await.ok()?.ok()
    }

    /// For a handshake that `source` has begun, or none within `patience`.
    pub(super) async fn inbound(&self, source: IpAddr, patience: Duration) -> Option<InboundPlace<'_>> {
        let (places, using) = self.use_source(source);
        let acquire =
            async { Some((places.acquire_owned().await.ok()?, self.inbound.acquire().await.ok()?)) };
        let (of_share, of_all) = timeout(patience, acquire).await.ok()??;
        Some(InboundPlace { _of_share: of_share, _of_all: of_all, _using: using })
    }

    fn use_source(&self, address: IpAddr) -> (Arc<Semaphore>, Using<'_>) {
        let mut sources = self.sources();
        let source = sources
            .entry(address)
            .or_insert_with(|| Source { places: Arc::new(Semaphore::new(self.share)), users: 0 });
        source.users += 1;
        (Arc::clone(&source.places), Using { handshakes: self, address })
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the address with its last handshake.
struct Using<'a> {
    handshakes: &'a Handshakes,
    address: IpAddr,
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let mut sources = self.handshakes.sources();
        if let Some(source) = sources.get_mut(&self.address) {
            source.users -= 1;
            if source.users == 0 {
                sources.remove(&self.address);
            }
        }
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
        assert!(handshakes.sources().is_empty(), "addresses are remembered for nothing");
        assert!(handshakes.inbound(address(1), SOON).await.is_some());
    }

    #[tokio::test]
    async fn the_smallest_limit_lets_one_in() {
        let handshakes = Handshakes::new(1);
        let place = handshakes.inbound(address(1), SOON).await;
        assert!(place.is_some() && handshakes.inbound(address(2), SOON).await.is_none());
    }
}
