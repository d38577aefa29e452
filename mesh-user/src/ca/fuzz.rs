//! The door for the fuzz targets: what the CA's callers, its agents and other trust domains send, and what has to hold of
//! it whatever it says. Each panics where that does not hold.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use prost::Message as _;

use super::{
    csr::{Csr, MAX_CSR_BYTES},
    proto::{
        meshd::TrustState,
        workload::{JwtBundlesResponse, X509svidResponse},
    },
    remote, spiffe_bundle, workload_api,
};
use crate::{
    identity::TrustDomain,
    tls::{PeerRole, PeerVerifier, provider},
};

/// A CSR whose key nobody else has.
static OTHERS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let made = rcgen::KeyPair::generate().and_then(|key| {
        let params = rcgen::CertificateParams::default();
        params.serialize_request(&key).map(|request| request.der().to_vec())
    });
    made.unwrap_or_default()
});

/// Bytes as they came, and, where they begin with `edit`, pairs of a place (two bytes) and a byte that are put into a
/// CSR of somebody else.
pub fn csr(data: &[u8]) {
    match data.strip_prefix(b"edit") {
        None => sent(data),
        Some(edits) => {
            let mut edited = OTHERS.clone();
            for edit in edits.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % edited.len().max(1);
                if let Some(byte) = edited.get_mut(at) {
                    *byte = edit[2];
                }
            }
            let whose = Csr::from_der(&OTHERS).map(|csr| csr.public_key().to_vec());
            if let Ok(accepted) = Csr::from_der(&edited) {
                assert_eq!(Ok(accepted.public_key().to_vec()), whose, "a key that nobody proved to have");
            }
        }
    }
}

fn sent(data: &[u8]) {
    let Ok(accepted) = Csr::from_der(data) else { return };
    assert!(data.len() <= MAX_CSR_BYTES);
    let key = accepted.public_key();
    assert!(data.windows(key.len()).any(|window| window == key), "a key that was not sent");
    assert!(rcgen::SubjectPublicKeyInfo::from_der(key).is_ok(), "a key that cannot be certified");
    let mut forged = data.to_vec();
    if let Some(last) = forged.last_mut() {
        *last ^= 1;
    }
    assert!(Csr::from_der(&forged).is_err(), "possession is not proven by this signature");
}

/// What an agent of trust domain `a.b` takes from `meshd ca` is complete and usable as it is, and the same each time.
pub fn trust_message(data: &[u8]) {
    let Ok(state) = TrustState::decode(data) else { return };
    let own: TrustDomain = TrustDomain::cluster_local();
    let Ok(bundles) = remote::parse_trust(&own, &state) else { return };
    assert!(bundles.roots.get(&own).is_some_and(|roots| !roots.is_empty()), "nobody could be believed");
    assert_eq!(bundles.roots.len(), state.bundles.len(), "a trust domain went or came");
    for root in bundles.roots.values().flatten() {
        assert!(webpki::anchor_from_trusted_cert(root).is_ok());
        assert!(state.bundles.iter().any(|bundle| bundle.roots.iter().any(|sent| **sent == **root)));
    }
    for domain in bundles.revoked.keys().chain(bundles.jwt_authorities.keys()) {
        assert!(bundles.roots.contains_key(domain), "lists or keys of nobody");
    }
    // It is kept in a file as it came.
    let again = TrustState::decode(state.encode_to_vec().as_slice());
    let again = again.ok().and_then(|again| remote::parse_trust(&own, &again).ok());
    assert_eq!(again.as_ref(), Some(&bundles));
}

/// A bundle that is read can be written for others, and reads back as the same.
pub fn bundle(text: &str) {
    let keys = spiffe_bundle::read_jwt(text).unwrap_or_default();
    let Ok(roots) = spiffe_bundle::read(text) else { return };
    assert!(!roots.is_empty(), "nobody could be believed");
    // Bytes that are no certificate are found by who uses them.
    let Ok(written) = spiffe_bundle::write(&roots, &keys, SystemTime::UNIX_EPOCH) else { return };
    let written = written.to_string();
    assert_eq!(spiffe_bundle::read(&written).as_ref(), Ok(&roots));
    let again = spiffe_bundle::read_jwt(&written).unwrap_or_default();
    assert!(again.keys().eq(keys.keys()), "{:?} are {:?}", keys.keys(), again.keys());
}

/// What comes as an SVID by the Workload API is one that a peer believes, with its key; the first byte says which message it is.
pub fn workload_api(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else { return };
    if *kind == b'j' {
        let Ok(answer) = JwtBundlesResponse::decode(message) else { return };
        if let Ok(authorities) = workload_api::read_jwt_bundles(&answer) {
            assert!(authorities.len() <= answer.bundles.len());
        }
        return;
    }
    let Ok(answer) = X509svidResponse::decode(message) else { return };
    let sent = answer.svids.len();
    let now = SystemTime::now();
    let Ok((svids, trust)) = workload_api::read_svids(answer, now) else { return };
    assert!((1..=sent).contains(&svids.len()));
    let shared = Arc::new(ArcSwap::from_pointee(trust));
    for (id, svid) in svids {
        assert_eq!(id, svid.spiffe_id);
        let algorithms = provider().signature_verification_algorithms;
        let own = id.trust_domain().clone();
        let verifier = PeerVerifier::new(own, Vec::new(), Duration::ZERO, Arc::clone(&shared), algorithms);
        let peer = verifier.verify(&svid.chain, PeerRole::Server, None, now);
        assert!(peer.is_ok_and(|peer| peer.spiffe_id == id), "an SVID that no peer believes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ca::proto::{meshd::Bundle, workload::X509svid},
        identity::JwtAuthorities,
        tls::test_pki::{Leaf, TestCa},
    };

    /// Each oracle is held against what is accepted; what is refused is the fuzzer's.
    #[test]
    fn what_is_right_is_accepted_and_meets_what_has_to_hold() {
        assert!(Csr::from_der(&OTHERS).is_ok());
        csr(&OTHERS);
        csr(b"edit");
        for place in 0..u16::try_from(OTHERS.len()).unwrap() {
            let [high, low] = place.to_be_bytes();
            csr(&[b"edit".as_slice(), &[high, low, 0], &[high, low, 0xff]].concat());
        }
        let ca = TestCa::new("cluster.local");
        let roots = vec![ca.root().to_vec()];
        let own = Bundle { trust_domain: "cluster.local".to_owned(), roots, ..Bundle::default() };
        let state = TrustState { version: 1, bundles: vec![own] };
        assert!(remote::parse_trust(&TrustDomain::cluster_local(), &state).is_ok());
        trust_message(&state.encode_to_vec());
        let written =
            spiffe_bundle::write(&[ca.root()], &JwtAuthorities::default(), SystemTime::UNIX_EPOCH).unwrap();
        bundle(&written.to_string());

        let key = rcgen::KeyPair::generate().unwrap();
        let id = "spiffe://cluster.local/ns/shop/sa/web";
        let svid = X509svid {
            spiffe_id: id.to_owned(),
            x509_svid: ca.certify(&Leaf::of(id), &key)[0].to_vec(),
            x509_svid_key: key.serialize_der(),
            bundle: ca.root().to_vec(),
            ..X509svid::default()
        };
        let answer = X509svidResponse { svids: vec![svid], ..X509svidResponse::default() };
        assert!(workload_api::read_svids(answer.clone(), SystemTime::now()).is_ok());
        workload_api(&[b"x".as_slice(), &answer.encode_to_vec()].concat());
    }
}
