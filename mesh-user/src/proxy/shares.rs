//! One address's share of what there is a limit to: nobody takes all of it by being first.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One address has at most the limit divided by this.
const SHARES: usize = 4;

/// The shares of all addresses that have or want a place.
#[derive(Debug)]
pub(super) struct Shares {
    each: usize,
    sources: Mutex<HashMap<IpAddr, Source>>,
}

/// The places of one address.
#[derive(Debug)]
struct Source {
    places: Arc<Semaphore>,
    users: usize,
}

/// One address's share, to take a place of.
pub(super) struct Share<'a> {
    places: Arc<Semaphore>,
    using: Using<'a>,
}

/// A place of a share. Its permit goes before the address is forgotten.
pub(super) struct Place<'a> {
    _permit: OwnedSemaphorePermit,
    _using: Using<'a>,
}

impl Shares {
    /// A quarter of `limit` for each address, and no less than one place.
    pub(super) fn new(limit: usize) -> Self {
        Self { each: (limit / SHARES).max(1), sources: Mutex::default() }
    }

    pub(super) fn of(&self, address: IpAddr) -> Share<'_> {
        let mut sources = self.sources();
        let source = sources
            .entry(address)
            .or_insert_with(|| Source { places: Arc::new(Semaphore::new(self.each)), users: 0 });
        source.users += 1;
        Share { places: Arc::clone(&source.places), using: Using { shares: self, address } }
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Share<'a> {
    /// Waits for a place.
    pub(super) async fn place(self) -> Option<Place<'a>> {
        let permit = self.places.acquire_owned().await.ok()?;
        Some(Place { _permit: permit, _using: self.using })
    }

    /// A place, if one is free.
    pub(super) fn try_place(self) -> Option<Place<'a>> {
        let permit = self.places.try_acquire_owned().ok()?;
        Some(Place { _permit: permit, _using: self.using })
    }
}

/// Forgets the address with the last of its places.
struct Using<'a> {
    shares: &'a Shares,
    address: IpAddr,
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let mut sources = self.shares.sources();
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

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_is_forgotten() {
        let shares = Shares::new(8);
        let first = shares.of(address(1)).try_place();
        let second = shares.of(address(1)).place().await;
        assert!(first.is_some() && second.is_some());
        assert!(shares.of(address(1)).try_place().is_none(), "more than its share");
        assert!(shares.of(address(2)).try_place().is_some(), "another address waits for it");
        drop(first);
        assert!(shares.of(address(1)).try_place().is_some(), "what is given back is there again");
        drop(second);
        assert!(shares.sources().is_empty(), "addresses are remembered for nothing");
    }

    #[test]
    fn the_smallest_limit_lets_one_in() {
        assert!(Shares::new(1).of(address(1)).try_place().is_some());
    }
}
