//! The CA's keys and state in Secrets, so that a replica on another machine can go on. One Secret is the head: the keys, the
//! names of the pieces that the state consists of, and the newest part of it. Each write replaces the head under the condition
//! that it is the one that this replica wrote or read last (`resourceVersion`); so of two that believe to lead, one is
//! refused, whatever their clocks and Leases say, and nothing that was acknowledged is missing for the next one.
//!
//! Pieces are written before the head that names them and never change. A new leader writes all of the state anew under names
//! of its own, which also takes the head from the one before it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::{digest, rand};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroize as _;

use super::TIMEOUT;
use crate::ca::{Keeper, Kept};

/// Of the head's form.
const FORMAT: u32 = 1;
const HEAD: &str = "head.json";
const TAIL: &str = "tail";
/// Before the name of a file of the CA's folder.
const FILE: &str = "file.";
const LABEL: &str = "meshd.io/ca-state";
/// Half of what a Secret may hold.
const PIECE_BYTES: usize = 512 * 1024;
/// The head is written with each transaction: more than this is moved into a piece.
const TAIL_BYTES: usize = 32 * 1024;
/// All is written anew after so many.
const MANY_PIECES: usize = 128;
/// A state with more is not this program's.
const MOST_PIECES: usize = 4096;
/// Of keys and certificates.
const MOST_FILES: usize = 256;
const MOST_FILE_BYTES: u64 = 64 * 1024;
/// How long a write is tried while the API server does not answer.
const PATIENCE: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(200);
/// What does not fit together is read again so often.
const RELOADS: usize = 3;
/// A piece that no head has named for that long is of a leader that died before it could.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Why the shared state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SharedStateError {
    /// The API server.
    #[error("Secret {name}: {source}")]
    Api {
        /// Which Secret.
        name: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// It does not answer.
    #[error("Secret {0}: the API server does not answer")]
    Silent(String),
    /// Another replica has written since.
    #[error("Secret {0} was written by another replica, which leads now")]
    Taken(String),
    /// It does not hold what it should.
    #[error(
        "Secret {name}: {what}; restore it from a backup, or remove the Secrets labelled {LABEL}={head} to begin a new trust"
    )]
    Damaged {
        /// Which Secret.
        name: String,
        /// That of the head.
        head: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A newer program wrote it.
    #[error("Secret {0} is of a newer meshd: upgrade this one")]
    Newer(String),
    /// The Secret is gone.
    #[error("there is no Secret {name}, but {} holds keys of a CA: restore the Secret, or empty the folder to begin a new trust", folder.display())]
    Gone {
        /// That of the head.
        name: String,
        /// The CA's folder.
        folder: PathBuf,
    },
    /// The CA's folder.
    #[error("{}: {source}", path.display())]
    Folder {
        /// What of it.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is none.
    #[error("there is no randomness")]
    Randomness,
}

/// What the head says of the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Head {
    format: u32,
    /// Of the state's tables.
    version: usize,
    /// Part of its pieces' names.
    generation: String,
    /// Counts this generation's writes: with it, a write is known again.
    sequence: u64,
    /// SHA-256 of each piece, hex.
    pieces: Vec<String>,
}

/// Files of the CA's folder; wiped when dropped.
#[derive(Default, PartialEq, Eq)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Drop for Files {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Vec::zeroize);
    }
}

/// The state in Secrets of one namespace.
pub struct SharedState {
    secrets: Api<Secret>,
    name: String,
    /// The CA's own, on this machine.
    folder: PathBuf,
    runtime: Handle,
    /// Cancelled when this replica must not go on.
    lost: CancellationToken,
    /// Of the head that was read or written last; none: there is none.
    resource_version: Option<String>,
    head: Head,
    tail: String,
    files: Files,
    /// When all was written.
    whole: usize,
}

type Outcome<T> = Result<T, SharedStateError>;

