//! What was taken back is believed by nobody who has the lists.

use rustls_pki_types::pem::PemObject;
use x509_parser::{prelude::*, revocation_list::CertificateRevocationList};

use super::*;

#[tokio::test]
async fn a_certificate_is_taken_back_by_its_serial_number() {
    for intermediates in [false, true] {
        let fixture = Fixture::new(|settings| settings.intermediates = intermediates);
        let (bad, good) = (fixture.svid("bad").await, fixture.svid("good").await);
        let before = fixture.authority.trust().borrow().clone();
        let pairs: Vec<_> = bad.serial.as_bytes().chunks(2).map(String::from_utf8_lossy).collect();
        let colons = pairs.join(":");
        let what = Revoke::Serial(colons.to_uppercase());
        let revoked = fixture.authority.revoke(what, Reason::KeyCompromise).await.unwrap();
        assert_eq!(revoked.serials, std::slice::from_ref(&bad.serial));
        let now = fixture.authority.trust().borrow().clone();
        assert!(now.version > before.version && now.version == revoked.version);
        assert!(matches!(verify(&now.bundles, &bad.chain), Err(VerifyError::Revoked(_))));
        verify(&now.bundles, &good.chain).unwrap();
        let lists = fixture.authority.crl_pem();
        let (believed, said) = openssl_verify(&now.bundles, &lists, &bad.chain);
        assert!(!believed && said.contains("certificate revoked"), "{said}");
        let (believed, said) = openssl_verify(&now.bundles, &lists, &good.chain);
        assert!(believed, "{said}");
        assert_eq!(fixture.authority.status().unwrap().revoked, 1);
    }
}

#[tokio::test]
async fn a_list_is_what_rfc_5280_asks_for() {
    let fixture = Fixture::new(|_| {});
    let number = |authority: &Authority| {
        let trust = authority.trust().borrow().clone();
        let pem = authority.crl_pem();
        let list = rustls_pki_types::CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (rest, parsed) = CertificateRevocationList::from_der(&list).unwrap();
        assert!(rest.is_empty() && parsed.next_update().is_some());
        let root = trust.bundles.roots[&TrustDomain::cluster_local()][0].clone();
        let (_, root) = X509Certificate::from_der(&root).unwrap();
        parsed.verify_signature(root.public_key()).unwrap();
        let identifiers = |extensions: &[X509Extension<'_>]| {
            extensions.iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
        };
        assert_eq!(identifiers(parsed.extensions()), identifiers(root.extensions()));
        let reasons: Vec<_> = parsed
            .iter_revoked_certificates()
            .map(|entry| entry.reason_code().map(|(_, reason)| reason.0))
            .collect();
        (parsed.crl_number().cloned().unwrap(), reasons)
    };
    let (first, none) = number(&fixture.authority);
    assert!(none.is_empty());
    let svid = fixture.svid("web").await;
    fixture.authority.revoke(Revoke::Serial(svid.serial), Reason::PrivilegeWithdrawn).await.unwrap();
    let (second, reasons) = number(&fixture.authority);
    assert!(second > first);
    assert_eq!(reasons, [Some(9)]);
    assert!(!fixture.due_at(now() + 43_000), "it is not half through its life");
    assert!(fixture.due_at(now() + 43_300));
    let (third, reasons) = number(&fixture.authority);
    assert!(third > second && reasons.len() == 1);
    fixture.due_at(now() + 3 * 86_400);
    fixture.due_at(now() + 5 * 86_400);
    assert!(number(&fixture.authority).1.is_empty(), "what ended long ago is not listed");
}

#[tokio::test]
async fn an_identity_is_taken_back_and_may_come_again() {
    let fixture = Fixture::new(|settings| settings.intermediates = true);
    let authority = &fixture.authority;
    let first = fixture.svid("bad").await;
    authority.rotate(Kind::Intermediate).await.unwrap();
    authority.advance(Kind::Intermediate, false).await.unwrap();
    let (second, good) = (fixture.svid("bad").await, fixture.svid("good").await);
    let what = Revoke::Identity { id: id("bad"), block: false };
    let revoked = authority.revoke(what, Reason::Unspecified).await.unwrap();
    assert_eq!(revoked.serials.len(), 2, "of two issuers");
    for svid in [&first, &second] {
        assert!(verify(&fixture.bundles(), &svid.chain).is_err());
    }
    verify(&fixture.bundles(), &good.chain).unwrap();
    verify(&fixture.bundles(), &fixture.svid("bad").await.chain).expect("it was not blocked");

    let what = Revoke::Identity { id: id("bad"), block: true };
    let replica = fixture.replica();
    assert_eq!(authority.revoke(what.clone(), Reason::Unspecified).await.unwrap().serials.len(), 1);
    assert!(authority.revoke(what, Reason::Unspecified).await.unwrap().serials.is_empty());
    for authority in [authority, &replica] {
        assert!(matches!(authority.issue(&id("bad")).await, Err(CaError::Blocked(_))));
        authority.issue(&id("good")).await.unwrap();
    }
    assert_eq!(authority.status().unwrap().blocked, [id("bad").to_string()]);
    assert!(authority.unblock(&id("bad")).await.unwrap());
    assert!(!authority.unblock(&id("bad")).await.unwrap());
    replica.issue(&id("bad")).await.unwrap();
}

