//! Rotations of the keys that sign JWT-SVIDs. Which key signs is said by the order of `jwt.key`; the state knows since when,
//! and who has been told. A key that is new is published first, signs once everybody who watches has it, and the one before
//! it is published until its last token has ended. The file is written before the state, so after a crash in between the
//! state follows the file.

use std::sync::Arc;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::{
    Shared,
    motion::{self, seconds},
    rotation::{self, Event, Facts, Kind, Stage, Stay},
    rows::{self, refuse},
};
use crate::ca::{
    CaError,
    jwt_svid::{JwtAuthority, MAX_KEYS, MAX_LIFETIME},
};

/// A key that signs JWT-SVIDs, or did or will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtKeyStatus {
    /// Its ID, as in the tokens.
    pub kid: String,
    /// Where it is in its life.
    pub stage: Stage,
    /// When it came there; Unix seconds.
    pub since_seconds: i64,
    /// The stage that it may enter now.
    pub next: Option<Stage>,
    /// Why it stays where it is.
    pub stays: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    kid: String,
    stage: Stage,
    since: i64,
    trusted_version: Option<i64>,
}

fn all(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection
        .prepare_cached("SELECT kid, stage, since, trusted_version FROM jwt_keys ORDER BY since, kid")?;
    statement
        .query_map([], |row| {
            let stage: String = row.get(1)?;
            Ok(Row {
                kid: row.get(0)?,
                stage: rows::stage(1, &stage)?,
                since: row.get(2)?,
                trusted_version: row.get(3)?,
            })
        })?
        .collect()
}

fn put(connection: &Connection, row: &Row) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO jwt_keys (kid, stage, since, trusted_version) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (kid) DO UPDATE SET stage = excluded.stage, since = excluded.since,
             trusted_version = excluded.trusted_version",
        params![row.kid, rows::stage_name(row.stage), row.since, row.trusted_version],
    )?;
    Ok(())
}

/// What the state should say where the file holds these keys, the one that signs first. `version` is that of the trust that
/// tells of keys which the state does not know.
fn as_in_file(kids: &[Arc<str>], known: &[Row], now: i64, version: i64) -> Vec<Row> {
    let row = |(at, kid): (usize, &Arc<str>)| {
        let before = known.iter().find(|row| *row.kid == **kid);
        let stage = match before.map(|row| row.stage) {
            _ if at == 0 => Stage::Active,
            Some(Stage::Trusted) => Stage::Trusted,
            Some(_) => Stage::Retiring,
            // a crash left it behind, or, in a state that knows none, somebody put a new key before it
            None if known.is_empty() => Stage::Retiring,
            None => Stage::Trusted,
        };
        match before {
            Some(row) if row.stage == stage => row.clone(),
            _ => Row { kid: kid.to_string(), stage, since: now, trusted_version: Some(version) },
        }
    };
    kids.iter().enumerate().map(row).collect()
}

/// Has the state follow the file. Whether it did not.
pub(super) fn follow_file(connection: &Connection, jwt: &JwtAuthority, now: i64) -> rusqlite::Result<bool> {
    jwt.reload().map_err(refuse)?;
    let (known, kids) = (all(connection)?, jwt.kids());
    let mut wanted = as_in_file(&kids, &known, now, 0);
    wanted.sort_by(|a, b| (a.since, &a.kid).cmp(&(b.since, &b.kid)));
    if wanted == known {
        return Ok(false);
    }
    let version = rows::count_up(connection, true, now)?;
    connection.execute("DELETE FROM jwt_keys", [])?;
    for row in as_in_file(&kids, &known, now, version) {
        put(connection, &row)?;
    }
    Ok(true)
}

fn next(
    connection: &Connection,
    shared: &Shared,
    row: &Row,
    event: Event,
) -> rusqlite::Result<Result<Stage, Stay>> {
    let settings = &shared.settings;
    let now = shared.clocks.look().believed;
    let behind = motion::behind(connection, shared, now, (row.stage, row.trusted_version))?;
    let needed = seconds(MAX_LIFETIME).saturating_add(seconds(settings.clock_skew));
    let facts = Facts {
        now,
        since: row.since,
        propagation: seconds(settings.propagation),
        behind,
        needed_until: (row.stage == Stage::Retiring).then(|| row.since.saturating_add(needed)),
        root_signs: false,
    };
    Ok(rotation::next(Kind::Root, row.stage, event, &facts))
}

fn enter(
    connection: &Connection,
    jwt: &JwtAuthority,
    row: &Row,
    stage: Stage,
    now: i64,
) -> rusqlite::Result<()> {
    rows::count_up(connection, true, now)?;
    if stage == Stage::Withdrawn {
        jwt.remove(&row.kid).map_err(refuse)?;
        connection.execute("DELETE FROM jwt_keys WHERE kid = ?1", [&row.kid])?;
    } else {
        jwt.sign_with(&row.kid).map_err(refuse)?;
        for other in all(connection)?.into_iter().filter(|other| other.stage == Stage::Active) {
            put(connection, &Row { stage: Stage::Retiring, since: now, ..other })?;
        }
        put(connection, &Row { stage, since: now, ..row.clone() })?;
    }
    tracing::info!(kid = row.kid, ?stage, "a JWT key's stage");
    Ok(())
}

