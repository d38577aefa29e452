//! The CA itself: keys in files of its folder, everything else in [`super::state`]. Signs what others have decided to be
//! asked for rightly, keeps a register of it, rotates its keys without a certificate that nobody believes, and takes
//! certificates back. No network. Several processes may have one folder open: what decides is in the database.

mod clock;
mod folder;
mod jwt;
mod lists;
mod local;
mod motion;
mod rotation;
mod rows;
mod run;
mod schema;
mod settings;
mod signer;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use tokio::sync::{Notify, watch};
use x509_parser::prelude::FromDer;

pub use jwt::JwtKeyStatus;
pub use lists::{Reason, Revoke, Revoked};
pub use local::Local;
pub use rotation::{Kind, Stage};
pub use rows::Source;
pub(in crate::ca) use schema::{CLOCK_SCHEMA, JWT_SCHEMA, SCHEMA};
pub use settings::AuthoritySettings;
pub use status::{AuthorityStatus, ListStatus, NodeStatus, OneStatus};

use self::{
    clock::Clocks,
    rotation::Event,
    rows::{Issued, Registered, Row, refusal},
    signer::{Keyring, Signer},
};
use super::{
    CaError, Keeper, State,
    csr::Csr,
    jwt_svid::JwtAuthority,
    keys::SecretKey,
    leaf,
    signing::{CertificateAuthority, SignedSvid, SigningRequest, Trust},
};
use crate::config::KeyKind;
use crate::identity::{RevocationList, SpiffeId, Svid, TrustBundles, TrustDomain};

/// How often a certificate is signed anew because its authority was rotated meanwhile.
const TRIES: u32 = 5;
/// A longer name is no node's.
const MAX_NODE_BYTES: usize = 253;
/// Most nodes whose acknowledgements wait to be written.
const MAX_WAITING_NODES: usize = 100_000;
/// DNS names of a service's own certificate.
const MAX_DNS_NAMES: usize = 32;

/// What transactions need beside the database.
#[derive(Debug)]
struct Shared {
    settings: AuthoritySettings,
    keys: Keyring,
    clocks: Clocks,
}

/// What was read last.
#[derive(Debug)]
struct View {
    versions: (i64, i64),
    signer: Arc<Signer>,
    trust: Arc<Trust>,
    /// PEM, those that name nothing too.
    lists: String,
}

/// A certificate authority; cheap to clone.
#[derive(Clone)]
pub struct Authority(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    state: State,
    /// Mints JWT-SVIDs; none: this CA does not.
    jwt: OnceLock<Arc<JwtAuthority>>,
    view: ArcSwap<View>,
    /// Held while the view is read anew, so that an older one never replaces a newer.
    reading: Mutex<()>,
    trust: watch::Sender<Arc<Trust>>,
    bundles: watch::Sender<Arc<TrustBundles>>,
    /// Counts up when another authority signs than before.
    moved: watch::Sender<u64>,
    acknowledged: Mutex<BTreeMap<String, u64>>,
    wake: Notify,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("directory", &self.0.shared.settings.directory)
            .finish_non_exhaustive()
    }
}

