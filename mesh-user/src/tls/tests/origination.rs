//! TLS to servers outside the mesh: who is believed, by each kind of name, and what is offered.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    string::Ia5String,
};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::TlsAcceptor;

use super::{limits, tcp_pair};
use crate::tls::{Established, HandshakeError, Originator, OriginatorParts, Proven, TlsContext, provider};

const HOUR: Duration = Duration::from_secs(3600);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

#[derive(Clone)]
struct Leaf {
    names: Vec<SanType>,
    common_name: &'static str,
    serial: u64,
    ends: SystemTime,
    usage: ExtendedKeyUsagePurpose,
}

impl Leaf {
    fn of(names: Vec<SanType>) -> Self {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        Self { names, common_name: "leaf", serial: 7, ends: SystemTime::now() + HOUR, usage }
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).unwrap())
}

impl Authority {
    fn new() -> Self {
        Self::named("an authority")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, leaf.common_name);
        params.subject_alt_names.clone_from(&leaf.names);
        params.serial_number = Some(SerialNumber::from(leaf.serial));
        params.not_before = (SystemTime::now() - 2 * HOUR).into();
        params.not_after = leaf.ends.into();
        params.extended_key_usages = vec![leaf.usage.clone()];
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn list(
        &self,
        revoked: Option<u64>,
        next: SystemTime,
    ) -> rustls_pki_types::CertificateRevocationListDer<'static> {
        let revoked = revoked.map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: (SystemTime::now() - HOUR).into(),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: (SystemTime::now() - 2 * HOUR).into(),
            next_update: next.into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.into_iter().collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().der().clone()
    }
}

fn parts(authority: &Authority) -> OriginatorParts {
    OriginatorParts {
        authorities: vec![authority.certificate.clone()],
        revocations: None,
        client: None,
        names: Vec::new(),
        believes_anybody: false,
    }
}

fn originator(parts: OriginatorParts) -> Originator {
    Originator::new(parts).unwrap()
}

fn server(authority: &Authority, leaf: &Leaf) -> ServerConfig {
    let (chain, key) = authority.issue(leaf);
    ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

/// What the client makes of the server, and the server name and protocol that the server was offered.
async fn meet(
    originator: &Originator,
    name: &str,
    server: ServerConfig,
) -> (Result<Established, HandshakeError>, Option<String>) {
    let (near, far) = tcp_pair().await;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let accept = async {
        let accepted = TlsAcceptor::from(Arc::new(server)).accept(far).await.ok()?;
        let (_, session) = accepted.get_ref();
        assert_eq!(session.alpn_protocol(), None);
        session.server_name().map(str::to_owned)
    };
    tokio::join!(TlsContext::originate(near, originator, name, limits()), accept)
}

fn label(result: &Result<Established, HandshakeError>) -> &'static str {
    result.as_ref().map_or_else(HandshakeError::label, |_| "ok")
}

#[tokio::test]
async fn a_server_must_have_one_of_the_names() {
    let authority = Authority::new();
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let email = SanType::Rfc822Name(Ia5String::try_from("ops@a.example").unwrap());
    let uri = SanType::URI(Ia5String::try_from("spiffe://a.example/db").unwrap());
    for (has, wanted, called, expected) in [
        (dns("a.example"), &[][..], "a.example", "ok"),
        (dns("a.example"), &[][..], "b.example", "wrong_name"),
        (dns("A.Example"), &["a.example"][..], "b.example", "ok"),
        (dns("*.a.example"), &["x.a.example"][..], "b.example", "ok"),
        (dns("*.a.example"), &["x.y.a.example"][..], "b.example", "wrong_name"),
        (dns("*.a.example"), &["*.a.example"][..], "b.example", "ok"),
        // A wildcard is the certificate's to give.
        (dns("x.a.example"), &["*.a.example"][..], "x.a.example", "wrong_name"),
        (dns("b.example"), &["a.example"][..], "b.example", "wrong_name"),
        (dns("b.example"), &["a.example", "b.example"][..], "c.example", "ok"),
        (uri.clone(), &["spiffe://a.example/db"][..], "a.example", "ok"),
        (uri.clone(), &["spiffe://a.example/d"][..], "a.example", "wrong_name"),
        (uri, &["a.example"][..], "a.example", "wrong_name"),
        (email.clone(), &["ops@a.example"][..], "a.example", "ok"),
        (email, &["a.example"][..], "a.example", "wrong_name"),
        (SanType::IpAddress(address), &["192.0.2.1"][..], "a.example", "ok"),
        (SanType::IpAddress(address), &["192.0.2.2"][..], "a.example", "wrong_name"),
        (dns("192.0.2.1.example"), &["192.0.2.1"][..], "a.example", "wrong_name"),
    ] {
        let what = format!("{has:?} {wanted:?} {called}");
        let names = wanted.iter().map(|name| (*name).to_owned()).collect();
        let originator = originator(OriginatorParts { names, ..parts(&authority) });
        let (result, _) = meet(&originator, called, server(&authority, &Leaf::of(vec![has]))).await;
        assert_eq!(label(&result), expected, "{what}");
    }
}