#[tokio::test]
async fn an_issuer_is_taken_back_once_another_signs() {
    let fixture = Fixture::new(|settings| settings.intermediates = true);
    let authority = &fixture.authority;
    let old = fixture.svid("old").await;
    let serial = rows::hex(rows::parse(&old.chain[1]).unwrap().raw_serial());
    authority
        .revoke(Revoke::Issuer { serial: serial.clone(), force: false }, Reason::CaCompromise)
        .await
        .unwrap();
    let new = fixture.svid("new").await;
    assert!(matches!(verify(&fixture.bundles(), &old.chain), Err(VerifyError::Revoked(_))));
    verify(&fixture.bundles(), &new.chain).unwrap();
    let lists = authority.crl_pem();
    assert!(openssl_verify(&fixture.bundles(), &lists, &new.chain).0);
    let (believed, said) = openssl_verify(&fixture.bundles(), &lists, &old.chain[1..]);
    assert!(!believed && said.contains("certificate revoked"), "{said}");
    let again = authority.revoke(Revoke::Issuer { serial, force: false }, Reason::CaCompromise).await;
    assert!(again.is_err(), "it is gone already");
    let root = rows::hex(
        rows::parse(&fixture.bundles().roots[&TrustDomain::cluster_local()][0]).unwrap().raw_serial(),
    );
    let error = authority
        .revoke(Revoke::Issuer { serial: root, force: false }, Reason::CaCompromise)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("rotate root"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_taken_back_says_why_and_changes_nothing() {
    let fixture = Fixture::new(|_| {});
    let before = fixture.authority.trust().borrow().clone();
    for serial in ["00", "zz", ""] {
        let what = Revoke::Serial(serial.to_owned());
        let error = fixture.authority.revoke(what, Reason::Unspecified).await.unwrap_err().to_string();
        assert!(error.contains("register"), "{error}");
    }
    assert_eq!(*fixture.authority.trust().borrow(), before);
    let other = "spiffe://cluster.local/ns/shop/sa/never".parse().unwrap();
    let none =
        fixture.authority.revoke(Revoke::Identity { id: other, block: false }, Reason::Unspecified).await;
    assert!(none.unwrap().serials.is_empty());
}

#[tokio::test]
async fn an_issuer_of_nodes_is_not_taken_back_unless_told_what_that_means() {
    let fixture = Fixture::new(|settings| settings.intermediates = true);
    let authority = &fixture.authority;
    let node: SpiffeId = "spiffe://cluster.local/node/n1".parse().unwrap();
    let (own, workload) = (authority.issue(&node).await.unwrap(), fixture.svid("web").await);
    authority.issue(&node).await.unwrap();
    let serial = rows::hex(rows::parse(&own.chain[1]).unwrap().raw_serial());
    let revoke =
        |force| authority.revoke(Revoke::Issuer { serial: serial.clone(), force }, Reason::Superseded);
    let before = authority.trust().borrow().clone();
    let error = revoke(false).await.unwrap_err().to_string();
    assert!(error.contains("1 nodes") && error.contains("rotate intermediate"), "{error}");
    assert_eq!(*authority.trust().borrow(), before, "nothing happened");
    verify(&fixture.bundles(), &own.chain).unwrap();

    // the way without join tokens
    authority.rotate(Kind::Intermediate).await.unwrap();
    authority.advance(Kind::Intermediate, false).await.unwrap();
    let renewed = authority.issue(&node).await.unwrap();
    for chain in [&own.chain, &workload.chain, &renewed.chain] {
        verify(&fixture.bundles(), chain).unwrap();
    }
    assert_ne!(renewed.chain[1], own.chain[1]);

    revoke(true).await.unwrap();
    assert!(matches!(verify(&fixture.bundles(), &own.chain), Err(VerifyError::Revoked(_))));
    verify(&fixture.bundles(), &renewed.chain).unwrap();
}
