//! Chains of anything as certificates: nothing is believed but the one chain that was signed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_fuzz::{now, only_the_signed_chain_is_believed};
use mesh_user::tls::PeerRole;
use rustls_pki_types::CertificateDer;

fuzz_target!(|bytes: &[u8]| {
    let chain = certificates(bytes);
    for role in [PeerRole::Client, PeerRole::Server] {
        only_the_signed_chain_is_believed(&chain, role, now());
    }
});

/// Each of the length that its own DER header says, as far as there are bytes.
fn certificates(mut bytes: &[u8]) -> Vec<CertificateDer<'_>> {
    let mut chain = Vec::new();
    while !bytes.is_empty() && chain.len() < 10 {
        let length = match *bytes {
            [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([high, low])),
            [0x30, short, ..] if short < 0x80 => 2 + usize::from(short),
            _ => bytes.len(),
        };
        let (certificate, rest) = bytes.split_at(length.min(bytes.len()));
        chain.push(CertificateDer::from(certificate));
        bytes = rest;
    }
    chain
}
