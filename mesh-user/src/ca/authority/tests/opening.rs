//! What a folder may hold, and what becomes of it.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt};

use super::*;
use crate::ca::{OwnBundle, files, tests::Operators};

#[test]
fn of_several_that_find_an_empty_folder_one_makes_the_root() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ca");
    let open = || Authority::open(settings(&directory)).unwrap().trust().borrow().bundles.roots.clone();
    let roots: Vec<_> = std::thread::scope(|scope| {
        let opening: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
        opening.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(roots.windows(2).all(|two| two[0] == two[1]));
    assert_eq!(roots[0][&TrustDomain::cluster_local()].len(), 1);
}

#[tokio::test]
async fn another_nodes_intermediate_shares_the_trust_and_can_be_revoked() {
    let fixture = Fixture::new(|_| {});
    let out = fixture.folder.path().join("other");
    fixture.authority.issue_intermediate(&out).unwrap();
    assert!(fixture.authority.issue_intermediate(&out).is_err(), "never over another CA");
    let mode = std::fs::metadata(out.join("intermediate.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let other = Authority::open(settings(&out)).unwrap();
    let svid = other.issue(&id("db")).await.unwrap();
    assert_eq!(svid.chain.len(), 2);
    verify(&fixture.bundles(), &svid.chain).unwrap();
    assert_eq!(other.trust().borrow().bundles.roots, fixture.bundles().roots);
    assert!(
        other.crl_pem().is_empty(),
        "its name may be another's too, so it has no list until it needs one"
    );
    for kind in [Kind::Root, Kind::Intermediate] {
        let error = other.rotate(kind).await.unwrap_err().to_string();
        assert!(error.contains("plugged in"), "{error}");
    }
    assert!(other.issue_intermediate(&fixture.folder.path().join("third")).is_err());

    let serial = rows::hex(rows::parse(&svid.chain[1]).unwrap().raw_serial());
    fixture.authority.revoke(Revoke::Issuer { serial, force: false }, Reason::CaCompromise).await.unwrap();
    assert!(matches!(verify(&fixture.bundles(), &svid.chain), Err(VerifyError::Revoked(_))));
}

#[tokio::test]
async fn plugged_in_files_sign_at_every_depth() {
    for depth in 0..=2 {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("cacerts");
        let operators = Operators::new(depth, &rcgen::PKCS_ECDSA_P256_SHA256, |_| {});
        operators.plug_in(&directory);
        let authority = Authority::open(settings(&directory)).unwrap();
        let svid = authority.issue(&id("web")).await.unwrap();
        assert_eq!(svid.chain.len(), depth + 1);
        verify(&authority.trust().borrow().bundles, &svid.chain).unwrap();
        assert!(!directory.join("ca.crt").exists());
        let error = authority.revoke(Revoke::Serial(svid.serial), Reason::Unspecified).await.unwrap_err();
        assert!(error.to_string().contains("lacks cRLSign"), "its certificate says so: {error}");
    }
}

#[test]
fn what_nobody_would_believe_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("cacerts");
    let clients: crate::ca::tests::Change =
        |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    Operators::new(1, &rcgen::PKCS_ECDSA_P256_SHA256, clients).plug_in(&directory);
    let error = Authority::open(settings(&directory)).unwrap_err().to_string();
    assert!(error.contains("extended key usage") && error.contains("ca-cert.pem"), "{error}");

    let own = folder.path().join("ca");
    drop(Authority::open(settings(&own)).unwrap());
    std::fs::set_permissions(own.join("ca.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = Authority::open(settings(&own)).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::remove_file(own.join("ca.key")).unwrap();
    let error = Authority::open(settings(&own)).unwrap_err().to_string();
    assert!(error.contains("ca.key") && error.contains("restore it"), "{error}");
}

/// An operator's root, an authority below it, and that one's key.
fn generation(name: &'static str) -> (rcgen::Certificate, rcgen::Certificate, KeyPair) {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params
    };
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = authority(&format!("root {name}")).self_signed(&root_key).unwrap();
    let issuer = rcgen::Issuer::new(authority(&format!("root {name}")), root_key);
    let between = authority(&format!("between {name}")).signed_by(&key, &issuer).unwrap();
    (root, between, key)
}

fn put(directory: &Path, roots: &[&rcgen::Certificate], between: &rcgen::Certificate, key: &KeyPair) {
    files::open_directory(directory).unwrap();
    let roots: String = roots.iter().map(|root| root.pem()).collect();
    files::write(directory, "root-cert.pem", roots.as_bytes(), 0o644).unwrap();
    files::write(directory, "ca-cert.pem", between.pem().as_bytes(), 0o644).unwrap();
    files::write(directory, "ca-key.pem", key.serialize_pem().as_bytes(), 0o600).unwrap();
}

#[tokio::test]
async fn plugged_in_files_are_replaced_without_a_certificate_that_nobody_believes() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("cacerts");
    let (one, two) = (generation("one"), generation("two"));
    put(&directory, &[&one.0], &one.1, &one.2);
    let authority = Authority::open(AuthoritySettings {
        automatic: true,
        propagation: Duration::from_secs(3600),
        ..settings(&directory)
    })
    .unwrap();
    let fixture = Fixture { folder, authority };
    let roots = || fixture.bundles().roots[&TrustDomain::cluster_local()].len();
    let old = fixture.svid("old").await;
    let version = fixture.authority.trust().borrow().version;

    // both roots and the new key at once: trusted at once, used later
    put(&directory, &[&one.0, &two.0], &two.1, &two.2);
    fixture.authority.do_due().await.unwrap();
    assert_eq!(roots(), 2);
    assert!(fixture.authority.trust().borrow().version > version);
    let meanwhile = fixture.svid("meanwhile").await;
    assert_eq!(meanwhile.chain[1], old.chain[1], "the new root is not known to all yet");
    assert!(fixture.authority.advance(Kind::Intermediate, false).await.is_err());
    fixture.authority.advance(Kind::Intermediate, true).await.unwrap();
    let new = fixture.svid("new").await;
    assert_ne!(new.chain[1], old.chain[1]);

    // what the old one signed can still be taken back
    fixture.authority.revoke(Revoke::Serial(old.serial), Reason::KeyCompromise).await.unwrap();
    assert!(verify(&fixture.bundles(), &old.chain).is_err());
    verify(&fixture.bundles(), &meanwhile.chain).unwrap();

    // the old root is out of the files, but not out of use
    put(&directory, &[&two.0], &two.1, &two.2);
    fixture.authority.do_due().await.unwrap();
    assert_eq!(roots(), 2);
    verify(&fixture.bundles(), &meanwhile.chain).unwrap();
    assert!(fixture.due_at(now() + 90_000));
    assert_eq!(roots(), 1);
    assert!(verify(&fixture.bundles(), &meanwhile.chain).is_err());
    verify(&fixture.bundles(), &new.chain).unwrap();
    assert!(directory.join("ca-key.pem").exists(), "the operator's files are the operator's");
}

#[tokio::test]
async fn files_that_were_replaced_while_nobody_ran_sign_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("cacerts");
    let (one, two) = (generation("one"), generation("two"));
    put(&directory, &[&one.0], &one.1, &one.2);
    let old = Authority::open(settings(&directory)).unwrap().issue(&id("old")).await.unwrap();
    put(&directory, &[&one.0, &two.0], &two.1, &two.2);
    let authority = Authority::open(settings(&directory)).unwrap();
    let svid = authority.issue(&id("new")).await.unwrap();
    let bundles = authority.trust().borrow().bundles.clone();
    for chain in [&old.chain, &svid.chain] {
        verify(&bundles, chain).unwrap();
    }
    assert_eq!(svid.chain[1], *two.1.der());

    // looked at while the old key was still in memory, and started anew before it was time
    let other = folder.path().join("other");
    put(&other, &[&one.0], &one.1, &one.2);
    let running = Authority::open(settings(&other)).unwrap();
    put(&other, &[&one.0, &two.0], &two.1, &two.2);
    running.do_due().await.unwrap();
    assert_eq!(running.issue(&id("web")).await.unwrap().chain[1], *one.1.der());
    drop(running);
    let again = Authority::open(settings(&other)).unwrap();
    assert_eq!(again.issue(&id("web")).await.unwrap().chain[1], *two.1.der());
}

#[tokio::test]
async fn plugged_in_files_may_be_in_a_folder_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, material) = (folder.path().join("ca"), folder.path().join("cacerts"));
    let one = generation("one");
    put(&material, &[&one.0], &one.1, &one.2);
    let settings = || AuthoritySettings { plugged_in: Some(material.clone()), ..settings(&directory) };
    for _ in 0..2 {
        let authority = Authority::open(settings()).unwrap();
        verify(&authority.trust().borrow().bundles, &authority.issue(&id("web")).await.unwrap().chain)
            .unwrap();
    }
    let names: BTreeSet<_> = std::fs::read_dir(&material).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "nothing is written there: {names:?}");
    std::fs::remove_dir_all(&material).unwrap();
    std::fs::create_dir(&material).unwrap();
    let error = Authority::open(settings()).unwrap_err().to_string();
    assert!(error.contains("restore them"), "{error}");
}

#[tokio::test]
async fn broken_plugged_in_files_leave_the_ca_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("cacerts");
    let (one, two) = (generation("one"), generation("two"));
    put(&directory, &[&one.0], &one.1, &one.2);
    let authority = Authority::open(settings(&directory)).unwrap();
    let before = authority.trust().borrow().clone();
    put(&directory, &[&one.0, &two.0], &two.1, &one.2);
    let error = authority.do_due().await.unwrap_err().to_string();
    assert!(error.contains("does not belong to its key"), "{error}");
    assert_eq!(*authority.trust().borrow(), before);
    verify(&before.bundles, &authority.issue(&id("web")).await.unwrap().chain).unwrap();
}

#[tokio::test]
async fn the_bundle_of_the_folder_is_what_is_trusted() {
    let fixture = Fixture::new(|_| {});
    fixture.authority.rotate(Kind::Root).await.unwrap();
    fixture.authority.advance(Kind::Root, false).await.unwrap();
    let bundle = OwnBundle::read(fixture.directory()).unwrap();
    assert_eq!(bundle.roots(), fixture.bundles().roots[&TrustDomain::cluster_local()]);
    assert_eq!(bundle.roots().len(), 2);
}