/// Unix seconds.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Authority {
    /// Opens the CA of a folder: meshd's own root, an intermediate of it, or the files that Istio calls `cacerts`; makes a
    /// root where there is nothing. Waits for the disk, so it is for starting. Call [`Self::run`] for what is to happen by
    /// itself.
    ///
    /// # Errors
    /// When the folder or a key is open to others, files are missing or do not belong together, nobody would believe what
    /// the CA signs, or the state cannot be written.
    pub fn open(settings: AuthoritySettings) -> Result<Self, CaError> {
        Self::open_kept(settings, None)
    }

    /// As [`Self::open`], with keys and state that are kept elsewhere, too: what the folder held before does not count.
    ///
    /// # Errors
    /// As [`Self::open`], or when the keeper does not have them, or does not keep them.
    pub fn open_kept(settings: AuthoritySettings, keeper: Option<Box<dyn Keeper>>) -> Result<Self, CaError> {
        let clocks = Clocks::of(&settings);
        Self::open_by(settings, keeper, clocks)
    }

    fn open_by(
        settings: AuthoritySettings,
        keeper: Option<Box<dyn Keeper>>,
        clocks: Clocks,
    ) -> Result<Self, CaError> {
        let state = State::open_kept(&settings.directory, keeper)?;
        let shared = Arc::new(Shared { keys: Keyring::new(&settings), settings, clocks });
        let inside = Arc::clone(&shared);
        let opened = move |c: &rusqlite::Connection| {
            inside.clocks.resume(c)?;
            folder::open(c, &inside, inside.clocks.look().wall)?;
            inside.clocks.keep(c)
        };
        state.write_waiting(opened).map_err(refusal)?;
        let view = read(&state, &shared)?;
        let domain = &shared.settings.trust_domain;
        let roots = view.trust.bundles.roots.get(domain).map(Vec::as_slice).unwrap_or_default();
        let invalid = |what| CaError::Invalid { path: shared.settings.directory.clone(), what };
        view.signer.prove(roots, domain).map_err(invalid)?;
        if let Some(days) = super::plan::ends_soon(view.signer.not_after.into(), SystemTime::now()) {
            tracing::warn!(days, "the CA's issuing certificate ends soon");
        }
        let (trust, _) = watch::channel(Arc::clone(&view.trust));
        let (bundles, _) = watch::channel(Arc::new(view.trust.bundles.clone()));
        Ok(Self(Arc::new(Inner {
            shared,
            state,
            jwt: OnceLock::new(),
            view: ArcSwap::from_pointee(view),
            reading: Mutex::default(),
            trust,
            bundles,
            moved: watch::Sender::default(),
            acknowledged: Mutex::default(),
            wake: Notify::new(),
        })))
    }

    /// What it was opened with.
    pub fn settings(&self) -> &AuthoritySettings {
        &self.0.shared.settings
    }

    /// Its state, for what else the service keeps there.
    pub fn state(&self) -> &State {
        &self.0.state
    }

    /// A fresh key and an SVID for it, for this process or one that it gives it to.
    ///
    /// # Errors
    /// As [`CertificateAuthority::sign`].
    pub async fn issue(&self, id: &SpiffeId) -> Result<Svid, CaError> {
        self.with_own_key(id, &[], "local").await
    }

    /// When the certificate that signs now ends.
    pub fn not_after(&self) -> SystemTime {
        self.0.view.load().signer.not_after.into()
    }

    /// The keys of JWT-SVIDs in `directory`, one of which is made where there is none: from now on the CA tells agents of
    /// them, and rotates them. Waits for the disk, so it is for starting.
    ///
    /// # Errors
    /// As [`JwtAuthority::open`], or when the state cannot be written.
    pub fn open_jwt(&self, directory: &Path) -> Result<Arc<JwtAuthority>, CaError> {
        let (directory, shared) = (directory.to_owned(), Arc::clone(&self.0.shared));
        // in a transaction: of several processes one makes the first key
        let opened = move |c: &rusqlite::Connection| {
            let domain = shared.settings.trust_domain.clone();
            let jwt = JwtAuthority::open(&directory, domain).map_err(rows::refuse)?;
            jwt::follow_file(c, &jwt, shared.clocks.look().wall)?;
            Ok(jwt)
        };
        let jwt = Arc::new(self.0.state.write_waiting(opened).map_err(refusal)?);
        let jwt = Arc::clone(self.0.jwt.get_or_init(|| jwt));
        self.reread()?;
        Ok(jwt)
    }

    fn jwt(&self) -> Result<Arc<JwtAuthority>, CaError> {
        let none = || CaError::Refused("this CA mints no JWT-SVIDs".to_owned());
        self.0.jwt.get().cloned().ok_or_else(none)
    }

    /// Begins a rotation of the keys that sign JWT-SVIDs: makes the new one, which is published from now on.
    ///
    /// # Errors
    /// When this CA mints none, another key is on its way, or it cannot be written.
    pub async fn rotate_jwt(&self) -> Result<AuthorityStatus, CaError> {
        let jwt = self.jwt()?;
        self.change(move |c, _, now| jwt::rotate(c, &jwt, now)).await?;
        self.status()
    }

    /// As [`Self::advance`], of JWT keys.
    ///
    /// # Errors
    /// When none is under way, or why it is not safe yet.
    pub async fn advance_jwt(&self, force: bool) -> Result<AuthorityStatus, CaError> {
        self.move_jwt(if force { Event::Force } else { Event::Advance }).await
    }

    /// Forgets a new JWT key that has not signed yet.
    ///
    /// # Errors
    /// When none is on its way.
    pub async fn cancel_jwt(&self) -> Result<AuthorityStatus, CaError> {
        self.move_jwt(Event::Cancel).await
    }

    async fn move_jwt(&self, event: Event) -> Result<AuthorityStatus, CaError> {
        let jwt = self.jwt()?;
        self.change(move |c, shared, now| jwt::command(c, shared, &jwt, event, now)).await?;
        self.status()
    }

    /// Begins a rotation: makes the new authority, which nobody knows of yet.
    ///
    /// # Errors
    /// When the CA's keys are plugged in, another one is on its way, or it cannot be written.
    pub async fn rotate(&self, kind: Kind) -> Result<AuthorityStatus, CaError> {
        self.change(move |c, shared, now| motion::rotate(c, shared, kind, now)).await?;
        if self.settings().automatic {
            self.do_due().await?;
        }
        self.status()
    }

    /// Takes the rotation under way one stage further; with `force` even when somebody does not trust the new authority yet,
    /// or still uses the old one.
    ///
    /// # Errors
    /// When none is under way, or why it is not safe yet.
    pub async fn advance(&self, kind: Kind, force: bool) -> Result<AuthorityStatus, CaError> {
        let event = if force { Event::Force } else { Event::Advance };
        self.change(move |c, shared, now| motion::command(c, shared, kind, event, now)).await?;
        self.sweep().await?;
        self.status()
    }

    /// Forgets a new authority that has not signed yet.
    ///
    /// # Errors
    /// When none is on its way, or it signs already.
    pub async fn cancel(&self, kind: Kind) -> Result<AuthorityStatus, CaError> {
        self.change(move |c, shared, now| motion::command(c, shared, kind, Event::Cancel, now)).await?;
        self.sweep().await?;
        self.status()
    }

    /// Takes certificates back. When this returns, the lists that say so are on disk and in [`CertificateAuthority::trust`].
    ///
    /// # Errors
    /// When there is no such certificate, or its authority cannot sign a list any more.
    pub async fn revoke(&self, what: Revoke, reason: Reason) -> Result<Revoked, CaError> {
        let revoked = self.change(move |c, shared, now| lists::revoke(c, shared, &what, reason, now)).await?;
        self.sweep().await?;
        Ok(revoked)
    }

    /// Lets a blocked identity have certificates again. Whether it was blocked.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn unblock(&self, id: &SpiffeId) -> Result<bool, CaError> {
        let id = id.to_string();
        self.change(move |c, _, now| {
            let removed = c.execute("DELETE FROM blocked WHERE spiffe_id = ?1", [id])?;
            rows::count_up(c, false, now)?;
            Ok(removed > 0)
        })
        .await
    }

    /// The revocation lists of all authorities, PEM, for verifiers that are no meshd: many of them want one of each
    /// authority, even if it names nothing.
    pub fn crl_pem(&self) -> String {
        self.0.view.load().lists.clone()
    }

    /// Where it stands.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn status(&self) -> Result<AuthorityStatus, CaError> {
        let signs = self.0.view.load().signer.id.clone();
        let shared = &self.0.shared;
        let now = shared.clocks.look().wall;
        self.0.state.read(|c| status::read(c, shared, &signs, now)).map_err(refusal)
    }

    /// Writes the files that let another node sign under the same roots: `ca.crt`, `intermediate.crt` and
    /// `intermediate.key`, into `out`, a folder that does not hold a CA yet. The intermediate is in the register: it can be
    /// revoked by its serial number. Waits for the disk.
    ///
    /// # Errors
    /// When the keys of this CA are plugged in, or `out` cannot be used.
    pub fn issue_intermediate(&self, out: &Path) -> Result<(), CaError> {
        let shared = Arc::clone(&self.0.shared);
        let out = out.to_owned();
        let made =
            move |c: &rusqlite::Connection| motion::hand_out(c, &shared, &out, shared.clocks.look().wall);
        self.0.state.write_waiting(made).map_err(refusal)
    }

    /// One transaction, and the view that follows from it.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&rusqlite::Connection, &Shared, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CaError> {
        let shared = Arc::clone(&self.0.shared);
        let done = self
            .0
            .state
            .write(move |c| work(c, &shared, shared.clocks.look().wall))
            .await
            .map_err(refusal)?;
        self.refresh()?;
        Ok(done)
    }

    /// Removes the keys of what was withdrawn, once that is on disk.
    async fn sweep(&self) -> Result<(), CaError> {
        let shared = Arc::clone(&self.0.shared);
        let swept = move |c: &rusqlite::Connection| {
            let all = rows::all(c)?;
            shared.keys.sweep(&all).map_err(rows::refuse)
        };
        self.0.state.write(swept).await.map_err(refusal)
    }

    /// Reads the state if it changed, another replica's doing included.
    fn refresh(&self) -> Result<(), CaError> {
        if self.0.state.read(rows::versions)? == self.0.view.load().versions {
            return Ok(());
        }
        self.reread()
    }

    fn reread(&self) -> Result<(), CaError> {
        let inner = &self.0;
        let _reading = lock(&inner.reading);
        let mut view = read(&inner.state, &inner.shared)?;
        if let Some(jwt) = inner.jwt.get() {
            // before anybody is told: who asks what is published is told of the same keys
            jwt.reload()?;
            let mut trust = (*view.trust).clone();
            trust.bundles.jwt_authorities.insert(self.settings().trust_domain.clone(), jwt.published());
            view.trust = Arc::new(trust);
        }
        let view = Arc::new(view);
        let before = inner.view.swap(Arc::clone(&view));
        inner.trust.send_if_modified(|known| {
            let changed = *known != view.trust;
            known.clone_from(&view.trust);
            changed
        });
        inner.bundles.send_if_modified(|known| {
            let changed = **known != view.trust.bundles;
            if changed {
                *known = Arc::new(view.trust.bundles.clone());
            }
            changed
        });
        // Last: who asks anew because of it knows the new authority by then.
        if before.signer.id != view.signer.id {
            inner.moved.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    async fn with_own_key(&self, id: &SpiffeId, dns_names: &[String], caller: &str) -> Result<Svid, CaError> {
        let key = SecretKey::generate()
            .map_err(|e| CaError::Sign { subject: id.to_string(), what: e.to_string() })?;
        let asked = Asked { id, dns_names, lifetime: None, caller, node: None };
        let (leaf, view) = self.sign_registered(&key, &asked).await?;
        leaf::svid(id, leaf, &view.signer.chain, &key)
    }

    /// Signs and registers; again where the authority was rotated between the two.
    async fn sign_registered(
        &self,
        key: &(impl PublicKeyData + Sync),
        asked: &Asked<'_>,
    ) -> Result<(leaf::Leaf, Arc<View>), CaError> {
        let settings = self.settings();
        let refused = |what: String| CaError::Sign { subject: asked.id.to_string(), what };
        if *asked.id.trust_domain() != settings.trust_domain {
            let what = format!("this CA signs for trust domain {} only", settings.trust_domain);
            return Err(refused(what));
        }
        if asked.id.path().is_empty() {
            return Err(refused("a workload's SPIFFE ID has a path".to_owned()));
        }
        let lifetime = asked.lifetime.unwrap_or(settings.lifetime).min(settings.max_lifetime);
        let terms = leaf::Terms {
            id: asked.id,
            dns_names: asked.dns_names,
            lifetime: lifetime.max(Duration::from_secs(1)),
            backdate: settings.backdate,
        };
        for _ in 0..TRIES {
            let view = self.0.view.load_full();
            let leaf = leaf::sign(view.signer.issuer(), key, &terms)?;
            let issued = Issued {
                serial: leaf.serial.clone(),
                issuer: view.signer.id.clone(),
                spiffe_id: asked.id.to_string(),
                not_after: leaf.not_after.unix_timestamp(),
                caller: asked.caller.to_owned(),
                node: asked.node.map(str::to_owned),
            };
            let registered = self.0.state.write(move |c| rows::register(c, &issued, now())).await?;
            match registered {
                Registered::Yes => return Ok((leaf, view)),
                Registered::Blocked => return Err(CaError::Blocked(asked.id.clone())),
                Registered::Moved => self.refresh()?,
            }
        }
        Err(refused("the CA's issuing key changes too often; ask again".to_owned()))
    }

    fn accept(&self, csr: &Csr) -> Result<SubjectPublicKeyInfo, CaError> {
        let settings = self.settings();
        let kind = csr.key_kind();
        if !settings.key_kinds.contains(&kind) {
            return Err(CaError::KeyKind(format!("{kind} keys")));
        }
        if kind == KeyKind::Rsa {
            let parsed = x509_parser::x509::SubjectPublicKeyInfo::from_der(csr.public_key());
            let bits = match parsed.as_ref().map(|(_, key)| key.parsed()) {
                Ok(Ok(x509_parser::public_key::PublicKey::RSA(rsa))) => rsa.key_size(),
                _ => usize::MAX,
            };
            if bits > settings.max_rsa_bits {
                return Err(CaError::KeyKind(format!(
                    "RSA keys of more than {} bits",
                    settings.max_rsa_bits
                )));
            }
        }
        SubjectPublicKeyInfo::from_der(csr.public_key())
            .map_err(|e| CaError::KeyKind(format!("such keys ({e})")))
    }
}

/// For whom, as others have decided.
struct Asked<'a> {
    id: &'a SpiffeId,
    dns_names: &'a [String],
    lifetime: Option<Duration>,
    caller: &'a str,
    node: Option<&'a str>,
}

