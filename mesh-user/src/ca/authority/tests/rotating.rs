//! Rotations: at no moment is there a certificate that somebody who trusts what was told does not believe.

use tokio_util::sync::CancellationToken;

use super::*;

/// Every bundle that was ever in force, oldest first.
struct History(Vec<TrustBundles>);

impl History {
    fn note(&mut self, fixture: &Fixture) {
        let now = fixture.bundles();
        if self.0.last() != Some(&now) {
            self.0.push(now);
        }
    }
}

#[tokio::test]
async fn a_root_is_rotated_without_a_certificate_that_nobody_believes() {
    for intermediates in [false, true] {
        let fixture = Fixture::new(|settings| {
            settings.intermediates = intermediates;
            settings.propagation = Duration::ZERO;
        });
        let mut history = History(Vec::new());
        history.note(&fixture);
        let old = fixture.svid("old").await;

        fixture.authority.rotate(Kind::Root).await.unwrap();
        assert_eq!(fixture.stages(Kind::Root), [Stage::Active, Stage::Prepared]);
        assert!(fixture.authority.rotate(Kind::Root).await.is_err(), "one at a time");
        history.note(&fixture);
        assert_eq!(history.0.len(), 1, "nobody needs to know yet");

        fixture.authority.advance(Kind::Root, false).await.unwrap();
        assert_eq!(fixture.stages(Kind::Root), [Stage::Active, Stage::Trusted]);
        let trusting = fixture.bundles();
        assert_eq!(trusting.roots[&TrustDomain::cluster_local()].len(), 2);
        let between = fixture.svid("between").await;
        verify(&history.0[0], &between.chain).expect("the old root signs until all know the new one");

        fixture.authority.advance(Kind::Root, false).await.unwrap();
        assert_eq!(fixture.stages(Kind::Root), [Stage::Retiring, Stage::Active]);
        let new = fixture.svid("new").await;
        for (which, svid) in [("old", &old), ("between", &between), ("new", &new)] {
            verify(&trusting, &svid.chain).unwrap_or_else(|e| panic!("{which}: {e}"));
            let lists = fixture.authority.crl_pem();
            let (believed, said) = openssl_verify(&fixture.bundles(), &lists, &svid.chain);
            assert!(believed, "{which}: {said}");
        }
        assert!(verify(&history.0[0], &new.chain).is_err(), "the new root is another one");

        let refused = fixture.authority.advance(Kind::Root, false).await.unwrap_err().to_string();
        assert!(refused.contains("certificates under it are valid until"), "{refused}");
        fixture.due_at(now() + 86_400 + 59);
        assert!(fixture.stages(Kind::Root).contains(&Stage::Retiring), "a skewed clock still needs it");
        fixture.due_at(now() + 86_400 + 120);
        assert_eq!(fixture.stages(Kind::Root), [Stage::Active]);
        fixture.authority.sweep().await.unwrap();
        assert!(!fixture.directory().join("ca.key").exists(), "its key is gone");
        verify(&fixture.bundles(), &new.chain).unwrap();
        assert!(verify(&fixture.bundles(), &old.chain).is_err());
        let again = fixture.replica();
        verify(&again.trust().borrow().bundles, &again.issue(&id("again")).await.unwrap().chain).unwrap();
    }
}

#[tokio::test]
async fn a_new_root_waits_for_the_nodes_that_watch_and_for_no_others() {
    let fixture = Fixture::new(|settings| settings.propagation = Duration::from_secs(60));
    let authority = &fixture.authority;
    authority.acknowledge("a", 1);
    authority.acknowledge("b", 1);
    authority.acknowledge(&"x".repeat(254), 1);
    authority.do_due().await.unwrap();
    let long_ago = now() - 100_000;
    let gone = move |c: &rusqlite::Connection| rows::acknowledge(c, [(&"gone".to_owned(), &1)], long_ago);
    authority.state().write(gone).await.unwrap();
    authority.rotate(Kind::Root).await.unwrap();
    let status = authority.advance(Kind::Root, false).await.unwrap();
    assert_eq!(status.nodes.len(), 2);
    let version = authority.trust().borrow().version;

    let error = authority.advance(Kind::Root, false).await.unwrap_err().to_string();
    assert!(error.contains("being distributed until"), "{error}");
    assert!(status.authorities[1].stays.as_ref().is_some_and(|why| why.contains("distributed")));
    fixture.due_at(now() + 61);
    assert_eq!(fixture.stages(Kind::Root), [Stage::Active, Stage::Trusted], "a and b do not have it");
    authority.acknowledge("a", version);
    authority.do_due().await.unwrap();
    fixture.due_at(now() + 61);
    assert_eq!(fixture.stages(Kind::Root), [Stage::Active, Stage::Trusted], "b does not have it");
    authority.acknowledge("b", version + 5);
    authority.do_due().await.unwrap();
    fixture.due_at(now() + 61);
    assert_eq!(fixture.stages(Kind::Root), [Stage::Retiring, Stage::Active]);
}

