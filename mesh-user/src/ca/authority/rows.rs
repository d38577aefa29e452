//! The authority's tables, read and written. Whoever calls these is in a transaction.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use rusqlite::{Connection, OptionalExtension, Row as SqlRow, named_params, params, types::Type};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::{certificate::X509Certificate, parse_x509_certificate};

use super::rotation::{Kind, Stage};
use crate::ca::{CaError, StateError};

/// Who made an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// This CA, which may make another.
    Own,
    /// Whoever put the files there.
    Files,
}

/// One authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Of its name and key, which is what an authority is (RFC 5280 section 6.1.1).
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) source: Source,
    pub(super) certificate: CertificateDer<'static>,
    /// What is sent behind a leaf; empty: it is a root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) parent: Option<String>,
    pub(super) key_file: Option<String>,
    pub(super) stage: Stage,
    pub(super) since: i64,
    pub(super) trusted_version: Option<i64>,
    pub(super) created: i64,
}

impl Row {
    pub(super) fn parsed(&self) -> Result<X509Certificate<'_>, CaError> {
        parse(&self.certificate)
    }

    /// Lower-case hex.
    pub(super) fn serial(&self) -> String {
        self.parsed().map(|parsed| hex(parsed.raw_serial())).unwrap_or_default()
    }

    pub(super) fn subject(&self) -> String {
        self.parsed().map(|parsed| parsed.subject().to_string()).unwrap_or_default()
    }

    /// Unix seconds; an unreadable certificate is at its end.
    pub(super) fn validity(&self) -> (i64, i64) {
        let both = |parsed: X509Certificate<'_>| {
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp())
        };
        self.parsed().map(both).unwrap_or_default()
    }

    /// Whether bundles have it: those of roots.
    pub(super) fn is_trusted_root(&self) -> bool {
        self.kind == Kind::Root && self.is_believed()
    }

    /// Whether what it signed is to be believed.
    pub(super) fn is_believed(&self) -> bool {
        matches!(self.stage, Stage::Trusted | Stage::Active | Stage::Retiring)
    }
}

pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CaError> {
    let bad =
        |e: &dyn std::fmt::Display| CaError::Refused(format!("a certificate of the CA's state is none: {e}"));
    parse_x509_certificate(der).map(|(_, parsed)| parsed).map_err(|e| bad(&e))
}

/// See [`Row::id`].
pub(super) fn id_of(certificate: &CertificateDer<'_>) -> Result<String, CaError> {
    let parsed = parse(certificate)?;
    let mut text = parsed.subject().as_raw().to_vec();
    text.extend_from_slice(parsed.public_key().raw);
    Ok(hex(&digest(&SHA256, &text).as_ref()[..16]))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A refusal travels out of a transaction, which it ends, as `SQLite`'s own errors do.
pub(super) fn refuse(error: CaError) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

/// What [`refuse`] sent.
pub(super) fn refusal(error: StateError) -> CaError {
    match error {
        StateError::Database { path, source: rusqlite::Error::ToSqlConversionFailure(cause) } => {
            match cause.downcast::<CaError>() {
                Ok(refused) => *refused,
                Err(cause) => {
                    StateError::Database { path, source: rusqlite::Error::ToSqlConversionFailure(cause) }
                        .into()
                }
            }
        }
        other => other.into(),
    }
}

fn unknown(column: usize, text: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, format!("{text:?} is unknown").into())
}

pub(super) fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Prepared => "prepared",
        Stage::Trusted => "trusted",
        Stage::Active => "active",
        Stage::Retiring => "retiring",
        Stage::Withdrawn => "withdrawn",
    }
}

/// What [`stage_name`] wrote into a column.
pub(super) fn stage(column: usize, name: &str) -> rusqlite::Result<Stage> {
    [Stage::Prepared, Stage::Trusted, Stage::Active, Stage::Retiring, Stage::Withdrawn]
        .into_iter()
        .find(|known| stage_name(*known) == name)
        .ok_or_else(|| unknown(column, name))
}

fn split(mut ders: &[u8]) -> rusqlite::Result<Vec<CertificateDer<'static>>> {
    let mut all = Vec::new();
    while !ders.is_empty() {
        let (rest, _) = parse_x509_certificate(ders).map_err(|e| unknown(4, &e.to_string()))?;
        all.push(CertificateDer::from(ders[..ders.len() - rest.len()].to_vec()));
        ders = rest;
    }
    Ok(all)
}

fn row(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let (kind, source, stage): (String, String, String) = (row.get(1)?, row.get(2)?, row.get(7)?);
    Ok(Row {
        id: row.get(0)?,
        kind: match kind.as_str() {
            "root" => Kind::Root,
            "intermediate" => Kind::Intermediate,
            other => return Err(unknown(1, other)),
        },
        source: match source.as_str() {
            "own" => Source::Own,
            "files" => Source::Files,
            other => return Err(unknown(2, other)),
        },
        certificate: row.get::<_, Vec<u8>>(3)?.into(),
        chain: split(&row.get::<_, Vec<u8>>(4)?)?,
        parent: row.get(5)?,
        key_file: row.get(6)?,
        stage: self::stage(7, &stage)?,
        since: row.get(8)?,
        trusted_version: row.get(9)?,
        created: row.get(10)?,
    })
}

/// All authorities, oldest first.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, kind, source, certificate, chain, parent, key_file, stage, since, trusted_version, created
         FROM authorities ORDER BY created, rowid",
    )?;
    statement.query_map([], row)?.collect()
}