impl CertificateAuthority for Authority {
    fn trust_domain(&self) -> &TrustDomain {
        &self.settings().trust_domain
    }

    fn sign(&self, request: SigningRequest) -> BoxFuture<'_, Result<SignedSvid, CaError>> {
        Box::pin(async move {
            let key = self.accept(&request.csr)?;
            let asked = Asked {
                id: &request.id,
                dns_names: &[],
                lifetime: request.lifetime,
                caller: &request.caller,
                node: request.node.as_deref(),
            };
            let (leaf, view) = self.sign_registered(&key, &asked).await?;
            let roots = view.trust.bundles.roots.get(&self.settings().trust_domain);
            Ok(SignedSvid {
                chain: std::iter::once(leaf.certificate).chain(view.signer.chain.iter().cloned()).collect(),
                roots: roots.cloned().unwrap_or_default(),
                serial: leaf.serial,
                not_before: leaf.not_before,
                not_after: leaf.not_after,
            })
        })
    }

    fn own_svid<'a>(
        &'a self,
        id: &'a SpiffeId,
        dns_names: &'a [String],
    ) -> BoxFuture<'a, Result<Svid, CaError>> {
        Box::pin(async move {
            if dns_names.len() > MAX_DNS_NAMES {
                let what = format!("it would have more than {MAX_DNS_NAMES} DNS names");
                return Err(CaError::Sign { subject: id.to_string(), what });
            }
            self.with_own_key(id, dns_names, "the CA itself").await
        })
    }

    fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.0.trust.subscribe()
    }

    fn clock_ahead(&self) -> Duration {
        self.0.shared.clocks.ahead()
    }

    /// Written by [`Authority::run`], within a second or so.
    fn acknowledge(&self, node: &str, version: u64) {
        let mut waiting = lock(&self.0.acknowledged);
        if node.len() <= MAX_NODE_BYTES && (waiting.len() < MAX_WAITING_NODES || waiting.contains_key(node)) {
            waiting.insert(node.to_owned(), version);
            self.0.wake.notify_one();
        }
    }
}

