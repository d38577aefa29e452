//! Replicas on different machines share one state through Secrets, whatever the API server and the others do meanwhile.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::SharedState;
use crate::{
    ca::{
        CaError,
        authority::{Authority, AuthoritySettings, Reason, Revoke},
    },
    identity::SpiffeId,
};

/// An API server that knows Secrets, and fails where it is told to.
#[derive(Default)]
struct Kept {
    objects: Mutex<(u64, HashMap<String, Value>)>,
    /// Writes of the head that are done, and answered with an error.
    lose_answers: AtomicU32,
    /// Requests that are refused.
    refuse: AtomicU32,
}

type Shared = Arc<Kept>;

fn status(code: StatusCode) -> Response {
    let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "x" };
    let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "message": "x", "reason": reason });
    (code, Json(body)).into_response()
}

fn countdown(count: &AtomicU32) -> bool {
    count.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
}

async fn read(State(kept): State<Shared>, UrlPath(name): UrlPath<String>) -> Response {
    if countdown(&kept.refuse) {
        return status(StatusCode::SERVICE_UNAVAILABLE);
    }
    let objects = kept.objects.lock().unwrap();
    objects
        .1
        .get(&name)
        .map_or_else(|| status(StatusCode::NOT_FOUND), |found| Json(found.clone()).into_response())
}

fn store(kept: &Kept, name: &str, mut object: Value) -> Response {
    let mut objects = kept.objects.lock().unwrap();
    objects.0 += 1;
    object["metadata"]["resourceVersion"] = json!(objects.0.to_string());
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    objects.1.insert(name.to_owned(), object.clone());
    if object["data"]["head.json"].is_string() && countdown(&kept.lose_answers) {
        return status(StatusCode::INTERNAL_SERVER_ERROR);
    }
    Json(object).into_response()
}

async fn replace(
    State(kept): State<Shared>,
    UrlPath(name): UrlPath<String>,
    Json(object): Json<Value>,
) -> Response {
    if countdown(&kept.refuse) {
        return status(StatusCode::TOO_MANY_REQUESTS);
    }
    let now = kept.objects.lock().unwrap().1.get(&name).map(|old| old["metadata"]["resourceVersion"].clone());
    match now {
        None => status(StatusCode::NOT_FOUND),
        Some(now) if now != object["metadata"]["resourceVersion"] => status(StatusCode::CONFLICT),
        Some(_) => store(&kept, &name, object),
    }
}

async fn create(State(kept): State<Shared>, Json(object): Json<Value>) -> Response {
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let is_there = kept.objects.lock().unwrap().1.contains_key(&name);
    if is_there { status(StatusCode::CONFLICT) } else { store(&kept, &name, object) }
}

async fn list(State(kept): State<Shared>) -> Response {
    let objects = kept.objects.lock().unwrap();
    let items: Vec<_> = objects.1.values().map(|object| json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"] })).collect();
    Json(json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": items })).into_response()
}

async fn delete(State(kept): State<Shared>, UrlPath(name): UrlPath<String>) -> Response {
    kept.objects.lock().unwrap().1.remove(&name);
    Json(json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })).into_response()
}

struct Ground {
    kept: Shared,
    client: Client,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

impl Ground {
    async fn new() -> Self {
        let kept = Shared::default();
        let router = Router::new()
            .route("/api/v1/namespaces/mesh/secrets", get(list).post(create))
            .route("/api/v1/namespaces/mesh/secrets/{name}", get(read).put(replace).delete(delete))
            .layer(axum::extract::DefaultBodyLimit::max(4 << 20))
            .with_state(Arc::clone(&kept));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let client = Client::try_from(Config::new(url.parse().unwrap())).unwrap();
        Self { kept, client, _serving: tokio_util::task::AbortOnDropHandle::new(serving) }
    }

    /// Takes over with a folder of its own.
    async fn replica(&self, folder: &tempfile::TempDir) -> (Result<Authority, CaError>, CancellationToken) {
        let lost = CancellationToken::new();
        let directory = folder.path().join("ca");
        let state =
            SharedState::new(self.client.clone(), "mesh", "state".into(), directory.clone(), lost.clone());
        let settings = AuthoritySettings::new(directory, "a.b".parse().unwrap());
        let opened =
            tokio::task::spawn_blocking(move || Authority::open_kept(settings, Some(Box::new(state))));
        (opened.await.unwrap(), lost)
    }

