//! The store against sources that are slow, fail, answer wrongly, and clocks that jump.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::{FutureExt as _, future::BoxFuture};

use super::*;
use crate::{
    ca::authority::{Authority, AuthoritySettings, Local},
    identity::{RevocationList, TrustDomain},
    telemetry::MetricsLimits,
    tls::test_pki::{Leaf, TestCa, bundles},
};

fn id(account: &str) -> SpiffeId {
    SpiffeId::for_service_account(&TrustDomain::cluster_local(), "shop", account).unwrap()
}

fn ids(count: usize) -> impl Iterator<Item = SpiffeId> {
    (0..count).map(|number| id(&format!("w{number}")))
}

/// A clock that tests set.
struct Hands(Mutex<Moment>);

impl Hands {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(SystemClock.now())))
    }

    fn turn(&self, turn: impl FnOnce(&mut Moment)) {
        turn(&mut self.0.lock().unwrap());
    }

    fn pass(&self, time: Duration) {
        self.turn(|now| (now.boot, now.wall) = (now.boot + time, now.wall + time));
    }
}

impl Clock for Arc<Hands> {
    fn now(&self) -> Moment {
        *self.0.lock().unwrap()
    }
}

/// Certifies for a day of the test's clock.
struct Source {
    ca: TestCa,
    hands: Arc<Hands>,
    delay: Duration,
    fails: AtomicBool,
    hangs: AtomicBool,
    /// Answers with this identity, whatever was asked.
    instead: Mutex<Option<SpiffeId>>,
    asked: AtomicUsize,
    under_way: AtomicUsize,
    most: AtomicUsize,
    trust: watch::Sender<Arc<TrustBundles>>,
    pushed: watch::Sender<u64>,
}

impl Source {
    fn new(hands: &Arc<Hands>, delay: Duration) -> Arc<Self> {
        let ca = TestCa::new("cluster.local");
        let trust = watch::Sender::new(Arc::new(bundles(&[&ca])));
        Arc::new(Self {
            ca,
            hands: Arc::clone(hands),
            delay,
            fails: AtomicBool::default(),
            hangs: AtomicBool::default(),
            instead: Mutex::default(),
            asked: AtomicUsize::default(),
            under_way: AtomicUsize::default(),
            most: AtomicUsize::default(),
            trust,
            pushed: watch::Sender::new(0),
        })
    }

    fn certified(&self, id: &SpiffeId) -> Svid {
        let now = self.hands.now().wall;
        let leaf = Leaf {
            not_before: now - Duration::from_secs(60),
            not_after: now + DAY,
            ..Leaf::of(&id.to_string())
        };
        self.ca.issue(&leaf)
    }
}

impl SvidSource for Source {
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Svid, CaError>> {
        async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(under_way, Ordering::Relaxed);
            if self.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(self.delay).await;
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            if self.fails.load(Ordering::Relaxed) {
                return Err(CaError::IssuerExpired);
            }
            let instead = self.instead.lock().unwrap().clone();
            Ok(self.certified(&instead.unwrap_or_else(|| id.clone())))
        }
        .boxed()
    }

    fn trust(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.trust.subscribe()
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.pushed.subscribe())
    }
}

struct Scene {
    hands: Arc<Hands>,
    source: Arc<Source>,
    store: Arc<SvidStore>,
    stop: CancellationToken,
}

impl Scene {
    fn given(delay: Duration) -> Self {
        let hands = Hands::new();
        let source = Source::new(&hands, delay);
        let mut store = SvidStore::new(Arc::<Source>::clone(&source));
        store.clock = Box::new(Arc::clone(&hands));
        Self { hands, source, store: Arc::new(store), stop: CancellationToken::new() }
    }

    fn run(&self) {
        let (store, stop) = (Arc::clone(&self.store), self.stop.clone());
        tokio::spawn(async move { store.run(stop).await });
    }

    /// Running, with an SVID of each of so many identities.
    async fn with(count: usize) -> Self {
        let scene = Self::given(Duration::ZERO);
        scene.run();
        scene.store.ensure(ids(count));
        assert!(scene.store.tried_once(DAY).await);
        scene
    }

    /// Has the task look at its clock, and waits until nothing is under way.
    async fn look(&self) {
        self.store.changed.notify_one();
        for _ in 0..100 {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            let busy = self.store.entries().values().any(|entry| entry.under_way);
            if !busy {
                break;
            }
        }
    }

    fn asked(&self) -> usize {
        self.source.asked.load(Ordering::Relaxed)
    }

