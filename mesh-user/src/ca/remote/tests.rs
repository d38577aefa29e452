//! The clients against a CA that answers over real connections: well, badly, or not at all.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Address, Istiod, IstiodSettings, MeshdCa, MeshdCaSettings, ServerIdentity,
    fake::{Fake, Listening, Mood, pem},
};
use crate::{
    ca::{SvidSource, SvidStore},
    identity::{SpiffeId, TrustBundles, TrustDomain},
    tls::test_pki::TestCa,
};

const PATIENCE: Duration = Duration::from_secs(20);
const TOKEN: &str = "one-time-token";

fn id(account: &str) -> SpiffeId {
    SpiffeId::for_service_account(&TrustDomain::cluster_local(), "shop", account).unwrap()
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A node's folder, and a CA that it may ask.
struct Scene {
    folder: tempfile::TempDir,
    fake: Arc<Fake>,
    stop: CancellationToken,
}

impl Scene {
    fn given() -> Self {
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
            fake: Fake::new(true),
            stop: CancellationToken::new(),
        };
        write(&scene.file("roots.pem"), &pem(&scene.fake.ca.root()), 0o644);
        write(&scene.file("join-token"), &format!("{TOKEN}\n"), 0o600);
        scene.fake.tokens.lock().unwrap().insert(TOKEN.to_owned());
        scene
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.file("state")
    }

    fn settings(&self, address: &str) -> MeshdCaSettings {
        MeshdCaSettings {
            trust_domain: TrustDomain::cluster_local(),
            node: "node-a".to_owned(),
            address: Address::parse(address),
            server: ServerIdentity::parse("localhost").unwrap(),
            roots_file: Some(self.file("roots.pem")),
            token_file: None,
            join_token_file: Some(self.file("join-token")),
            state_dir: self.state(),
            svid_lifetime: Duration::from_secs(3600),
            clock_skew: Duration::from_secs(60),
        }
    }

    fn open(&self, settings: MeshdCaSettings) -> Arc<MeshdCa> {
        let ca = MeshdCa::open(settings).unwrap();
        tokio::spawn(Arc::clone(&ca).run(self.stop.clone()));
        ca
    }

    /// A store over the CA, running.
    fn store(&self, source: Arc<dyn SvidSource>) -> Arc<SvidStore> {
        let (store, stop) = (Arc::new(SvidStore::new(source)), self.stop.clone());
        let running = Arc::clone(&store);
        tokio::spawn(async move { running.run(stop).await });
        store
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Waits until a condition holds that no channel tells of.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let held = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(held.await.is_ok(), "never: {what}");
}

/// What is told next.
async fn next(trust: &mut watch::Receiver<Arc<TrustBundles>>) -> Arc<TrustBundles> {
    timeout(PATIENCE, trust.changed()).await.unwrap().unwrap();
    Arc::clone(&trust.borrow_and_update())
}

async fn refusal(ca: &dyn SvidSource) -> String {
    ca.issue(&id("web")).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_and_gets_its_workloads_svids() {
    let scene = Scene::given();
    let listening = scene.fake.listen(0).await;
    let ca = scene.open(scene.settings(&listening.address));
    let svid = ca.issue(&id("web")).await.unwrap();
    assert_eq!((svid.spiffe_id, svid.chain.len()), (id("web"), 1));
    let callers = scene.fake.callers.lock().unwrap().clone();
    assert_eq!(
        callers,
        ["spiffe://cluster.local/node/node-a"],
        "who asks is proven by the node's certificate"
    );
    assert!(scene.fake.tokens.lock().unwrap().is_empty(), "the token is spent");
    until("the node's certificate and the trust are kept", || {
        scene.state().join("node.pem").exists() && scene.state().join("trust.pb").exists()
    })
    .await;
    for entry in std::fs::read_dir(scene.state()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        let text = std::fs::read(entry.path()).unwrap();
        let keys = text.windows(11).filter(|part| part == b"PRIVATE KEY").count();
        assert_eq!(keys, 2 * usize::from(entry.file_name() == "node.pem"), "{:?}", entry.path());
    }

    // Again, without a token: the node is known by its certificate.
    std::fs::remove_file(scene.file("join-token")).unwrap();
    let again = scene.open(scene.settings(&listening.address));
    again.issue(&id("web")).await.unwrap();

    // And one that is not known says what to do.
    std::fs::remove_file(scene.state().join("node.pem")).unwrap();
    let stranger = scene.open(scene.settings(&listening.address));
    let error = refusal(&*stranger).await;
    assert!(error.contains("has not joined") && error.contains("meshctl ca token create"), "{error}");
    write(&scene.file("join-token"), TOKEN, 0o600);
    let spent = scene.open(scene.settings(&listening.address));
    let error = refusal(&*spent).await;
    assert!(error.contains("no such token") && !error.contains(TOKEN), "{error}");
    write(&scene.file("join-token"), TOKEN, 0o644);
    let open = scene.open(scene.settings(&listening.address));
    let error = refusal(&*open).await;
    assert!(error.contains("chmod 600"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_what_was_asked_for_is_refused_and_the_old_svid_stays() {
    let scene = Scene::given();
    let listening = scene.fake.listen(0).await;
    let ca = scene.open(scene.settings(&listening.address));
    // Life so short that renewals never end.
    *scene.fake.life.lock().unwrap() = Duration::from_secs(3);
    let store = scene.store(Arc::<MeshdCa>::clone(&ca));
    store.ensure([id("web")]);
    store.wait(&id("web"), PATIENCE).await.unwrap();
    *scene.fake.life.lock().unwrap() = Duration::from_secs(3600);
    for (mood, what) in [
        (Mood::OtherKey, "another key"),
        (Mood::OtherIdentity, "sa/admin"),
        (Mood::OtherRoot, "peers would not believe it"),
        (Mood::Expired, "peers would not believe it"),
        (Mood::OfTheFuture, "peers would not believe it"),
        (Mood::NoCertificates, "no certificate but roots"),
        (Mood::Garbage, "no certificate"),
        (Mood::Huge, "128 KiB"),
        (Mood::Endless, "more than 16"),
        (Mood::Refuses(tonic::Code::PermissionDenied), "look at its audit"),
        (Mood::Refuses(tonic::Code::ResourceExhausted), "limits how often"),
        (Mood::Refuses(tonic::Code::Unavailable), "cannot be reached"),
    ] {
        scene.fake.set(mood);
        let error = refusal(&*ca).await;
        assert!(error.contains(what), "{mood:?}: {error}");
    }
    scene.fake.set(Mood::OtherKey);
    let kept = store.get(&id("web")).unwrap();
    until("a renewal has failed", || store.status()[0].failures > 0).await;
    assert_eq!(store.get(&id("web")).unwrap().serial, kept.serial);
    scene.fake.set(Mood::Good);
    until("the next one succeeds", || store.get(&id("web")).unwrap().serial != kept.serial).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_is_followed_acknowledged_and_kept() {
    let scene = Scene::given();
    let listening = scene.fake.listen(0).await;
    let ca = scene.open(scene.settings(&listening.address));
    let mut trust = ca.trust();
    let first = next(&mut trust).await;
    assert_eq!(first.roots[&TrustDomain::cluster_local()], [scene.fake.ca.root()]);
    assert_eq!(scene.fake.acknowledged.load(Ordering::Relaxed), 0, "acknowledged before it is in force");
    ca.trust_in_force(&first);
    until("version 1 is acknowledged", || scene.fake.acknowledged.load(Ordering::Relaxed) == 1).await;

    let list = scene.fake.ca.revocation_list(std::time::SystemTime::now(), &[&[7]]);
    scene.fake.tell(2, vec![list.der().to_vec()]);
    let second = next(&mut trust).await;
    assert_eq!(second.revoked[&TrustDomain::cluster_local()][0].der(), list.der().as_ref());
    ca.trust_in_force(&first);
    assert_eq!(scene.fake.acknowledged.load(Ordering::Relaxed), 1, "an older one says nothing of the newest");
    ca.trust_in_force(&second);
    until("version 2 is acknowledged", || scene.fake.acknowledged.load(Ordering::Relaxed) == 2).await;

    // What takes everything away, or goes back, is not believed.
    let nothing = super::super::proto::meshd::TrustState { version: 3, bundles: Vec::new() };
    scene.fake.trust.send_replace(nothing);
    scene.fake.tell(4, vec![list.der().to_vec()]);
    next(&mut trust).await;
    scene.fake.tell(1, Vec::new());
    scene.fake.tell(5, vec![list.der().to_vec()]);
    let newest = next(&mut trust).await;
    assert!(newest.revoked.contains_key(&TrustDomain::cluster_local()));

    // A restart while the CA is away goes on with what was told last.
    drop(listening);
    until("the CA is away", || ca.trouble().is_some()).await;
    let restarted = scene.open(scene.settings("localhost:1"));
    assert_eq!(*restarted.trust().borrow(), newest);
    let error = refusal(&*restarted).await;
    assert!(error.contains("cannot be reached") && error.contains("ca.address"), "{error}");
    assert!(restarted.trouble().unwrap().contains("localhost:1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_comes_back_is_asked_again() {
    let scene = Scene::given();
    let listening = scene.fake.listen(0).await;
    let port: u16 = listening.address.rsplit_once(':').unwrap().1.parse().unwrap();
    let ca = scene.open(scene.settings(&listening.address));
    let mut trust = ca.trust();
    next(&mut trust).await;
    ca.issue(&id("web")).await.unwrap();
    drop(listening);
    until("it is missed", || ca.trouble().is_some()).await;
    ca.issue(&id("web")).await.unwrap_err();
    scene.fake.tell(2, Vec::new());
    let _back = scene.fake.listen(port).await;
    next(&mut trust).await;
    ca.issue(&id("web")).await.unwrap();
    assert_eq!(ca.trouble(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_prove_itself_is_shown_no_token() {
    let scene = Scene::given();
    let impostor = Fake::new(true);
    impostor.tokens.lock().unwrap().insert(TOKEN.to_owned());
    let other = impostor.listen(0).await;
    let ca = scene.open(scene.settings(&other.address));
    let error = refusal(&*ca).await;
    assert!(error.contains("cannot be reached") && error.contains("invalid peer certificate"), "{error}");
    let listening = scene.fake.listen(0).await;
    for (server, what) in
        [("ca.example", "not valid for name"), ("spiffe://cluster.local/ns/meshd/sa/other", "sa/ca")]
    {
        let server = ServerIdentity::parse(server).unwrap();
        let error =
            refusal(&*scene.open(MeshdCaSettings { server, ..scene.settings(&listening.address) })).await;
        assert!(error.contains(what), "{error}");
    }
    let taken = |fake: &Fake| fake.tokens.lock().unwrap().is_empty();
    assert!(!taken(&impostor) && !taken(&scene.fake), "a token was shown to somebody else");
    let server = ServerIdentity::parse("spiffe://cluster.local/ns/meshd/sa/ca").unwrap();
    let ca = scene.open(MeshdCaSettings { server, ..scene.settings(&listening.address) });
    ca.issue(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_same_machine_the_kernel_says_who_asks() {
    let scene = Scene::given();
    let fake = Fake::new(false);
    let listening = fake.listen_at(&scene.file("ca.sock"));
    let settings =
        MeshdCaSettings { roots_file: None, join_token_file: None, ..scene.settings(&listening.address) };
    let ca = scene.open(settings);
    assert_eq!(ca.issue(&id("web")).await.unwrap().spiffe_id, id("web"));
    assert!(!scene.state().join("node.pem").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_own_certificate_renews_itself() {
    let scene = Scene::given();
    let listening = scene.fake.listen(0).await;
    *scene.fake.life.lock().unwrap() = Duration::from_secs(8);
    let ca = scene.open(scene.settings(&listening.address));
    ca.issue(&id("web")).await.unwrap();
    let kept = || std::fs::read(scene.state().join("node.pem")).unwrap_or_default();
    let first = kept();
    until("another certificate and key are kept", || kept() != first).await;
    ca.issue(&id("web")).await.unwrap();
}

fn istiod(scene: &Scene, listening: &Listening) -> Arc<Istiod> {
    let ca = Istiod::open(IstiodSettings {
        trust_domain: TrustDomain::cluster_local(),
        address: Address::parse(&listening.address),
        server: ServerIdentity::parse("localhost").unwrap(),
        roots_file: scene.file("roots.pem"),
        token_file: scene.file("token"),
        cluster_id: "Kubernetes".to_owned(),
        state_dir: scene.state(),
        svid_lifetime: Duration::from_secs(3600),
        clock_skew: Duration::from_secs(60),
    });
    ca.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn istiod_is_asked_with_a_token_that_is_read_each_time() {
    let scene = Scene::given();
    let fake = Fake::new(false);
    write(&scene.file("roots.pem"), &pem(&fake.ca.root()), 0o644);
    let listening = fake.listen(0).await;
    let ca = istiod(&scene, &listening);
    let error = refusal(&*ca).await;
    assert!(error.contains("token") && error.contains("mount a service-account token"), "{error}");
    for token in ["first", "second"] {
        write(&scene.file("token"), &format!("{token}\n"), 0o644);
        assert_eq!(ca.issue(&id("web")).await.unwrap().spiffe_id, id("web"));
        let shown = fake.shown.lock().unwrap().clone();
        assert_eq!(shown, [Some(format!("Bearer {token}")), Some("Kubernetes".to_owned())]);
    }
    // Roots from the file and from the answer count; the file is followed.
    let next_root = TestCa::new("cluster.local");
    write(&scene.file("roots.pem"), &(pem(&fake.ca.root()) + &pem(&next_root.root())), 0o644);
    tokio::spawn(Arc::clone(&ca).run(scene.stop.clone()));
    let mut trust = ca.trust();
    let both = next(&mut trust).await;
    assert_eq!(both.roots[&TrustDomain::cluster_local()], [fake.ca.root(), next_root.root()]);
    fake.set(Mood::OtherKey);
    assert!(refusal(&*ca).await.contains("another key"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_workloads_get_their_first_svids_over_grpc() {
    let scene = Scene::given();
    let listening = scene.fake.listen(0).await;
    let ca = scene.open(scene.settings(&listening.address));
    let store = scene.store(ca);
    let began = Instant::now();
    store.ensure((0..1000).map(|number| id(&format!("w{number}"))));
    assert!(store.tried_once(Duration::from_secs(120)).await);
    println!("1000 first SVIDs over gRPC: {:?}", began.elapsed());
    let summary = store.summary(std::time::SystemTime::now());
    assert_eq!((summary.valid, summary.failing), (1000, 0), "{:?}", store.status()[0]);
    assert_eq!(scene.fake.asked.load(Ordering::Relaxed), 1000);
}
