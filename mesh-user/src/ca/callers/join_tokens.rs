//! One-time tokens with which a node without Kubernetes becomes known. The state holds their SHA-256 only, so that a copy of
//! it lets nobody in, and the look-up tells by its time nothing about a token that the hash does not hide.
//!
//! A token is spent in one transaction before anything is signed: two replicas cannot both take it, and a crash in between
//! costs the operator another token, never a second certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, rand};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Refusal;
use crate::ca::{CaError, State};

/// A step of the state's schema. Times are Unix seconds.
pub(in crate::ca) const SCHEMA: &str = "
CREATE TABLE join_token (
    hash BLOB PRIMARY KEY NOT NULL,
    id TEXT NOT NULL UNIQUE,
    node TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    redeemed INTEGER
) STRICT;
";

/// Tells what it is where it turns up: a log, a scanner of secrets.
const PREFIX: &str = "meshd-join-";
const SECRET_BYTES: usize = 32;
/// With the prefix and its base64.
const TOKEN_BYTES: usize = PREFIX.len() + 43;
/// Tokens that can be redeemed at once.
const MOST: i64 = 10_000;
/// How long spent and expired ones are remembered, so that a replay is told from a guess.
const REMEMBERED_SECONDS: i64 = 30 * 86_400;

/// What an operator is shown of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Names it to `meshctl ca token revoke`; no secret.
    pub id: String,
    /// The node that it makes known.
    pub node: String,
    /// Unix time, seconds.
    pub created: i64,
    /// Unix time, seconds.
    pub expires: i64,
    /// Unix time, seconds; none: not yet.
    pub redeemed: Option<i64>,
}

/// The tokens in the CA's state.
#[derive(Debug, Clone)]
pub struct JoinTokens {
    state: State,
}

fn unix(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_secs()).ok()).unwrap_or_default()
}