    fn serial(&self, account: &str) -> String {
        self.store.get(&id(account)).map(|svid| svid.serial.clone()).unwrap_or_default()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_workloads_do_not_stampede_a_slow_source() {
    let scene = Scene::given(Duration::from_millis(100));
    scene.run();
    let began = Instant::now();
    scene.store.ensure(ids(1000));
    assert!(!scene.store.tried_once(Duration::from_secs(1)).await, "a bounded wait");
    assert!(scene.store.tried_once(DAY).await);
    let rounds = 1000_usize.div_ceil(AT_A_TIME);
    let expected = Duration::from_millis(100) * u32::try_from(rounds).unwrap();
    let elapsed = began.elapsed();
    assert!(elapsed >= expected && elapsed < expected * 2, "{elapsed:?} for {rounds} rounds");
    assert_eq!((scene.asked(), scene.source.most.load(Ordering::Relaxed)), (1000, AT_A_TIME));
    let summary = scene.store.summary(scene.hands.now().wall);
    assert_eq!((summary.valid, summary.missing, summary.failing, summary.overdue), (1000, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn renewals_of_a_thousand_are_spread_over_a_fifth_of_their_life() {
    let scene = Scene::with(1000).await;
    let hour = Duration::from_secs(3600);
    scene.hands.pass(DAY.mul_f64(0.39));
    scene.look().await;
    assert_eq!(scene.asked(), 1000, "too early");
    let mut rounds = Vec::new();
    for _ in 0..6 {
        let before = scene.asked();
        scene.hands.pass(hour);
        scene.look().await;
        rounds.push(scene.asked() - before);
    }
    assert_eq!(rounds.iter().sum::<usize>(), 1000, "{rounds:?}");
    assert!(rounds.iter().all(|round| *round < 400), "{rounds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_first_svid_is_waited_for_and_its_absence_explained() {
    let scene = Scene::given(Duration::from_millis(300));
    scene.run();
    scene.store.ensure(ids(1));
    let patience = Duration::from_secs(1);
    assert_eq!(scene.store.wait(&id("w0"), Duration::from_millis(100)).await.unwrap_err(), NoSvid::UnderWay);
    let began = Instant::now();
    scene.store.wait(&id("w0"), patience).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(300), "waits no longer than needed");
    assert_eq!(scene.store.wait(&id("stranger"), patience).await.unwrap_err(), NoSvid::NotWanted);
    scene.source.fails.store(true, Ordering::Relaxed);
    scene.store.ensure([id("w0"), id("late")]);
    let error = scene.store.wait(&id("late"), patience).await.unwrap_err().to_string();
    assert!(error.contains("issuing certificate expired"), "{error}");
    // The source is back, and so is the connection's chance.
    scene.source.fails.store(false, Ordering::Relaxed);
    let clock = async {
        loop {
            scene.hands.pass(Duration::from_secs(1));
            scene.store.changed.notify_one();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let late = id("late");
    tokio::select! {
        () = clock => {}
        svid = scene.store.wait(&late, DAY) => drop(svid.unwrap()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_away_for_longer_than_half_a_life_costs_nothing_but_retries() {
    let scene = Scene::with(1).await;
    let first = scene.serial("w0");
    scene.source.fails.store(true, Ordering::Relaxed);
    scene.hands.pass(DAY.mul_f64(0.65));
    for _ in 0..50 {
        scene.look().await;
        scene.hands.pass(Duration::from_secs(301));
    }
    assert_eq!(scene.serial("w0"), first, "a valid SVID was given up");
    let status = &scene.store.status()[0];
    assert!(status.failures > 40 && status.last_error.is_some(), "{status:?}");
    let summary = scene.store.summary(scene.hands.now().wall);
    assert_eq!((summary.valid, summary.failing, summary.overdue), (1, 1, 1));
    // Beyond its end it is still what is shown; peers refuse it.
    scene.hands.pass(DAY);
    scene.look().await;
    assert_eq!(scene.serial("w0"), first);
    assert_eq!(scene.store.summary(scene.hands.now().wall).missing, 1);
    scene.source.fails.store(false, Ordering::Relaxed);
    scene.hands.pass(Duration::from_secs(31));
    scene.look().await;
    assert_ne!(scene.serial("w0"), first, "an ended one is tried each half minute");
    assert_eq!(scene.store.status()[0].failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_never_answers_is_given_up_and_others_get_their_turn() {
    let scene = Scene::given(Duration::ZERO);
    scene.source.hangs.store(true, Ordering::Relaxed);
    scene.run();
    scene.store.ensure(ids(AT_A_TIME + 1));
    let began = Instant::now();
    assert!(scene.store.tried_once(DAY).await);
    assert!(began.elapsed() <= 3 * ISSUE_TIMEOUT, "{:?}", began.elapsed());
    let error = scene.store.status()[0].last_error.clone().unwrap();
    assert!(error.contains("within 15 s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_somebody_else_or_of_another_time_is_refused() {
    let scene = Scene::with(1).await;
    let first = scene.serial("w0");
    *scene.source.instead.lock().unwrap() = Some(id("admin"));
    scene.hands.pass(DAY / 2 + DAY / 8);
    scene.look().await;
    assert_eq!(scene.serial("w0"), first);
    let error = scene.store.status()[0].last_error.clone().unwrap();
    assert!(error.contains("sa/admin"), "{error}");
    *scene.source.instead.lock().unwrap() = None;
    let svid = scene.source.certified(&id("w0"));
    for (wall, what) in
        [(svid.not_after, "ended already"), (svid.not_before - Duration::from_secs(120), "not valid yet")]
    {
        scene.hands.turn(|now| now.wall = wall);
        let error = scene.store.checked(&id("w0"), svid.clone()).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("clock"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_renews_what_it_makes_invalid_and_nothing_else() {
    let hour = Duration::from_secs(3600);
    let scene = Scene::with(100).await;
    // An hour either way changes nothing that would be too late.
    for (forward, jump) in [(false, Duration::from_secs(50)), (true, 2 * hour)] {
        scene.hands.turn(|now| now.wall = if forward { now.wall + jump } else { now.wall - jump });
        scene.look().await;
        assert_eq!(scene.asked(), 100, "a jump of {jump:?} alone renewed something");
    }
    // Past their end: all are renewed, spread over a second, not all at once.
    scene.hands.turn(|now| now.wall += 30 * hour);
    scene.look().await;
    let at_once = scene.asked() - 100;
    assert!(at_once < 50, "{at_once} of 100 renewed at the same moment");
    scene.hands.pass(Duration::from_secs(1));
    scene.look().await;
    assert_eq!(scene.asked(), 200);
    assert_eq!(scene.store.summary(scene.hands.now().wall).valid, 100);
    // Back again: what was issued is of the future now.
    scene.hands.turn(|now| now.wall -= 30 * hour);
    scene.look().await;
    scene.hands.pass(Duration::from_secs(1));
    scene.look().await;
    assert_eq!(scene.asked(), 300);
    scene.look().await;
    assert_eq!(scene.asked(), 300, "and again and again");
}

#[tokio::test(start_paused = true)]
async fn an_own_svid_that_is_taken_back_is_renewed_at_once() {
    let scene = Scene::with(2).await;
    let (first, other) = (scene.store.get(&id("w0")).unwrap(), scene.serial("w1"));
    let (_, leaf) = x509_parser::parse_x509_certificate(&first.chain[0]).unwrap();
    let list = scene.source.ca.revocation_list(SystemTime::now(), &[leaf.raw_serial()]);
    let mut now = bundles(&[&scene.source.ca]);
    let list = RevocationList::new(list.der().clone()).unwrap();
    now.revoked.insert(TrustDomain::cluster_local(), vec![list]);
    let now = Arc::new(now);
    scene.store.trust_in_force(&now, &now);
    scene.look().await;
    assert_ne!(scene.serial("w0"), first.serial);
    assert_eq!(scene.serial("w1"), other);
    scene.store.trust_in_force(&now, &now);
    scene.look().await;
    assert_eq!(scene.asked(), 3, "once is enough");
}

#[tokio::test(start_paused = true)]
async fn what_a_source_pushes_is_taken_at_once() {
    let scene = Scene::with(3).await;
    let first = scene.serial("w2");
    scene.source.pushed.send_modify(|count| *count += 1);
    scene.look().await;
    scene.look().await;
    assert_eq!(scene.asked(), 6);
    assert_ne!(scene.serial("w2"), first);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_wanted_any_more_is_forgotten() {
    let scene = Scene::with(2).await;
    scene.store.ensure([id("w1"), id("new")]);
    assert!(scene.store.tried_once(DAY).await);
    assert!(scene.store.get(&id("w0")).is_none());
    assert_eq!(scene.asked(), 3, "what is there is not asked for again");
    assert_eq!(scene.store.status().len(), 2);
}

#[tokio::test]
async fn the_embedded_ca_fills_the_store_and_its_end_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let settings = AuthoritySettings::new(folder.path().join("ca"), TrustDomain::cluster_local());
    let ca = Authority::open(settings).unwrap();
    let metrics = Arc::new(Metrics::new("node-a", MetricsLimits::default()));
    let store = SvidStore::new(Arc::new(Local(ca))).counted_by(Arc::clone(&metrics));
    let (store, stop) = (Arc::new(store), CancellationToken::new());
    tokio::spawn({
        let (store, stop) = (Arc::clone(&store), stop.clone());
        async move { store.run(stop).await }
    });
    let began = Instant::now();
    store.ensure(ids(1000));
    assert!(store.tried_once(DAY).await);
    println!("1000 first SVIDs of the embedded CA: {:?}", began.elapsed());
    let now = store.summary(SystemTime::now());
    assert_eq!((now.valid, now.missing, now.failing, now.issuer_ends_soon), (1000, 0, 0, false));
    assert!(now.earliest_end_seconds < now.issuer_end_seconds && now.last_success_seconds.is_some());
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(now.issuer_end_seconds.unwrap());
    assert!(!store.summary(end - 30 * DAY).issuer_ends_soon);
    assert!(store.summary(end - 29 * DAY).issuer_ends_soon);
    let line = "meshd_svid_renewals_total{result=\"success\"} 1000\n";
    assert!(metrics.text().contains(line), "{}", metrics.text());
    stop.cancel();
}