/// Begins: a new key, published from now on.
pub(super) fn rotate(connection: &Connection, jwt: &JwtAuthority, now: i64) -> rusqlite::Result<()> {
    follow_file(connection, jwt, now)?;
    let known = all(connection)?;
    let refused = |what: String| Err(refuse(CaError::Refused(what)));
    if let Some(coming) = known.iter().find(|row| row.stage == Stage::Trusted) {
        return refused(format!(
            "JWT key {} is on its way already: `advance` it, or `cancel` it",
            coming.kid
        ));
    }
    if known.len() >= MAX_KEYS {
        return refused(format!(
            "there are {MAX_KEYS} JWT keys already: wait until the tokens of one have ended"
        ));
    }
    let kid = jwt.add().map_err(refuse)?;
    let version = rows::count_up(connection, true, now)?;
    put(
        connection,
        &Row { kid: kid.to_string(), stage: Stage::Trusted, since: now, trusted_version: Some(version) },
    )
}

/// The next stage of the rotation under way, what comes before what goes.
pub(super) fn command(
    connection: &Connection,
    shared: &Shared,
    jwt: &JwtAuthority,
    event: Event,
    now: i64,
) -> rusqlite::Result<()> {
    follow_file(connection, jwt, now)?;
    let known = all(connection)?;
    let of = |stage| known.iter().find(|row| row.stage == stage);
    let none = || {
        refuse(CaError::Refused("no rotation of JWT keys is under way: begin one with `rotate jwt`".into()))
    };
    let row = of(Stage::Trusted).or_else(|| of(Stage::Retiring)).ok_or_else(none)?;
    let stage = next(connection, shared, row, event)?
        .map_err(|stay| refuse(CaError::Refused(format!("JWT key {} stays where it is: {stay}", row.kid))))?;
    enter(connection, jwt, row, stage, now)
}

/// Does what can be done safely without being asked. Whether anything was.
pub(super) fn due(
    connection: &Connection,
    shared: &Shared,
    jwt: &JwtAuthority,
    now: i64,
) -> rusqlite::Result<bool> {
    let mut any = follow_file(connection, jwt, now)?;
    if !shared.settings.automatic {
        return Ok(any);
    }
    let known = all(connection)?;
    let old = |row: &Row| {
        let until = row.since.saturating_add(seconds(shared.settings.jwt_key_lifetime));
        row.stage == Stage::Active && shared.clocks.look().believed >= until
    };
    if known.iter().any(old) && known.iter().all(|row| row.stage != Stage::Trusted) && known.len() < MAX_KEYS
    {
        rotate(connection, jwt, now)?;
        any = true;
    }
    for row in all(connection)?.iter().filter(|row| row.stage != Stage::Active) {
        if let Ok(stage) = next(connection, shared, row, Event::Advance)? {
            enter(connection, jwt, row, stage, now)?;
            any = true;
        }
    }
    Ok(any)
}

pub(super) fn status(connection: &Connection, shared: &Shared) -> rusqlite::Result<Vec<JwtKeyStatus>> {
    let mut keys = Vec::new();
    for row in all(connection)? {
        let (next, stays) = match next(connection, shared, &row, Event::Advance)? {
            _ if row.stage == Stage::Active => (None, None),
            Ok(next) => (Some(next), None),
            Err(stay) => (None, Some(stay.to_string())),
        };
        keys.push(JwtKeyStatus { kid: row.kid, stage: row.stage, since_seconds: row.since, next, stays });
    }
    // what goes, what signs, what comes
    keys.sort_by_key(|key| std::cmp::Reverse(key.stage));
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::{
        Stage::{Active, Retiring, Trusted},
        *,
    };

    #[test]
    fn after_a_crash_the_state_follows_the_file() {
        let kids: Vec<Arc<str>> = vec!["a".into(), "b".into(), "c".into()];
        let row = |kid: &str, stage| Row { kid: kid.to_owned(), stage, since: 1, trusted_version: Some(2) };
        let stages = |known: &[Row]| {
            as_in_file(&kids, known, 9, 7).into_iter().map(|row| row.stage).collect::<Vec<_>>()
        };
        for (what, known, expected) in [
            ("a state of before there were rotations", vec![], [Active, Retiring, Retiring]),
            ("a key was made", vec![row("a", Active), row("b", Retiring)], [Active, Retiring, Trusted]),
            (
                "another signs",
                vec![row("b", Active), row("a", Trusted), row("c", Retiring)],
                [Active, Retiring, Retiring],
            ),
            (
                "one was removed",
                vec![row("a", Active), row("b", Trusted), row("c", Retiring), row("d", Retiring)],
                [Active, Trusted, Retiring],
            ),
        ] {
            assert_eq!(stages(&known), expected, "{what}");
        }
        let same = [row("a", Active), row("b", Trusted), row("c", Retiring)];
        assert_eq!(as_in_file(&kids, &same, 9, 7), same);
    }
}
