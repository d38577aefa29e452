//! The node's file, the policies folder and the trust bundles, watched. Events only say "look again": what
//! changed is told by comparing contents, and a slow poll covers what the kernel does not report.

use std::{
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use notify::{
    EventKind, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    DiscoveryError, Origins, Reload, Snapshot, SourceStatus, Told, inputs, inputs::Inputs,
    kubernetes::ClusterState, restart,
};
use crate::{
    ca::{self, OwnBundle},
    config::{self, Config},
    identity::TrustBundles,
    policy::{AuthorizerKind, CompiledPolicies, PolicySet, PolicyStatus},
    world::World,
};

/// A burst of events is one change.
const DEBOUNCE: Duration = Duration::from_millis(150);
/// A file is taken when two readings this far apart agree: editors truncate, then write.
const SETTLE: Duration = Duration::from_millis(50);
const CLOSED_AFTER_WRITE: AccessKind = AccessKind::Close(AccessMode::Write);
/// Looks at the files even when no event came (NFS, overlay mounts, a folder created later).
const POLL: Duration = Duration::from_secs(15);

/// Files as the source of truth.
pub struct FileSource {
    path: PathBuf,
    current: ArcSwap<Snapshot>,
    published: watch::Sender<Told>,
    state: Mutex<State>,
    /// Held while a snapshot is made, which takes a second in a large mesh; `state` is not.
    making: Mutex<()>,
    poll: Duration,
}

impl fmt::Debug for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSource").field("path", &self.path).finish_non_exhaustive()
    }
}

struct State {
    /// What the node's file says, kept where a change elsewhere makes a new snapshot of it.
    config: Option<Config>,
    cluster: Option<Arc<ClusterState>>,
    /// What was last looked at, good or bad; none: it could not even be read.
    inputs: Option<Arc<Inputs>>,
    status: SourceStatus,
}

impl FileSource {
    /// Loads the first snapshot.
    ///
    /// # Errors
    /// When the files make none: there is nothing to fall back to yet.
    pub fn open(path: &Path) -> Result<Self, DiscoveryError> {
        let (inputs, config) = Inputs::read(path, None)?;
        let config = config.map_or_else(|| inputs.config(path), Ok)?;
        if inputs.policies.is_none() && config.policies_dir != config::default_policies_dir() {
            return Err(DiscoveryError::NoPolicies(config.policies_dir));
        }
        let kept = config.kubernetes.enabled.then(|| config.clone());
        let snapshot = build(1, config, &inputs, None)?;
        let status =
            SourceStatus { generation: 1, loaded_at_seconds: now_seconds(), ..SourceStatus::default() };
        Ok(Self {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(snapshot),
            published: watch::Sender::new(Told { generation: 1, failures: 0 }),
            state: Mutex::new(State { config: kept, cluster: None, inputs: Some(Arc::new(inputs)), status }),
            making: Mutex::default(),
            poll: POLL,
        })
    }

    /// Looks at the files this often when no event comes.
    #[cfg(test)]
    pub(super) fn polling_every(self, poll: Duration) -> Self {
        Self { poll, ..self }
    }

    /// The snapshot in use.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Tells of each new generation, after [`FileSource::snapshot`] returns it, and of each failure, after
    /// [`FileSource::status`] shows it.
    pub fn subscribe(&self) -> watch::Receiver<Told> {
        self.published.subscribe()
    }

