//! The CA's state in an `SQLite` file. What a write returned is on disk: kill -9 or a power cut at any point loses nothing
//! that was acknowledged. Several processes may have one file open, on one machine; a file system over the network does not
//! do (`SQLite`, "Write-Ahead Logging").
//!
//! Writes that wait at the same time share a transaction, and so one sync of the disk.
//!
//! The state may be kept elsewhere too ([`Keeper`]): what a transaction did is told there before it is committed here, so
//! nothing is acknowledged that another machine could not go on from.

mod journal;
mod schema;

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tokio::sync::{oneshot, watch};

use super::{CaError, files};

/// The file in the CA's folder.
const FILE: &str = "state.db";
/// How long a write waits for those of other replicas.
const BUSY: Duration = Duration::from_secs(10);
/// How long what does not wait by itself waits before it is tried again.
const PAUSE: Duration = Duration::from_millis(10);
/// How often other replicas' writes are looked for.
const LOOK: Duration = Duration::from_millis(200);
/// Most writes in one transaction.
const GROUP: usize = 256;

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// `SQLite`'s word for it.
    #[error("the CA's state {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// The write was not tried.
    #[error("the CA's state {} takes no writes: it is being closed, or its disk fails", .0.display())]
    Closed(PathBuf),
}

/// Where the state is kept beside this machine. Called on the state's own thread, which may wait.
pub trait Keeper: Send {
    /// What was kept last, and of which version its tables are; none: nothing yet. Called once, first.
    ///
    /// # Errors
    /// In words, when it cannot be had.
    fn kept(&mut self) -> Result<Option<Kept>, String>;

    /// Keeps all of the state, instead of what was kept before. Called once, second; from then on this is the one writer.
    ///
    /// # Errors
    /// In words, when it is not certain to be kept.
    fn begin(&mut self, all: &Kept) -> Result<(), String>;

    /// Keeps what one transaction did, which may be nothing; what else is in the CA's folder may have changed, too.
    ///
    /// # Errors
    /// In words, when it is not certain to be kept: the transaction is undone, and no other one tried.
    fn keep(&mut self, lines: &str) -> Result<(), String>;

    /// Whether what is kept has grown so much that [`Self::begin`] should put it in order.
    fn is_long(&self) -> bool;
}

/// The state as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Of the tables.
    pub version: usize,
    /// See [`journal`].
    pub lines: String,
}

/// Held on the CA's folder as long as its state is open. `SQLite` removes the files beside the state when the last who had it
/// open closes it, by their names: whoever makes the files anew must have waited for that.
#[derive(Debug)]
struct Lock {
    folder: File,
    path: PathBuf,
}

impl Lock {
    /// With others, or alone.
    fn of(directory: &Path, alone: bool) -> Result<Self, CaError> {
        let path = directory.to_path_buf();
        let io = |source| CaError::Io { path: path.clone(), action: "lock it", source };
        let lock = Self { folder: File::open(directory).map_err(io)?, path: path.clone() };
        lock.take(|folder| if alone { folder.try_lock() } else { folder.try_lock_shared() })?;
        Ok(lock)
    }

    /// Lets others in, too.
    fn share(&self) -> Result<(), CaError> {
        self.take(File::try_lock_shared)
    }

    fn take(&self, try_it: impl Fn(&File) -> Result<(), TryLockError>) -> Result<(), CaError> {
        let end = Instant::now() + BUSY;
        loop {
            match try_it(&self.folder) {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(CaError::Refused(format!(
                        "the CA's folder {} is in use: end the program that holds it",
                        self.path.display()
                    )));
                }
                Err(TryLockError::Error(source)) => {
                    return Err(CaError::Io { path: self.path.clone(), action: "lock it", source });
                }
            }
        }
    }
}

type Reply = Box<dyn FnOnce(Result<(), rusqlite::Error>) + Send>;
/// Whether it is to be kept, and whom to tell whether it was.
type Work = Box<dyn FnOnce(&Connection) -> (bool, Reply) + Send>;

/// The open state; cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    path: PathBuf,
    writes: mpsc::Sender<Work>,
    changed: watch::Receiver<u64>,
}

