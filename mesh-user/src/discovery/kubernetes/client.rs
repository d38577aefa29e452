//! The connection to the API server, and since when it does not answer for what. A watch that goes on after a
//! disconnect says nothing by itself, so the answers are looked at as they come in.

use std::{
    collections::BTreeMap,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kube::{Client, client::Body, core::ApiResource};
use serde::Serialize;
use tower_service::Service;

pub use crate::runtime::KubernetesError;
use crate::runtime::{api_server, client};

/// How long a watch lasts before it is asked for anew.
pub(super) const WATCH_SECONDS: u32 = 240;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that says nothing for longer than a watch lasts is gone.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 30);

/// How one watch is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchStatus {
    /// Unix time since when what is known may be old; none: it is as the API server says.
    pub stale_since_seconds: Option<u64>,
    /// Why.
    pub trouble: Option<String>,
    /// Times that it failed, since the start.
    pub failures: u64,
}

/// All watches, by the plural of their kind; and in which version the server has each kind of policies.
#[derive(Debug, Clone, Default)]
pub(super) struct Watches(
    Arc<Mutex<BTreeMap<&'static str, WatchStatus>>>,
    Arc<Mutex<BTreeMap<&'static str, ApiResource>>>,
);

impl Watches {
    pub(super) fn failed(&self, kind: &'static str, why: String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = all.entry(kind).or_default();
        watch.failures += 1;
        if watch.stale_since_seconds.is_none() {
            tracing::warn!(kind, %why, "the API server is not heard; what is known of it stays in use");
        }
        watch.stale_since_seconds.get_or_insert_with(now_seconds);
        watch.trouble = Some(why);
    }

    pub(super) fn heard(&self, kind: &'static str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = all.entry(kind).or_default();
        if watch.stale_since_seconds.take().is_some() {
            tracing::info!(kind, "the API server is heard again");
        }
        watch.trouble = None;
    }

    fn heard_at(&self, path: &str) {
        let last = path.rsplit('/').next().unwrap_or_default();
        let kind =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().find(|k| **k == last).copied();
        if let Some(kind) = kind {
            self.heard(kind);
        }
    }

    pub(super) fn found(&self, kind: &'static str, resource: &ApiResource) {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).insert(kind, resource.clone());
    }

    pub(super) fn served(&self, kind: &str) -> Option<ApiResource> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).get(kind).cloned()
    }

    pub(super) fn status(&self) -> BTreeMap<&'static str, WatchStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A client of the API server of `kubeconfig`, or that of the pod that this runs in.
///
/// # Errors
/// When there is no such file, or it makes no sense.
pub(super) async fn connect(
    kubeconfig: Option<&Path>,
    watches: &Watches,
) -> Result<(Client, String), KubernetesError> {
    let mut config = api_server(kubeconfig).await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(CONNECT_TIMEOUT);
    // Each watch tries again by itself, and tells meanwhile that a busy server says nothing.
    config.default_retry = false;
    let namespace = config.default_namespace.clone();
    let inner = client(config)?;
    let heard = Heard { inner, watches: watches.clone() };
    Ok((Client::new(heard, namespace.clone()), namespace))
}

/// Passes requests on, and notes for which lists and watches the server has begun to answer.
#[derive(Clone)]
struct Heard {
    inner: Client,
    watches: Watches,
}

type Answer = Result<http::Response<Body>, kube::Error>;

impl Service<http::Request<Body>> for Heard {
    type Response = http::Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = (*request.method() == http::Method::GET).then(|| request.uri().path().to_owned());
        let (inner, watches) = (self.inner.clone(), self.watches.clone());
        Box::pin(async move {
            let answer = inner.send(request).await?;
            if let Some(path) = path.filter(|_| answer.status().is_success()) {
                watches.heard_at(&path);
            }
            Ok(answer)
        })
    }
}

pub(super) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