/// Another replica may withdraw an authority, and remove its key, after the state was read: then it is read again.
fn read(state: &State, shared: &Shared) -> Result<View, CaError> {
    let mut tried = 0;
    loop {
        let (versions, all, lists) = state.read(|connection| {
            let transaction = connection.unchecked_transaction()?;
            Ok((rows::versions(&transaction)?, rows::all(&transaction)?, lists::all(&transaction)?))
        })?;
        tried += 1;
        match view(shared, versions, &all, lists) {
            Err(CaError::Incomplete { .. }) if tried < TRIES && state.read(rows::versions)? != versions => {}
            view => return view,
        }
    }
}

fn view(
    shared: &Shared,
    versions: (i64, i64),
    all: &[Row],
    lists: Vec<lists::List>,
) -> Result<View, CaError> {
    let signs = |kind: Kind| {
        all.iter().rfind(move |row| row.kind == kind && row.stage == Stage::Active && row.key_file.is_some())
    };
    let row = signs(Kind::Intermediate).or_else(|| signs(Kind::Root));
    let row = row
        .ok_or_else(|| CaError::Refused("no authority of this CA signs: its state is damaged".to_owned()))?;
    let signer = shared.keys.get(row)?;
    let kept: Vec<_> =
        all.iter().filter(|row| row.stage != Stage::Withdrawn).map(|row| row.id.as_str()).collect();
    shared.keys.keep_only(&kept);
    let pem = lists.iter().map(|list| folder::pem("X509 CRL", &list.der)).collect();
    let trust = Arc::new(trust(all, lists, &shared.settings.trust_domain, versions.0)?);
    Ok(View { versions, signer, trust, lists: pem })
}

/// What agents are to believe: the root that signs first. Lists that name nothing say nothing to meshd, and an operator may
/// have lists of the same authorities, of which peers ask only one.
fn trust(all: &[Row], lists: Vec<lists::List>, domain: &TrustDomain, version: i64) -> Result<Trust, CaError> {
    let mut roots: Vec<_> = all.iter().filter(|row| row.is_trusted_root()).collect();
    roots.sort_by_key(|row| (row.stage != Stage::Active, row.created));
    let named = lists.into_iter().filter(|list| list.entries > 0);
    let lists = named.map(|list| RevocationList::new(list.der)).collect::<Result<Vec<_>, _>>();
    let lists =
        lists.map_err(|error| CaError::Refused(format!("a revocation list in the CA's state: {error}")))?;
    let mut bundles = TrustBundles {
        roots: [(domain.clone(), roots.into_iter().map(|row| row.certificate.clone()).collect())].into(),
        ..TrustBundles::default()
    };
    if !lists.is_empty() {
        bundles.revoked.insert(domain.clone(), lists);
    }
    Ok(Trust { version: u64::try_from(version).unwrap_or_default(), bundles })
}
