//! Rotations of the keys of JWT-SVIDs: at no moment is there a token that somebody who was told does not believe.

use super::*;
use crate::{
    ca::jwt_svid::{JwtAuthority, JwtSvidRequest, MAX_LIFETIME},
    jwt::verify_jwt_svid,
};

fn open(folder: &tempfile::TempDir, hands: &Hands) -> (Authority, Arc<JwtAuthority>) {
    let settings = AuthoritySettings {
        automatic: true,
        propagation: Duration::from_secs(60),
        watch_window: Duration::from_secs(7200),
        ..settings(&folder.path().join("ca"))
    };
    let directory = settings.directory.clone();
    let authority = Authority::open_by(settings, None, Clocks::new(hands.clone(), Duration::ZERO)).unwrap();
    let jwt = authority.open_jwt(&directory).unwrap();
    (authority, jwt)
}

fn token(jwt: &JwtAuthority, hands: &Hands) -> String {
    let request =
        JwtSvidRequest { id: id("web"), audiences: vec!["shop".to_owned()], lifetime: Some(MAX_LIFETIME) };
    jwt.sign(&request, hands.now().wall).unwrap().token
}

/// By what agents are told now.
fn believes(authority: &Authority, token: &str, hands: &Hands) -> bool {
    let now = hands.now().wall.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    verify_jwt_svid(token, "shop", &authority.trust().borrow().bundles, now).is_ok()
}

fn stages(authority: &Authority) -> Vec<Stage> {
    authority.status().unwrap().jwt_keys.iter().map(|key| key.stage).collect()
}

#[tokio::test]
async fn a_key_is_published_first_then_signs_and_the_old_one_goes_after_its_last_token() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (authority, jwt) = open(&folder, &hands);
    let (replica, other) = open(&folder, &hands);
    let first = token(&jwt, &hands);
    assert!(believes(&authority, &first, &hands) && believes(&replica, &first, &hands));
    let mut before = authority.trust().borrow().version;

    authority.rotate_jwt().await.unwrap();
    assert_eq!(stages(&authority), [Stage::Active, Stage::Trusted]);
    assert!(authority.trust().borrow().version > before, "agents are told");
    assert_eq!(jwt.published().len(), 2);
    let error = authority.rotate_jwt().await.unwrap_err().to_string();
    assert!(error.contains("on its way already"), "{error}");
    let error = authority.advance_jwt(false).await.unwrap_err().to_string();
    assert!(error.contains("stays where it is"), "{error}");
    let second = token(&jwt, &hands);
    assert_eq!(kid(&second), kid(&first), "not everybody has it yet");

    // a node that watches and does not have it holds it up
    before = authority.trust().borrow().version;
    authority.acknowledge("n1", before - 1);
    authority.do_due().await.unwrap();
    hands.pass(Duration::from_secs(61));
    authority.do_due().await.unwrap();
    assert_eq!(stages(&authority), [Stage::Active, Stage::Trusted]);
    authority.acknowledge("n1", before);
    authority.do_due().await.unwrap();
    assert_eq!(stages(&authority), [Stage::Retiring, Stage::Active]);
    replica.do_due().await.unwrap();
    let (third, fourth) = (token(&jwt, &hands), token(&other, &hands));
    assert_eq!(kid(&third), kid(&fourth), "replicas sign with the same key");
    assert_ne!(kid(&third), kid(&first));
    for token in [&first, &second, &third, &fourth] {
        assert!(believes(&authority, token, &hands) && believes(&replica, token, &hands));
    }

    hands.pass(MAX_LIFETIME);
    authority.do_due().await.unwrap();
    assert_eq!(
        stages(&authority),
        [Stage::Retiring, Stage::Active],
        "a slow clock still believes its tokens"
    );
    hands.pass(Duration::from_secs(61));
    authority.do_due().await.unwrap();
    assert_eq!((stages(&authority), jwt.published().len()), (vec![Stage::Active], 1));
    replica.do_due().await.unwrap();
    assert_eq!(other.published(), jwt.published());
    assert!(believes(&replica, &token(&other, &hands), &hands));
}

#[tokio::test]
async fn a_key_that_is_old_is_replaced_by_itself_and_one_that_was_not_wanted_goes() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (authority, jwt) = open(&folder, &hands);
    let first = jwt.kids();
    authority.rotate_jwt().await.unwrap();
    authority.cancel_jwt().await.unwrap();
    assert_eq!((jwt.kids(), stages(&authority)), (first.clone(), vec![Stage::Active]));
    assert!(authority.advance_jwt(true).await.is_err() && authority.cancel_jwt().await.is_err());

    hands.pass(Duration::from_secs(29 * 86_400));
    authority.do_due().await.unwrap();
    assert_eq!(stages(&authority), [Stage::Active]);
    hands.pass(Duration::from_secs(86_400));
    authority.do_due().await.unwrap();
    assert_eq!(stages(&authority), [Stage::Active, Stage::Trusted]);
    hands.pass(Duration::from_secs(61));
    authority.do_due().await.unwrap();
    assert_ne!(jwt.kids()[0], first[0]);
    assert_eq!(stages(&authority), [Stage::Retiring, Stage::Active]);
}

#[tokio::test]
async fn a_crash_between_the_file_and_the_state_is_made_good() {
    let (folder, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let (authority, jwt) = open(&folder, &hands);
    let version = authority.trust().borrow().version;
    let new = jwt.add().unwrap();
    authority.do_due().await.unwrap();
    assert_eq!(stages(&authority), [Stage::Active, Stage::Trusted]);
    assert!(authority.trust().borrow().version > version, "it is waited for until all have it");
    jwt.sign_with(&new).unwrap();
    let (again, _) = open(&folder, &hands);
    let status = again.status().unwrap();
    let signs = status.jwt_keys.iter().find(|key| key.stage == Stage::Active).unwrap();
    assert_eq!((signs.kid.as_str(), status.jwt_keys.len()), (&*new, 2));
    assert!(jwt.remove(&new).is_err(), "it signs");
}

fn kid(token: &str) -> String {
    let header = token.split('.').next().unwrap();
    let header = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, header).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}
