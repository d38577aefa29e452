//! Certificates that must not be believed, and a few unusual ones that must: each is presented by a client to our
//! server and by a server to our client, and refused for the cause that the label names.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA256, RsaKeySize, SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::tls::PeerRole;

/// An RSA key that was broken long ago; nobody kept its other half.
const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDVSMV697Y1pGflUhfTFbxuOacu
aGhaYQRHZ8KPVffJykErnkq/uqniIQSHYckYoZhWpeIsRx9PVeJUB65Jy4QYTLhA
JIVEd7jWDRnAJUlfTtgtDiTFAR+v35fSN9OVFzqxVjJas1Wn7hnHqgMG1wsdEVX0
mcA6HMNIBUCek5sjWwIDAQAB
-----END PUBLIC KEY-----
";
const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
/// Of no meaning to anybody.
const UNKNOWN_EXTENSION: &[u64] = &[1, 3, 6, 1, 4, 1, 99_999, 1];

/// Makes an SVID that claims `id`.
type Forge = fn(&TestCa, &str) -> Svid;

/// Presents each to both verifiers, over a real handshake.
async fn each_is_refused(cases: &[(&str, &str, Forge)]) {
    let ca = TestCa::new("cluster.local");
    for (what, label, forge) in cases {
        let nodes = Nodes::with(&ca, provider(), forge(&ca, WEB), ca.svid(DB));
        let error = nodes.handshake().await.1.expect_err(what);
        assert_eq!(error.label(), *label, "the server of {what}: {error}");
        let nodes = Nodes::with(&ca, provider(), ca.svid(WEB), forge(&ca, DB));
        let error = nodes.handshake().await.0.expect_err(what);
        assert_eq!(error.label(), *label, "the client of {what}: {error}");
    }
}