fn hash(token: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec()
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<JoinToken> {
    Ok(JoinToken {
        id: row.get(0)?,
        node: row.get(1)?,
        created: row.get(2)?,
        expires: row.get(3)?,
        redeemed: row.get(4)?,
    })
}

impl JoinTokens {
    /// Those of this state.
    pub fn new(state: State) -> Self {
        Self { state }
    }

    /// Makes one for a node. The text is the only copy.
    ///
    /// # Errors
    /// When the state cannot be written, or holds as many as it may. The caller has checked node and time.
    pub async fn create(
        &self,
        node: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(JoinToken, Zeroizing<String>), CaError> {
        let no_randomness =
            |_| CaError::Sign { subject: "a join token".into(), what: "there is no randomness".into() };
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        rand::fill(&mut *secret).map_err(no_randomness)?;
        let mut id = [0; 8];
        rand::fill(&mut id).map_err(no_randomness)?;
        let token = Zeroizing::new(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(*secret)));
        let created = unix(now);
        let made = JoinToken {
            id: format!("{:016x}", u64::from_be_bytes(id)),
            node: node.to_owned(),
            created,
            expires: created.saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
            redeemed: None,
        };
        let (hash, kept) = (hash(&token), made.clone());
        let fits = self.state.write(move |state| {
            state.execute("DELETE FROM join_token WHERE expires < ?1", [created - REMEMBERED_SECONDS])?;
            let live = "SELECT count(*) FROM join_token WHERE redeemed IS NULL AND expires > ?1";
            if state.query_row(live, [created], |row| row.get::<_, i64>(0))? >= MOST {
                return Ok(false);
            }
            let insert =
                "INSERT INTO join_token (hash, id, node, created, expires) VALUES (?1, ?2, ?3, ?4, ?5)";
            state.execute(insert, params![hash, kept.id, kept.node, kept.created, kept.expires])?;
            Ok(true)
        });
        if fits.await? {
            return Ok((made, token));
        }
        let what = format!("there are {MOST} join tokens that nobody has redeemed: revoke some");
        Err(CaError::Sign { subject: format!("node {node}"), what })
    }

    /// Spends a token and returns its node. Once this has returned no other call does, anywhere, ever.
    ///
    /// # Errors
    /// When there is none such, it was spent before, or it is too old.
    pub async fn redeem(&self, token: &str, now: SystemTime) -> Result<String, Refusal> {
        if token.len() != TOKEN_BYTES || !token.starts_with(PREFIX) {
            return Err(Refusal::UnknownJoinToken);
        }
        let (hash, now) = (hash(token), unix(now));
        let outcome = self.state.write(move |state| {
            let find = "SELECT id, node, created, expires, redeemed FROM join_token WHERE hash = ?1";
            let Some(found) = state.query_row(find, [&hash], row).optional()? else { return Ok(Err(None)) };
            if found.redeemed.is_some() || found.expires <= now {
                return Ok(Err(Some(found)));
            }
            state.execute("UPDATE join_token SET redeemed = ?2 WHERE hash = ?1", params![hash, now])?;
            Ok(Ok(found.node))
        });
        match outcome.await.map_err(CaError::from)? {
            Ok(node) => Ok(node),
            Err(None) => Err(Refusal::UnknownJoinToken),
            Err(Some(found)) if found.redeemed.is_some() => Err(Refusal::ReplayedJoinToken(found.node)),
            Err(Some(found)) => Err(Refusal::ExpiredJoinToken(found.node)),
        }
    }

    /// Those that are remembered, the newest first. Blocks.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn list(&self) -> Result<Vec<JoinToken>, CaError> {
        let all =
            "SELECT id, node, created, expires, redeemed FROM join_token ORDER BY created DESC, id LIMIT ?1";
        Ok(self.state.read(|state| state.prepare(all)?.query_map([2 * MOST], row)?.collect())?)
    }

    /// Takes one back that nobody has redeemed. False: there is none such.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn revoke(&self, id: &str) -> Result<bool, CaError> {
        let id = id.to_owned();
        let delete = "DELETE FROM join_token WHERE id = ?1 AND redeemed IS NULL";
        Ok(self.state.write(move |state| state.execute(delete, [id])).await? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(folder: &tempfile::TempDir) -> JoinTokens {
        JoinTokens::new(State::open(&folder.path().join("ca")).unwrap())
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_token_is_spent_once_whoever_asks_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        // Two replicas on one state.
        let (one, other) = (tokens(&folder), tokens(&folder));
        let now = SystemTime::now();
        let (made, token) = one.create("n1", HOUR, now).await.unwrap();
        let tries =
            (0..40).map(|i| if i % 2 == 0 { &one } else { &other }).map(|tokens| tokens.redeem(&token, now));
        let outcomes = futures_util::future::join_all(tries).await;
        let nodes: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
        assert_eq!(nodes, ["n1"]);
        let replays =
            outcomes.iter().filter(|o| matches!(o, Err(Refusal::ReplayedJoinToken(node)) if node == "n1"));
        assert_eq!(replays.count(), 39);
        assert!(other.list().unwrap().iter().any(|t| t.id == made.id && t.redeemed.is_some()));
    }

    #[tokio::test]
    async fn a_token_that_expired_was_revoked_or_never_was_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(&folder);
        let now = SystemTime::now();
        let (_, old) = tokens.create("n1", HOUR, now - 2 * HOUR).await.unwrap();
        assert!(
            matches!(tokens.redeem(&old, now).await, Err(Refusal::ExpiredJoinToken(node)) if node == "n1")
        );
        let (made, token) = tokens.create("n1", HOUR, now).await.unwrap();
        assert!(tokens.revoke(&made.id).await.unwrap());
        assert!(!tokens.revoke(&made.id).await.unwrap());
        for unknown in [&*token, "", "x", &format!("{PREFIX}{}", "A".repeat(43)), &"x".repeat(100_000)] {
            assert!(matches!(tokens.redeem(unknown, now).await, Err(Refusal::UnknownJoinToken)), "{unknown}");
        }
    }

    #[tokio::test]
    async fn the_state_does_not_hold_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(&folder);
        let (made, token) = tokens.create("n1", HOUR, SystemTime::now()).await.unwrap();
        let secret = token.strip_prefix(PREFIX).unwrap();
        let raw = BASE64_URL_SAFE_NO_PAD.decode(secret).unwrap();
        for entry in std::fs::read_dir(folder.path().join("ca")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!holds(secret.as_bytes()) && !holds(&raw));
        }
        assert!(!format!("{made:?}{tokens:?}").contains(secret));
    }
}