#[tokio::test]
async fn force_goes_on_and_cancel_forgets() {
    let fixture = Fixture::new(|_| {});
    let authority = &fixture.authority;
    assert!(authority.advance(Kind::Root, false).await.is_err(), "nothing is under way");
    assert!(authority.cancel(Kind::Root).await.is_err());
    for stages in [1, 2] {
        authority.rotate(Kind::Root).await.unwrap();
        if stages == 2 {
            authority.advance(Kind::Root, false).await.unwrap();
        }
        authority.cancel(Kind::Root).await.unwrap();
        assert_eq!(fixture.stages(Kind::Root), [Stage::Active]);
        assert_eq!(fixture.bundles().roots[&TrustDomain::cluster_local()].len(), 1);
    }
    let old = fixture.svid("old").await;
    authority.rotate(Kind::Root).await.unwrap();
    for _ in 0..3 {
        authority.advance(Kind::Root, true).await.unwrap();
    }
    assert_eq!(fixture.stages(Kind::Root), [Stage::Active]);
    assert!(verify(&fixture.bundles(), &old.chain).is_err(), "it was asked for");
    let keys: Vec<_> = std::fs::read_dir(fixture.directory())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "key"))
        .collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
}

#[tokio::test]
async fn an_intermediate_is_rotated_without_telling_anybody() {
    let fixture = Fixture::new(|settings| settings.intermediates = true);
    let first = fixture.svid("old").await;
    let roots = fixture.bundles().roots.clone();
    fixture.authority.rotate(Kind::Intermediate).await.unwrap();
    fixture.authority.advance(Kind::Intermediate, false).await.unwrap();
    assert_eq!(fixture.stages(Kind::Intermediate), [Stage::Retiring, Stage::Active]);
    let second = fixture.svid("new").await;
    assert_ne!(first.chain[1], second.chain[1]);
    assert_eq!(fixture.bundles().roots, roots);
    for svid in [&first, &second] {
        verify(&fixture.bundles(), &svid.chain).unwrap();
    }
    let lists = fixture.authority.crl_pem();
    assert_eq!(lists.matches("BEGIN X509 CRL").count(), 3, "the root's and both intermediates'");
    assert!(fixture.authority.advance(Kind::Intermediate, false).await.is_err(), "the old one is in use");
    fixture.due_at(now() + 86_400 + 120);
    assert_eq!(fixture.stages(Kind::Intermediate), [Stage::Active]);
    assert_eq!(fixture.bundles().roots, roots);
}

#[tokio::test]
async fn what_ends_is_replaced_in_time_by_itself() {
    let fixture = Fixture::new(|settings| {
        settings.intermediates = true;
        settings.intermediate_lifetime = Duration::from_secs(30 * 86_400);
        settings.propagation = Duration::from_secs(60);
    });
    fixture.due_at(now() + 86_400);
    assert_eq!(fixture.stages(Kind::Intermediate), [Stage::Active], "a third of its life is not left yet");
    fixture.due_at(now() + 21 * 86_400);
    let intermediates = fixture.stages(Kind::Intermediate);
    assert_eq!(
        intermediates,
        [Stage::Active],
        "replaced, and nothing was signed by the old one: {intermediates:?}"
    );
    assert_eq!(fixture.stages(Kind::Root), [Stage::Active]);
    fixture.due_at(now() + 3000 * 86_400);
    assert_eq!(fixture.stages(Kind::Root), [Stage::Active, Stage::Trusted]);
}