fn leaf(id: &str, change: impl FnOnce(&mut Leaf)) -> Leaf {
    let mut leaf = Leaf::of(id);
    change(&mut leaf);
    leaf
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

/// So many hours from now.
fn hours(from_now: i64) -> SystemTime {
    let away = Duration::from_secs(from_now.unsigned_abs() * 3600);
    if from_now < 0 { SystemTime::now() - away } else { SystemTime::now() + away }
}

#[tokio::test]
async fn leaves_that_prove_nothing() {
    each_is_refused(&[
        ("a stranger's root", "unknown_authority", |_, id| TestCa::new("cluster.local").svid(id)),
        ("no authority at all", "unknown_authority", |_, id| self_signed(&Leaf::of(id))),
        ("an unknown trust domain", "trust_domain", |ca, id| {
            ca.svid(&id.replace("cluster.local", "evil.example"))
        }),
        ("an expired leaf", "expired", |ca, id| {
            ca.issue(&leaf(id, |leaf| (leaf.not_before, leaf.not_after) = (hours(-2), hours(-1))))
        }),
        ("a leaf of the future", "not_yet_valid", |ca, id| {
            ca.issue(&leaf(id, |leaf| (leaf.not_before, leaf.not_after) = (hours(1), hours(2))))
        }),
        ("two URIs", "bad_spiffe_id", |ca, id| {
            ca.issue(&leaf(id, |leaf| leaf.uris.push("spiffe://cluster.local/ns/shop/sa/root".to_owned())))
        }),
        ("the same URI twice", "bad_spiffe_id", |ca, id| {
            ca.issue(&leaf(id, |leaf| leaf.uris.push(id.to_owned())))
        }),
        ("a URI of another kind beside it", "bad_spiffe_id", |ca, id| {
            ca.issue(&leaf(id, |leaf| leaf.uris.push("https://db.example".to_owned())))
        }),
        ("DNS names only", "bad_spiffe_id", |ca, id| {
            ca.issue(&leaf(id, |leaf| (leaf.uris, leaf.dns_names) = (vec![], vec!["db.shop".to_owned()])))
        }),
        ("no names", "bad_spiffe_id", |ca, id| ca.issue(&leaf(id, |leaf| leaf.uris.clear()))),
        ("a CA as leaf", "usage", |ca, id| ca.issue(&leaf(id, |leaf| leaf.is_ca = true))),
        ("no digitalSignature", "usage", |ca, id| {
            ca.issue(&leaf(id, |leaf| leaf.key_usage = vec![KeyUsagePurpose::KeyEncipherment]))
        }),
        ("no key usage", "usage", |ca, id| ca.issue(&leaf(id, |leaf| leaf.key_usage.clear()))),
        ("cRLSign", "usage", |ca, id| {
            ca.issue(&leaf(id, |leaf| leaf.key_usage.push(KeyUsagePurpose::CrlSign)))
        }),
        ("keyCertSign", "usage", |ca, id| {
            ca.issue(&leaf(id, |leaf| leaf.key_usage.push(KeyUsagePurpose::KeyCertSign)))
        }),
        ("an extended key usage of neither end", "usage", |ca, id| {
            ca.issue(&leaf(id, |leaf| leaf.extended_key_usage = vec![ExtendedKeyUsagePurpose::CodeSigning]))
        }),
        ("a critical extension that nobody knows", "bad_certificate", |ca, id| {
            let mut unknown = CustomExtension::from_oid_content(UNKNOWN_EXTENSION, vec![5, 0]);
            unknown.set_criticality(true);
            ca.issue(&leaf(id, |leaf| leaf.extensions.push(unknown)))
        }),
        ("bytes after the certificate", "bad_certificate", |ca, id| {
            let mut svid = ca.svid(id);
            svid.chain[0] = CertificateDer::from([&svid.chain[0][..], &[0]].concat());
            svid
        }),
        ("no certificate", "bad_certificate", |ca, id| Svid {
            chain: vec![CertificateDer::from(vec![5, 0])],
            ..ca.svid(id)
        }),
        ("another's certificate", "bad_certificate", |ca, id| Svid { key: ca.svid(id).key, ..ca.svid(id) }),
    ])
    .await;
}

#[tokio::test]
async fn a_purpose_of_the_other_end_is_refused() {
    let ca = TestCa::new("cluster.local");
    let only = |id, purpose| ca.issue(&leaf(id, |leaf| leaf.extended_key_usage = vec![purpose]));
    let client = Nodes::with(&ca, provider(), only(WEB, ExtendedKeyUsagePurpose::ServerAuth), ca.svid(DB));
    assert_eq!(client.handshake().await.1.unwrap_err().label(), "usage");
    let server = Nodes::with(&ca, provider(), ca.svid(WEB), only(DB, ExtendedKeyUsagePurpose::ClientAuth));
    assert_eq!(server.handshake().await.0.unwrap_err().label(), "usage");
}

/// Every way to write another name that looks like one of ours, or that some parser would take for one.
#[tokio::test]
async fn names_that_are_no_spiffe_id() {
    let long = format!("spiffe://cluster.local/{}", "x".repeat(2048));
    let long_domain = format!("spiffe://{}/ns/shop/sa/web", "x".repeat(256));
    let cases = [
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop/../shop/sa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop/./sa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns//shop/sa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local//ns/shop/sa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop/sa/web/"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop/sa/%77eb"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop/%2e%2e/shop/sa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop%2fsa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop/sa/web\0"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop/sa/web "),
        ("bad_spiffe_id", " spiffe://cluster.local/ns/shop/sa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local\\@evil.example/ns/shop/sa/web"),
        ("bad_spiffe_id", "spiffe://CLUSTER.local/ns/shop/sa/web"),
        ("bad_spiffe_id", "SPIFFE://cluster.local/ns/shop/sa/web"),
        ("bad_spiffe_id", "spiffe://root@cluster.local/ns/shop/sa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local:443/ns/shop/sa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop/sa/web?sa=db"),
        ("bad_spiffe_id", "spiffe://cluster.local/ns/shop/sa/web#db"),
        ("bad_spiffe_id", "spiffe:cluster.local/ns/shop/sa/web"),
        ("bad_spiffe_id", "spiffe:///ns/shop/sa/web"),
        ("bad_spiffe_id", "spiffe://cluster.local"),
        ("bad_spiffe_id", "spiffe://cluster.local/"),
        ("bad_spiffe_id", "https://cluster.local/ns/shop/sa/web"),
        ("bad_spiffe_id", "urn:spiffe://cluster.local/ns/shop/sa/web"),
        ("bad_spiffe_id", long.as_str()),
        ("bad_spiffe_id", long_domain.as_str()),
        ("trust_domain", "spiffe://cluster.local./ns/shop/sa/web"),
        ("trust_domain", "spiffe://xn--cluster-.local/ns/shop/sa/web"),
        ("trust_domain", "spiffe://cluster.local.evil.example/ns/shop/sa/web"),
    ];
    let ca = TestCa::new("cluster.local");
    for (label, name) in cases {
        let forged = || ca.issue(&leaf(DB, |leaf| leaf.uris = vec![name.to_owned()]));
        let error = Nodes::with(&ca, provider(), forged(), ca.svid(DB)).handshake().await.1.unwrap_err();
        assert_eq!(error.label(), label, "the server, of {name:?}: {error}");
        let error = Nodes::with(&ca, provider(), ca.svid(WEB), forged()).handshake().await.0.unwrap_err();
        assert_eq!(error.label(), label, "the client, of {name:?}: {error}");
    }
    // A SPIFFE ID's path is compared as it is.
    let loud = ca.svid(&DB.to_uppercase().replace("SPIFFE://CLUSTER.LOCAL", "spiffe://cluster.local"));
    let error = Nodes::with(&ca, provider(), ca.svid(WEB), loud).handshake().await.0.unwrap_err();
    assert_eq!(error.label(), "wrong_identity", "{error}");
}

/// A constraint on URIs, which rcgen has no word for: `permittedSubtrees` of one name (RFC 5280 section 4.2.1.10).
fn only_uris_at(host: &str) -> CustomExtension {
    let wrap = |tag: u8, inner: &[u8]| [&[tag, u8::try_from(inner.len()).unwrap()], inner].concat();
    let subtrees = wrap(0x30, &wrap(0x86, host.as_bytes()));
    let mut extension =
        CustomExtension::from_oid_content(NAME_CONSTRAINTS, wrap(0x30, &wrap(0xa0, &subtrees)));
    extension.set_criticality(true);
    extension
}

fn only_dns_below(params: &mut CertificateParams) {
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("shop.example".to_owned())],
        excluded_subtrees: vec![],
    });
}

