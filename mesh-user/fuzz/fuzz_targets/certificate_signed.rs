//! Leaves that our own authority signed, of any content: believed exactly if they are SVIDs (X509-SVID.md
//! sections 2 to 5) in their time.
//! Input: options (bits as in `Wanted::read`), when validity begins from now and how long it lasts (seconds, 2 bytes
//! each), how many DNS names (1 byte), URI names by lines.
#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use libfuzzer_sys::fuzz_target;
use mesh_user as meshd_library;
use mesh_user::{
    identity::SpiffeId,
    tls::{PeerRole, PeerVerifier},
};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256};
use test_pki::{Leaf, TestCa, bundles, shared};

#[path = "../../src/tls/test_pki.rs"]
#[expect(dead_code, reason = "the library's own tests use the rest")]
mod test_pki;

#[derive(Debug)]
struct Wanted<'a> {
    uris: Vec<&'a str>,
    dns_names: u8,
    is_ca: bool,
    digital_signature: bool,
    other_usage: Option<bool>,
    server_auth: bool,
    client_auth: bool,
    begins_in_s: i16,
    lasts_s: u16,
    role_is_client: bool,
}

impl<'a> Wanted<'a> {
    fn read(input: &'a [u8]) -> Option<Self> {
        let mut input = mesh_fuzz::Input(input);
        let (options, begins, lasts_s, dns_names) =
            (input.byte(), input.number(), input.number(), input.byte());
        let uris: Vec<_> = std::str::from_utf8(input.0).ok()?.split('\n').collect();
        let option = |bit: u8| options & (1 << bit) != 0;
        (uris.len() <= 3 && uris.iter().all(|uri| uri.is_ascii())).then_some(Self {
            uris: if uris == [""] { Vec::new() } else { uris },
            dns_names,
            is_ca: option(0),
            digital_signature: option(1),
            other_usage: option(2).then(|| option(3)),
            server_auth: option(4),
            client_auth: option(5),
            begins_in_s: begins.cast_signed(),
            lasts_s,
            role_is_client: option(6),
        })
    }
}

const SKEW: Duration = Duration::from_secs(60);

struct World {
    ca: TestCa,
    verifier: PeerVerifier,
    now: SystemTime,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let ca = TestCa::new("cluster.local");
    let algorithms = mesh_user::tls::provider().signature_verification_algorithms;
    let domain = "cluster.local".parse().expect("a trust domain");
    let verifier = PeerVerifier::new(domain, Vec::new(), SKEW, shared(bundles(&[&ca])), algorithms);
    let second = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    World { ca, verifier, now: SystemTime::UNIX_EPOCH + Duration::from_secs(second) }
});

fuzz_target!(|input: &[u8]| {
    let Some(input) = Wanted::read(input) else { return };
    let world = &*WORLD;
    let leaf = leaf(&input, world.now);
    let svid = world.ca.issue(&leaf);
    let role = if input.role_is_client { PeerRole::Client } else { PeerRole::Server };
    let verified = world.verifier.verify(&svid.chain, role, None, world.now);
    assert_eq!(verified.is_ok(), is_svid(&input, &leaf, world.now), "{:?}: {input:?}", verified.err());
    if let Ok(peer) = verified {
        assert_eq!(peer.spiffe_id.to_string(), input.uris[0]);
        assert_eq!((peer.not_before, peer.not_after), (leaf.not_before, leaf.not_after));
    }
});

fn leaf(input: &Wanted<'_>, now: SystemTime) -> Leaf {
    let shift = Duration::from_secs(input.begins_in_s.unsigned_abs().into());
    let not_before = if input.begins_in_s < 0 { now - shift } else { now + shift };
    let other = input
        .other_usage
        .map(|crl| if crl { KeyUsagePurpose::CrlSign } else { KeyUsagePurpose::KeyCertSign });
    Leaf {
        uris: input.uris.iter().map(|uri| (*uri).to_owned()).collect(),
        dns_names: (0..input.dns_names % 3).map(|number| format!("host-{number}.example")).collect(),
        not_before,
        not_after: not_before + Duration::from_secs(input.lasts_s.into()),
        is_ca: input.is_ca,
        key_usage: usage(input.digital_signature, KeyUsagePurpose::DigitalSignature)
            .into_iter()
            .chain(other)
            .collect(),
        extended_key_usage: [
            usage(input.server_auth, ExtendedKeyUsagePurpose::ServerAuth),
            usage(input.client_auth, ExtendedKeyUsagePurpose::ClientAuth),
        ]
        .concat(),
        extensions: Vec::new(),
        algorithm: &PKCS_ECDSA_P256_SHA256,
    }
}

fn usage<T>(wanted: bool, what: T) -> Vec<T> {
    wanted.then_some(what).into_iter().collect()
}

fn is_svid(input: &Wanted<'_>, leaf: &Leaf, now: SystemTime) -> bool {
    let [uri] = input.uris[..] else { return false };
    let Ok(id) = uri.parse::<SpiffeId>() else { return false };
    // Without the extension nothing is ruled out.
    let any_purpose = !input.server_auth && !input.client_auth;
    id.trust_domain().as_str() == "cluster.local"
        && !id.path().is_empty()
        && !input.is_ca
        && input.digital_signature
        && input.other_usage.is_none()
        && (any_purpose || if input.role_is_client { input.client_auth } else { input.server_auth })
        && is_in_time(leaf, now)
}

/// Now, or by a clock that is wrong by exactly as much as is allowed: a certificate that lives for less than that is
/// refused although some clock in between would believe it.
fn is_in_time(leaf: &Leaf, now: SystemTime) -> bool {
    let believed = |time: SystemTime| (leaf.not_before..=leaf.not_after).contains(&time);
    believed(now)
        || (now < leaf.not_before && believed(now + SKEW))
        || (now > leaf.not_after && believed(now - SKEW))
}