impl State {
    /// Opens the state in the CA's folder, or makes it there; mode 0600.
    ///
    /// # Errors
    /// When the folder lets others in, or the file is none of this program's, or newer than it.
    pub fn open(directory: &Path) -> Result<Self, CaError> {
        Self::open_kept(directory, None)
    }

    /// As [`Self::open`], but what `keeper` has is the state, and a file that is there is made anew. Waits for it.
    ///
    /// # Errors
    /// As [`Self::open`], or when the keeper does not have it, or does not keep it.
    pub fn open_kept(directory: &Path, mut keeper: Option<Box<dyn Keeper>>) -> Result<Self, CaError> {
        files::open_directory(directory)?;
        let path = directory.join(FILE);
        files::create_private(&path).map_err(|error| match error {
            CaError::Io { source, .. } if is_refused(&source) => not_writable(directory, &source),
            other => other,
        })?;
        let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
            // the log beside the file needs the folder, too
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                not_writable(directory, &source)
            }
            _ => CaError::from(StateError::Database { path: path.clone(), source }),
        };
        let refused = |what: String| CaError::Refused(format!("the CA's state is not kept: {what}"));
        let mut kept = None;
        let lock = Lock::of(directory, keeper.is_some())?;
        if let Some(keeper) = &mut keeper {
            kept = keeper.kept().map_err(refused)?;
            files::make_anew(directory, &[FILE, "state.db-wal", "state.db-shm"])?;
        }
        let mut connection = connect(&path).map_err(failed)?;
        if let Some(kept) = kept {
            schema::migrate_to(&mut connection, kept.version).map_err(failed)?;
            journal::replay(&mut connection, &kept.lines).map_err(failed)?;
        }
        schema::migrate(&mut connection).map_err(failed)?;
        if let Some(keeper) = &mut keeper {
            keeper.begin(&all(&connection).map_err(failed)?).map_err(refused)?;
            journal::begin(&connection).map_err(failed)?;
        }
        lock.share()?;
        let (writes, queue) = mpsc::channel();
        let (tell, changed) = watch::channel(0);
        let thread = thread::Builder::new().name("ca-state".to_owned());
        let seen = data_version(&connection);
        let spawned = thread.spawn(move || {
            serve(&mut connection, keeper, seen, &queue, &tell);
            drop(connection);
            drop(lock);
        });
        spawned.map_err(|source| CaError::Io { path: path.clone(), action: "serve it", source })?;
        Ok(Self { path, writes, changed })
    }

    /// Runs `work` in a transaction, all of it or nothing; on disk when this returns. `work` may be run before others that
    /// came with it, so it asks the database for what it builds on.
    ///
    /// # Errors
    /// What `work` returns, or when it cannot be put on disk.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StateError> {
        let (tell, told) = oneshot::channel();
        self.enqueue(work, move |outcome| {
            // Nobody waits any more where this fails.
            let _ = tell.send(outcome);
        })?;
        let told = told.await.map_err(|_| StateError::Closed(self.path.clone()))?;
        told.map_err(|source| StateError::Database { path: self.path.clone(), source })
    }

    /// As [`Self::write`], for where nothing else runs yet: blocks the thread.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_waiting<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StateError> {
        let (tell, told) = mpsc::sync_channel(1);
        self.enqueue(work, move |outcome| {
            let _ = tell.send(outcome);
        })?;
        let told = told.recv().map_err(|_| StateError::Closed(self.path.clone()))?;
        told.map_err(|source| StateError::Database { path: self.path.clone(), source })
    }

    fn enqueue<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        tell: impl FnOnce(rusqlite::Result<T>) + Send + 'static,
    ) -> Result<(), StateError> {
        let job: Work = Box::new(move |connection| {
            let outcome = work(connection);
            let kept = outcome.is_ok();
            let reply: Reply =
                Box::new(move |committed| tell(outcome.and_then(|value| committed.map(|()| value))));
            (kept, reply)
        });
        self.writes.send(job).map_err(|_| StateError::Closed(self.path.clone()))
    }

    /// Reads what is committed now, replicas' writes included. For the few moments in which everything is looked at: it
    /// opens the file anew.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        let failed = |source| StateError::Database { path: self.path.clone(), source };
        connect(&self.path).and_then(|connection| work(&connection)).map_err(failed)
    }

    /// Counts up after each commit, this process's and other replicas'.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }
}