#[tokio::test]
async fn chains_that_lead_nowhere() {
    each_is_refused(&[
        ("a leaf that signs", "usage", |ca, id| {
            ca.below(|params| params.is_ca = IsCa::ExplicitNoCa).svid(id)
        }),
        ("an issuer that may not sign", "usage", |ca, id| {
            ca.below(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]).svid(id)
        }),
        ("an issuer without a key usage", "usage", |ca, id| {
            ca.below(|params| params.key_usages.clear()).svid(id)
        }),
        ("an issuer that is a workload", "usage", |ca, id| {
            ca.below(|params| params.subject_alt_names.push(uri(WEB))).svid(id)
        }),
        ("an issuer of another trust domain's workload", "usage", |ca, id| {
            ca.below(|params| params.subject_alt_names.push(uri("spiffe://other.example/x"))).svid(id)
        }),
        ("an issuer whose SPIFFE ID is none", "usage", |ca, id| {
            ca.below(|params| params.subject_alt_names.push(uri("spiffe://cluster.local/"))).svid(id)
        }),
        ("more CAs than the path length allows", "constraint", |ca, id| {
            ca.below(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)))
                .below(|_| {})
                .svid(id)
        }),
        ("a DNS name that the issuer may not give", "constraint", |ca, id| {
            ca.below(only_dns_below)
                .issue(&leaf(id, |leaf| leaf.dns_names.push("db.evil.example".to_owned())))
        }),
        ("an issuer for URIs of another trust domain", "constraint", |ca, id| {
            ca.below(|params| params.custom_extensions.push(only_uris_at("evil.example"))).svid(id)
        }),
        // Not accepted, because nobody can tell: webpki does not compare URIs.
        ("an issuer for URIs of ours only", "constraint", |ca, id| {
            ca.below(|params| params.custom_extensions.push(only_uris_at("cluster.local"))).svid(id)
        }),
        ("an expired issuer", "expired", |ca, id| {
            ca.below(|params| params.not_after = hours(-1).into()).svid(id)
        }),
        ("an issuer that is missing", "unknown_authority", |ca, id| {
            let mut svid = ca.below(|_| {}).svid(id);
            svid.chain.truncate(1);
            svid
        }),
        ("an issuer that is another's", "unknown_authority", |ca, id| {
            let mut svid = ca.below(|_| {}).svid(id);
            svid.chain[1] = TestCa::new("cluster.local").below(|_| {}).svid(id).chain[1].clone();
            svid
        }),
        ("nine certificates", "bad_certificate", |ca, id| {
            (0..8).fold(ca.below(|_| {}), |ca, _| ca.below(|_| {})).svid(id)
        }),
        ("a certificate of 17 KiB", "bad_certificate", |ca, id| {
            ca.issue(&leaf(id, |leaf| {
                leaf.extensions.push(CustomExtension::from_oid_content(UNKNOWN_EXTENSION, vec![0; 17 << 10]));
            }))
        }),
        ("a chain of 75 KiB", "protocol", |ca, id| {
            let large = |params: &mut CertificateParams| {
                let bytes = CustomExtension::from_oid_content(UNKNOWN_EXTENSION, vec![0; 15 << 10]);
                params.custom_extensions.push(bytes);
            };
            (0..4).fold(ca.below(large), |ca, _| ca.below(large)).svid(id)
        }),
    ])
    .await;
}

