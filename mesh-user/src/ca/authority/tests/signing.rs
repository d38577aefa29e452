//! What is signed: what was decided, never what a CSR asks for.

use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::*;
use crate::ca::csr::CsrError;

#[tokio::test]
async fn a_leaf_is_of_the_request_and_the_csrs_key_alone() {
    let fixture = Fixture::new(|_| {});
    let key = KeyPair::generate().unwrap();
    let mut asked = CertificateParams::new(["admin.example".to_owned()]).unwrap();
    asked
        .subject_alt_names
        .push(SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap()));
    asked.distinguished_name.push(rcgen::DnType::CommonName, "admin");
    asked.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    asked.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let csr = Csr::from_pem(&asked.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
    let signed = fixture.authority.sign(request("web", csr)).await.unwrap();

    let (_, leaf) = X509Certificate::from_der(&signed.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert_eq!(names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 1, "digitalSignature only");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.code_signing);
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    assert_eq!(leaf.raw_serial().len(), 16);
    assert_eq!(signed.serial, rows::hex(leaf.raw_serial()));
    assert_eq!(signed.roots, fixture.bundles().roots[&TrustDomain::cluster_local()]);
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert!((86_459..=86_461).contains(&life), "a day and a minute: {life}");
}

#[tokio::test]
async fn each_kind_of_key_is_certified_and_believed() {
    let fixture = Fixture::new(|settings| settings.intermediates = true);
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let signed = fixture.authority.sign(request("web", csr(algorithm))).await.unwrap();
        assert_eq!(signed.chain.len(), 2, "leaf and intermediate");
        verify(&fixture.bundles(), &signed.chain).unwrap_or_else(|e| panic!("{algorithm:?}: {e}"));
        let (believed, said) =
            openssl_verify(&fixture.bundles(), &fixture.authority.crl_pem(), &signed.chain);
        assert!(believed, "{algorithm:?}: {said}");
    }
}

#[tokio::test]
async fn keys_that_policy_excludes_and_other_domains_are_refused() {
    let fixture = Fixture::new(|settings| {
        settings.key_kinds = [KeyKind::EcdsaP256, KeyKind::Rsa].into();
        settings.max_rsa_bits = 2047;
    });
    for (algorithm, what) in
        [(&rcgen::PKCS_ED25519, "Ed25519 keys"), (&rcgen::PKCS_RSA_SHA256, "RSA keys of more than 2047 bits")]
    {
        let error = fixture.authority.sign(request("web", csr(algorithm))).await.unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("keyKinds"), "{error}");
    }
    for other in ["spiffe://other/ns/a/sa/b", "spiffe://cluster.local"] {
        let id = other.parse().unwrap();
        let csr = csr(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert!(
            fixture.authority.sign(SigningRequest { id, ..request("web", csr) }).await.is_err(),
            "{other}"
        );
    }
    assert_eq!(fixture.authority.status().unwrap().certificates, 0);
}

#[test]
fn a_csr_of_a_weak_key_or_one_without_proof_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (bits, refused) in [("1024", true), ("2048", false)] {
        let path = folder.path().join("key.pem");
        let made = Command::new("openssl")
            .args(["req", "-new", "-newkey", &format!("rsa:{bits}"), "-nodes", "-subj", "/CN=x", "-keyout"])
            .arg(path)
            .output()
            .unwrap();
        let outcome = Csr::from_pem(std::str::from_utf8(&made.stdout).unwrap());
        match outcome {
            Ok(csr) => assert!(!refused && csr.key_kind() == KeyKind::Rsa, "{bits}"),
            Err(error) => {
                assert!(refused && matches!(error, CsrError::Key(_)), "{bits}: {error}");
                assert!(error.to_string().contains("RSA of 1024 bits"), "{error}");
            }
        }
    }
    let key = KeyPair::generate().unwrap();
    let mut der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert_eq!(Csr::from_der(&der).unwrap_err(), CsrError::NotPossessed);
    assert_eq!(Csr::from_der(&vec![0; 17_000]).unwrap_err(), CsrError::TooLong);
}

