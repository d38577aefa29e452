//! Revocation: what was taken back, and the lists that say so (RFC 5280 section 5), one of each authority. A list is signed
//! in the transaction that writes what it says, so nobody ever sees one without the other.

use rcgen::{RevocationReason, RevokedCertParams, SerialNumber};
use rusqlite::{Connection, OptionalExtension, params};
use rustls_pki_types::CertificateRevocationListDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    Shared, motion,
    rotation::{Event, Kind, Stage},
    rows::{self, Row, Source, refuse},
    signer::ListTerms,
};
use crate::{ca::CaError, identity::SpiffeId};

/// A list that names more is one that agents choke on; rotating its authority takes them all back.
const MOST_ENTRIES: usize = 100_000;

/// Why something is taken back (RFC 5280 section 5.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// Nobody says.
    #[default]
    Unspecified,
    /// Somebody else may have the key.
    KeyCompromise,
    /// Somebody else may have the authority's key.
    CaCompromise,
    /// The workload is another's now.
    AffiliationChanged,
    /// Another certificate is in its place.
    Superseded,
    /// The workload is no more.
    CessationOfOperation,
    /// It may not be that any more.
    PrivilegeWithdrawn,
}

impl Reason {
    const ALL: [(Self, RevocationReason); 7] = [
        (Self::Unspecified, RevocationReason::Unspecified),
        (Self::KeyCompromise, RevocationReason::KeyCompromise),
        (Self::CaCompromise, RevocationReason::CaCompromise),
        (Self::AffiliationChanged, RevocationReason::AffiliationChanged),
        (Self::Superseded, RevocationReason::Superseded),
        (Self::CessationOfOperation, RevocationReason::CessationOfOperation),
        (Self::PrivilegeWithdrawn, RevocationReason::PrivilegeWithdrawn),
    ];

    fn code(self) -> RevocationReason {
        Self::ALL
            .iter()
            .find(|(reason, _)| *reason == self)
            .map_or(RevocationReason::Unspecified, |(_, code)| *code)
    }

    fn of_code(code: i64) -> RevocationReason {
        let found = Self::ALL.iter().find(|(_, known)| *known as i64 == code);
        found.map_or(RevocationReason::Unspecified, |(_, code)| *code)
    }
}

/// What is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoke {
    /// One certificate, by its serial number in hex; colons and case do not matter.
    Serial(String),
    /// All certificates of an identity; with `block` it gets no other one until it is unblocked.
    Identity {
        /// Whose.
        id: SpiffeId,
        /// For good.
        block: bool,
    },
    /// An intermediate, by the serial number of its certificate, and so all that it signed. Another one signs first.
    Issuer {
        /// Hex, as for [`Self::Serial`].
        serial: String,
        /// Even if nodes lose the certificates by which they ask for others, and so need new join tokens.
        force: bool,
    },
}

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// Serial numbers, lower-case hex.
    pub serials: Vec<String>,
    /// Those that no list can name, since their authority's key is not here any more: they stay valid until they end, or
    /// until that authority is revoked or withdrawn.
    pub remaining: Vec<String>,
    /// The version of the trust that says so.
    pub version: u64,
}

/// An authority's list.
pub(super) struct List {
    pub(super) issuer: String,
    pub(super) number: i64,
    pub(super) der: CertificateRevocationListDer<'static>,
    pub(super) entries: i64,
    pub(super) signed: i64,
    pub(super) next_update: i64,
}

pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<List>> {
    let mut statement = connection.prepare_cached(
        "SELECT issuer, number, der, entries, signed, next_update FROM lists ORDER BY issuer",
    )?;
    statement
        .query_map([], |row| {
            Ok(List {
                issuer: row.get(0)?,
                number: row.get(1)?,
                der: row.get::<_, Vec<u8>>(2)?.into(),
                entries: row.get(3)?,
                signed: row.get(4)?,
                next_update: row.get(5)?,
            })
        })?
        .collect()
}

/// The certificate of a serial number, as the register knows it.
struct Found {
    serial: String,
    issuer: String,
    not_after: i64,
}

fn normal(serial: &str) -> String {
    serial.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect()
}

