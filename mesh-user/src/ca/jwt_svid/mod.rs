//! JWT-SVIDs: who mints them. In the node or service that has the CA's folder that is [`JwtAuthority`]; elsewhere it is
//! asked for each by [`RemoteMinter`]. Verifying needs no authority: [`crate::jwt::verify_jwt_svid`].
//!
//! Source: SPIFFE JWT-SVID.md.

mod authority;
mod service;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;

pub use authority::JwtAuthority;
pub(in crate::ca) use authority::{MAX_KEYS, key_set, read_published};
pub use service::{JwtSvidService, MayMint, RemoteMinter};

use super::CaError;
use crate::identity::SpiffeId;

/// Life of a JWT-SVID unless another one is asked for: what has it can be the workload, so it is short.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);
/// The longest life of a JWT-SVID.
pub const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// Audiences of one JWT-SVID. Each can use it towards the others, so they are few.
pub const MAX_AUDIENCES: usize = 16;
/// Bytes of an audience.
pub const MAX_AUDIENCE_BYTES: usize = 1024;

/// A JWT-SVID that somebody may have: that was decided from who asked.
#[derive(Debug, Clone)]
pub struct JwtSvidRequest {
    /// The identity.
    pub id: SpiffeId,
    /// Who is to believe it; [`check_audiences`] holds.
    pub audiences: Vec<String>,
    /// None: [`DEFAULT_LIFETIME`]. [`MAX_LIFETIME`] holds.
    pub lifetime: Option<Duration>,
}

/// A token that was minted. Who reads it can use it.
#[derive(Clone)]
pub struct JwtSvid {
    /// A JWS in compact form.
    pub token: String,
    /// Its end.
    pub expires: SystemTime,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Mints JWT-SVIDs.
pub trait MintJwt: Send + Sync {
    /// A token for `request`. Takes as long as the authority does; the caller bounds it.
    ///
    /// # Errors
    /// When the identity is of another trust domain, the audiences are none or too many, or the authority cannot be had.
    fn mint(&self, request: JwtSvidRequest) -> BoxFuture<'_, Result<JwtSvid, CaError>>;
}

/// Whether a token may be for these.
///
/// # Errors
/// In words, for who asked.
pub fn check_audiences(audiences: &[String]) -> Result<(), String> {
    if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        return Err("a JWT-SVID is for at least one audience, and none is empty".to_owned());
    }
    if audiences.len() > MAX_AUDIENCES || audiences.iter().any(|one| one.len() > MAX_AUDIENCE_BYTES) {
        return Err(format!(
            "a JWT-SVID is for at most {MAX_AUDIENCES} audiences of at most {MAX_AUDIENCE_BYTES} bytes each"
        ));
    }
    Ok(())
}
