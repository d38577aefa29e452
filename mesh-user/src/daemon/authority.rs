//! The process `meshd ca`: opens the keys and the state, serves, and stops in order. It holds no logic of its own about
//! who may have what.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kube::Client;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{
        AdminLimits, CaAdmin, CaAdminServer, MetricsServer, ServerError,
        ca_server::{self, Leading},
    },
    ca::{
        CaError, Keeper,
        audit::{Audit, Sink},
        authority::{Authority, AuthoritySettings},
        callers::{ConfiguredNodes, Either, JoinTokens, Placement, kubernetes},
        cluster::{self, KubernetesError, RootsMap, SharedState, WatchedPods, publish_roots},
        service::{ListenError, Listeners, Service, ServiceParts},
        signing::CertificateAuthority as _,
    },
    config::{AuthorityConfig, ConfigError, SharedStateConfig},
    runtime::{Lease, LeaseSettings, Lost},
    sys::process,
    telemetry::{
        logging::{self, LoggingError},
        systemd,
    },
};

const DAY: Duration = Duration::from_secs(86_400);
/// How long a stop may take.
const STOPPING: Duration = Duration::from_secs(30);

/// Why `meshd ca` does not start.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log filter.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// Keys or state.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Addresses and sockets.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] ServerError),
    /// The API server.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// Another replica leads.
    #[error("{0}; what was acknowledged is kept. Start it again, to stand by")]
    Lost(Lost),
    /// The state is not this replica's any more.
    #[error(
        "the state in Kubernetes could not be written, the log says why; what was acknowledged is kept. Start it again, to stand by"
    )]
    NotKept,
    /// Another one runs.
    #[error("another meshd ca runs with runtimeDir {}; replicas on one machine need one each", .0.display())]
    AlreadyRunning(PathBuf),
    /// Folders, files, threads, signals.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// The cause.
        source: io::Error,
    },
}

fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> AuthorityError {
    |source| AuthorityError::Io { action: action.into(), source }
}

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start.
pub fn run_authority(config: &Path) -> Result<(), AuthorityError> {
    // Before any key is read.
    process::forbid_dumps().map_err(failed("core dumps cannot be forbidden"))?;
    let config = AuthorityConfig::load(config)?;
    logging::init(&config.log, logging::LogFormat::Text)?;
    raise_descriptor_limit(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(failed("the runtime cannot be made"))?;
    let served = runtime.block_on(serve(&config));
    // Whoever does not lead any more answers nobody, whatever is under way.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Each connection holds a descriptor.
fn raise_descriptor_limit(config: &AuthorityConfig) {
    let wanted = u64::from(config.limits.connections) + 1024;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft < wanted.min(hard) {
        // A refusal leaves the limit as it was, which the warning below tells.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard);
    }
    if hard < wanted {
        tracing::warn!(hard, wanted, "the limit on open files is below what limits.connections may need");
    }
}

/// What the file says of keys, certificates and rotation.
fn settings(config: &AuthorityConfig) -> AuthoritySettings {
    let seconds = Duration::from_secs;
    AuthoritySettings {
        plugged_in: config.plugged_in.clone(),
        lifetime: seconds(config.svid_lifetime_seconds),
        max_lifetime: seconds(config.max_svid_lifetime_seconds),
        backdate: seconds(config.backdate_seconds),
        key_kinds: config.key_kinds.iter().copied().collect(),
        max_rsa_bits: config.max_rsa_bits as usize,
        intermediates: config.intermediates,
        root_lifetime: DAY * config.root_lifetime_days,
        intermediate_lifetime: DAY * config.intermediate_lifetime_days,
        automatic: config.rotation.automatic,
        propagation: seconds(config.rotation.propagation_seconds),
        watch_window: seconds(config.rotation.watch_window_seconds),
        jwt_key_lifetime: DAY * config.rotation.jwt_key_days,
        list_lifetime: seconds(config.revocation_list_lifetime_seconds),
        ..AuthoritySettings::new(config.directory.clone(), config.trust_domain.clone())
    }
}

/// The machinery of one replica among several; empty where the state is on disk.
struct Replica {
    client: Option<Client>,
    lease: Option<Lease>,
    /// Cancelled when another one has written the state.
    lost: CancellationToken,
}

impl Replica {
    async fn new(config: &AuthorityConfig) -> Result<Self, AuthorityError> {
        let lost = CancellationToken::new();
        let Some(kubernetes) = &config.kubernetes else {
            return Ok(Self { client: None, lease: None, lost });
        };
        let client = cluster::connect(kubernetes.kubeconfig.as_deref()).await?;
        let lease = match &kubernetes.state {
            Some(state) => Some(Lease::new(
                client.clone(),
                LeaseSettings {
                    namespace: namespace(state, &client),
                    name: state.lease.clone(),
                    identity: identity(state)?,
                    duration: Duration::from_secs(state.lease_seconds.into()),
                    look: Duration::from_secs(state.lease_seconds.into()) / 5,
                },
            )),
            None => None,
        };
        Ok(Self { client: Some(client), lease, lost })
    }

    /// Waits until this replica is the CA.
    async fn lead(&self) {
        if let Some(lease) = &self.lease {
            lease.acquire().await;
            tracing::info!("this replica leads");
        }
    }

    /// Returns when it is the CA no more, and why.
    async fn lead_no_more(&self) -> AuthorityError {
        let held = async {
            match &self.lease {
                Some(lease) => lease.hold().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            lost = held => AuthorityError::Lost(lost),
            () = self.lost.cancelled() => AuthorityError::NotKept,
        }
    }

    fn keeper(&self, config: &AuthorityConfig) -> Option<Box<dyn Keeper>> {
        let state = config.kubernetes.as_ref()?.state.as_ref()?;
        let client = self.client.clone()?;
        let (namespace, folder) = (namespace(state, &client), config.directory.clone());
        Some(Box::new(SharedState::new(client, &namespace, state.secret.clone(), folder, self.lost.clone())))
    }
}

fn namespace(state: &SharedStateConfig, client: &Client) -> String {
    state.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned())
}

fn identity(state: &SharedStateConfig) -> Result<String, AuthorityError> {
    if let Some(identity) = &state.identity {
        return Ok(identity.clone());
    }
    let name = nix::unistd::gethostname().map_err(io::Error::from);
    let name = name.map_err(failed("this machine has no name; set kubernetes.state.identity"))?;
    Ok(name.to_string_lossy().into_owned())
}

async fn serve(config: &AuthorityConfig) -> Result<(), AuthorityError> {
    let stop = CancellationToken::new();
    let _lock = lock(&config.runtime_dir)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("signals cannot be handled"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("signals cannot be handled"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed("signals cannot be handled"))?;
    let audit = Arc::new(open_audit(config)?);
    let leading = Leading::default();
    if let Some(address) = config.metrics.listen {
        let metrics = MetricsServer::bind(address, AdminLimits::default()).await?;
        tokio::spawn(ca_server::serve_metrics(metrics, Arc::clone(&leading), stop.clone()));
    }
    let replica = Replica::new(config).await?;
    tokio::select! {
        () = replica.lead() => {}
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    let mut no_more = std::pin::pin!(replica.lead_no_more());
    let starting = start(config, &replica, &audit, &stop);
    let (admin, serving) = tokio::select! {
        started = starting => started?,
        why = &mut no_more => return Err(why),
    };
    // Nobody else sets it.
    let _ = leading.set(admin);
    systemd::ready("certificates may be asked for");
    let _watchdog = systemd::spawn_watchdog(vec![tokio::runtime::Handle::current()]);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => audit.reopen(),
            why = &mut no_more => {
                let _written = tokio::task::spawn_blocking(move || audit.shutdown()).await;
                return Err(why);
            }
        }
    }
    systemd::stopping(STOPPING);
    tracing::info!("stopping");
    stop.cancel();
    // An error means that it panicked: it serves no more either way.
    let served = serving.await;
    let _written = tokio::task::spawn_blocking(move || audit.shutdown()).await;
    if let Some(lease) = &replica.lease {
        lease.release().await;
    }
    served.unwrap_or(Ok(()))?;
    tracing::info!("stopped");
    Ok(())
}

type Serving = tokio::task::JoinHandle<Result<(), ListenError>>;

/// Everything that runs while this replica is the CA.
async fn start(
    config: &AuthorityConfig,
    replica: &Replica,
    audit: &Arc<Audit>,
    stop: &CancellationToken,
) -> Result<(Arc<CaAdmin>, Serving), AuthorityError> {
    let listeners = Listeners::bind(config).await?;
    let (opening, keeper) = (settings(config), replica.keeper(config));
    let authority = tokio::task::spawn_blocking(|| Authority::open_kept(opening, keeper)).await;
    let authority =
        authority.map_err(|error| failed("the CA cannot be opened")(io::Error::other(error)))??;
    let service = open_service(config, replica, authority.clone(), Arc::clone(audit), stop).await?;
    let addresses: Vec<_> = listeners.addresses().iter().map(ToString::to_string).collect();
    tokio::spawn({
        let (authority, stop) = (authority.clone(), stop.clone());
        async move { authority.run(stop).await }
    });
    publish(config, replica, &authority, stop);
    let admin = Arc::new(CaAdmin {
        service: Arc::clone(&service),
        authority,
        trust_domain: config.trust_domain.clone(),
        listen: addresses.clone(),
        join_tokens: config.join_tokens.clone(),
    });
    let socket = CaAdminServer::bind(&config.runtime_dir, AdminLimits::default())?;
    tokio::spawn(socket.serve(Arc::clone(&admin), stop.clone()));
    tokio::spawn(Arc::clone(&service).follow(stop.clone()));
    let serving = tokio::spawn(listeners.serve(service, stop.clone()));
    tracing::info!(trust_domain = %config.trust_domain, listen = ?addresses, "meshd ca is ready");
    Ok((admin, serving))
}

/// Agents that start read the roots from there.
fn publish(config: &AuthorityConfig, replica: &Replica, authority: &Authority, stop: &CancellationToken) {
    let roots = config.kubernetes.as_ref().and_then(|kubernetes| kubernetes.roots.as_ref());
    let (Some(roots), Some(client)) = (roots, &replica.client) else { return };
    let mut namespaces = roots.namespaces.clone();
    if namespaces.is_empty() {
        namespaces.push(client.default_namespace().to_owned());
    }
    let map = RootsMap { name: roots.config_map.clone(), namespaces };
    let (client, domain) = (client.clone(), config.trust_domain.clone());
    tokio::spawn(publish_roots(client, map, domain, authority.trust(), stop.clone()));
}

async fn open_service(
    config: &AuthorityConfig,
    replica: &Replica,
    authority: Authority,
    audit: Arc<Audit>,
    stop: &CancellationToken,
) -> Result<Arc<Service>, AuthorityError> {
    let jwt = authority.open_jwt(&config.directory)?;
    // The key that this may just have made is to be kept where the state is.
    authority.state().write(|_| Ok(())).await.map_err(CaError::from)?;
    let configured = || ConfiguredNodes::new(&config.nodes);
    let mut placement: Arc<dyn Placement> = Arc::new(configured());
    let mut kubernetes = None;
    if let (Some(k), Some(client)) = (&config.kubernetes, &replica.client) {
        kubernetes = Some(kubernetes::Tokens::new(client.clone(), k.audiences.clone()));
        if k.placement {
            let pods = Arc::new(WatchedPods::new(config.trust_domain.clone()));
            placement = Arc::new(Either(configured(), Arc::clone(&pods)));
            let (client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move { pods.follow(client, stop).await });
        }
    }
    let parts = ServiceParts {
        join_tokens: JoinTokens::new(authority.state().clone()),
        jwt,
        authority: Arc::new(authority),
        placement,
        kubernetes,
        audit,
    };
    Ok(Service::new(config, parts).await?)
}

fn open_audit(config: &AuthorityConfig) -> Result<Audit, AuthorityError> {
    let (sink, name) = match &config.audit.file {
        Some(path) => (Sink::File(path.clone()), format!("the audit {} cannot be opened", path.display())),
        None => (Sink::Stderr, "the audit's thread cannot be started".to_owned()),
    };
    Audit::start(sink, config.audit.refusals_per_second).map_err(failed(name))
}

/// Held for the life of the process; the kernel releases it when that dies.
fn lock(folder: &Path) -> Result<Flock<File>, AuthorityError> {
    let unusable = || failed(format!("runtimeDir {} cannot be used", folder.display()));
    // Others may pass through to the socket for agents; the admin socket has a mode of its own.
    DirBuilder::new().recursive(true).mode(0o711).create(folder).map_err(unusable())?;
    let path = fs::canonicalize(folder).map_err(unusable())?.join("ca.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(unusable())?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => Err(AuthorityError::AlreadyRunning(folder.to_owned())),
        Err((_, errno)) => Err(unusable()(errno.into())),
    }
}