/// Takes back, and signs the lists that say so.
pub(super) fn revoke(
    connection: &Connection,
    shared: &Shared,
    what: &Revoke,
    reason: Reason,
    now: i64,
) -> rusqlite::Result<Revoked> {
    if let Revoke::Identity { id, block: true } = what {
        connection.execute(
            "INSERT INTO blocked (spiffe_id, since) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            params![id.to_string(), now],
        )?;
    }
    let found = match what {
        Revoke::Serial(serial) => vec![by_serial(connection, &normal(serial), now)?],
        Revoke::Identity { id, .. } => by_identity(connection, id, now)?,
        Revoke::Issuer { serial, force } => {
            vec![issuer(connection, shared, (&normal(serial), *force), now)?]
        }
    };
    let all_of_it = !matches!(what, Revoke::Identity { .. });
    let rows = rows::all(connection)?;
    let mut issuers: Vec<&Row> = Vec::new();
    let (mut serials, mut remaining) = (Vec::new(), Vec::new());
    for one in found {
        let row = rows.iter().find(|row| row.id == one.issuer);
        let row = row.ok_or_else(|| refuse(CaError::Refused(format!("nobody signed {}", one.serial))))?;
        if !issuers.iter().any(|known| known.id == row.id) {
            match must_sign_lists(shared, &rows, row) {
                Ok(()) => issuers.push(row),
                Err(error) if all_of_it => return Err(error),
                Err(_) => {
                    remaining.push(one.serial);
                    continue;
                }
            }
        }
        connection.execute(
            "INSERT INTO revoked (issuer, serial, at, reason, not_after) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
            params![one.issuer, one.serial, now, reason.code() as i64, one.not_after],
        )?;
        serials.push(one.serial);
    }
    let version = rows::count_up(connection, !issuers.is_empty(), now)?;
    for row in issuers {
        sign(connection, shared, row, version, now)?;
    }
    Ok(Revoked { serials, remaining, version: u64::try_from(version).unwrap_or_default() })
}

fn by_serial(connection: &Connection, serial: &str, now: i64) -> rusqlite::Result<Found> {
    let found = connection
        .query_row("SELECT serial, issuer, not_after FROM issued WHERE serial = ?1", [serial], |row| {
            Ok(Found { serial: row.get(0)?, issuer: row.get(1)?, not_after: row.get(2)? })
        })
        .optional()?;
    let missing = || {
        CaError::Refused(format!(
            "no certificate with serial number {serial} is in the register: it was not signed here, or ended long ago"
        ))
    };
    let found = found.ok_or_else(|| refuse(missing()))?;
    if found.not_after <= now {
        return Err(refuse(CaError::Refused(format!("the certificate {serial} has ended already"))));
    }
    Ok(found)
}

fn by_identity(connection: &Connection, id: &SpiffeId, now: i64) -> rusqlite::Result<Vec<Found>> {
    let mut statement = connection.prepare(
        "SELECT serial, issuer, not_after FROM issued i WHERE spiffe_id = ?1 AND not_after > ?2
             AND NOT EXISTS (SELECT 1 FROM revoked r WHERE r.issuer = i.issuer AND r.serial = i.serial)
             AND EXISTS (SELECT 1 FROM authorities a WHERE a.id = i.issuer AND a.stage <> 'withdrawn')
         ORDER BY serial",
    )?;
    statement
        .query_map(params![id.to_string(), now], |row| {
            Ok(Found { serial: row.get(0)?, issuer: row.get(1)?, not_after: row.get(2)? })
        })?
        .collect()
}

/// Moves issuance away from an intermediate of this CA, and withdraws it.
fn issuer(
    connection: &Connection,
    shared: &Shared,
    (serial, force): (&str, bool),
    now: i64,
) -> rusqlite::Result<Found> {
    let rows = rows::all(connection)?;
    let Some(row) = rows.iter().find(|row| row.is_believed() && row.serial() == serial) else {
        // one that another node signs with
        return by_serial(connection, serial, now);
    };
    let root = match (&row.parent, row.kind, row.source) {
        (Some(parent), Kind::Intermediate, Source::Own) => parent.clone(),
        (_, Kind::Root, _) => {
            let what = "a root cannot be revoked by a list: rotate it (`rotate root`), then withdraw it (`advance --force`)";
            return Err(refuse(CaError::Refused(what.to_owned())));
        }
        _ => {
            let what = "the root's key is not here: revoke the intermediate with the CA that signed it, and put a new one in \
                        the CA's folder";
            return Err(refuse(CaError::Refused(what.to_owned())));
        }
    };
    let nodes = nodes_below(connection, shared, row, now)?;
    if nodes > 0 && !force {
        let what = format!(
            "{} signed the certificates by which {nodes} nodes ask for others: revoked, each of them needs a new join token. \
             If nobody else has its key, `rotate intermediate` instead: nodes renew, and the old one goes once nothing of it is \
             in use. With --force it is revoked now",
            row.subject()
        );
        return Err(refuse(CaError::Refused(what)));
    }
    let found = Found { serial: serial.to_owned(), issuer: root, not_after: row.validity().1 };
    let id = row.id.clone();
    if row.stage == Stage::Active {
        motion::replace_intermediate(connection, shared, now)?;
    }
    motion::step(connection, shared, &id, Event::Force, now)?;
    Ok(found)
}

/// How many nodes have a certificate of an authority that is believed.
fn nodes_below(connection: &Connection, shared: &Shared, row: &Row, now: i64) -> rusqlite::Result<i64> {
    let below = format!("spiffe://{}/node/", shared.settings.trust_domain);
    connection.query_row(
        "SELECT count(DISTINCT spiffe_id) FROM issued i WHERE issuer = ?1 AND not_after > ?2
             AND substr(spiffe_id, 1, length(?3)) = ?3
             AND NOT EXISTS (SELECT 1 FROM revoked r WHERE r.issuer = i.issuer AND r.serial = i.serial)",
        params![row.id, now, below],
        |row| row.get(0),
    )
}

