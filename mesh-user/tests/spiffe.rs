//! The SPIFFE standard: what meshd issues is believed by a verifier that is none of ours, and each requirement in
//! docs/spiffe.md names tests that exist.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mesh_user::{
    ca::{
        authority::{Authority, AuthoritySettings},
        signing::CertificateAuthority as _,
    },
    identity::TrustDomain,
};
use x509_parser::extensions::GeneralName;

fn pem(certificates: &[impl AsRef<[u8]>]) -> String {
    let one = |der: &[u8]| {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64_STANDARD.encode(der))
    };
    certificates.iter().map(|certificate| one(certificate.as_ref())).collect()
}

/// What OpenSSL says of a chain.
fn openssl_verify(root: &Path, chain: &Path, purpose: &str) -> Result<(), String> {
    let said = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", purpose, "-no-CApath", "-no-CAstore", "-CAfile"])
        .arg(root)
        .arg("-untrusted")
        .arg(chain)
        .arg(chain)
        .output()
        .expect("openssl is installed");
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    if said.status.success() { Ok(()) } else { Err(text) }
}

fn authority(folder: &Path) -> Authority {
    Authority::open(AuthoritySettings::new(folder.to_owned(), TrustDomain::cluster_local())).unwrap()
}

#[tokio::test]
async fn openssl_believes_what_a_root_and_an_intermediate_issue_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let open = |name: &str| authority(&file(name));
    let (root, stranger) = (open("root"), open("stranger"));
    root.issue_intermediate(&file("node")).unwrap();
    let node = open("node");
    let id = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    for (name, ca, good) in [("root", &root, true), ("node", &node, true), ("stranger", &stranger, false)] {
        let chain = file(&format!("{name}.pem"));
        std::fs::write(&chain, pem(&ca.issue(&id).await.unwrap().chain)).unwrap();
        for purpose in ["sslserver", "sslclient"] {
            let said = openssl_verify(&file("root/ca.crt"), &chain, purpose);
            assert_eq!(said.is_ok(), good, "{name} for {purpose}: {said:?}");
        }
        let said = openssl_verify(&file("root/ca.crt"), &chain, "crlsign");
        assert!(said.is_err(), "a leaf of {name} may sign revocation lists");
    }
}

/// The root that meshd makes for itself, and the intermediate of another node.
#[tokio::test]
async fn an_authority_of_ours_is_an_svid_without_a_path() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| authority(&folder.path().join(name));
    let root = open("root");
    root.issue_intermediate(&folder.path().join("node")).unwrap();
    let web = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let issued = open("node").issue(&web).await.unwrap();
    let bundle = root.trust().borrow().bundles.clone();
    let roots = &bundle.roots[&TrustDomain::cluster_local()];
    // The standard asks it of whoever stands for the trust domain.
    for (der, id) in [(&roots[0], Some("spiffe://cluster.local")), (&issued.chain[1], None)] {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
        let names = certificate.subject_alternative_name().unwrap().map(|names| &names.value.general_names);
        assert_eq!(
            names.cloned().unwrap_or_default(),
            id.map(GeneralName::URI).into_iter().collect::<Vec<_>>()
        );
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(certificate.is_ca() && usage.critical && usage.value.key_cert_sign());
    }
}

fn sources(folder: &Path, found: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Rows are `| section | requirement | where | tests |`; the last cell names functions.
#[test]
fn every_requirement_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("../docs/spiffe.md")).unwrap();
    let mut code = String::new();
    for folder in ["src", "tests"] {
        sources(&root.join(folder), &mut code);
    }
    let name = regex::Regex::new(r"`([a-z0-9_]+)`").unwrap();
    let function = regex::Regex::new(r"\bfn ([a-z0-9_]+)\(").unwrap();
    let known: BTreeSet<&str> =
        function.captures_iter(&code).map(|found| found.get(1).unwrap().as_str()).collect();
    let mut rows = 0;
    for line in document.lines().filter(|line| line.starts_with("| ") && line.contains(" MUST")) {
        let tests = line.trim_end_matches('|').rsplit('|').next().unwrap();
        let names: Vec<&str> =
            name.captures_iter(tests).map(|found| found.get(1).unwrap().as_str()).collect();
        assert!(!names.is_empty(), "no test: {line}");
        for test in names {
            assert!(known.contains(test), "no test is called {test}: {line}");
        }
        rows += 1;
    }
    assert!(rows > 40, "the table was not understood: {rows} rows");
}