#[tokio::test]
async fn a_life_is_bounded_by_the_ceiling_and_by_the_issuer() {
    let fixture = Fixture::new(|settings| settings.root_lifetime = Duration::from_secs(7200));
    let csr = csr(&rcgen::PKCS_ECDSA_P256_SHA256);
    let lifetimes = [
        (Some(60), 60, "as asked for"),
        (Some(3600), 3600, "as asked for"),
        (None, 7200, "the default, but not past the issuer"),
        (Some(1_000_000), 7200, "the ceiling, but not past the issuer"),
        (Some(0), 1, "at least a second"),
    ];
    for (lifetime, expected, why) in lifetimes {
        let lifetime = lifetime.map(Duration::from_secs);
        let signed =
            fixture.authority.sign(SigningRequest { lifetime, ..request("web", csr.clone()) }).await.unwrap();
        let life = (signed.not_after - signed.not_before).whole_seconds() - 60;
        assert!((expected - 3..=expected + 1).contains(&life), "{why}: {life}");
    }
}

#[tokio::test]
async fn what_is_returned_is_in_the_register() {
    let fixture = Fixture::new(|_| {});
    let mut asked = request("web", csr(&rcgen::PKCS_ECDSA_P256_SHA256));
    asked.node = Some("node-a".into());
    let signed = fixture.authority.sign(asked).await.unwrap();
    let found: (String, i64, String, String) = fixture
        .replica()
        .state()
        .read(|c| {
            let sql = "SELECT spiffe_id, not_after, caller, node FROM issued WHERE serial = ?1";
            c.query_row(sql, [&signed.serial], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        })
        .unwrap();
    let expected =
        (id("web").to_string(), signed.not_after.unix_timestamp(), "a test".to_owned(), "node-a".to_owned());
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_service_gets_the_names_that_its_clients_look_for() {
    let fixture = Fixture::new(|_| {});
    let names = ["ca.meshd.svc".to_owned()];
    let svid = fixture.authority.own_svid(&id("ca"), &names).await.unwrap();
    verify(&fixture.bundles(), &svid.chain).unwrap();
    let (_, leaf) = X509Certificate::from_der(&svid.chain[0]).unwrap();
    let all = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert_eq!(
        all,
        [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/ca"), GeneralName::DNSName("ca.meshd.svc")]
    );
    let many = vec!["a.example".to_owned(); 33];
    assert!(fixture.authority.own_svid(&id("ca"), &many).await.is_err());
}

#[tokio::test]
async fn keys_are_not_shown() {
    let fixture = Fixture::new(|_| {});
    let key = std::fs::read_to_string(fixture.directory().join("ca.key")).unwrap();
    let shown = format!("{:?} {:?}", fixture.authority, fixture.authority.0.view.load());
    let inside = key.lines().nth(1).unwrap();
    assert!(!shown.contains(inside));
    let state = std::fs::read(fixture.directory().join("state.db")).unwrap();
    assert!(!state.windows(8).any(|window| window == b"PRIVATE "));
}

/// Certificates per second of one thread that waits for each, of 64 that wait together, and without the disk.
#[tokio::test]
#[ignore = "a measurement: run it by name with --nocapture"]
async fn certificates_per_second() {
    const COUNT: u32 = 2000;
    let fixture = Fixture::new(|settings| settings.intermediates = true);
    let csr = csr(&rcgen::PKCS_ECDSA_P256_SHA256);
    let cpu = || -> Duration {
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
    };
    for together in [1_u32, 64, 256] {
        let (began, cpu_began) = (std::time::Instant::now(), cpu());
        let count = if together == 1 { 200 } else { COUNT };
        let mut left = count;
        while left > 0 {
            let batch = left.min(together);
            let all = (0..batch).map(|_| fixture.authority.sign(request("web", csr.clone())));
            assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
            left -= batch;
        }
        let (wall, cpu) = (began.elapsed(), cpu().saturating_sub(cpu_began));
        let (count, per) = (f64::from(count), |time: Duration| f64::from(count) / time.as_secs_f64());
        println!("{together} together: {:.0}/s, {:.0}/s of CPU ({count} certificates)", per(wall), per(cpu));
    }
    let view = fixture.authority.0.view.load();
    let key = fixture.authority.accept(&csr).unwrap();
    let web = id("web");
    let day = Duration::from_secs(86_400);
    let terms = leaf::Terms { id: &web, dns_names: &[], lifetime: day, backdate: day };
    let began = std::time::Instant::now();
    for _ in 0..COUNT {
        leaf::sign(view.signer.issuer(), &key, &terms).unwrap();
    }
    println!("signing alone: {:.0}/s", f64::from(COUNT) / began.elapsed().as_secs_f64());
}
