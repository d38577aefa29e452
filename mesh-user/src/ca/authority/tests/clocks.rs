//! A CA whose wall clock is set: nothing that is still valid is withdrawn or forgotten, and nobody signs too early.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn open(folder: &tempfile::TempDir, hands: &Hands) -> Authority {
    let settings = AuthoritySettings {
        automatic: true,
        lifetime: HOUR,
        max_lifetime: HOUR,
        propagation: Duration::from_secs(60),
        ..settings(&folder.path().join("ca"))
    };
    Authority::open_by(settings, None, Clocks::new(hands.clone(), HOUR)).unwrap()
}

fn registered(authority: &Authority, svid: &Svid) -> bool {
    let serial = svid.serial.clone();
    let find = "SELECT 1 FROM issued WHERE serial = ?1";
    authority.state().read(|c| c.prepare(find)?.exists([&serial])).unwrap()
}

fn roots(authority: &Authority) -> Vec<Stage> {
    let status = authority.status().unwrap();
    status.authorities.iter().filter(|one| one.kind == Kind::Root).map(|one| one.stage).collect()
}

#[tokio::test]
async fn a_jump_of_a_day_withdraws_and_forgets_nothing_and_time_that_passes_does() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let authority = open(&folder, &hands);
    let old = authority.issue(&id("old")).await.unwrap();
    authority.rotate(Kind::Root).await.unwrap();
    hands.pass(Duration::from_secs(61));
    authority.do_due().await.unwrap();
    assert_eq!(roots(&authority), [Stage::Retiring, Stage::Active]);

    hands.set_forward(24 * HOUR);
    authority.do_due().await.unwrap();
    assert_eq!(authority.clock_ahead(), 24 * HOUR);
    assert_eq!(authority.status().unwrap().clock_ahead_seconds, 86_400);
    assert_eq!(roots(&authority), [Stage::Retiring, Stage::Active]);
    assert!(authority.advance(Kind::Root, false).await.is_err(), "nor when asked");
    assert!(registered(&authority, &old));
    verify(&authority.trust().borrow().bundles, &old.chain).unwrap();

    // a restart does not make it true
    let again = open(&folder, &hands);
    again.do_due().await.unwrap();
    assert!(again.clock_ahead() > 23 * HOUR);
    assert_eq!(roots(&again), [Stage::Retiring, Stage::Active]);
    assert!(registered(&again, &old));

    hands.set_back(24 * HOUR);
    for authority in [&authority, &again] {
        authority.do_due().await.unwrap();
        assert_eq!(authority.clock_ahead(), Duration::ZERO);
    }
    hands.pass(HOUR);
    again.do_due().await.unwrap();
    assert_eq!(roots(&again), [Stage::Active], "what it signed has ended");
    hands.pass(2 * HOUR);
    again.do_due().await.unwrap();
    assert!(!registered(&again, &old));
}

#[tokio::test]
async fn a_clock_that_stays_ahead_is_believed_once_it_was_steady_for_as_long() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let authority = open(&folder, &hands);
    let old = authority.issue(&id("old")).await.unwrap();
    hands.set_forward(24 * HOUR);
    // it ended after one hour, and is kept for another
    for hour in 1..=24 {
        authority.do_due().await.unwrap();
        assert_eq!((registered(&authority, &old), authority.clock_ahead()), (hour < 4, 24 * HOUR), "{hour}");
        hands.pass(HOUR);
    }
    authority.do_due().await.unwrap();
    assert_eq!(authority.clock_ahead(), Duration::ZERO);
}

#[tokio::test]
async fn a_new_root_does_not_sign_sooner_because_the_clock_was_set() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let authority = open(&folder, &hands);
    authority.rotate(Kind::Root).await.unwrap();
    assert_eq!(roots(&authority), [Stage::Active, Stage::Trusted]);
    hands.set_forward(24 * HOUR);
    authority.do_due().await.unwrap();
    assert_eq!(roots(&authority), [Stage::Active, Stage::Trusted]);
    hands.pass(Duration::from_secs(61));
    authority.do_due().await.unwrap();
    assert_eq!(roots(&authority), [Stage::Retiring, Stage::Active]);
}
