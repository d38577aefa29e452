//! Tables of the CA's state. A step is never changed once it was released: a new one is added.

use rusqlite::{Connection, TransactionBehavior};

use crate::ca::{authority, callers};

/// Each brings the file from one version to the next (`PRAGMA user_version`).
const STEPS: &[&str] =
    &[authority::SCHEMA, callers::JOIN_TOKEN_SCHEMA, authority::CLOCK_SCHEMA, authority::JWT_SCHEMA];

/// Brings the file to this program's version.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    migrate_to(connection, STEPS.len())
}

/// The version of this program's tables.
pub(super) fn version() -> usize {
    STEPS.len()
}

/// Brings the file to a version that this program knows, so that rows which were told by an older one fit.
pub(super) fn migrate_to(connection: &mut Connection, wanted: usize) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(missing) = STEPS.get(version as usize..wanted) else {
        let seen = usize::max(version as usize, wanted);
        let newer = format!("it is of version {seen}, which is newer than this program: upgrade meshd");
        let mismatch = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_MISMATCH);
        return Err(rusqlite::Error::SqliteFailure(mismatch, Some(newer)));
    };
    for step in missing {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", version + u32::try_from(missing.len()).unwrap_or(0))?;
    transaction.commit()
}
