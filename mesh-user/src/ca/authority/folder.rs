//! The files of the CA's folder, as a first authority or as plugged-in ones that change, and the copy of the trusted roots
//! that `meshctl ca bundle` and others read. Runs in transactions: of several processes one makes the root.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rusqlite::Connection;
use rustls_pki_types::CertificateDer;

use super::{
    Shared, lists, motion,
    rotation::{Kind, Stage},
    rows::{self, Row, Source, id_of, parse, refuse},
};
use crate::ca::{
    CaError, files,
    material::{Material, PLUGGED_IN, ROOT_CERTIFICATE, ROOT_KEY},
    own_files::create_root,
};

/// Brings state and folder together when a CA is opened.
pub(super) fn open(connection: &Connection, shared: &Shared, now: i64) -> rusqlite::Result<()> {
    let all = rows::all(connection)?;
    let own = all.iter().any(|row| row.source == Source::Own && row.stage == Stage::Active);
    if !own || is_plugged_in(shared) {
        take_up(connection, shared, now)?;
    }
    let all = rows::all(connection)?;
    let has_intermediate = all.iter().any(|row| row.kind == Kind::Intermediate && row.is_believed());
    let may = all.iter().any(|row| row.source == Source::Own && row.stage == Stage::Active);
    if shared.settings.intermediates && may && !has_intermediate {
        motion::replace_intermediate(connection, shared, now)?;
    }
    let all = rows::all(connection)?;
    shared.keys.sweep(&all).map_err(refuse)?;
    lists::renew(connection, shared, &all, now)?;
    mirror(shared, &all).map_err(refuse)
}

fn is_plugged_in(shared: &Shared) -> bool {
    let is_there = |name: &str| std::fs::symlink_metadata(shared.settings.material().join(name)).is_ok();
    PLUGGED_IN.iter().any(|name| is_there(name))
}

/// Looks whether plugged-in files changed. Whether they did.
pub(super) fn look(connection: &Connection, shared: &Shared, now: i64) -> rusqlite::Result<bool> {
    let all = rows::all(connection)?;
    let from_files = all.iter().any(|row| row.source == Source::Files && row.stage == Stage::Active);
    if !from_files && !is_plugged_in(shared) {
        return Ok(false);
    }
    take_up(connection, shared, now)
}

/// Makes what the folder holds part of the CA: its roots are trusted at once, its key signs once they are known. Whether
/// anything was new.
fn take_up(connection: &Connection, shared: &Shared, now: i64) -> rusqlite::Result<bool> {
    let directory = &shared.settings.directory;
    let all = rows::all(connection)?;
    let material = match Material::read(shared.settings.material()).map_err(refuse)? {
        Some(material) => material,
        None if all.is_empty() && shared.settings.plugged_in.is_none() => {
            let settings = &shared.settings;
            create_root(directory, &settings.trust_domain, settings.root_lifetime).map_err(refuse)?;
            Material::read(directory).map_err(refuse)?.ok_or_else(|| gone(shared))?
        }
        None => return Err(gone(shared)),
    };
    let issuing = id_of(&material.issuing).map_err(refuse)?;
    // a key that was replaced while this process did not run signs no more, known to all or not
    let signs =
        |row: &Row| row.stage == Stage::Active && row.key_file.is_some() && shared.keys.get(row).is_ok();
    if all.iter().any(signs) && !is_new(&all, &material, &issuing).map_err(refuse)? {
        return Ok(false);
    }
    let own = material.key_path == directory.join(ROOT_KEY);
    let version = rows::count_up(connection, true, now)?;
    for root in &material.roots {
        let id = id_of(root).map_err(refuse)?;
        let known = all.iter().find(|row| row.id == id);
        let row = match known {
            Some(row) if row.key_file.is_some() && row.is_believed() => continue,
            Some(row) if row.stage == Stage::Trusted => Row { certificate: root.clone(), ..row.clone() },
            _ => Row {
                stage: if own && id != issuing { Stage::Retiring } else { Stage::Trusted },
                ..found(id, (Kind::Root, Source::Files), root, (now, version))
            },
        };
        rows::put(connection, &row)?;
    }
    let mut kept = Vec::new();
    for root in &material.roots {
        kept.push(id_of(root).map_err(refuse)?);
    }
    let dropped =
        |row: &&Row| row.key_file.is_none() && row.stage == Stage::Trusted && !kept.contains(&row.id);
    for row in all.iter().filter(dropped) {
        tracing::info!(
            root = row.subject(),
            "a root is in the CA's files no more; trusted until what it signed ended"
        );
        rows::put(connection, &Row { stage: Stage::Retiring, since: now, ..row.clone() })?;
    }
    signing(connection, shared, (&material, &issuing), (own, version), now)?;
    Ok(true)
}

fn gone(shared: &Shared) -> rusqlite::Error {
    let path = shared.settings.material().to_owned();
    let what = "the CA's key and certificate are not there: restore them; without them and state.db a new trust is started";
    refuse(CaError::Incomplete { path, what: what.to_owned() })
}

