//! How often somebody may ask. Whose rates are remembered is bounded: those above share one, so that a crowd of invented
//! callers costs no memory and slows nobody but itself.

use std::{
    hash::Hash,
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter, clock::DefaultClock, middleware::NoOpMiddleware,
    state::keyed::HashMapStateStore,
};

use super::Refusal;
use crate::config::AuthorityLimits;

type Keyed<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock, NoOpMiddleware>;

/// The rates of all callers.
#[derive(Debug)]
pub struct Rates {
    addresses: Remembered<IpAddr>,
    callers: Remembered<Arc<str>>,
    all: DefaultDirectRateLimiter,
}

impl Rates {
    /// As configured.
    pub fn new(limits: &AuthorityLimits) -> Self {
        let most = limits.remembered_callers as usize;
        Self {
            addresses: Remembered::new(quota(limits.address_per_second, limits.address_burst), most),
            callers: Remembered::new(quota(limits.caller_per_second, limits.caller_burst), most),
            all: RateLimiter::direct(quota(limits.requests_per_second, limits.requests_per_second)),
        }
    }

    /// Before anybody looks who asks. An IPv6 caller has a whole /64.
    ///
    /// # Errors
    /// When the address, or everybody together, asks too often.
    pub fn address(&self, address: IpAddr) -> Result<(), Refusal> {
        let address = match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::from((u128::from(v6) >> 64 << 64).to_be_bytes()),
            v4 @ IpAddr::V4(_) => v4,
        };
        self.addresses.check(&address).then_some(()).ok_or(Refusal::TooOften("the address"))?;
        self.all.check().map_err(|_| Refusal::TooOften("everybody together"))
    }

    /// When it is known who asks.
    ///
    /// # Errors
    /// When the caller asks too often.
    pub fn caller(&self, key: &Arc<str>) -> Result<(), Refusal> {
        self.callers.check(key).then_some(()).ok_or(Refusal::TooOften("the caller"))
    }
}

fn quota(per_second: u32, burst: u32) -> Quota {
    let positive = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(positive(per_second)).allow_burst(positive(burst))
}

#[derive(Debug)]
struct Remembered<K: Hash + Eq + Clone> {
    each: Keyed<K>,
    rest: DefaultDirectRateLimiter,
    most: usize,
    began: Instant,
    /// The second in which those who asked little were forgotten last: a walk over all of them.
    swept: AtomicU64,
}

impl<K: Hash + Eq + Clone> Remembered<K> {
    fn new(quota: Quota, most: usize) -> Self {
        Self {
            each: RateLimiter::hashmap(quota),
            rest: RateLimiter::direct(quota),
            most,
            began: Instant::now(),
            swept: AtomicU64::new(0),
        }
    }

    fn check(&self, key: &K) -> bool {
        if self.each.len() >= self.most {
            let second = self.began.elapsed().as_secs();
            if self.swept.swap(second, Relaxed) != second {
                // Forgets whoever has asked so little of late that it makes no difference.
                self.each.retain_recent();
            }
            if self.each.len() >= self.most {
                return self.rest.check().is_ok();
            }
        }
        self.each.check_key(key).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_is_bounded_others_are_not_and_nobody_fills_memory() {
        let limits = AuthorityLimits {
            caller_per_second: 1,
            caller_burst: 10,
            remembered_callers: 100,
            ..AuthorityLimits::default()
        };
        let rates = Rates::new(&limits);
        let greedy = Arc::from("greedy");
        let served = (0..1000).filter(|_| rates.caller(&greedy).is_ok()).count();
        assert!((10..20).contains(&served), "{served}");
        assert!(rates.caller(&Arc::from("modest")).is_ok());
        let crowd = (0..10_000).filter(|i| rates.caller(&Arc::from(format!("c{i}"))).is_ok()).count();
        assert!(rates.callers.each.len() <= 100, "{} callers are remembered", rates.callers.each.len());
        assert!((98..200).contains(&crowd), "{crowd} of a crowd were served");
    }

    #[test]
    fn all_of_an_ipv6_network_is_one_address() {
        let limits =
            AuthorityLimits { address_per_second: 1, address_burst: 5, ..AuthorityLimits::default() };
        let rates = Rates::new(&limits);
        let served =
            (0..100_u16).filter(|i| rates.address(format!("fd00::{i:x}").parse().unwrap()).is_ok()).count();
        assert!((5..10).contains(&served), "{served}");
        assert!(rates.address("fd00:0:0:1::1".parse().unwrap()).is_ok());
        assert!(rates.address("::ffff:192.0.2.1".parse().unwrap()).is_ok());
    }
}