#[tokio::test]
async fn replicas_follow_each_other() {
    let fixture = Fixture::new(|settings| settings.interval = Duration::from_secs(3600));
    let other = fixture.replica();
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (other, stop) = (other.clone(), stop.clone());
        async move { other.run(stop).await }
    });
    let mut told = other.trust();
    fixture.authority.rotate(Kind::Root).await.unwrap();
    fixture.authority.advance(Kind::Root, true).await.unwrap();
    let both = |trust: &Arc<Trust>| trust.bundles.roots[&TrustDomain::cluster_local()].len() == 2;
    tokio::time::timeout(Duration::from_secs(20), told.wait_for(both)).await.unwrap().unwrap();
    stop.cancel();
    running.await.unwrap();

    // the other one has not heard yet, and must not sign under what was withdrawn
    let stale = other;
    for _ in 0..2 {
        fixture.authority.advance(Kind::Root, true).await.unwrap();
    }
    let svid = stale.issue(&id("late")).await.unwrap();
    verify(&fixture.bundles(), &svid.chain).unwrap();
    assert_eq!(stale.trust().borrow().bundles, fixture.bundles());
}

#[tokio::test]
async fn the_status_is_what_meshctl_shows() {
    let fixture = Fixture::new(|settings| settings.intermediates = true);
    fixture.svid("web").await;
    let status = serde_json::to_value(fixture.authority.status().unwrap()).unwrap();
    assert_eq!(status["trustDomain"], "cluster.local");
    assert_eq!(status["certificates"], 1);
    let signing = &status["authorities"][1];
    assert_eq!((&signing["kind"], &signing["stage"]), (&"intermediate".into(), &"active".into()));
    assert_eq!((&signing["signs"], &signing["certificates"]), (&true.into(), &1.into()));
    assert!(signing["list"]["nextUpdateSeconds"].as_i64() > Some(now()));
}

/// Days in seconds: two replicas issue all the time while roots and intermediates come and go by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_by_themselves_leave_no_valid_certificate_unbelieved() {
    const ROTATIONS: usize = 3;
    let fixture = Fixture::new(|settings| {
        settings.automatic = true;
        settings.intermediates = true;
        settings.lifetime = Duration::from_secs(2);
        settings.max_lifetime = settings.lifetime;
        settings.clock_skew = Duration::from_secs(1);
        // the replicas here wait for each other by the clock alone, on a machine that may be busy
        settings.propagation = Duration::from_secs(3);
        settings.interval = Duration::from_millis(100);
    });
    let (stop, replicas) = (CancellationToken::new(), [fixture.authority.clone(), fixture.replica()]);
    let mut tasks = tokio::task::JoinSet::new();
    for own in 0..2 {
        let (stop, replicas) = (stop.clone(), replicas.clone());
        let runs = (replicas[own].clone(), stop.clone());
        tasks.spawn(async move {
            runs.0.run(runs.1).await;
            0
        });
        tasks.spawn(async move {
            let (mut valid, mut verified) = (Vec::<Svid>::new(), 0_u32);
            while !stop.is_cancelled() {
                valid.push(replicas[own].issue(&id("web")).await.unwrap());
                let soon = SystemTime::now() + Duration::from_millis(500);
                valid.retain(|svid| svid.not_after > soon);
                for at in [0, valid.len() / 2, valid.len() - 1] {
                    // what its own side was told, and the other side, which may have heard later
                    let bundles = replicas.each_ref().map(|replica| replica.trust().borrow().bundles.clone());
                    let Some(svid) = valid.get(at) else { continue };
                    for bundles in bundles {
                        let verdict = verify(&bundles, &svid.chain);
                        // this thread may have stood still until its end
                        if SystemTime::now() < svid.not_after {
                            verdict.unwrap_or_else(|e| panic!("after {verified}: {e}"));
                            verified += 1;
                        }
                    }
                }
            }
            verified
        });
    }
    let mut trust = fixture.authority.trust();
    let roots = |trust: &Trust| trust.bundles.roots[&TrustDomain::cluster_local()].clone();
    for _ in 0..ROTATIONS {
        let before = roots(&trust.borrow().clone());
        fixture.authority.rotate(Kind::Root).await.unwrap();
        let done = trust.wait_for(|trust| roots(trust).len() == 1 && roots(trust) != before);
        tokio::time::timeout(Duration::from_secs(60), done).await.unwrap().unwrap();
    }
    stop.cancel();
    let verified: u32 = tasks.join_all().await.into_iter().sum();
    println!("{verified} verifications over {ROTATIONS} rotations, none failed");
    assert!(verified > 100);
}