fn is_new(all: &[Row], material: &Material, issuing: &str) -> Result<bool, CaError> {
    let mut ids = Vec::new();
    for root in &material.roots {
        let id = id_of(root)?;
        let known = |row: &Row| {
            row.id == id
                && row.certificate == *root
                && (row.key_file.is_some() || row.stage == Stage::Trusted)
        };
        if !all.iter().any(|row| known(row) && row.is_believed()) {
            return Ok(true);
        }
        ids.push(id);
    }
    let dropped = |row: &Row| row.key_file.is_none() && row.stage == Stage::Trusted && !ids.contains(&row.id);
    let signs = |row: &Row| {
        row.id == issuing
            && row.certificate == material.issuing
            && row.chain == material.chain
            && matches!(row.stage, Stage::Trusted | Stage::Active)
            && row.key_file.is_some()
    };
    Ok(all.iter().any(dropped) || !all.iter().any(signs))
}

fn found(
    id: String,
    (kind, source): (Kind, Source),
    certificate: &CertificateDer<'static>,
    (now, version): (i64, i64),
) -> Row {
    Row {
        id,
        kind,
        source,
        certificate: certificate.clone(),
        chain: Vec::new(),
        parent: None,
        key_file: None,
        stage: Stage::Trusted,
        since: now,
        trusted_version: Some(version),
        created: now,
    }
}

/// The authority whose key the folder holds: tried, written, and put to work at once where nobody else can sign.
fn signing(
    connection: &Connection,
    shared: &Shared,
    (material, id): (&Material, &str),
    (own, version): (bool, i64),
    now: i64,
) -> rusqlite::Result<()> {
    let all = rows::all(connection)?;
    let root = root_of(&material.chain, &all).map_err(refuse)?;
    let kind = if material.chain.is_empty() { Kind::Root } else { Kind::Intermediate };
    let source = if own { Source::Own } else { Source::Files };
    let known = all.iter().find(|row| row.id == id && row.is_believed() && row.stage != Stage::Retiring);
    let new = found(id.to_owned(), (kind, source), &material.issuing, (now, version));
    let since = root.map_or((now, Some(version)), |root| (root.since, root.trusted_version));
    let row = Row {
        source,
        certificate: material.issuing.clone(),
        chain: material.chain.clone(),
        parent: root.map(|root| root.id.clone()),
        key_file: material.key_path.file_name().and_then(|name| name.to_str()).map(str::to_owned),
        ..known.cloned().unwrap_or(Row { since: since.0, trusted_version: since.1, ..new })
    };
    let refused = |what| refuse(CaError::Invalid { path: material.issuing_path.clone(), what });
    if known.is_none() {
        may_come(connection, &all, &row).map_err(refused)?;
    }
    let signer = shared.keys.get(&row).map_err(refuse)?;
    signer.prove(&material.roots, &shared.settings.trust_domain).map_err(refused)?;
    rows::put(connection, &row)?;
    let active = |row: &&Row| row.stage == Stage::Active && row.key_file.is_some() && row.id != id;
    let others_sign = all.iter().filter(active).any(|row| shared.keys.get(row).is_ok());
    if row.stage != Stage::Active && !others_sign {
        return motion::enter(connection, shared, rows::all(connection)?, id, Stage::Active, now);
    }
    Ok(())
}

/// Peers find revocation lists by their authority's name.
fn may_come(connection: &Connection, all: &[Row], new: &Row) -> Result<(), String> {
    let lists = lists::all(connection).map_err(|e| e.to_string())?;
    let same = |row: &&Row| row.id != new.id && row.is_believed() && row.subject() == new.subject();
    let listed = |row: &Row| lists.iter().any(|list| list.issuer == row.id && list.entries > 0);
    match all.iter().filter(same).find(|row| listed(row)) {
        None => Ok(()),
        Some(row) => Err(format!(
            "is called {} as the one before it, which has revoked certificates: peers could not tell their revocation \
             lists apart. Give it another subject",
            row.subject()
        )),
    }
}

/// The trusted root that the chain leads to.
fn root_of<'a>(chain: &[CertificateDer<'_>], all: &'a [Row]) -> Result<Option<&'a Row>, CaError> {
    let Some(top) = chain.last() else { return Ok(None) };
    let top = parse(top)?;
    for row in all.iter().filter(|row| row.is_trusted_root()) {
        let root = row.parsed()?;
        if root.subject() == top.issuer() && top.verify_signature(Some(root.public_key())).is_ok() {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

/// Writes the trusted roots into `ca.crt`, the one of `ca.key` first, where the roots are this CA's own.
pub(super) fn mirror(shared: &Shared, all: &[Row]) -> Result<(), CaError> {
    let own = all.iter().any(|row| row.source == Source::Own && row.stage == Stage::Active);
    // plugged-in files on their way in do not get the old CA's beside them
    if !own || is_plugged_in(shared) {
        return Ok(());
    }
    let mut roots: Vec<_> = all.iter().filter(|row| row.is_trusted_root()).collect();
    roots.sort_by_key(|row| {
        (row.key_file.as_deref() != Some(ROOT_KEY), row.stage != Stage::Active, row.created)
    });
    let text: String = roots.iter().map(|row| pem("CERTIFICATE", &row.certificate)).collect();
    let directory = &shared.settings.directory;
    let now = files::read_certificates(&directory.join(ROOT_CERTIFICATE));
    if matches!(&now, Ok(Some((there, _))) if there.iter().eq(roots.iter().map(|row| &row.certificate))) {
        return Ok(());
    }
    files::write(directory, ROOT_CERTIFICATE, text.as_bytes(), 0o644)
}

/// RFC 7468.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let (mut lines, end) = (format!("-----BEGIN {label}-----\n"), format!("-----END {label}-----\n"));
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, behind) = rest.split_at(rest.len().min(64));
        lines.push_str(line);
        lines.push('\n');
        rest = behind;
    }
    lines + &end
}
