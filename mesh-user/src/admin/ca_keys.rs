//! What an operator sees and does of a certificate authority's own keys: status, rotation, revocation. Served by `meshd ca`,
//! and by a node whose CA is embedded.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::api::ApiError;
use crate::{
    ca::{
        CaError,
        authority::{Authority, AuthorityStatus, Kind, Reason, Revoke, Revoked},
    },
    identity::SpiffeId,
};

/// Longest request body: a SPIFFE ID is the longest thing in it; bytes.
const MAX_BODY_BYTES: usize = 4096;
/// Where the routes are.
pub const CA_KEYS: &str = "/v1/ca";

/// A step of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateBody {
    /// Which key.
    pub kind: RotateKind,
    /// What to do.
    pub step: RotateStep,
}

/// A key that can be rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RotateKind {
    /// The root.
    Root,
    /// The intermediate below it.
    Intermediate,
    /// What signs JWT-SVIDs.
    Jwt,
}

/// What to do of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RotateStep {
    /// Make the new one.
    Begin,
    /// Go one stage on, if that is safe.
    Advance,
    /// Go one stage on, safe or not.
    Force,
    /// Forget the new one.
    Cancel,
}

/// What to take back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokeBody {
    /// What.
    pub what: RevokeWhat,
    /// Why.
    #[serde(default)]
    pub reason: Reason,
    /// Of an issuer: even if nodes need new join tokens then.
    #[serde(default)]
    pub force: bool,
}

/// What to take back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevokeWhat {
    /// A certificate by its serial number, hex.
    Serial(String),
    /// All certificates of a SPIFFE ID.
    Identity {
        /// Whose.
        id: String,
        /// It gets no others.
        block: bool,
    },
    /// An intermediate by its serial number, hex.
    Issuer(String),
}

/// Whom to let have certificates again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnblockBody {
    /// A SPIFFE ID.
    pub identity: String,
}

/// Whether it was blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unblocked {
    /// It was.
    pub was_blocked: bool,
}

/// Told of what an operator did: the call, and about what.
type Changed = Arc<dyn Fn(&'static str, String) + Send + Sync>;

#[derive(Clone)]
struct Keys {
    authority: Authority,
    changed: Changed,
}

/// The routes, below [`CA_KEYS`]. `changed` is told of everything that an operator did.
pub(super) fn router(
    authority: Authority,
    changed: impl Fn(&'static str, String) + Send + Sync + 'static,
) -> Router {
    Router::new()
        .route(&format!("{CA_KEYS}/status"), get(status))
        .route(&format!("{CA_KEYS}/rotate"), post(rotate))
        .route(&format!("{CA_KEYS}/revoke"), post(revoke))
        .route(&format!("{CA_KEYS}/unblock"), post(unblock))
        .route(&format!("{CA_KEYS}/crl"), get(async |State(keys): State<Keys>| keys.authority.crl_pem()))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Keys { authority, changed: Arc::new(changed) })
}

/// For a node whose CA is embedded.
pub(super) fn node_router(authority: Authority) -> Router {
    router(authority, |call, detail| tracing::warn!(call, detail, "an operator changed the CA"))
}

async fn status(State(keys): State<Keys>) -> Result<Json<AuthorityStatus>, Failure> {
    // It waits for the disk.
    let read = tokio::task::spawn_blocking(move || keys.authority.status()).await;
    let read = read.map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(read?))
}

async fn rotate(State(keys): State<Keys>, body: Bytes) -> Result<Json<AuthorityStatus>, Failure> {
    let RotateBody { kind, step } = document(&body)?;
    let authority = &keys.authority;
    let certified = match kind {
        RotateKind::Root => Some(Kind::Root),
        RotateKind::Intermediate => Some(Kind::Intermediate),
        RotateKind::Jwt => None,
    };
    let status = match (step, certified) {
        (RotateStep::Begin, Some(kind)) => authority.rotate(kind).await,
        (RotateStep::Advance, Some(kind)) => authority.advance(kind, false).await,
        (RotateStep::Force, Some(kind)) => authority.advance(kind, true).await,
        (RotateStep::Cancel, Some(kind)) => authority.cancel(kind).await,
        (RotateStep::Begin, None) => authority.rotate_jwt().await,
        (RotateStep::Advance, None) => authority.advance_jwt(false).await,
        (RotateStep::Force, None) => authority.advance_jwt(true).await,
        (RotateStep::Cancel, None) => authority.cancel_jwt().await,
    }?;
    (keys.changed)("ca rotate", format!("{step:?} {kind:?}").to_lowercase());
    Ok(Json(status))
}

async fn revoke(State(keys): State<Keys>, body: Bytes) -> Result<Json<Revoked>, Failure> {
    let RevokeBody { what, reason, force } = document(&body)?;
    let detail = format!("{what:?} because {reason:?}");
    let what = match what {
        RevokeWhat::Serial(serial) => Revoke::Serial(serial),
        RevokeWhat::Issuer(serial) => Revoke::Issuer { serial, force },
        RevokeWhat::Identity { id, block } => Revoke::Identity { id: identity(&id)?, block },
    };
    let revoked = keys.authority.revoke(what, reason).await?;
    (keys.changed)("ca revoke", format!("{detail}: {} certificates", revoked.serials.len()));
    Ok(Json(revoked))
}

async fn unblock(State(keys): State<Keys>, body: Bytes) -> Result<Json<Unblocked>, Failure> {
    let UnblockBody { identity: id } = document(&body)?;
    let was_blocked = keys.authority.unblock(&identity(&id)?).await?;
    (keys.changed)("ca unblock", id);
    Ok(Json(Unblocked { was_blocked }))
}

fn identity(text: &str) -> Result<SpiffeId, Failure> {
    text.parse().map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("{text:?}: {error}")))
}

fn document<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        let what = format!("the request makes no sense: {error}; is meshctl of another version?");
        Failure(StatusCode::BAD_REQUEST, what)
    })
}

/// What goes wrong in a handler, as status and sentence.
pub(super) struct Failure(pub(super) StatusCode, pub(super) String);

impl From<CaError> for Failure {
    fn from(error: CaError) -> Self {
        let status = match &error {
            CaError::Refused(_) | CaError::Blocked(_) => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(ApiError { error: self.1 })).into_response()
    }
}
