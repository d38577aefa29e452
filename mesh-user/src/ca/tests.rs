//! Certificates as a verifier sees them, and what the CA refuses to start with.

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{extensions::GeneralName, prelude::*};

use super::{
    authority::{Authority, AuthoritySettings},
    signing::CertificateAuthority as _,
    *,
};
use crate::identity::{Svid, TrustBundles, TrustDomain};

fn open(directory: &Path) -> Result<Authority, CaError> {
    Authority::open(AuthoritySettings::new(directory.to_owned(), TrustDomain::cluster_local()))
}

/// Opens the folder as if there had been no state yet: what counts are its files.
fn open_anew(directory: &Path) -> Result<Authority, CaError> {
    // Who had it open closes it in its own time.
    let folder = std::fs::File::open(directory).unwrap();
    let is_free = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        folder.try_lock().is_ok()
    });
    assert!(is_free, "the state is open still");
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        match std::fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{name}: {error}"),
            _ => {}
        }
    }
    drop(folder);
    open(directory)
}

fn bundles(ca: &Authority) -> TrustBundles {
    ca.trust().borrow().bundles.clone()
}

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn verifies(svid: &Svid, roots: &[CertificateDer<'static>]) -> bool {
    let anchors: Vec<_> = roots.iter().map(|r| webpki::anchor_from_trusted_cert(r).unwrap()).collect();
    let leaf = EndEntityCert::try_from(&svid.chain[0]).unwrap();
    [KeyUsage::client_auth(), KeyUsage::server_auth()].into_iter().all(|usage| {
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        leaf.verify_for_usage(algorithms, &anchors, &svid.chain[1..], UnixTime::now(), usage, None, None)
            .is_ok()
    })
}

#[tokio::test]
async fn the_first_start_creates_a_root_that_the_next_start_uses() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("state/ca");
    let first = open(&directory).unwrap();
    assert_eq!((mode(&directory), mode(&directory.join("ca.key"))), (0o700, 0o600));
    let roots = bundles(&first).roots;
    let must_continue = async |second: &Authority| {
        assert_eq!(roots, bundles(second).roots);
        let svid = second.issue(&id("web")).await.unwrap();
        assert!(verifies(&svid, &roots[&TrustDomain::cluster_local()]));
    };
    let beside = open(&directory).unwrap();
    must_continue(&beside).await;
    drop((first, beside));
    must_continue(&open_anew(&directory).unwrap()).await;
    let mut names: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| !name.starts_with("state.db"));
    names.sort();
    assert_eq!(names, ["ca.crt", "ca.key"]);
}

#[tokio::test]
async fn an_svid_is_what_the_standard_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(&folder.path().join("ca")).unwrap();
    let svid = ca.issue(&id("web")).await.unwrap();
    let (_, leaf) = X509Certificate::from_der(&svid.chain[0]).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical && leaf.subject().iter().count() == 0);
    assert_eq!(san.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
    assert!(!leaf.is_ca() && leaf.basic_constraints().unwrap().is_some());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature only");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert!((86_459..=86_461).contains(&life), "{life}");
    assert_eq!(leaf.raw_serial().len(), 16);
    assert_eq!(svid.serial.len(), 32);
    assert_ne!(svid.serial, ca.issue(&id("web")).await.unwrap().serial);
    assert_eq!(svid.chain.len(), 1);
    assert_eq!(svid.key.algorithm(), rustls::SignatureAlgorithm::ECDSA);
}

#[tokio::test]
async fn nothing_outlives_its_issuer() {
    let folder = tempfile::tempdir().unwrap();
    let long = Duration::from_secs(20 * 365 * 86_400);
    let settings = AuthoritySettings::new(folder.path().join("ca"), TrustDomain::cluster_local());
    let ca = Authority::open(AuthoritySettings { lifetime: long, max_lifetime: long, ..settings }).unwrap();
    assert!(ca.issue(&id("web")).await.unwrap().not_after <= ca.not_after());
}

#[tokio::test]
async fn another_trust_domain_is_not_signed_for() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(&folder.path().join("ca")).unwrap();
    assert!(ca.issue(&"spiffe://other/ns/a/sa/b".parse().unwrap()).await.is_err());
}