fn is_refused(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied)
}

fn not_writable(directory: &Path, cause: &dyn std::fmt::Display) -> CaError {
    let what = format!(
        "the CA's folder has to be writable, since its register (state.db) lies there: {cause}. Keys that others put into a \
         read-only folder: `meshd ca` takes them from `pluggedIn`; for a node, copy them into a folder of its own"
    );
    CaError::Incomplete { path: directory.to_owned(), what }
}

/// Recovering after a crash, and the change to the write-ahead log, do not wait for others by themselves (`SQLite`, "WAL-mode
/// File Format", `SQLITE_BUSY_RECOVERY`): they are tried again.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let began = Instant::now();
    loop {
        match try_connect(path) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && began.elapsed() < BUSY =>
            {
                thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn try_connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if mode != "wal" {
        connection.pragma_update(None, "journal_mode", "WAL")?;
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

/// Ends when no [`State`] is left.
fn serve(
    connection: &mut Connection,
    mut keeper: Option<Box<dyn Keeper>>,
    mut seen: Option<i64>,
    queue: &mpsc::Receiver<Work>,
    tell: &watch::Sender<u64>,
) {
    loop {
        match queue.recv_timeout(LOOK) {
            Ok(first) => {
                let works = std::iter::once(first).chain(queue.try_iter().take(GROUP - 1)).collect();
                match commit(connection, keeper.as_deref_mut(), works) {
                    Ok(true) => tell.send_modify(|count| *count += 1),
                    Ok(false) => {}
                    // Another replica may have it by now: what this one has is no state any more.
                    Err(NotKept) => return,
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let now = data_version(connection);
                if now != seen {
                    seen = now;
                    tell.send_modify(|count| *count += 1);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Changes with other connections' commits only (`SQLite`, "PRAGMA `data_version`").
fn data_version(connection: &Connection) -> Option<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0)).ok()
}

/// All of the state.
fn all(connection: &Connection) -> rusqlite::Result<Kept> {
    Ok(Kept { version: schema::version(), lines: journal::dump(connection)? })
}

/// What was done is not certain to be kept.
#[derive(Debug, thiserror::Error)]
#[error("the CA's state is not kept elsewhere")]
struct NotKept;

/// One transaction for all, a savepoint for each. Whether anything was committed.
fn commit(
    connection: &mut Connection,
    mut keeper: Option<&mut (dyn Keeper + 'static)>,
    works: Vec<Work>,
) -> Result<bool, NotKept> {
    let mut replies = Vec::new();
    let (mut told, mut not_kept) = (false, false);
    let outcome = (|| {
        if let Some(keeper) = &mut keeper
            && keeper.is_long()
        {
            let all = all(connection)?;
            not_kept = true;
            keeper.begin(&all).map_err(|what| said(&what))?;
            not_kept = false;
        }
        let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for work in works {
            let savepoint = transaction.savepoint()?;
            let (kept, reply) = work(&savepoint);
            if kept {
                savepoint.commit()?;
            }
            replies.push(reply);
        }
        if let Some(keeper) = &mut keeper {
            let lines = journal::take(&transaction)?;
            not_kept = true;
            keeper.keep(&lines).map_err(|what| said(&what))?;
            not_kept = false;
            told = true;
        }
        transaction.commit()
    })();
    let committed = outcome.is_ok();
    // What others were told and this file does not have: they are right.
    not_kept |= told && !committed;
    let error = outcome.err().map(|error| error.to_string());
    for reply in replies {
        reply(match &error {
            None => Ok(()),
            Some(error) => Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
                Some(error.clone()),
            )),
        });
    }
    if not_kept { Err(NotKept) } else { Ok(committed) }
}

fn said(what: &str) -> rusqlite::Error {
    let failed = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
    rusqlite::Error::SqliteFailure(failed, Some(format!("it is not kept elsewhere: {what}")))
}

#[cfg(test)]
mod tests;
