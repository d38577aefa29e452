//! Why a caller gets nothing. The caller is told little, the audit all of it; neither ever a token.

use tonic::{Code, Status};

use crate::ca::{CaError, csr::CsrError};

/// Why nothing was issued or told.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Neither token nor certificate, over a connection that says nothing by itself.
    #[error("no bearer token, no client certificate and no Unix peer")]
    Anonymous,
    /// `authorization` metadata that is no bearer token.
    #[error("the authorization metadata is not one bearer token: {0}")]
    BadHeader(&'static str),
    /// The token is not believed.
    #[error("the token is not believed: {0}")]
    Token(String),
    /// A token for somebody else.
    #[error("the token is not meant for this service but for {0:?}")]
    Audience(Vec<String>),
    /// A token that no pod is bound to.
    #[error("the token is not bound to a pod, so whoever copied it could use it anywhere")]
    Unbound,
    /// The pod of a node agent's token is not there.
    #[error("the token is of pod {pod}, but {why}")]
    Pod {
        /// Which, with its namespace.
        pod: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The certificate does not count any more.
    #[error("the client certificate is not believed: {0}")]
    Certificate(String),
    /// A user of this machine who is no agent.
    #[error("user {0} is no agent of this machine (unixSocket.uids)")]
    User(u32),
    /// A join token that never was, or was mistyped.
    #[error("there is no such join token")]
    UnknownJoinToken,
    /// A join token that was used before.
    #[error("the join token of node {0} was redeemed before: somebody may have stolen it")]
    ReplayedJoinToken(String),
    /// A join token that is too old.
    #[error("the join token of node {0} has expired")]
    ExpiredJoinToken(String),
    /// The caller may not have what it asked for.
    #[error("{0}")]
    NotAllowed(String),
    /// The CSR is not signed.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// Text that is no SPIFFE ID, a value that makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// Too many requests.
    #[error("{0} asks too often")]
    TooOften(&'static str),
    /// Too many at once.
    #[error("too many {0} at once")]
    Busy(&'static str),
    /// The request took too long.
    #[error("the request did not end in time")]
    TooSlow,
    /// Who the caller is cannot be asked just now.
    #[error("who the caller is cannot be found out now: {0}")]
    CannotAsk(String),
    /// The keys' holder refused or failed.
    #[error("{0}")]
    Authority(#[from] CaError),
}

impl Refusal {
    /// A short name, for the audit and the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::BadHeader(_) => "bad_header",
            Self::Token(_) => "bad_token",
            Self::Audience(_) => "wrong_audience",
            Self::Unbound => "unbound_token",
            Self::Pod { .. } => "unknown_pod",
            Self::Certificate(_) => "bad_certificate",
            Self::User(_) => "unknown_user",
            Self::UnknownJoinToken => "unknown_join_token",
            Self::ReplayedJoinToken(_) => "replayed_join_token",
            Self::ExpiredJoinToken(_) => "expired_join_token",
            Self::NotAllowed(_) => "not_allowed",
            Self::Csr(CsrError::NotPossessed) => "no_possession",
            Self::Csr(_) => "bad_csr",
            Self::BadRequest(_) => "bad_request",
            Self::TooOften(_) => "rate_limit",
            Self::Busy(_) => "busy",
            Self::TooSlow => "timeout",
            Self::CannotAsk(_) => "cannot_ask",
            Self::Authority(CaError::KeyKind(_)) => "key_kind",
            Self::Authority(CaError::Blocked(_)) => "blocked",
            Self::Authority(_) => "authority",
        }
    }

    /// What the caller is told, in istiod's words where it has them (istio `security/pkg/server/ca/server.go`): who does not
    /// prove who it is learns nothing.
    pub fn status(&self) -> Status {
        match self {
            Self::Anonymous
            | Self::BadHeader(_)
            | Self::Token(_)
            | Self::Audience(_)
            | Self::Unbound
            | Self::Pod { .. }
            | Self::Certificate(_)
            | Self::User(_) => Status::unauthenticated("request authenticate failure"),
            Self::UnknownJoinToken | Self::ReplayedJoinToken(_) | Self::ExpiredJoinToken(_) => {
                Status::unauthenticated(
                    "the join token does not count; make another with `meshctl ca token create`",
                )
            }
            Self::NotAllowed(_) => Status::permission_denied("request impersonation authentication failure"),
            Self::Csr(error) => Status::invalid_argument(format!("CSR signing error ({error})")),
            Self::BadRequest(what) => Status::invalid_argument(what.clone()),
            Self::TooOften(_) | Self::Busy(_) => Status::resource_exhausted(self.to_string()),
            Self::TooSlow => Status::new(Code::DeadlineExceeded, self.to_string()),
            Self::CannotAsk(_) => Status::unavailable("the caller's token cannot be reviewed now; try again"),
            Self::Authority(error @ CaError::KeyKind(_)) => {
                Status::invalid_argument(format!("CSR signing error ({error})"))
            }
            Self::Authority(CaError::Blocked(_)) => {
                Status::permission_denied("the identity is blocked; its operator knows why")
            }
            Self::Authority(_) => Status::internal("CSR signing error; the service's log says why"),
        }
    }
}