#[test]
fn unsafe_or_broken_files_are_refused_with_the_remedy() {
    type Break = fn(&Path);
    let cases: [(&str, Break); 9] = [
        ("chmod 600", |d| chmod(&d.join("ca.key"), 0o640)),
        ("chmod 600", |d| chmod(&d.join("ca.key"), 0o604)),
        ("chmod 700", |d| chmod(d, 0o750)),
        ("could have written it", |d| chmod(&d.join("ca.crt"), 0o666)),
        ("symbolic link", |d| {
            std::fs::rename(d.join("ca.key"), d.join("real")).unwrap();
            symlink(d.join("real"), d.join("ca.key")).unwrap();
        }),
        ("restore ca.crt", |d| std::fs::remove_file(d.join("ca.crt")).unwrap()),
        ("nothing to sign with", |d| std::fs::remove_file(d.join("ca.key")).unwrap()),
        ("no private key", |d| std::fs::write(d.join("ca.key"), "x").unwrap()),
        ("belong to its key", |d| {
            let other = d.with_file_name("other");
            open(&other).unwrap();
            std::fs::copy(other.join("ca.crt"), d.join("ca.crt")).unwrap();
        }),
    ];
    for (what, break_it) in cases {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("ca");
        open(&directory).unwrap();
        break_it(&directory);
        let error = open_anew(&directory).unwrap_err().to_string();
        assert!(error.contains(what), "expected {what:?} in {error:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    open(&folder.path().join("ca")).unwrap();
    symlink(folder.path().join("ca"), folder.path().join("link")).unwrap();
    assert!(open(&folder.path().join("link")).unwrap_err().to_string().contains("symbolic link"));
}

#[test]
fn a_first_start_that_crashed_is_finished_or_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ca");
    let roots = |ca: Authority| bundles(&ca).roots;
    let first = roots(open(&directory).unwrap());
    let (key, staged_key) = (directory.join("ca.key"), directory.join(".ca.key.new"));
    let (certificate, staged_certificate) = (directory.join("ca.crt"), directory.join(".ca.crt.new"));

    std::fs::rename(&key, &staged_key).unwrap();
    assert_eq!(roots(open_anew(&directory).unwrap()), first, "certificate in place, key not yet");
    assert!(!staged_key.exists() && key.exists());

    std::fs::rename(&key, &staged_key).unwrap();
    std::fs::rename(&certificate, &staged_certificate).unwrap();
    assert_ne!(roots(open_anew(&directory).unwrap()), first, "nothing was in place: a new root");
    assert!(!staged_key.exists() && !staged_certificate.exists());

    open(&folder.path().join("other")).unwrap();
    std::fs::remove_file(&key).unwrap();
    std::fs::rename(folder.path().join("other/ca.key"), &staged_key).unwrap();
    let error = open_anew(&directory).unwrap_err().to_string();
    assert!(error.contains("nothing to sign with"), "another certificate's key is not taken: {error}");
}

/// A CA as an operator has it: a root, what is between, and a key that signs.
pub(super) struct Operators {
    pub(super) root: rcgen::Certificate,
    between: Vec<rcgen::Certificate>,
    key: rcgen::KeyPair,
}

pub(super) type Change = fn(&mut rcgen::CertificateParams);

impl Operators {
    /// `depth` CAs below the root, the last of them with `change`.
    pub(super) fn new(depth: usize, algorithm: &'static rcgen::SignatureAlgorithm, change: Change) -> Self {
        let authority = |name: &str| {
            let mut params = rcgen::CertificateParams::new([]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
            params
        };
        let mut key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let mut params = authority("root");
        let root = params.self_signed(&key).unwrap();
        let mut between = Vec::new();
        for level in 0..depth {
            let issuer = rcgen::Issuer::new(params, key);
            params = authority(&format!("ca {level}"));
            if level + 1 == depth {
                change(&mut params);
            }
            key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            between.insert(0, params.signed_by(&key, &issuer).unwrap());
        }
        Self { root, between, key }
    }

    /// The files of Istio's secret `cacerts`.
    pub(super) fn plug_in(&self, directory: &Path) {
        files::open_directory(directory).unwrap();
        let between: Vec<_> = self.between.iter().map(rcgen::Certificate::pem).collect();
        let chain = between.concat() + &self.root.pem();
        let key = self.key.serialize_pem();
        for (name, content, mode) in [
            ("root-cert.pem", &self.root.pem(), 0o644),
            ("ca-cert.pem", &between.first().cloned().unwrap_or_else(|| self.root.pem()), 0o644),
            ("ca-key.pem", &key, 0o600),
            ("cert-chain.pem", &chain, 0o644),
        ] {
            files::write(directory, name, content.as_bytes(), mode).unwrap();
        }
    }
}

fn unchanged(_: &mut rcgen::CertificateParams) {}

#[tokio::test]
async fn a_ca_in_istios_files_signs_and_sends_what_is_between() {
    let algorithms = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ];
    for (depth, algorithm) in
        (0..=3).zip(algorithms).chain([(1, &rcgen::PKCS_RSA_SHA256), (2, &rcgen::PKCS_ECDSA_P256_SHA256)])
    {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("cacerts");
        let operators = Operators::new(depth, algorithm, unchanged);
        operators.plug_in(&directory);
        let ca = open(&directory).unwrap_or_else(|error| panic!("{depth} {algorithm:?}: {error}"));
        let svid = ca.issue(&id("web")).await.unwrap();
        assert_eq!(svid.chain.len(), depth + 1, "{algorithm:?}: never the root");
        let roots = [operators.root.der().clone()];
        assert_eq!(bundles(&ca).roots[&TrustDomain::cluster_local()], roots);
        assert!(verifies(&svid, &roots), "{depth} {algorithm:?}");
        assert!(!directory.join("ca.crt").exists());
    }
}

#[test]
fn a_ca_whose_svids_nobody_would_believe_does_not_start() {
    let far = |params: &mut rcgen::CertificateParams| params.not_before = rcgen::date_time_ymd(4000, 1, 1);
    let elsewhere = |params: &mut rcgen::CertificateParams| {
        let permitted_subtrees = vec![rcgen::GeneralSubtree::DnsName("example.org".to_owned())];
        params.name_constraints =
            Some(rcgen::NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    };
    let no_signer =
        |params: &mut rcgen::CertificateParams| params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let clients = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    };
    let changes: [(&str, Change); 3] =
        [("not valid now", far), ("keyCertSign", no_signer), ("extended key usage", clients)];
    for (what, change) in changes {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("cacerts");
        Operators::new(1, &rcgen::PKCS_ECDSA_P256_SHA256, change).plug_in(&directory);
        let error = open(&directory).unwrap_err().to_string();
        let named = error.contains("ca-cert.pem") || error.contains("CN=ca 0");
        assert!(error.contains(what) && named, "expected {what:?} in {error:?}");
    }
    // Constraints on other kinds of names say nothing about SPIFFE IDs (RFC 5280 section 4.2.1.10).
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("cacerts");
    Operators::new(1, &rcgen::PKCS_ECDSA_P256_SHA256, elsewhere).plug_in(&directory);
    open(&directory).unwrap();
}

#[test]
fn istios_files_that_do_not_belong_together_are_refused() {
    type Break = fn(&Path);
    let cases: [(&str, Break); 6] = [
        ("root-cert.pem is missing", |d| std::fs::remove_file(d.join("root-cert.pem")).unwrap()),
        ("ca-key.pem is missing", |d| std::fs::remove_file(d.join("ca-key.pem")).unwrap()),
        ("chmod 600", |d| chmod(&d.join("ca-key.pem"), 0o644)),
        ("two CAs", |d| std::fs::write(d.join("ca.key"), "x").unwrap()),
        ("no peer would believe", |d| std::fs::remove_file(d.join("cert-chain.pem")).unwrap()),
        ("no peer would believe", |d| {
            let other = Operators::new(0, &rcgen::PKCS_ECDSA_P256_SHA256, unchanged);
            std::fs::write(d.join("root-cert.pem"), other.root.pem()).unwrap();
        }),
    ];
    for (what, break_it) in cases {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("cacerts");
        Operators::new(2, &rcgen::PKCS_ECDSA_P256_SHA256, unchanged).plug_in(&directory);
        open(&directory).unwrap();
        break_it(&directory);
        let error = open_anew(&directory).unwrap_err().to_string();
        assert!(error.contains(what), "expected {what:?} in {error:?}");
    }
}
