//! What `meshctl ca status` shows of an authority. Times are Unix seconds.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::{
    JwtKeyStatus, Shared, jwt, lists, motion,
    rotation::{Event, Kind, Stage},
    rows::{self, Row, Source},
};
use crate::identity::TrustDomain;

/// All there is to say, no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityStatus {
    /// Whose authority it is.
    pub trust_domain: TrustDomain,
    /// What agents are told by now.
    pub trust_version: i64,
    /// Whether rotations go on by themselves.
    pub automatic: bool,
    /// How far the wall clock is ahead of the time that has passed; while it is, nothing is withdrawn or forgotten by itself.
    #[serde(default)]
    pub clock_ahead_seconds: u64,
    /// Oldest first; those withdrawn are left out.
    pub authorities: Vec<OneStatus>,
    /// The keys of JWT-SVIDs; empty: it mints none.
    #[serde(default)]
    pub jwt_keys: Vec<JwtKeyStatus>,
    /// Nodes that acknowledged something lately.
    pub nodes: Vec<NodeStatus>,
    /// Identities that get no certificate.
    pub blocked: Vec<String>,
    /// Certificates in the register that have not ended.
    pub certificates: i64,
    /// Of them, those that were revoked.
    pub revoked: i64,
}

/// One authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OneStatus {
    /// Of its name and key.
    pub id: String,
    /// Root or intermediate.
    pub kind: Kind,
    /// Who made it.
    pub source: Source,
    /// Its name.
    pub subject: String,
    /// Of its certificate, lower-case hex.
    pub serial: String,
    /// The authority above it, where that is one of these.
    pub parent: Option<String>,
    /// Where it is in its life.
    pub stage: Stage,
    /// When it came there.
    pub since_seconds: i64,
    /// Start of its validity.
    pub not_before_seconds: i64,
    /// End of its validity.
    pub not_after_seconds: i64,
    /// Whether new certificates are its.
    pub signs: bool,
    /// Whether its key is here.
    pub has_key: bool,
    /// Its certificates in the register.
    pub certificates: i64,
    /// The stage that it may enter now.
    pub next: Option<Stage>,
    /// Why it stays where it is.
    pub stays: Option<String>,
    /// Its revocation list.
    pub list: Option<ListStatus>,
}

/// A revocation list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListStatus {
    /// Grows.
    pub number: i64,
    /// How many certificates it names.
    pub entries: i64,
    /// When it was signed.
    pub signed_seconds: i64,
    /// When it ends.
    pub next_update_seconds: i64,
}

/// A node that watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// What it has in force.
    pub version: i64,
    /// When it said so.
    pub acknowledged_seconds: i64,
}

pub(super) fn read(
    connection: &Connection,
    shared: &Shared,
    signs: &str,
    now: i64,
) -> rusqlite::Result<AuthorityStatus> {
    let all = rows::all(connection)?;
    let known = lists::all(connection)?;
    let settings = &shared.settings;
    let mut authorities = Vec::new();
    for row in all.iter().filter(|row| row.stage != Stage::Withdrawn) {
        let list = known.iter().find(|list| list.issuer == row.id);
        let certificates = count(
            connection,
            "SELECT count(*) FROM issued WHERE issuer = ?1 AND not_after > ?2",
            &row.id,
            now,
        )?;
        authorities.push(one(connection, shared, (&all, row), list, (signs, certificates))?);
    }
    let window = i64::try_from(settings.watch_window.as_secs()).unwrap_or(i64::MAX);
    let mut nodes =
        connection.prepare("SELECT node, version, at FROM acknowledged WHERE at >= ?1 ORDER BY node")?;
    let nodes = nodes
        .query_map([now.saturating_sub(window)], |row| {
            Ok(NodeStatus { node: row.get(0)?, version: row.get(1)?, acknowledged_seconds: row.get(2)? })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut blocked = connection.prepare("SELECT spiffe_id FROM blocked ORDER BY spiffe_id")?;
    let blocked = blocked.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(AuthorityStatus {
        trust_domain: settings.trust_domain.clone(),
        trust_version: rows::versions(connection)?.0,
        automatic: settings.automatic,
        clock_ahead_seconds: shared.clocks.ahead().as_secs(),
        certificates: authorities.iter().map(|one| one.certificates).sum(),
        authorities,
        jwt_keys: jwt::status(connection, shared)?,
        nodes,
        blocked,
        revoked: connection
            .query_row("SELECT count(*) FROM revoked WHERE not_after > ?1", [now], |row| row.get(0))?,
    })
}

fn count(connection: &Connection, sql: &str, id: &str, now: i64) -> rusqlite::Result<i64> {
    connection.prepare_cached(sql)?.query_row(params![id, now], |row| row.get(0))
}

fn one(
    connection: &Connection,
    shared: &Shared,
    (all, row): (&[Row], &Row),
    list: Option<&lists::List>,
    (signs, certificates): (&str, i64),
) -> rusqlite::Result<OneStatus> {
    let answer = motion::answer(connection, shared, all, row, Event::Advance)?;
    let only_trusted = row.key_file.is_none() && row.stage == Stage::Trusted;
    let (next, stays) = match answer {
        _ if only_trusted || row.stage == Stage::Active => (None, None),
        Ok(next) => (Some(next), None),
        Err(stay) => (None, Some(stay.to_string())),
    };
    let (not_before_seconds, not_after_seconds) = row.validity();
    Ok(OneStatus {
        id: row.id.clone(),
        kind: row.kind,
        source: row.source,
        subject: row.subject(),
        serial: row.serial(),
        parent: row.parent.clone(),
        stage: row.stage,
        since_seconds: row.since,
        not_before_seconds,
        not_after_seconds,
        signs: row.id == signs,
        has_key: row.key_file.is_some(),
        certificates,
        next,
        stays,
        list: list.map(|list| ListStatus {
            number: list.number,
            entries: list.entries,
            signed_seconds: list.signed,
            next_update_seconds: list.next_update,
        }),
    })
}