/// Peers ask the first list in an authority's name, so two authorities of one name would make each other's certificates
/// unverifiable.
fn must_sign_lists(shared: &Shared, rows: &[Row], row: &Row) -> rusqlite::Result<()> {
    let refused = |what: String| Err(refuse(CaError::Refused(what)));
    let signer = shared.keys.get(row).map_err(|error| {
        refuse(CaError::Refused(format!("{} can sign no revocation list any more: {error}", row.subject())))
    })?;
    if !signer.signs_lists {
        return refused(format!(
            "{} may not sign revocation lists: its key usage lacks cRLSign",
            row.subject()
        ));
    }
    let same_name =
        |other: &&Row| other.id != row.id && other.is_believed() && other.subject() == row.subject();
    if rows.iter().any(|other| same_name(&other)) {
        return refused(format!(
            "two authorities are called {}, so peers cannot tell their revocation lists apart: give the next one another \
             subject",
            row.subject()
        ));
    }
    Ok(())
}

/// Signs the lists that are missing or half through their life. Whether there was any.
pub(super) fn renew(
    connection: &Connection,
    shared: &Shared,
    rows: &[Row],
    now: i64,
) -> rusqlite::Result<bool> {
    let known = all(connection)?;
    let half = i64::try_from(shared.settings.list_lifetime.as_secs() / 2).unwrap_or(i64::MAX);
    let mut version = None;
    for row in rows.iter().filter(|row| row.is_believed() && row.key_file.is_some()) {
        let list = known.iter().find(|list| list.issuer == row.id);
        let due = match list {
            Some(list) => now >= list.signed.saturating_add(half) || list.signed > now.saturating_add(half),
            // an authority of others may share its name with others of theirs: it has no list until it must
            None => row.source == Source::Own,
        };
        if !due {
            continue;
        }
        if must_sign_lists(shared, rows, row).is_err() {
            // said when something is to be revoked; what an old list says stays in force
            continue;
        }
        let version = match version {
            Some(version) => version,
            None => *version.insert(rows::count_up(connection, true, now)?),
        };
        sign(connection, shared, row, version, now)?;
    }
    Ok(version.is_some())
}

/// Numbers grow with the version of the trust.
fn sign(connection: &Connection, shared: &Shared, row: &Row, version: i64, now: i64) -> rusqlite::Result<()> {
    let signer = shared.keys.get(row).map_err(refuse)?;
    let mut statement = connection.prepare_cached(
        "SELECT serial, at, reason FROM revoked WHERE issuer = ?1 ORDER BY serial LIMIT ?2",
    )?;
    let most = i64::try_from(MOST_ENTRIES).unwrap_or(i64::MAX);
    let entries: Vec<(String, i64, i64)> = statement
        .query_map(params![row.id, most + 1], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    if entries.len() > MOST_ENTRIES {
        let what = format!(
            "{MOST_ENTRIES} certificates of {} are revoked already: revoke the issuer",
            row.subject()
        );
        return Err(refuse(CaError::Refused(what)));
    }
    let count = i64::try_from(entries.len()).unwrap_or(i64::MAX);
    let time =
        |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let entries = entries
        .into_iter()
        .map(|(serial, at, reason)| {
            let serial = bytes(&serial).ok_or_else(|| {
                refuse(CaError::Refused(format!("the register's serial number {serial:?} is none")))
            })?;
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: time(at),
                reason_code: Some(Reason::of_code(reason)),
                invalidity_date: None,
            })
        })
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let life = i64::try_from(shared.settings.list_lifetime.as_secs()).unwrap_or(i64::MAX).max(2);
    // what cannot be signed again any day soon says until when it is needed
    let needed = rows::last_end(connection, &row.id)?
        .filter(|_| row.source == Source::Files && row.stage == Stage::Retiring);
    let next_update = now.saturating_add(life).max(needed.unwrap_or(0));
    let backdate = i64::try_from(shared.settings.backdate.as_secs()).unwrap_or(0);
    let der = signer
        .sign_list(ListTerms {
            number: u64::try_from(version).unwrap_or_default(),
            this_update: time(now.saturating_sub(backdate)),
            next_update: time(next_update),
            entries,
        })
        .map_err(refuse)?;
    connection.execute(
        "INSERT INTO lists (issuer, number, der, entries, signed, next_update) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (issuer) DO UPDATE SET number = excluded.number, der = excluded.der,
             entries = excluded.entries, signed = excluded.signed, next_update = excluded.next_update",
        params![row.id, version, der.as_ref(), count, now, next_update],
    )?;
    Ok(())
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
}
