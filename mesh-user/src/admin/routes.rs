//! The routes. Each answer is made on a blocking thread with a time limit, so that a slow source cannot
//! hold the admin's runtime. A body that is larger than its path has use for is refused unread.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    api::{ApiError, ConnectionList},
    question::ExplainBody,
    review::{ImpactReport, LintRow},
    source::{AdminSource, ExplainError, ExplainQuery},
};
use crate::telemetry::metrics::METRICS_CONTENT_TYPE;

/// Longest request body, in bytes: most requests need none.
const MAX_BODY_BYTES: usize = 1024;
/// Of a question about a request, with its token and headers.
const MAX_QUESTION_BYTES: usize = 64 * 1024;
/// Of policy documents that are to be looked through.
const MAX_DOCUMENTS_BYTES: usize = 4 * 1024 * 1024;
const LINT: &str = "/v1/policy/lint";
const IMPACT: &str = "/v1/policy/impact";
/// How long an answer may take to make.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections listed unless the client asks for another number.
const DEFAULT_CONNECTION_LIMIT: usize = 10_000;

type Source = Arc<dyn AdminSource>;

/// Everything, for the Unix socket.
pub(super) fn admin_router(source: Source) -> Router {
    Router::new()
        .route("/v1/status", get(|s: State<Source>| answer(s, |s| Ok(s.status()))))
        .route("/v1/workloads", get(|s: State<Source>| answer(s, |s| Ok(s.workloads()))))
        .route("/v1/connections", get(connections))
        .route("/v1/certs", get(|s: State<Source>| answer(s, |s| Ok(s.certs()))))
        .route("/v1/policies", get(|s: State<Source>| answer(s, |s| Ok(s.policies()))))
        .route("/v1/check", get(|s: State<Source>| answer(s, |s| Ok(s.check()))))
        .route("/v1/jwks", get(|s: State<Source>| answer(s, |s| Ok(s.jwks()))))
        .route("/v1/policy/explain", get(explain).post(explain_request))
        .route(LINT, post(lint))
        .route(IMPACT, post(impact))
        .route("/v1/reload", post(reload))
        .route("/metrics", get(metrics))
        .route("/healthz/ready", get(ready))
        .route("/healthz/live", get(async || "live\n"))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_DOCUMENTS_BYTES))
        .layer(middleware::from_fn(refuse_bodies))
        .with_state(source)
}

/// Metrics alone, for a TCP listener.
pub(super) fn metrics_router(source: Source) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(async || Failure(StatusCode::NOT_FOUND, "only GET /metrics is answered here".into()))
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(refuse_bodies))
        .with_state(source)
}

#[derive(Deserialize)]
struct ConnectionsParameters {
    limit: Option<usize>,
}

async fn connections(
    State(source): State<Source>,
    Query(parameters): Query<ConnectionsParameters>,
) -> Result<Json<ConnectionList>, Failure> {
    let limit = parameters.limit.unwrap_or(DEFAULT_CONNECTION_LIMIT);
    answer(State(source), move |source| {
        let mut connections = source.connections();
        let total = connections.len() as u64;
        connections.truncate(limit);
        Ok(ConnectionList { total, connections })
    })
    .await
}

#[derive(Deserialize)]
struct ExplainParameters {
    from: String,
    to: String,
}

async fn explain(
    State(source): State<Source>,
    Query(parameters): Query<ExplainParameters>,
) -> Result<Json<super::api::Explanation>, Failure> {
    let query = ExplainQuery::parse(&parameters.from, &parameters.to).map_err(|error| unexplained(&error))?;
    answer(State(source), move |source| source.explain(&query).map_err(|error| unexplained(&error))).await
}

async fn explain_request(
    State(source): State<Source>,
    body: Bytes,
) -> Result<Json<super::api::Explanation>, Failure> {
    let query = document::<ExplainBody>(&body)?.parse().map_err(|error| unexplained(&error))?;
    answer(State(source), move |source| source.explain(&query).map_err(|error| unexplained(&error))).await
}