    /// How the source is doing.
    pub fn status(&self) -> SourceStatus {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).status.clone()
    }

    /// Reads the files and publishes a new snapshot when they changed and are good. Blocks on file I/O.
    ///
    /// # Errors
    /// When the files make no snapshot; the old one stays in use.
    pub fn reload(&self) -> Result<Reload, DiscoveryError> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let running = self.current.load_full();
        let read = Inputs::read(&self.path, state.inputs.as_deref());
        if let (Ok((inputs, _)), None) = (&read, &state.status.last_error)
            && state.inputs.as_deref() == Some(inputs)
        {
            let needs_restart = state.status.needs_restart.clone();
            return Ok(Reload { changed: false, generation: running.generation, needs_restart });
        }
        let outcome = read.and_then(|(inputs, config)| {
            let config = config.map_or_else(|| inputs.config(&self.path), Ok)?;
            let had_policies = state.inputs.as_ref().is_some_and(|i| i.policies.is_some());
            if inputs.policies.is_none() && had_policies {
                return Err(DiscoveryError::PoliciesGone(config.policies_dir));
            }
            let (config, needs_restart) = restart::keep_running(&running.config, config);
            let kept = config.kubernetes.enabled.then(|| config.clone());
            let snapshot = build(running.generation + 1, config, &inputs, state.cluster.as_deref())?;
            Ok((inputs, kept, snapshot, needs_restart))
        });
        match outcome {
            Ok((inputs, kept, snapshot, needs_restart)) => {
                state.config = kept;
                let generation = snapshot.generation;
                state.inputs = Some(Arc::new(inputs));
                state.status = SourceStatus {
                    generation,
                    loaded_at_seconds: now_seconds(),
                    reloads: state.status.reloads + 1,
                    failures: state.status.failures,
                    last_error: None,
                    failing_since_seconds: None,
                    needs_restart: needs_restart.clone(),
                };
                self.current.store(Arc::new(snapshot));
                self.published.send_replace(Told { generation, failures: state.status.failures });
                Ok(Reload { changed: true, generation, needs_restart })
            }
            Err(error) => {
                let text = error.to_string();
                if state.status.last_error.as_ref() != Some(&text) {
                    state.status.failures += 1;
                    state.status.last_error = Some(text);
                    let failures = state.status.failures;
                    self.published.send_modify(|told| told.failures = failures);
                }
                state.status.failing_since_seconds.get_or_insert_with(now_seconds);
                Err(error)
            }
        }
    }

    /// Publishes a new snapshot where the API server says something new.
    pub fn put_cluster(&self, cluster: Arc<ClusterState>) {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let state = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (config, inputs) = {
            let state = state();
            if state.cluster.as_ref() == Some(&cluster) {
                return;
            }
            // The files of the snapshot in use: newer ones that are refused are not looked at.
            (state.config.clone(), state.inputs.clone())
        };
        let (Some(config), Some(inputs)) = (config, inputs) else { return };
        let generation = self.current.load().generation + 1;
        match build(generation, config, &inputs, Some(&cluster)) {
            Ok(snapshot) => {
                let mut state = state();
                state.cluster = Some(cluster);
                state.status.generation = generation;
                state.status.loaded_at_seconds = now_seconds();
                self.current.store(Arc::new(snapshot));
                self.published.send_modify(|told| told.generation = generation);
            }
            Err(error) => tracing::error!(%error, "no snapshot can be made; what was in force stays"),
        }
    }

    /// Watches until `shutdown`, reloading on change. A failure of the watcher leaves the poll.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let (events, mut changes) = mpsc::channel(1);
        let mut folders = Vec::new();
        let mut watcher = None;
        loop {
            let snapshot = self.snapshot();
            let now = existing(&inputs::folders(&self.path, &snapshot.config, snapshot.origins.files()));
            if now != folders {
                watcher = watch(&now, &events);
                folders = now;
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = changes.recv() => settle_events(&mut changes).await,
                () = tokio::time::sleep(self.poll) => {}
            }
            if self.settled().await {
                self.reload_blocking().await;
            }
        }
        drop(watcher);
    }

    /// Whether two readings agree. A change that is still going on brings another event, or the next poll.
    async fn settled(&self) -> bool {
        let known = self.state.lock().unwrap_or_else(PoisonError::into_inner).inputs.clone();
        let mut before = self.read_blocking(known).await;
        for _ in 0..20 {
            tokio::time::sleep(SETTLE).await;
            let now = self.read_blocking(before.clone()).await;
            if before == now {
                return true;
            }
            before = now;
        }
        false
    }

    async fn read_blocking(&self, known: Option<Arc<Inputs>>) -> Option<Arc<Inputs>> {
        let path = self.path.clone();
        let read = move || Inputs::read(&path, known.as_deref()).ok().map(|(inputs, _)| Arc::new(inputs));
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    /// What came of it is told to subscribers.
    async fn reload_blocking(self: &Arc<Self>) {
        let source = Arc::clone(self);
        if let Err(error) = tokio::task::spawn_blocking(move || source.reload().is_ok()).await {
            tracing::error!(%error, "reload ended early, the old configuration stays");
        }
    }
}

/// A folder and which one it is: a removed and re-created one has to be watched again.
type Folder = (PathBuf, u64, u64);

fn existing(folders: &[PathBuf]) -> Vec<Folder> {
    let inode = |f: &PathBuf| std::fs::metadata(f).ok().map(|m| (f.clone(), m.dev(), m.ino()));
    folders.iter().filter_map(inode).collect()
}

fn watch(folders: &[Folder], events: &mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let events = events.clone();
    let on_event = move |event: notify::Result<notify::Event>| {
        // Our own readings are accesses too; without this they would wake us for ever.
        let access = event.is_ok_and(|e| matches!(e.kind, EventKind::Access(k) if k != CLOSED_AFTER_WRITE));
        if !access {
            // A full channel already says "look again".
            let _ = events.try_send(());
        }
    };
    let mut watcher = match notify::recommended_watcher(on_event) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "cannot watch files; they are looked at every {} s", POLL.as_secs());
            return None;
        }
    };
    for (folder, ..) in folders {
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            tracing::warn!(folder = %folder.display(), %error, "cannot watch this folder; it is polled");
        }
    }
    Some(watcher)
}

