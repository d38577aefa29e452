//! Rotations as they are written: the facts that [`super::rotation`] decides from, and what follows from its answer. Each
//! step is one transaction, so a crash leaves the stage before it or the one behind it.

use rusqlite::Connection;

use super::{
    Shared, folder, lists,
    rotation::{self, Event, Facts, Kind, Stage, Stay, ends_soon},
    rows::{self, Row, Source, refuse},
};
use crate::ca::{CaError, own_files::write_intermediate};

/// What ended stays in the register for at least so long.
const KEEP: std::time::Duration = std::time::Duration::from_secs(3600);

pub(super) fn seconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// The nodes that watch and do not have the trust of `trusted_version` yet; none of what waits for nobody.
pub(super) fn behind(
    connection: &Connection,
    shared: &Shared,
    now: i64,
    (stage, trusted_version): (Stage, Option<i64>),
) -> rusqlite::Result<Vec<String>> {
    let Some(version) = trusted_version.filter(|_| stage == Stage::Trusted) else { return Ok(Vec::new()) };
    rows::behind(connection, version, now.saturating_sub(seconds(shared.settings.watch_window)))
}

fn facts(connection: &Connection, shared: &Shared, all: &[Row], row: &Row) -> rusqlite::Result<Facts> {
    let settings = &shared.settings;
    // a clock that jumped lets nobody sign or go too early
    let now = shared.clocks.look().believed;
    let behind = behind(connection, shared, now, (row.stage, row.trusted_version))?;
    let mut needed_until = None;
    for member in all.iter().filter(|other| other.id == row.id || other.parent.as_ref() == Some(&row.id)) {
        // it may have signed before there was a register
        let unknown = (member.source == Source::Files
            || !member.key_file.as_deref().is_some_and(is_made_here))
        .then(|| member.created.saturating_add(seconds(settings.max_lifetime)));
        let known = rows::last_end(connection, &member.id)?;
        let end = known.max(unknown).map(|end| end.saturating_add(seconds(settings.clock_skew)));
        needed_until = needed_until.max(end);
    }
    let root = row.parent.as_ref().and_then(|parent| all.iter().find(|other| other.id == *parent));
    Ok(Facts {
        now,
        since: row.since,
        propagation: seconds(settings.propagation),
        behind,
        needed_until,
        root_signs: root.is_some_and(|root| root.stage == Stage::Active),
    })
}

/// Made with the register, not found.
fn is_made_here(key_file: &str) -> bool {
    key_file.starts_with("root-") || key_file.starts_with("intermediate-")
}

/// What an event would do now.
pub(super) fn answer(
    connection: &Connection,
    shared: &Shared,
    all: &[Row],
    row: &Row,
    event: Event,
) -> rusqlite::Result<Result<Stage, Stay>> {
    Ok(rotation::next(row.kind, row.stage, event, &facts(connection, shared, all, row)?))
}

/// One event for one authority, and all that follows.
pub(super) fn step(
    connection: &Connection,
    shared: &Shared,
    id: &str,
    event: Event,
    now: i64,
) -> rusqlite::Result<Stage> {
    let all = rows::all(connection)?;
    let missing = || refuse(CaError::Refused(format!("there is no authority {id}")));
    let row = all.iter().find(|row| row.id == id).ok_or_else(missing)?;
    let stage = answer(connection, shared, &all, row, event)?
        .map_err(|stay| refuse(CaError::Refused(format!("{} stays where it is: {stay}", row.subject()))))?;
    enter(connection, shared, all.clone(), id, stage, now)?;
    Ok(stage)
}

/// Writes a stage and what it means for others.
pub(super) fn enter(
    connection: &Connection,
    shared: &Shared,
    mut all: Vec<Row>,
    id: &str,
    stage: Stage,
    now: i64,
) -> rusqlite::Result<()> {
    let version = rows::count_up(connection, true, now)?;
    let Some(entering) = all.iter().find(|row| row.id == id).cloned() else { return Ok(()) };
    for row in &mut all {
        let child = row.parent.as_deref() == Some(id);
        let next = if row.id == id {
            stage
        } else {
            match (stage, row.stage) {
                (Stage::Active, Stage::Active) if is_superseded(row, &entering) => {
                    let answer = rotation::next(row.kind, row.stage, Event::Supersede, &Facts::default());
                    answer.unwrap_or(row.stage)
                }
                (Stage::Active, Stage::Prepared) if child => Stage::Active,
                (Stage::Withdrawn, Stage::Withdrawn) => continue,
                (Stage::Withdrawn, _) if child => Stage::Withdrawn,
                _ => continue,
            }
        };
        (row.stage, row.since) = (next, now);
        if next == Stage::Trusted {
            row.trusted_version = Some(version);
        }
        if next == Stage::Withdrawn {
            connection.execute("DELETE FROM lists WHERE issuer = ?1", [&row.id])?;
        }
        rows::put(connection, row)?;
        tracing::info!(authority = row.subject(), kind = ?row.kind, stage = ?row.stage, "an authority's stage");
    }
    lists::renew(connection, shared, &all, now)?;
    folder::mirror(shared, &all).map_err(refuse)
}

