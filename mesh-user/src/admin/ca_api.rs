//! The documents of `meshd ca`'s admin API. Only a new join token holds a secret, once.

use serde::{Deserialize, Serialize};

/// The service in a few figures. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    /// Of the program.
    pub version: String,
    /// Whose identities it issues.
    pub trust_domain: String,
    /// Where it serves gRPC over TLS.
    pub listen: Vec<String>,
    /// Since the start.
    pub issued: u64,
    /// Now.
    pub connections: i64,
    /// Agents that watch trust.
    pub watchers: u64,
    /// What agents are told to believe.
    pub trust_version: u64,
    /// Of its own trust domain.
    pub roots: usize,
    /// The end of the certificate that issues; none: not known.
    pub issuer_end_seconds: Option<u64>,
    /// The end of the service's own certificate.
    pub own_end_seconds: u64,
}

/// A join token without its secret.
pub type JoinTokenRow = crate::ca::callers::JoinToken;

/// What makes a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// The node that it makes known.
    pub node: String,
    /// None: the configuration's.
    pub ttl_seconds: Option<u64>,
}

/// A join token that was made; there is no other copy of `token`.
#[derive(Clone, Serialize, Deserialize)]
pub struct NewJoinTokenAnswer {
    /// What can be shown of it.
    #[serde(flatten)]
    pub row: JoinTokenRow,
    /// To be given to the node.
    pub token: String,
}

impl std::fmt::Debug for NewJoinTokenAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewJoinTokenAnswer").field("row", &self.row).finish_non_exhaustive()
    }
}

impl Drop for NewJoinTokenAnswer {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.token);
    }
}

/// A join token that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedAnswer {
    /// Its name.
    pub id: String,
}