impl SharedState {
    /// Nothing is asked yet. Must be called within a tokio runtime; the others must not be called on its threads.
    pub fn new(
        client: Client,
        namespace: &str,
        name: String,
        folder: PathBuf,
        lost: CancellationToken,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            name,
            folder,
            runtime: Handle::current(),
            lost,
            resource_version: None,
            head: Head::default(),
            tail: String::new(),
            files: Files::default(),
            whole: 0,
        }
    }

    fn damaged(&self, name: &str, what: &'static str) -> SharedStateError {
        SharedStateError::Damaged { name: name.to_owned(), head: self.name.clone(), what }
    }

    fn piece_name(&self, generation: &str, nth: usize) -> String {
        format!("{}-{generation}-{nth}", self.name)
    }

    async fn get(&self, name: &str) -> Outcome<Option<Secret>> {
        let got = timeout(TIMEOUT, self.secrets.get_opt(name)).await;
        let got = got.map_err(|_elapsed| SharedStateError::Silent(name.to_owned()))?;
        got.map_err(|source| SharedStateError::Api { name: name.to_owned(), source: Box::new(source) })
    }

    async fn load(&mut self) -> Outcome<Option<Kept>> {
        let Some(secret) = self.get(&self.name.clone()).await? else {
            if files_of(&self.folder)?.0.keys().any(|name| is_key(name)) {
                return Err(SharedStateError::Gone { name: self.name.clone(), folder: self.folder.clone() });
            }
            return Ok(None);
        };
        self.resource_version = secret.metadata.resource_version;
        let mut data = secret.data.unwrap_or_default();
        let head = data.get(HEAD).and_then(|head| serde_json::from_slice::<Head>(&head.0).ok());
        let head = head.ok_or_else(|| self.damaged(&self.name, "has no head.json that makes sense"))?;
        if head.format != FORMAT {
            return Err(SharedStateError::Newer(self.name.clone()));
        }
        if head.pieces.len() > MOST_PIECES || !head.generation.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(self.damaged(&self.name, "has a head.json that makes no sense"));
        }
        let mut all = Vec::new();
        for (nth, sum) in head.pieces.iter().enumerate() {
            let name = self.piece_name(&head.generation, nth);
            let piece = self.get(&name).await?.and_then(|piece| piece.data?.remove(TAIL));
            let piece = piece.ok_or_else(|| self.damaged(&name, "is missing"))?.0;
            if sha256(&piece) != *sum {
                return Err(self.damaged(&name, "is not what the head says"));
            }
            all.extend(piece);
        }
        all.extend(data.remove(TAIL).map(|tail| tail.0).unwrap_or_default());
        let lines = String::from_utf8(all).map_err(|_| self.damaged(&self.name, "holds what is no text"))?;
        let mut files = Files::default();
        for (key, content) in data {
            if let Some(name) = key.strip_prefix(FILE) {
                files.0.insert(name.to_owned(), content.0);
            }
        }
        if !files.0.keys().all(|name| is_kept(name)) || !files.0.keys().any(|name| is_key(name)) {
            return Err(self.damaged(&self.name, "does not hold the keys"));
        }
        replace_files(&self.folder, &files)?;
        self.files = files;
        let version = head.version;
        self.head = head;
        Ok(Some(Kept { version, lines }))
    }

    /// Pieces first, then the head that names them, then what the head before named goes.
    async fn write_all(&mut self, all: &Kept) -> Outcome<()> {
        let before = std::mem::take(&mut self.head);
        let mut generation = [0; 8];
        rand::fill(&mut generation).map_err(|_| SharedStateError::Randomness)?;
        let generation = format!("{:016x}", u64::from_be_bytes(generation));
        self.head = Head { format: FORMAT, version: all.version, generation, ..Head::default() };
        self.tail.clone_from(&all.lines);
        self.move_tail(0).await?;
        self.whole = self.head.pieces.len();
        self.files = files_of(&self.folder)?;
        self.write_head().await?;
        self.clean(&before).await;
        Ok(())
    }

    async fn write_lines(&mut self, lines: &str) -> Outcome<()> {
        let files = files_of(&self.folder)?;
        if lines.is_empty() && files == self.files {
            return Ok(());
        }
        self.files = files;
        self.tail.push_str(lines);
        self.move_tail(TAIL_BYTES).await?;
        self.write_head().await
    }

    /// Moves the tail into pieces where it is longer than `most`.
    async fn move_tail(&mut self, most: usize) -> Outcome<()> {
        if self.tail.len() <= most {
            return Ok(());
        }
        let tail = std::mem::take(&mut self.tail);
        for piece in tail.as_bytes().chunks(PIECE_BYTES) {
            let name = self.piece_name(&self.head.generation, self.head.pieces.len());
            let mut secret = self.secret(&name);
            secret.data = Some([(TAIL.to_owned(), ByteString(piece.to_vec()))].into());
            secret.immutable = Some(true);
            self.create(&name, &secret).await?;
            self.head.pieces.push(sha256(piece));
        }
        Ok(())
    }

    fn secret(&self, name: &str) -> Secret {
        let mut secret = Secret { type_: Some("meshd.io/ca-state".to_owned()), ..Secret::default() };
        secret.metadata.name = Some(name.to_owned());
        secret.metadata.labels = Some([(LABEL.to_owned(), self.name.clone())].into());
        secret
    }

    /// A piece. Its name is nobody else's, so one that is there is of an answer that was lost.
    async fn create(&self, name: &str, secret: &Secret) -> Outcome<()> {
        let began = Instant::now();
        loop {
            let made = timeout(TIMEOUT, self.secrets.create(&PostParams::default(), secret)).await;
            let error = match made {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => return Ok(()),
                Ok(Err(source)) => SharedStateError::Api { name: name.to_owned(), source: Box::new(source) },
                Err(_elapsed) => SharedStateError::Silent(name.to_owned()),
            };
            if !may_pass(&error) || began.elapsed() > PATIENCE {
                return Err(error);
            }
            sleep(PAUSE).await;
        }
    }

    async fn write_head(&mut self) -> Outcome<()> {
        self.head.sequence += 1;
        let mut secret = self.secret(&self.name);
        secret.metadata.resource_version.clone_from(&self.resource_version);
        let head =
            serde_json::to_vec(&self.head).map_err(|_| self.damaged(&self.name, "cannot be written"))?;
        let mut data = BTreeMap::from([
            (HEAD.to_owned(), ByteString(head)),
            (TAIL.to_owned(), ByteString(self.tail.clone().into_bytes())),
        ]);
        for (name, content) in &self.files.0 {
            data.insert(format!("{FILE}{name}"), ByteString(content.clone()));
        }
        secret.data = Some(data);
        let written = self.put_head(&secret).await;
        for content in secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
            content.0.zeroize();
        }
        self.resource_version = Some(written?);
        Ok(())
    }

    /// Tries until it is certain that this head is written, or that it is not.
    async fn put_head(&self, secret: &Secret) -> Outcome<String> {
        let (began, params) = (Instant::now(), PostParams::default());
        loop {
            let tried = timeout(TIMEOUT, async {
                match &self.resource_version {
                    Some(_) => self.secrets.replace(&self.name, &params, secret).await,
                    None => self.secrets.create(&params, secret).await,
                }
            });
            let error = match tried.await {
                Ok(Ok(written)) => return Ok(written.metadata.resource_version.unwrap_or_default()),
                Ok(Err(source)) => {
                    SharedStateError::Api { name: self.name.clone(), source: Box::new(source) }
                }
                Err(_elapsed) => SharedStateError::Silent(self.name.clone()),
            };
            if !may_pass(&error) && !is_conflict(&error) {
                return Err(error);
            }
            // An earlier attempt may have been done though its answer was lost.
            match self.get(&self.name).await {
                Ok(found) => {
                    let version = found.as_ref().and_then(|found| found.metadata.resource_version.clone());
                    let head = found
                        .and_then(|found| serde_json::from_slice::<Head>(&found.data?.remove(HEAD)?.0).ok());
                    let ours = head.is_some_and(|head| {
                        head.generation == self.head.generation && head.sequence == self.head.sequence
                    });
                    if ours {
                        return Ok(version.unwrap_or_default());
                    }
                    if version != self.resource_version {
                        return Err(SharedStateError::Taken(self.name.clone()));
                    }
                }
                Err(unread) if !may_pass(&unread) => return Err(unread),
                Err(_) => {}
            }
            if began.elapsed() > PATIENCE {
                return Err(error);
            }
            sleep(PAUSE).await;
        }
    }

    /// Removes pieces that nothing names; what fails is removed the next time.
    async fn clean(&self, before: &Head) {
        let named = ListParams::default().labels(&format!("{LABEL}={}", self.name));
        let pieces = match timeout(TIMEOUT, self.secrets.list_metadata(&named)).await {
            Ok(Ok(pieces)) => pieces.items,
            Ok(Err(error)) => return tracing::warn!(%error, "old pieces of the state are not removed"),
            Err(_elapsed) => return tracing::warn!("old pieces of the state are not removed"),
        };
        let own = format!("{}-{}-", self.name, self.head.generation);
        let of_before = format!("{}-{}-", self.name, before.generation);
        let now = SystemTime::now();
        for piece in pieces {
            let (Some(name), Some(created)) = (piece.metadata.name, piece.metadata.creation_timestamp) else {
                continue;
            };
            let age = now.duration_since(SystemTime::from(created.0)).unwrap_or_default();
            // One that is young may be of a replica that is just taking over.
            let old = (!before.generation.is_empty() && name.starts_with(&of_before)) || age > FORGOTTEN;
            if name == self.name || name.starts_with(&own) || !old {
                continue;
            }
            let removed = timeout(TIMEOUT, self.secrets.delete(&name, &DeleteParams::default())).await;
            if !matches!(removed, Ok(Ok(_))) {
                tracing::warn!(%name, "an old piece of the state is not removed");
            }
        }
    }

    /// After a failure nothing of this replica's state counts.
    fn done<T>(&self, outcome: Outcome<T>) -> Result<T, String> {
        outcome.map_err(|error| {
            tracing::error!(%error, "the state is not kept: this replica ends");
            self.lost.cancel();
            error.to_string()
        })
    }
}