/// An intermediate takes the place of those beside it, a root that of everything.
fn is_superseded(row: &Row, by: &Row) -> bool {
    let beside = by.source == Source::Own && by.kind == Kind::Intermediate;
    !beside || row.kind == Kind::Intermediate
}

fn signing_root(all: &[Row]) -> Result<&Row, CaError> {
    let own = |row: &&Row| row.kind == Kind::Root && row.source == Source::Own && row.stage == Stage::Active;
    all.iter().find(own).ok_or_else(|| {
        let what = "the keys of this CA are plugged in, so it cannot make others: put the new root beside the old one into \
                    root-cert.pem, and once every node has that, replace ca-cert.pem, ca-key.pem and cert-chain.pem";
        CaError::Refused(what.to_owned())
    })
}

fn is_coming(row: &Row) -> bool {
    matches!(row.stage, Stage::Prepared | Stage::Trusted) && row.key_file.is_some()
}

/// Begins: a new authority with its key, of which nobody knows yet.
pub(super) fn rotate(connection: &Connection, shared: &Shared, kind: Kind, now: i64) -> rusqlite::Result<()> {
    let all = rows::all(connection)?;
    let root = signing_root(&all).map_err(refuse)?;
    let below = |row: &Row| row.kind == Kind::Intermediate && row.parent.as_ref() == Some(&root.id);
    let under_way = all
        .iter()
        .find(|row| is_coming(row) && if kind == Kind::Root { row.kind == kind } else { below(row) });
    if let Some(other) = under_way {
        let what = format!("{} is on its way already: `advance` it, or `cancel` it", other.subject());
        return Err(refuse(CaError::Refused(what)));
    }
    let settings = &shared.settings;
    if kind == Kind::Root {
        let new = shared.keys.create_root(settings, now).map_err(refuse)?;
        rows::put(connection, &new)?;
        if settings.intermediates || all.iter().any(|row| below(row) && row.stage == Stage::Active) {
            let below = shared.keys.create_intermediate(settings, &new, now).map_err(refuse)?;
            rows::put(connection, &below)?;
        }
    } else {
        let new = shared.keys.create_intermediate(settings, root, now).map_err(refuse)?;
        rows::put(connection, &new)?;
    }
    rows::count_up(connection, false, now)?;
    Ok(())
}

/// A new intermediate signs from now on.
pub(super) fn replace_intermediate(
    connection: &Connection,
    shared: &Shared,
    now: i64,
) -> rusqlite::Result<()> {
    let all = rows::all(connection)?;
    let root = signing_root(&all).map_err(refuse)?;
    let coming = |row: &&Row| {
        row.kind == Kind::Intermediate
            && row.stage == Stage::Prepared
            && row.parent.as_ref() == Some(&root.id)
    };
    let id = if let Some(row) = all.iter().find(coming) {
        row.id.clone()
    } else {
        let new = shared.keys.create_intermediate(&shared.settings, root, now).map_err(refuse)?;
        rows::put(connection, &new)?;
        new.id
    };
    step(connection, shared, &id, Event::Advance, now).map(drop)
}

/// What a command is about: what comes before what goes, and what only follows its root last.
fn moving(all: &[Row], kind: Kind) -> Option<&Row> {
    let follows = |row: &Row| {
        let root = all.iter().find(|root| Some(&root.id) == row.parent.as_ref());
        row.source == Source::Own && root.is_some_and(|root| root.stage != Stage::Active)
    };
    let of_kind = || all.iter().filter(|row| row.kind == kind);
    let coming = of_kind().find(|row| is_coming(row) && !follows(row));
    let going = || of_kind().find(|row| row.stage == Stage::Retiring);
    coming.or_else(going).or_else(|| of_kind().find(|row| is_coming(row)))
}