#[tokio::test]
async fn a_server_must_chain_to_the_rules_authorities() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let good = Leaf::of(vec![dns("a.example")]);
    let expired = Leaf { ends: SystemTime::now() - HOUR, ..good.clone() };
    let client = Leaf { usage: ExtendedKeyUsagePurpose::ClientAuth, ..good.clone() };
    let common = Leaf { names: Vec::new(), common_name: "a.example", ..good.clone() };
    for (what, by, leaf, expected) in [
        ("good", &authority, &good, "ok"),
        ("wrong authority", &stranger, &good, "unknown_authority"),
        ("expired", &authority, &expired, "expired"),
        ("for clients only", &authority, &client, "usage"),
        ("a common name is no name", &authority, &common, "wrong_name"),
    ] {
        let (result, _) = meet(&originator(parts(&authority)), "a.example", server(by, leaf)).await;
        assert_eq!(label(&result), expected, "{what}");
    }
    let anybody = originator(OriginatorParts { believes_anybody: true, ..parts(&authority) });
    for (by, leaf) in [(&stranger, &good), (&authority, &expired), (&authority, &common)] {
        assert_eq!(label(&meet(&anybody, "b.example", server(by, leaf)).await.0), "ok");
    }
}

#[tokio::test]
async fn a_revoked_server_is_refused_and_so_is_one_whose_list_is_missing_or_old() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (later, before) = (SystemTime::now() + HOUR, SystemTime::now() - HOUR);
    for (what, list, expected) in [
        ("not on the list", authority.list(Some(8), later), "ok"),
        ("on the list", authority.list(Some(7), later), "revoked"),
        ("an impostor's list", stranger.list(None, later), "revoked"),
        ("another's list", Authority::named("another").list(None, later), "revoked"),
        ("an old list", authority.list(None, before), "revoked"),
    ] {
        let originator = originator(OriginatorParts { revocations: Some(vec![list]), ..parts(&authority) });
        let leaf = Leaf::of(vec![dns("a.example")]);
        let (result, _) = meet(&originator, "a.example", server(&authority, &leaf)).await;
        assert_eq!(label(&result), expected, "{what}");
    }
}

#[tokio::test]
async fn the_name_is_sent_and_no_protocol_is_offered_in_either_version() {
    let authority = Authority::new();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (chain, key) = authority.issue(&Leaf::of(vec![dns("a.example")]));
        let server = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (result, sni) = meet(&originator(parts(&authority)), "a.example", server).await;
        let established = result.unwrap();
        assert_eq!(sni.as_deref(), Some("a.example"));
        assert!(matches!(established.proven(), Proven::Server(_)) && established.peer().is_none());
        assert_eq!(established.facts().version, version.version);
    }
}

#[tokio::test]
async fn mutual_proves_the_client_too() {
    let authority = Authority::new();
    let demanding = || {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()));
        let (chain, key) = authority.issue(&Leaf::of(vec![dns("a.example")]));
        ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap()
    };
    let own =
        || authority.issue(&Leaf { usage: ExtendedKeyUsagePurpose::ClientAuth, ..Leaf::of(vec![dns("me")]) });
    let mutual = originator(OriginatorParts { client: Some(own()), ..parts(&authority) });
    assert_eq!(label(&meet(&mutual, "a.example", demanding()).await.0), "ok");
    assert_eq!(label(&meet(&originator(parts(&authority)), "a.example", demanding()).await.0), "peer_alert");
    let ((chain, _), (_, other_key)) = (own(), own());
    let mixed = Originator::new(OriginatorParts { client: Some((chain, other_key)), ..parts(&authority) });
    assert!(mixed.unwrap_err().contains("certificate and key cannot be used"));
}

#[tokio::test]
async fn a_live_servers_belief_follows_the_rule() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let leaf = Leaf::of(vec![dns("a.example")]);
    let (result, _) = meet(&originator(parts(&authority)), "a.example", server(&authority, &leaf)).await;
    let established = result.unwrap();
    let Proven::Server(proven) = established.proven() else { panic!("it is a server") };
    let again = |parts: OriginatorParts, name: &'static str| {
        let name = ServerName::try_from(name).unwrap();
        let verdict = originator(parts).verify_live(proven, &name);
        verdict.map_or_else(|error| error.label(), |()| "ok")
    };
    assert_eq!(again(parts(&authority), "a.example"), "ok");
    assert_eq!(again(parts(&authority), "b.example"), "wrong_name");
    assert_eq!(again(parts(&stranger), "a.example"), "unknown_authority");
}