impl Keeper for SharedState {
    fn kept(&mut self) -> Result<Option<Kept>, String> {
        let runtime = self.runtime.clone();
        let outcome = runtime.block_on(async {
            for _ in 0..RELOADS {
                match self.load().await {
                    // Another replica that takes over at this moment removes what was before it.
                    Err(SharedStateError::Damaged { .. }) => sleep(PAUSE * 5).await,
                    outcome => return outcome,
                }
            }
            self.load().await
        });
        self.done(outcome)
    }

    fn begin(&mut self, all: &Kept) -> Result<(), String> {
        let runtime = self.runtime.clone();
        let outcome = runtime.block_on(self.write_all(all));
        self.done(outcome)
    }

    fn keep(&mut self, lines: &str) -> Result<(), String> {
        let runtime = self.runtime.clone();
        let outcome = runtime.block_on(self.write_lines(lines));
        self.done(outcome)
    }

    fn is_long(&self) -> bool {
        self.head.pieces.len() > self.whole + MANY_PIECES
    }
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    digest::digest(&digest::SHA256, bytes).as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_conflict(error: &SharedStateError) -> bool {
    matches!(error, SharedStateError::Api { source, .. }
        if matches!(&**source, kube::Error::Api(status) if matches!(status.code, 404 | 409)))
}

/// Whether trying again may help.
fn may_pass(error: &SharedStateError) -> bool {
    match error {
        SharedStateError::Silent(_) => true,
        SharedStateError::Api { source, .. } => match &**source {
            kube::Error::Api(status) => matches!(status.code, 429 | 500..),
            _ => true,
        },
        _ => false,
    }
}

/// Names of keys and certificates; the state itself is kept by its lines.
fn is_kept(name: &str) -> bool {
    let known = ["key", "crt", "pem", "json"].iter().any(|extension| has_extension(name, extension));
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    known && !name.starts_with('.') && name.len() <= 128 && name.bytes().all(plain)
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|own| own == extension)
}