#[tokio::test]
async fn unusual_chains_and_keys_are_believed() {
    let ca = TestCa::new("cluster.local");
    let cases: [(&str, Forge); 8] = [
        ("a node's CA", |ca, id| ca.below(|_| {}).svid(id)),
        ("an issuer that is an SVID, without a path", |ca, id| {
            ca.below(|params| params.subject_alt_names.push(uri("spiffe://cluster.local"))).svid(id)
        }),
        ("an issuer with a name of another kind", |ca, id| {
            ca.below(|params| params.subject_alt_names.push(uri("https://ca.example/x"))).svid(id)
        }),
        ("as many CAs as the path length allows", |ca, id| {
            ca.below(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)))
                .below(|_| {})
                .svid(id)
        }),
        ("an issuer bound to DNS names of which the leaf has none", |ca, id| {
            ca.below(only_dns_below).svid(id)
        }),
        ("P-384", |ca, id| ca.issue(&leaf(id, |leaf| leaf.algorithm = &PKCS_ECDSA_P384_SHA384))),
        ("P-521", |ca, id| ca.issue(&leaf(id, |leaf| leaf.algorithm = &PKCS_ECDSA_P521_SHA512))),
        ("Ed25519", |ca, id| ca.issue(&leaf(id, |leaf| leaf.algorithm = &PKCS_ED25519))),
    ];
    for (what, forge) in cases {
        let (client, server) =
            Nodes::with(&ca, provider(), forge(&ca, WEB), forge(&ca, DB)).handshake().await;
        assert_eq!(client.expect(what).peer().unwrap().spiffe_id.to_string(), DB);
        assert_eq!(server.expect(what).peer().unwrap().spiffe_id.to_string(), WEB);
    }
}

/// What no library of today signs with, so that there is no handshake: both verifiers are asked.
#[test]
fn weak_keys_and_signatures_are_refused() {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let ca = TestCa::with_key("cluster.local", key);
    let nodes = Nodes::with(&ca, provider(), ca.svid(WEB), ca.svid(DB));
    let short = SubjectPublicKeyInfo::from_pem(RSA_1024).unwrap();
    let good = ca.svid(WEB).chain;
    // sha256WithRSAEncryption is 1.2.840.113549.1.1.11, and stands in the certificate twice.
    let signed_with = |algorithm: u8| {
        let (prefix, mut der) = ([0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11], good[0].to_vec());
        let places: Vec<usize> = (0..der.len() - 9).filter(|at| der[*at..*at + 9] == prefix).collect();
        assert_eq!(places.len(), 2);
        for at in places {
            der[at + 8] = algorithm;
        }
        vec![CertificateDer::from(der)]
    };
    let cases = [
        ("RSA with 1024 bits", "weak", ca.certify(&Leaf::of(WEB), &short)),
        ("SHA-1", "weak", signed_with(5)),
        ("MD5", "weak", signed_with(4)),
        ("nothing", "bad_certificate", vec![]),
    ];
    for role in [PeerRole::Client, PeerRole::Server] {
        let verify = |chain: &[_]| nodes.server.verifier().verify(chain, role, None, SystemTime::now());
        verify(&good).unwrap();
        for (what, label, chain) in &cases {
            let error = verify(chain).expect_err(what);
            assert_eq!(error.label(), *label, "{what}: {error}");
        }
    }
}

/// The verifier has no clock of its own: whatever it believed is asked again with the time of the moment.
#[test]
fn a_clock_that_jumps_decides_by_what_it_shows() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::with(&ca, provider(), ca.svid(WEB), ca.svid(DB));
    let verifier = nodes.server.verifier();
    let now = SystemTime::now();
    let (hour, year) = (Duration::from_secs(3600), Duration::from_secs(365 * 86_400));
    let peer = verifier.verify(&nodes.client_svid.chain, PeerRole::Client, None, now).unwrap();
    for (at, label) in [
        (now + hour, Some("expired")),
        (now, None),
        (now - hour, Some("not_yet_valid")),
        (now + 20 * year, Some("expired")),
        (SystemTime::UNIX_EPOCH, Some("not_yet_valid")),
        (SystemTime::UNIX_EPOCH - year, Some("not_yet_valid")),
        (now, None),
    ] {
        let error = verifier.verify_again(&peer, PeerRole::Client, None, at).err();
        assert_eq!(error.as_ref().map(VerifyError::label), label, "at {at:?}");
    }
}

/// Whether a certificate may be an authority of a trust domain's bundle.
#[test]
fn an_authority_signs_and_is_no_workload() {
    let ca = TestCa::new("cluster.local");
    let root = |change: fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    };
    for (certificate, why) in [
        (ca.root(), None),
        (root(|params| params.subject_alt_names.push(uri("spiffe://cluster.local"))), None),
        (root(|params| params.key_usages.clear()), None),
        (ca.svid(WEB).chain[0].clone(), Some("is no CA")),
        (
            root(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
            Some("may not sign certificates"),
        ),
        (
            root(|params| params.subject_alt_names.push(uri(WEB))),
            Some("has a SPIFFE ID with a path, as a workload's"),
        ),
        (CertificateDer::from(vec![5, 0]), Some("is no X.509 certificate")),
    ] {
        assert_eq!(crate::tls::why_no_authority(&certificate), why);
    }
}
