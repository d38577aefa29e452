//! The signed chain with single changes, at any time, for either end.
//! Input: options (1: with the root; 2: a client's), Unix seconds (4 bytes; 0: now), then changes of 5 bytes: what,
//! which certificate, where (2 bytes), with what.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use mesh_fuzz::{INTERMEDIATE, Input, LEAF, ROOT, now, only_the_signed_chain_is_believed};
use mesh_user::tls::PeerRole;
use rustls_pki_types::CertificateDer;

const CHANGES: usize = 8;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (options, high, low) = (input.byte(), input.number(), input.number());
    let at_unix_s = u32::from(high) << 16 | u32::from(low);
    let mut chain = vec![LEAF.to_vec(), INTERMEDIATE.to_vec()];
    chain.extend((options & 1 != 0).then(|| ROOT.to_vec()));
    for _ in 0..CHANGES {
        if !input.0.is_empty() {
            change(&mut chain, input.byte(), input.byte(), input.number(), input.byte());
        }
    }
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    let role = if options & 2 != 0 { PeerRole::Client } else { PeerRole::Server };
    let at = if at_unix_s == 0 { now() } else { UNIX_EPOCH + Duration::from_secs(at_unix_s.into()) };
    only_the_signed_chain_is_believed(&chain, role, at);
});

/// Changes one certificate at one place, or the order of all.
fn change(chain: &mut Vec<Vec<u8>>, what: u8, certificate: u8, at: u16, value: u8) {
    if chain.is_empty() {
        return;
    }
    let (index, at) = (usize::from(certificate) % chain.len(), usize::from(at));
    let bytes = &mut chain[index];
    match what % 7 {
        0 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= value),
        1 => bytes.insert(at.min(bytes.len()), value),
        2 if at < bytes.len() => drop(bytes.remove(at)),
        3 => bytes.truncate(at),
        4 => drop(chain.remove(index)),
        5 => {
            let again = bytes.clone();
            chain.push(again);
        }
        _ => {
            let other = at % chain.len();
            chain.swap(index, other);
        }
    }
}
