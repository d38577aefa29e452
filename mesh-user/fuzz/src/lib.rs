//! What several fuzz targets share: reading an input from its front, certificates whose private keys nobody has, and
//! a runtime.

use std::{
    future::Future,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use mesh_user::{
    identity::{SpiffeId, TrustBundles},
    tls::{PeerRole, PeerVerifier},
};
use rustls_pki_types::CertificateDer;
use tokio::runtime::{Builder, Runtime};

/// An input, read from its front; what is missing reads as zero, so that every input is one.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Two bytes, the high one first.
    pub fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// As many bytes as there are of `length`.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// `CN=fuzz root`, which signed the intermediate, which signed the leaf. Valid from November 2026 for 100 years.
pub const ROOT: &[u8] = include_bytes!("../pki/root.der");
/// May sign leaves, not authorities.
pub const INTERMEDIATE: &[u8] = include_bytes!("../pki/intermediate.der");
/// [`IDENTITY`]'s, for both ends.
pub const LEAF: &[u8] = include_bytes!("../pki/leaf.der");
/// Whose leaf it is.
pub const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// January 2027.
pub fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Believes [`ROOT`] for `cluster.local`, and nobody else.
pub fn verifier() -> &'static PeerVerifier {
    static VERIFIER: LazyLock<PeerVerifier> = LazyLock::new(|| {
        let domain: mesh_user::identity::TrustDomain = "cluster.local".parse().expect("a trust domain");
        let roots = [(domain.clone(), vec![CertificateDer::from(ROOT)])].into();
        let bundles = Arc::new(ArcSwap::from_pointee(TrustBundles { roots, ..TrustBundles::default() }));
        let algorithms = mesh_user::tls::provider().signature_verification_algorithms;
        PeerVerifier::new(domain, Vec::new(), Duration::from_secs(60), bundles, algorithms)
    });
    &VERIFIER
}

/// Nobody has the keys, so the one chain that can be believed is the one that was signed.
pub fn only_the_signed_chain_is_believed(chain: &[CertificateDer<'_>], role: PeerRole, now: SystemTime) {
    let verified = verifier().verify(chain, role, None, now);
    let signed = chain.first().is_some_and(|leaf| **leaf == *LEAF)
        && chain.iter().any(|certificate| **certificate == *INTERMEDIATE);
    match verified {
        Ok(peer) => {
            assert!(signed, "a certificate that nobody signed is believed");
            assert_eq!(peer.spiffe_id, IDENTITY.parse::<SpiffeId>().expect("a SPIFFE ID"));
            let skewed = Duration::from_secs(60);
            assert!(now + skewed >= peer.not_before && now <= peer.not_after + skewed, "out of its time");
            verifier().verify_again(&peer, role, None, now).expect("the same question has the same answer");
            let other =
                [SpiffeId::clone(&"spiffe://cluster.local/ns/shop/sa/db".parse().expect("an ID"))].into();
            assert!(verifier().verify(chain, role, Some(&other), now).is_err(), "another identity");
        }
        Err(error) => {
            assert!(error.to_string().len() < 4096, "an error that repeats the peer's bytes");
            let plain = chain == [CertificateDer::from(LEAF), CertificateDer::from(INTERMEDIATE)];
            assert!(!plain || now != self::now(), "the signed chain is refused: {error}");
        }
    }
}

/// Runs on this thread.
pub fn block_on<T>(task: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime =
            Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(task))
}