fn is_key(name: &str) -> bool {
    has_extension(name, "key") && name != "jwt.key"
}

fn files_of(folder: &Path) -> Outcome<Files> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SharedStateError::Folder { path, source }
    };
    let mut files = Files::default();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries.map_err(failed(folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(failed(folder))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let metadata = entry.metadata().map_err(failed(&entry.path()))?;
        if !is_kept(&name) || !metadata.is_file() {
            continue;
        }
        if metadata.len() > MOST_FILE_BYTES || files.0.len() >= MOST_FILES {
            let what = io::Error::other("is larger, or beside more files, than a CA's folder has");
            return Err(failed(&entry.path())(what));
        }
        files.0.insert(name, fs::read(entry.path()).map_err(failed(&entry.path()))?);
    }
    Ok(files)
}

/// Makes the folder's keys and certificates these.
fn replace_files(folder: &Path, files: &Files) -> Outcome<()> {
    let failed = |error: crate::ca::CaError| SharedStateError::Folder {
        path: folder.to_owned(),
        source: io::Error::other(error),
    };
    for name in files_of(folder)?.0.keys().filter(|name| !files.0.contains_key(*name)) {
        crate::ca::files::remove(&folder.join(name)).map_err(failed)?;
    }
    for (name, content) in &files.0 {
        let mode = if has_extension(name, "key") || has_extension(name, "pem") { 0o600 } else { 0o644 };
        crate::ca::files::write(folder, name, content, mode).map_err(failed)?;
    }
    Ok(())
}