fn unexplained(error: &ExplainError) -> Failure {
    let status = match error {
        ExplainError::BadFrom(_)
        | ExplainError::SharedAddress(..)
        | ExplainError::BadTo(_)
        | ExplainError::BadRequest(_) => StatusCode::BAD_REQUEST,
        ExplainError::Unknown(_) | ExplainError::NotCaptured(..) | ExplainError::NoEndpoint(_) => {
            StatusCode::NOT_FOUND
        }
    };
    Failure(status, error.to_string())
}

async fn lint(State(source): State<Source>, body: Bytes) -> Result<Json<Vec<LintRow>>, Failure> {
    let files = document(&body)?;
    let refused = |error| Failure(StatusCode::UNPROCESSABLE_ENTITY, error);
    answer(State(source), move |source| source.lint(&files).map_err(refused)).await
}

async fn impact(State(source): State<Source>, body: Bytes) -> Result<Json<ImpactReport>, Failure> {
    let files = document(&body)?;
    let refused = |error| Failure(StatusCode::UNPROCESSABLE_ENTITY, error);
    answer(State(source), move |source| source.impact(&files).map_err(refused)).await
}

/// A body that is JSON. What is wrong with another is said by its place: it may hold a token.
fn document<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        let text = format!("the body is not understood at line {} column {}", error.line(), error.column());
        Failure(StatusCode::BAD_REQUEST, text)
    })
}

async fn reload(State(source): State<Source>) -> Result<Json<super::api::ReloadReport>, Failure> {
    answer(State(source), |source| {
        source.reload().map_err(|error| Failure(StatusCode::UNPROCESSABLE_ENTITY, error))
    })
    .await
}

async fn metrics(State(source): State<Source>) -> Result<Response, Failure> {
    let text = blocking(source, |source| Ok(source.metrics_text())).await?;
    Ok(([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response())
}

async fn ready(State(source): State<Source>) -> Result<Response, Failure> {
    let status = blocking(source, |source| Ok(source.status())).await?;
    if status.ready {
        return Ok("ready\n".into_response());
    }
    Ok((StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response())
}

/// What goes wrong in a handler, as status and sentence.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(ApiError { error: self.1 })).into_response()
    }
}

async fn answer<T: Serialize + Send + 'static>(
    State(source): State<Source>,
    make: impl FnOnce(&dyn AdminSource) -> Result<T, Failure> + Send + 'static,
) -> Result<Json<T>, Failure> {
    blocking(source, make).await.map(Json)
}

async fn blocking<T: Send + 'static>(
    source: Source,
    make: impl FnOnce(&dyn AdminSource) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let answering = tokio::task::spawn_blocking(move || make(&*source));
    match tokio::time::timeout(ANSWER_TIMEOUT, answering).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => {
            tracing::error!(%error, "an admin request failed inside meshd");
            Err(Failure(
                StatusCode::INTERNAL_SERVER_ERROR,
                "meshd failed on this request; see its log".into(),
            ))
        }
        Err(_elapsed) => {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Err(Failure(
                StatusCode::GATEWAY_TIMEOUT,
                format!("meshd had no answer within {seconds} s; try again"),
            ))
        }
    }
}

async fn refuse_bodies(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let most = match request.uri().path() {
        LINT | IMPACT => MAX_DOCUMENTS_BYTES,
        "/v1/policy/explain" => MAX_QUESTION_BYTES,
        _ => MAX_BODY_BYTES,
    };
    if headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|bytes| bytes > most) {
        let text = format!("meshd takes no request body above {most} bytes here");
        let mut response = Failure(StatusCode::PAYLOAD_TOO_LARGE, text).into_response();
        // The body stays unread, so the connection cannot carry another request.
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        return response;
    }
    next.run(request).await
}

async fn not_found() -> Failure {
    Failure(StatusCode::NOT_FOUND, "no such path in meshd's admin API; is meshctl of another version?".into())
}

async fn wrong_method() -> Failure {
    Failure(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method".into())
}
