//! The CA as its callers, its peers' verifiers and OpenSSL see it.

mod clocks;
mod crashes;
mod jwt_keys;
mod opening;
mod revoking;
mod rotating;
mod signing;

use std::{path::Path, process::Command, time::SystemTime};

use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::{
    ca::plan::{Clock, Moment, SystemClock},
    tls::{PeerRole, PeerVerifier, VerifyError, provider},
};

fn settings(directory: &Path) -> AuthoritySettings {
    let directory = directory.to_owned();
    AuthoritySettings { automatic: false, ..AuthoritySettings::new(directory, TrustDomain::cluster_local()) }
}

/// A clock that stands, and always did.
struct At(i64);

impl Clock for At {
    fn now(&self) -> Moment {
        let since = Duration::from_secs(u64::try_from(self.0).unwrap());
        Moment { boot: since, wall: SystemTime::UNIX_EPOCH + since }
    }
}

/// A clock that tests set.
#[derive(Clone)]
struct Hands(Arc<Mutex<Moment>>);

impl Hands {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(SystemClock.now())))
    }

    /// Time goes by.
    fn pass(&self, time: Duration) {
        let mut now = self.0.lock().unwrap();
        *now = Moment { boot: now.boot + time, wall: now.wall + time };
    }

    /// Somebody sets the wall clock forward.
    fn set_forward(&self, by: Duration) {
        self.0.lock().unwrap().wall += by;
    }

    fn set_back(&self, by: Duration) {
        self.0.lock().unwrap().wall -= by;
    }
}

impl Clock for Hands {
    fn now(&self) -> Moment {
        *self.0.lock().unwrap()
    }
}

/// A CA in a folder that goes with it.
struct Fixture {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Fixture {
    fn new(change: impl FnOnce(&mut AuthoritySettings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(&folder.path().join("ca"));
        change(&mut settings);
        let authority = Authority::open(settings).unwrap();
        Self { folder, authority }
    }

    fn directory(&self) -> &Path {
        &self.authority.settings().directory
    }

    /// The same folder, opened by another process.
    fn replica(&self) -> Authority {
        Authority::open(self.authority.settings().clone()).unwrap()
    }

    /// What happens by itself at another time.
    fn due_at(&self, now: i64) -> bool {
        let shared = Arc::clone(&self.authority.0.shared);
        let settings = AuthoritySettings { automatic: true, ..shared.settings.clone() };
        let done = self.authority.0.state.write_waiting(move |c| {
            let keys = Keyring::new(&settings);
            motion::due(c, &Shared { settings, keys, clocks: Clocks::new(At(now), Duration::ZERO) }, now)
        });
        self.authority.refresh().unwrap();
        done.unwrap()
    }

    fn stages(&self, kind: Kind) -> Vec<Stage> {
        let status = self.authority.status().unwrap();
        status.authorities.iter().filter(|one| one.kind == kind).map(|one| one.stage).collect()
    }

    fn bundles(&self) -> TrustBundles {
        self.authority.trust().borrow().bundles.clone()
    }

    async fn svid(&self, account: &str) -> Svid {
        self.authority.issue(&id(account)).await.unwrap()
    }
}

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn csr(algorithm: &'static SignatureAlgorithm) -> Csr {
    let key = KeyPair::generate_for(algorithm).unwrap();
    Csr::from_der(CertificateParams::default().serialize_request(&key).unwrap().der()).unwrap()
}

fn request(account: &str, csr: Csr) -> SigningRequest {
    SigningRequest { id: id(account), csr, lifetime: None, caller: "a test".into(), node: None }
}

/// meshd's own verifier, in both roles.
fn verify(bundles: &TrustBundles, chain: &[CertificateDer<'_>]) -> Result<(), VerifyError> {
    let shared = Arc::new(ArcSwap::from_pointee(bundles.clone()));
    let algorithms = provider().signature_verification_algorithms;
    let verifier =
        PeerVerifier::new(TrustDomain::cluster_local(), Vec::new(), Duration::ZERO, shared, algorithms);
    for role in [PeerRole::Client, PeerRole::Server] {
        verifier.verify(chain, role, None, SystemTime::now())?;
    }
    Ok(())
}

/// `openssl verify -crl_check_all`: whether it believes the chain, and what it says.
fn openssl_verify(bundles: &TrustBundles, lists: &str, chain: &[CertificateDer<'_>]) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let pem = |ders: &[CertificateDer<'_>]| -> String {
        ders.iter().map(|der| folder::pem("CERTIFICATE", der)).collect()
    };
    let mut command = Command::new("openssl");
    command.args(["verify", "-x509_strict", "-crl_check_all", "-CAfile"]);
    command.arg(write("roots.pem", &pem(&bundles.roots[&TrustDomain::cluster_local()])));
    command.arg("-CRLfile").arg(write("lists.pem", lists));
    if chain.len() > 1 {
        command.arg("-untrusted").arg(write("between.pem", &pem(&chain[1..])));
    }
    let output = command.arg(write("leaf.pem", &pem(&chain[..1]))).output().expect("the openssl program");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}