/// Waits until no event came for a moment, at most a second.
async fn settle_events(changes: &mut mpsc::Receiver<()>) {
    let quiet = async { while tokio::time::timeout(DEBOUNCE, changes.recv()).await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), quiet).await;
}

fn build(
    generation: u64,
    mut config: Config,
    inputs: &Inputs,
    cluster: Option<&ClusterState>,
) -> Result<Snapshot, DiscoveryError> {
    let mut world = World::build(&config)?;
    let left_out = cluster.map(|cluster| world.add_beside(&config, &cluster.additions));
    // The world says it better, and in a large mesh once is enough.
    (config.workloads, config.remote_workloads, config.services) = Default::default();
    config.external_services = Vec::new();
    let files: Vec<_> =
        inputs.policies.iter().flatten().map(|(p, text)| (p.display().to_string(), text)).collect();
    let mut set = PolicySet::parse(files.iter().map(|(name, text)| (name.as_str(), text.as_str())))?;
    let own_rules = set.destination_rules.len();
    let hidden = cluster.map(|cluster| set.absorb(&cluster.documents)).unwrap_or_default();
    let mut bundles = TrustBundles::default();
    for (bundle, (file, text)) in config.trust_bundles.iter().zip(&inputs.bundles) {
        let roots = ca::parse_bundle(file, text)?;
        bundles.roots.entry(bundle.trust_domain.clone()).or_default().extend(roots);
        let authorities = ca::parse_jwt_authorities(file, text)?;
        if !authorities.is_empty() {
            bundles.jwt_authorities.entry(bundle.trust_domain.clone()).or_default().extend(authorities);
        }
    }
    let mut warnings = set.warnings.clone();
    warnings.extend(left_out.into_iter().flatten());
    warnings.extend(hidden.into_iter().map(|PolicyStatus { kind, namespace, name, .. }| {
        format!("{kind} {namespace}/{name} of the API server is not in force: this node's own policies have one of this name")
    }));
    warnings.extend(revoke(&mut bundles, &config, inputs)?);
    for provider in &config.extension_providers {
        warnings.extend(
            provider.ignored().iter().map(|what| format!("extensionProviders {:?}: {what}", provider.name)),
        );
    }
    let mut policy_status = set.status_in(&world);
    set.note_authorizers(&mut policy_status, |name| {
        let provider = config.extension_providers.iter().find(|provider| provider.name == name)?;
        let grpc = provider.envoy_ext_authz_grpc.is_some();
        Some(if grpc { AuthorizerKind::Grpc } else { AuthorizerKind::Http })
    });
    if inputs.policies.is_none() && cluster.is_none() {
        warnings.push(format!("{}: no such folder, so no policies", config.policies_dir.display()));
    }
    let (own, elsewhere) = set.destination_rules.split_at(own_rules);
    let origins = Origins::new(own, &inputs.rule_files, elsewhere);
    warnings.extend(origins.report(&set.destination_rules, &mut policy_status));
    policy_status.extend(cluster.iter().flat_map(|cluster| cluster.rejected.iter().cloned()));
    Ok(Snapshot {
        generation,
        complete: cluster.is_some() || !config.kubernetes.enabled,
        policies: Arc::new(CompiledPolicies::compile(&world, &set)),
        policy_status,
        documents: Arc::new(set),
        origins,
        world: Arc::new(world),
        config: Arc::new(config),
        bundles,
        warnings,
    })
}

/// Adds what the files revoke to the bundles; returns what is odd about them.
fn revoke(
    bundles: &mut TrustBundles,
    config: &Config,
    inputs: &Inputs,
) -> Result<Vec<String>, DiscoveryError> {
    let own = &config.trust_domain;
    let domains = config.revocation_lists.iter().map(|list| list.trust_domain.as_ref().unwrap_or(own));
    let named = domains.zip(inputs.revocation_lists.iter().map(|(file, text)| (file, text)));
    let (file, text) = &inputs.own_revocation_list;
    let plugged_in = text.as_ref().map(|text| (own, (file, text)));
    let mut warnings = Vec::new();
    for (domain, (file, text)) in named.chain(plugged_in) {
        let mut roots = bundles.roots.get(domain).cloned().unwrap_or_default();
        if domain == own {
            // Before the first start there are none.
            roots.extend(
                OwnBundle::read(&config.ca_directory()).iter().flat_map(|b| b.roots().iter().cloned()),
            );
        }
        warnings.extend(ca::add_revocation_lists(bundles, domain, &roots, (file, text))?);
    }
    Ok(warnings)
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
