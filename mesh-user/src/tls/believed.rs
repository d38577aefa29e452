//! Chains that were proven against the trust bundles of the moment. A peer is verified three times for one connection (in
//! the handshake, once it stands, and when the connection enters the table), and connects again; only the first time
//! costs signatures. What is remembered is the path alone: time, bundles and expected identities are asked each time.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use lru::LruCache;
use rustls_pki_types::CertificateDer;

use super::verify::{PeerRole, VerifiedPeer};
use crate::identity::TrustBundles;

/// Chains remembered; one takes some 2 KiB.
const MOST: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A chain in a role. Who can make another chain of the same key can forge signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; SHA256_OUTPUT_LEN]);

impl Key {
    pub(super) fn of(chain: &[CertificateDer<'_>], role: PeerRole) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&[u8::from(role == PeerRole::Server)]);
        for certificate in chain {
            context.update(&certificate.len().to_be_bytes());
            context.update(certificate);
        }
        let mut key = [0; SHA256_OUTPUT_LEN];
        key.copy_from_slice(context.finish().as_ref());
        Self(key)
    }
}

/// A proven chain and the time in which every one of its certificates is valid.
#[derive(Debug, Clone)]
pub(super) struct Proven {
    pub(super) peer: VerifiedPeer,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// What was proven against the bundles that were used last.
#[derive(Debug)]
pub(super) struct Believed(Mutex<Remembered>);

#[derive(Debug)]
struct Remembered {
    bundles: Arc<TrustBundles>,
    chains: LruCache<Key, Proven>,
}

impl Believed {
    pub(super) fn new(bundles: Arc<TrustBundles>) -> Self {
        Self(Mutex::new(Remembered { bundles, chains: LruCache::new(MOST) }))
    }

    /// The peer, if its chain was proven against these very bundles and is valid now without regard to skew.
    pub(super) fn find(
        &self,
        key: &Key,
        bundles: &Arc<TrustBundles>,
        now: SystemTime,
    ) -> Option<VerifiedPeer> {
        let mut remembered = self.remembered();
        if !Arc::ptr_eq(&remembered.bundles, bundles) {
            return None;
        }
        let proven = remembered.chains.get(key)?;
        (proven.not_before <= now && now <= proven.not_after).then(|| proven.peer.clone())
    }

    /// Remembers what was proven against these bundles, and forgets what was against others.
    pub(super) fn keep(&self, key: Key, bundles: Arc<TrustBundles>, proven: Proven) {
        let mut remembered = self.remembered();
        if !Arc::ptr_eq(&remembered.bundles, &bundles) {
            remembered.chains.clear();
            remembered.bundles = bundles;
        }
        remembered.chains.put(key, proven);
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn proven(now: SystemTime) -> Proven {
        let peer = VerifiedPeer {
            spiffe_id: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
            not_before: now,
            not_after: now,
            serial: String::new(),
            chain: Arc::new([]),
            proven_at: now,
        };
        Proven { peer, not_before: now - SECOND, not_after: now + SECOND }
    }

    fn key(byte: u8) -> Key {
        Key::of(&[CertificateDer::from(vec![byte])], PeerRole::Client)
    }

    #[test]
    fn a_chain_is_believed_again_in_its_time_and_under_its_bundles() {
        let (now, bundles, others) = (SystemTime::now(), Arc::default(), Arc::default());
        let believed = Believed::new(Arc::clone(&bundles));
        assert!(believed.find(&key(1), &bundles, now).is_none());
        believed.keep(key(1), Arc::clone(&bundles), proven(now));
        assert!(believed.find(&key(1), &bundles, now).is_some());
        assert!(believed.find(&key(2), &bundles, now).is_none());
        for late_or_early in [now + 2 * SECOND, now - 2 * SECOND] {
            assert!(believed.find(&key(1), &bundles, late_or_early).is_none());
        }
        assert!(believed.find(&key(1), &others, now).is_none(), "equal bundles, but others");
        believed.keep(key(2), Arc::clone(&others), proven(now));
        assert!(believed.find(&key(2), &others, now).is_some());
        assert!(
            believed.find(&key(1), &others, now).is_none(),
            "proven against what is not trusted any more"
        );
        assert!(believed.find(&key(1), &bundles, now).is_none());
    }

    #[test]
    fn a_key_is_of_all_certificates_in_their_order_and_of_the_role() {
        let certificate = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
        let one = [certificate(b"ab"), certificate(b"c")];
        let all = [
            Key::of(&one, PeerRole::Client),
            Key::of(&one, PeerRole::Server),
            Key::of(&[certificate(b"a"), certificate(b"bc")], PeerRole::Client),
            Key::of(&[certificate(b"c"), certificate(b"ab")], PeerRole::Client),
            Key::of(&one[..1], PeerRole::Client),
        ];
        for (index, key) in all.iter().enumerate() {
            assert!(!all[..index].contains(key));
        }
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let (now, bundles) = (SystemTime::now(), Arc::default());
        let believed = Believed::new(Arc::clone(&bundles));
        let numbered =
            |number: usize| Key::of(&[CertificateDer::from(number.to_be_bytes().to_vec())], PeerRole::Client);
        for number in 0..=MOST.get() {
            believed.keep(numbered(number), Arc::clone(&bundles), proven(now));
        }
        assert!(believed.find(&numbered(0), &bundles, now).is_none());
        assert!(believed.find(&numbered(MOST.get()), &bundles, now).is_some());
    }
}