    fn pieces(&self) -> usize {
        self.kept.objects.lock().unwrap().1.len() - 1
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn roots(authority: &Authority) -> Vec<Vec<u8>> {
    use crate::ca::signing::CertificateAuthority as _;
    let trust = authority.trust().borrow().clone();
    trust.bundles.roots.values().flatten().map(|root| root.to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_replica_has_the_same_root_and_every_certificate_that_was_acknowledged() {
    let ground = Ground::new().await;
    let (one, two) = (folder(), folder());
    let (first, _) = ground.replica(&one).await;
    let first = first.unwrap();
    let id: SpiffeId = "spiffe://a.b/ns/shop/sa/web".parse().unwrap();
    let mut serials = Vec::new();
    for _ in 0..300 {
        serials.push(first.issue(&id).await.unwrap().serial);
    }
    assert!(ground.pieces() > 0, "the tail never became a piece: the test is too small");
    let (second, lost) = ground.replica(&two).await;
    let second = second.unwrap();
    assert_eq!(roots(&second), roots(&first));
    let revoked = second
        .revoke(Revoke::Identity { id: id.clone(), block: false }, Reason::KeyCompromise)
        .await
        .unwrap();
    assert!(
        serials.iter().all(|serial| revoked.serials.contains(serial)),
        "a certificate is not in the register"
    );
    // Whoever led before can sign nothing more, and says so.
    first.issue(&id).await.unwrap_err();
    first.issue(&id).await.unwrap_err();
    assert!(!lost.is_cancelled());
    second.issue(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_lost_ends_and_one_whose_answer_was_lost_goes_on() {
    let ground = Ground::new().await;
    let (one, two) = (folder(), folder());
    let id: SpiffeId = "spiffe://a.b/ns/shop/sa/web".parse().unwrap();
    let (first, lost) = ground.replica(&one).await;
    let first = first.unwrap();
    ground.kept.lose_answers.store(1, SeqCst);
    first.issue(&id).await.unwrap();
    ground.kept.refuse.store(3, SeqCst);
    first.issue(&id).await.unwrap();
    assert!(!lost.is_cancelled());
    let (second, _) = ground.replica(&two).await;
    first.issue(&id).await.unwrap_err();
    assert!(lost.is_cancelled());
    // It may come back: its folder is made anew from what is kept.
    drop(first);
    let (again, _) = ground.replica(&one).await;
    assert_eq!(roots(&again.unwrap()), roots(&second.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_were_made_meanwhile_are_there_for_the_next() {
    let ground = Ground::new().await;
    let (one, two) = (folder(), folder());
    let (first, _) = ground.replica(&one).await;
    let first = first.unwrap();
    first.rotate(crate::ca::authority::Kind::Root).await.unwrap();
    let (second, _) = ground.replica(&two).await;
    let second = second.unwrap();
    let status = |authority: &Authority| {
        let status = serde_json::to_value(authority.status().unwrap()).unwrap();
        status["authorities"].clone()
    };
    assert_eq!(status(&second), status(&first));
    second.issue(&"spiffe://a.b/ns/shop/sa/web".parse().unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_second_root_is_made_where_the_secret_is_gone_or_damaged() {
    let ground = Ground::new().await;
    let one = folder();
    let (first, _) = ground.replica(&one).await;
    drop(first.unwrap());
    let head = ground.kept.objects.lock().unwrap().1.remove("state").unwrap();
    let (gone, _) = ground.replica(&one).await;
    assert!(gone.unwrap_err().to_string().contains("restore the Secret"));
    for (field, value) in [
        ("head.json", json!("e30=")),
        ("tail", json!("/w==")),
        ("tail", json!("eAo=")),
        ("file.ca.key", Value::Null),
    ] {
        let mut damaged = head.clone();
        if value.is_null() {
            let data = damaged["data"].as_object_mut().unwrap();
            data.retain(|name, _| !name.starts_with("file."));
        } else {
            damaged["data"][field] = value;
        }
        ground.kept.objects.lock().unwrap().1.insert("state".to_owned(), damaged);
        let (opened, _) = ground.replica(&folder()).await;
        opened.map(drop).unwrap_err();
    }
    ground.kept.objects.lock().unwrap().1.insert("state".to_owned(), head);
    let (well, _) = ground.replica(&folder()).await;
    well.unwrap();
}
