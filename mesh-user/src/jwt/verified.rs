//! Signatures that were verified before, so that a client which sends the same token with each request costs one
//! verification. What is remembered is a digest of the keys and the token's text: a fact about both that nothing can make
//! false, so other keys or another letter are simply not known, and neither a new policy nor a new key has to clear anything.
//! Never holds a token or a claim, never a signature that failed, and says nothing of time, issuer or audience, which are
//! checked for every request.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, TryLockError},
};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use super::keys::KeySet;

/// Parts that are locked apart.
const SHARDS: usize = 16;
/// Places of a digest in its shard.
const SETS: usize = 64;
/// Digests that share a place; the one not seen for longest goes first.
const WAYS: usize = 8;

/// SHA-256 over the keys' fingerprint and the token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest([u8; SHA256_OUTPUT_LEN]);

impl Digest {
    pub(super) fn of(keys: &KeySet, token: &str) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(keys.fingerprint());
        context.update(token.as_bytes());
        let mut digest = [0; SHA256_OUTPUT_LEN];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }

    fn shard(&self) -> usize {
        usize::from(self.0[0]) % SHARDS
    }

    fn set(&self) -> usize {
        usize::from(self.0[1]) % SETS
    }
}

/// No token has this one: nobody finds a text whose SHA-256 is zero.
const NONE: Digest = Digest([0; SHA256_OUTPUT_LEN]);

type Shard = Vec<[Digest; WAYS]>;

/// 8 192 digests at most, 256 KiB; a shard is made when it gets its first.
#[derive(Default)]
pub struct VerifiedSignatures {
    shards: [Mutex<Shard>; SHARDS],
}

impl fmt::Debug for VerifiedSignatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedSignatures").finish_non_exhaustive()
    }
}

impl VerifiedSignatures {
    /// Whether it was remembered. A shard that somebody else is looking at knows nothing: no request waits for another.
    pub(super) fn knows(&self, digest: &Digest) -> bool {
        let Some(mut shard) = self.shard(digest) else { return false };
        let Some(set) = shard.get_mut(digest.set()) else { return false };
        let Some(at) = set.iter().position(|known| known == digest) else { return false };
        set[..=at].rotate_right(1);
        true
    }

    /// Remembers a signature that was verified.
    pub(super) fn remember(&self, digest: Digest) {
        let Some(mut shard) = self.shard(&digest) else { return };
        if shard.is_empty() {
            shard.resize(SETS, [NONE; WAYS]);
        }
        if let Some(set) = shard.get_mut(digest.set()) {
            set.rotate_right(1);
            set[0] = digest;
        }
    }

    fn shard(&self, digest: &Digest) -> Option<MutexGuard<'_, Shard>> {
        match self.shards[digest.shard()].try_lock() {
            Ok(shard) => Some(shard),
            // A thread that panicked between two writes has left digests of verified signatures, each in one piece.
            Err(TryLockError::Poisoned(shard)) => Some(shard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one place of one shard.
    fn digest(number: u8) -> Digest {
        let mut digest = NONE;
        digest.0[31] = number;
        digest
    }

    #[test]
    fn the_one_not_seen_for_longest_makes_room() {
        let verified = VerifiedSignatures::default();
        assert!(!verified.knows(&digest(1)));
        for number in 1..=8 {
            verified.remember(digest(number));
        }
        assert!(verified.knows(&digest(1)), "all eight have a place");
        verified.remember(digest(9));
        assert!(!verified.knows(&digest(2)), "it was seen before all others");
        assert!([1, 3, 4, 5, 6, 7, 8, 9].iter().all(|number| verified.knows(&digest(*number))));
    }

    #[test]
    fn nobody_waits_for_another() {
        let verified = VerifiedSignatures::default();
        verified.remember(digest(1));
        let held = verified.shards[0].lock().unwrap();
        assert!(!verified.knows(&digest(1)));
        verified.remember(digest(2));
        drop(held);
        assert!(verified.knows(&digest(1)) && !verified.knows(&digest(2)));
    }

    #[test]
    fn a_digest_is_of_the_keys_and_of_the_whole_token() {
        use crate::jwt::test_tokens::{OTHER_RSA, P256, RSA, jwks};
        use serde_json::json;
        let set = |signer: &crate::jwt::test_tokens::Signer, kid: &str| {
            KeySet::parse(jwks(&[signer.jwk(&json!({"kid": kid}))]).as_bytes()).unwrap()
        };
        let known = Digest::of(&set(&RSA, "a"), "h.p.s");
        assert!(known == Digest::of(&set(&RSA, "a"), "h.p.s"));
        for other in [
            Digest::of(&set(&RSA, "a"), "h.p.t"),
            Digest::of(&set(&RSA, "b"), "h.p.s"),
            Digest::of(&set(&OTHER_RSA, "a"), "h.p.s"),
            Digest::of(&set(&P256, "a"), "h.p.s"),
        ] {
            assert!(known != other);
        }
    }
}