/// A new authority, or one whose certificate was renewed.
pub(super) fn put(connection: &Connection, row: &Row) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO authorities (id, kind, source, certificate, chain, parent, key_file, stage, since,
                                  trusted_version, created)
         VALUES (:id, :kind, :source, :certificate, :chain, :parent, :key_file, :stage, :since,
                 :trusted_version, :created)
         ON CONFLICT (id) DO UPDATE SET source = excluded.source, certificate = excluded.certificate,
             chain = excluded.chain, parent = excluded.parent, key_file = excluded.key_file,
             stage = excluded.stage, since = excluded.since, trusted_version = excluded.trusted_version",
        named_params! {
            ":id": row.id,
            ":kind": match row.kind { Kind::Root => "root", Kind::Intermediate => "intermediate" },
            ":source": match row.source { Source::Own => "own", Source::Files => "files" },
            ":certificate": row.certificate.as_ref(),
            ":chain": row.chain.iter().flat_map(|der| der.iter().copied()).collect::<Vec<u8>>(),
            ":parent": row.parent,
            ":key_file": row.key_file,
            ":stage": stage_name(row.stage),
            ":since": row.since,
            ":trusted_version": row.trusted_version,
            ":created": row.created,
        },
    )?;
    Ok(())
}

/// Versions of the trust, and of everything but the register.
pub(super) fn versions(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let found = connection
        .prepare_cached("SELECT version, revision FROM trust")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// Counts up. The first version is the time, so that a CA whose state was lost begins above what agents know.
pub(super) fn count_up(connection: &Connection, trust_changed: bool, now: i64) -> rusqlite::Result<i64> {
    connection.execute(
        "INSERT INTO trust (one, version, revision) VALUES (1, max(?1, 1), 1)
         ON CONFLICT (one) DO UPDATE SET version = version + ?2, revision = revision + 1",
        params![now, trust_changed],
    )?;
    Ok(versions(connection)?.0)
}

/// A certificate that was signed.
#[derive(Debug, Clone)]
pub(super) struct Issued {
    pub(super) serial: String,
    pub(super) issuer: String,
    pub(super) spiffe_id: String,
    pub(super) not_after: i64,
    pub(super) caller: String,
    pub(super) node: Option<String>,
}

/// What became of [`register`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Registered {
    Yes,
    /// Its issuer does not sign any more: sign again.
    Moved,
    /// The identity was blocked.
    Blocked,
}

/// Enters a certificate into the register, if its issuer still signs and its identity may still be issued.
pub(super) fn register(connection: &Connection, issued: &Issued, now: i64) -> rusqlite::Result<Registered> {
    let blocked = connection
        .prepare_cached("SELECT 1 FROM blocked WHERE spiffe_id = ?1")?
        .exists([&issued.spiffe_id])?;
    if blocked {
        return Ok(Registered::Blocked);
    }
    let entered = connection
        .prepare_cached(
            "INSERT INTO issued (serial, issuer, spiffe_id, not_after, issued, caller, node)
             SELECT ?1, id, ?3, ?4, ?5, ?6, ?7 FROM authorities WHERE id = ?2 AND stage = 'active'",
        )?
        .execute(params![
            issued.serial,
            issued.issuer,
            issued.spiffe_id,
            issued.not_after,
            now,
            issued.caller,
            issued.node
        ])?;
    Ok(if entered == 1 { Registered::Yes } else { Registered::Moved })
}

/// When the last certificate of an issuer ends that was not revoked.
pub(super) fn last_end(connection: &Connection, issuer: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached(
            "SELECT not_after FROM issued i WHERE issuer = ?1 AND NOT EXISTS
                 (SELECT 1 FROM revoked r WHERE r.issuer = i.issuer AND r.serial = i.serial)
             ORDER BY not_after DESC LIMIT 1",
        )?
        .query_row([issuer], |row| row.get(0))
        .optional()
}

/// Nodes that watch and are behind a version.
pub(super) fn behind(
    connection: &Connection,
    version: i64,
    watching_since: i64,
) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection
        .prepare_cached("SELECT node FROM acknowledged WHERE version < ?1 AND at >= ?2 ORDER BY node")?;
    statement.query_map([version, watching_since], |row| row.get(0))?.collect()
}

/// Notes what nodes have in force.
pub(super) fn acknowledge<'a>(
    connection: &Connection,
    nodes: impl IntoIterator<Item = (&'a String, &'a u64)>,
    now: i64,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO acknowledged (node, version, at) VALUES (?1, ?2, ?3)
         ON CONFLICT (node) DO UPDATE SET version = excluded.version, at = excluded.at",
    )?;
    for (node, version) in nodes {
        statement.execute(params![node, i64::try_from(*version).unwrap_or(i64::MAX), now])?;
    }
    Ok(())
}

/// Forgets certificates, revocations and nodes that nobody asks about any more. How much it was.
pub(super) fn prune(
    connection: &Connection,
    ended: i64,
    listed: i64,
    watched: i64,
) -> rusqlite::Result<usize> {
    let issued = connection
        .prepare_cached(
            "DELETE FROM issued WHERE serial IN
                 (SELECT i.serial FROM authorities a JOIN issued i ON i.issuer = a.id AND i.not_after < ?1
                  LIMIT 10000)",
        )?
        .execute([ended])?;
    // RFC 5280 section 3.3: an entry stays until a list was signed after the certificate ended
    let revoked = connection.prepare_cached("DELETE FROM revoked WHERE not_after < ?1")?.execute([listed])?;
    let nodes = connection.prepare_cached("DELETE FROM acknowledged WHERE at < ?1")?.execute([watched])?;
    Ok(issued + revoked + nodes)
}
