//! The admin API of `meshd ca`: status, join tokens, metrics and health over a Unix socket that only root and the service's
//! own user may use. What the operator does to tokens is in the audit.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path as UrlPath, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio_util::sync::CancellationToken;

use super::{
    ca_api::{CaStatus, JoinTokenRow, NewJoinToken, NewJoinTokenAnswer, RevokedAnswer},
    ca_keys::{self, Failure},
    server::{AdminLimits, AdminSocket, MetricsServer, ServerError},
};
use crate::{
    ca::{audit::AuditRecord, authority::Authority, callers::JoinToken, service::Service},
    config::JoinTokenConfig,
    identity::{SpiffeId, TrustDomain},
    telemetry::metrics::METRICS_CONTENT_TYPE,
};

/// The socket's name in the service's runtime folder.
pub const CA_SOCKET_NAME: &str = "ca.sock";
/// Longest request body, in bytes.
const MAX_BODY_BYTES: usize = 4096;
/// How long an answer may take to make.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the admin API is asked about.
#[derive(Debug)]
pub struct CaAdmin {
    /// The service.
    pub service: Arc<Service>,
    /// Its keys.
    pub authority: Authority,
    /// Whose identities it issues.
    pub trust_domain: TrustDomain,
    /// Where it serves.
    pub listen: Vec<String>,
    /// Bounds on join tokens.
    pub join_tokens: JoinTokenConfig,
}

/// The bound socket.
#[derive(Debug)]
pub struct CaAdminServer(AdminSocket);

impl CaAdminServer {
    /// Binds `<runtime_dir>/ca.sock`. The caller holds the runtime folder's lock.
    pub fn bind(runtime_dir: &Path, limits: AdminLimits) -> Result<Self, ServerError> {
        AdminSocket::bind(runtime_dir, CA_SOCKET_NAME, limits).map(Self)
    }

    /// Serves until cancelled.
    pub async fn serve(self, admin: Arc<CaAdmin>, stop: CancellationToken) {
        self.0.serve(router(admin), |_| {}, stop).await;
    }
}

/// The service once this replica is it; before, it stands by.
pub type Leading = Arc<OnceLock<Arc<CaAdmin>>>;

/// Serves `GET /metrics`, `/healthz/ready` and `/healthz/live`, and nothing else, over TCP until cancelled. A replica that
/// stands by is not ready.
pub async fn serve_metrics(server: MetricsServer, leading: Leading, stop: CancellationToken) {
    let standing_by = || (StatusCode::SERVICE_UNAVAILABLE, "this replica stands by\n").into_response();
    let router = Router::new()
        .route(
            "/metrics",
            get(async move |State(leading): State<Leading>| match leading.get() {
                Some(admin) => metrics(State(Arc::clone(admin))).await,
                None => standing_by(),
            }),
        )
        .route(
            "/healthz/ready",
            get(async move |State(leading): State<Leading>| match leading.get() {
                Some(_) => "ready\n".into_response(),
                None => standing_by(),
            }),
        )
        .route("/healthz/live", get(async || "live\n"))
        .with_state(leading);
    server.serve_router(router, |_| {}, stop).await;
}

fn router(admin: Arc<CaAdmin>) -> Router {
    Router::new()
        .route("/v1/status", get(async |State(admin): State<Arc<CaAdmin>>| Json(admin.status())))
        .route("/v1/join-tokens", get(list).post(create))
        .route("/v1/join-tokens/{id}/revoke", post(revoke))
        .route("/metrics", get(metrics))
        .route("/healthz/ready", get(async || "ready\n"))
        .route("/healthz/live", get(async || "live\n"))
        .fallback(async || {
            Failure(
                StatusCode::NOT_FOUND,
                "no such path in meshd ca's admin API; is meshctl of another version?".into(),
            )
        })
        .with_state(Arc::clone(&admin))
        .merge(keys(admin))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

/// What the operator does to keys and certificates is in the audit too.
fn keys(admin: Arc<CaAdmin>) -> Router {
    ca_keys::router(admin.authority.clone(), move |call, detail| {
        let record = AuditRecord { call, outcome: "changed", detail: Some(detail), ..AuditRecord::default() };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move { admin.service.audit().granted(record).await });
    })
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl CaAdmin {
    fn status(&self) -> CaStatus {
        let trust = self.service.trust();
        CaStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.trust_domain.to_string(),
            listen: self.listen.clone(),
            issued: self.service.metrics().issued_total(),
            connections: self.service.metrics().connections(),
            watchers: self.service.watching(),
            trust_version: trust.version,
            roots: trust.bundles.roots.get(&self.trust_domain).map_or(0, Vec::len),
            issuer_end_seconds: self.service.issuer_end().map(unix),
            own_end_seconds: unix(self.service.own_end()),
        }
    }

    async fn create(&self, wanted: NewJoinToken) -> Result<NewJoinTokenAnswer, Failure> {
        let bad = |what: String| Failure(StatusCode::BAD_REQUEST, what);
        SpiffeId::for_node(&self.trust_domain, &wanted.node).map_err(|error| bad(error.to_string()))?;
        let (ttl, most) =
            (wanted.ttl_seconds.unwrap_or(self.join_tokens.ttl_seconds), self.join_tokens.max_ttl_seconds);
        if !(1..=most).contains(&ttl) {
            return Err(bad(format!(
                "a join token counts for 1 to {most} s (joinTokens.maxTtlSeconds), not {ttl}"
            )));
        }
        let tokens = self.service.join_tokens();
        let (row, token) = tokens.create(&wanted.node, Duration::from_secs(ttl), SystemTime::now()).await?;
        self.changed("token create", Some(&row), &row.id).await;
        Ok(NewJoinTokenAnswer { row, token: token.to_string() })
    }

    async fn changed(&self, call: &'static str, row: Option<&JoinToken>, id: &str) {
        let record = AuditRecord {
            call,
            outcome: "changed",
            detail: Some(format!("join token {id}")),
            node: row.map(|row| row.node.clone()),
            ..AuditRecord::default()
        };
        self.service.audit().granted(record).await;
    }
}

async fn create(State(admin): State<Arc<CaAdmin>>, body: Bytes) -> Result<Json<NewJoinTokenAnswer>, Failure> {
    let wanted = serde_json::from_slice(&body)
        .map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("the body is not understood: {error}")))?;
    in_time(admin.create(wanted)).await.map(Json)
}

async fn list(State(admin): State<Arc<CaAdmin>>) -> Result<Json<Vec<JoinTokenRow>>, Failure> {
    let reading = tokio::task::spawn_blocking(move || admin.service.join_tokens().list());
    let failed =
        |error: tokio::task::JoinError| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    Ok(Json(in_time(async { Ok(reading.await.map_err(failed)??) }).await?))
}

async fn revoke(
    State(admin): State<Arc<CaAdmin>>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<RevokedAnswer>, Failure> {
    in_time(async {
        if !admin.service.join_tokens().revoke(&id).await? {
            let what = format!(
                "no join token {id:?} that could still be redeemed; `meshctl ca token list` shows them"
            );
            return Err(Failure(StatusCode::NOT_FOUND, what));
        }
        admin.changed("token revoke", None, &id).await;
        Ok(Json(RevokedAnswer { id }))
    })
    .await
}

async fn metrics(State(admin): State<Arc<CaAdmin>>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], admin.service.metrics_text()).into_response()
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_elapsed| {
        let what = format!("no answer within {} s; try again", ANSWER_TIMEOUT.as_secs());
        Err(Failure(StatusCode::GATEWAY_TIMEOUT, what))
    })
}