/// The next stage of the rotation under way.
pub(super) fn command(
    connection: &Connection,
    shared: &Shared,
    kind: Kind,
    event: Event,
    now: i64,
) -> rusqlite::Result<Stage> {
    let all = rows::all(connection)?;
    let none = || {
        let kind = if kind == Kind::Root { "root" } else { "intermediate" };
        refuse(CaError::Refused(format!(
            "no rotation of the {kind} is under way: begin one with `rotate {kind}`"
        )))
    };
    let id = moving(&all, kind).ok_or_else(none)?.id.clone();
    step(connection, shared, &id, event, now)
}

/// Does what can be done safely without being asked. Whether anything was.
pub(super) fn due(connection: &Connection, shared: &Shared, now: i64) -> rusqlite::Result<bool> {
    let mut any = false;
    shared.clocks.keep(connection)?;
    let believed = shared.clocks.look().believed;
    if shared.settings.automatic {
        any |= begin_due(connection, shared, (now, believed))?;
        // an authority has four steps at most, so this ends
        while advance_one(connection, shared, now)? {
            any = true;
        }
    }
    let all = rows::all(connection)?;
    any |= lists::renew(connection, shared, &all, now)?;
    let settings = &shared.settings;
    let ended = believed.saturating_sub(seconds(settings.clock_skew)).saturating_sub(seconds(KEEP));
    let listed = ended.saturating_sub(seconds(settings.list_lifetime));
    let watched = believed.saturating_sub(seconds(settings.watch_window).saturating_mul(2));
    any |= rows::prune(connection, ended, listed, watched)? > 0;
    Ok(any)
}

fn advance_one(connection: &Connection, shared: &Shared, now: i64) -> rusqlite::Result<bool> {
    let all = rows::all(connection)?;
    for row in &all {
        if !(is_coming(row) || row.stage == Stage::Retiring) {
            continue;
        }
        if let Ok(stage) = answer(connection, shared, &all, row, Event::Advance)? {
            let id = row.id.clone();
            enter(connection, shared, all, &id, stage, now)?;
            return Ok(true);
        }
    }
    Ok(false)
}

fn begin_due(
    connection: &Connection,
    shared: &Shared,
    (now, believed): (i64, i64),
) -> rusqlite::Result<bool> {
    let all = rows::all(connection)?;
    let Ok(root) = signing_root(&all) else { return Ok(false) };
    let settings = &shared.settings;
    let root_ends = root.validity().1;
    let mut any = false;
    if ends_soon(root.validity().0, root_ends, believed)
        && !all.iter().any(|row| row.kind == Kind::Root && is_coming(row))
    {
        rotate(connection, shared, Kind::Root, now)?;
        any = true;
    }
    let below = |row: &&Row| row.kind == Kind::Intermediate && row.parent.as_ref() == Some(&root.id);
    if all.iter().filter(below).any(is_coming) {
        return Ok(any);
    }
    let due = match all.iter().filter(below).find(|row| row.stage == Stage::Active) {
        // one that ends with its root would not outlive the one that is there
        Some(row) => {
            let (begins, ends) = row.validity();
            let longer = now.saturating_add(seconds(settings.intermediate_lifetime)).min(root_ends) > ends;
            longer && ends_soon(begins, ends, believed)
        }
        None => settings.intermediates,
    };
    if due {
        rotate(connection, shared, Kind::Intermediate, now)?;
    }
    Ok(any || due)
}

/// An intermediate for another node, into a folder of its own, and into the register.
pub(super) fn hand_out(
    connection: &Connection,
    shared: &Shared,
    out: &std::path::Path,
    now: i64,
) -> rusqlite::Result<()> {
    let all = rows::all(connection)?;
    let root = signing_root(&all).map_err(|_| {
        let what = "an intermediate cannot issue another one; run this on the node that holds ca.key";
        refuse(CaError::Incomplete { path: shared.settings.directory.clone(), what: what.to_owned() })
    })?;
    let made = shared.keys.hand_out(&shared.settings, root).map_err(refuse)?;
    let parsed = rows::parse(&made.0).map_err(refuse)?;
    let issued = rows::Issued {
        serial: rows::hex(parsed.raw_serial()),
        issuer: root.id.clone(),
        spiffe_id: format!("spiffe://{}", shared.settings.trust_domain),
        not_after: parsed.validity().not_after.timestamp(),
        caller: "an intermediate for another node".to_owned(),
        node: None,
    };
    rows::register(connection, &issued, now)?;
    let roots: String = all
        .iter()
        .filter(|row| row.is_trusted_root())
        .map(|row| folder::pem("CERTIFICATE", &row.certificate))
        .collect();
    write_intermediate(out, &folder::pem("CERTIFICATE", &made.0), &made.1, &roots).map_err(refuse)
}
