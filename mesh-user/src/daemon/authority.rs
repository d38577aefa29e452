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

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{AdminLimits, CaAdmin, CaAdminServer, MetricsServer, ServerError, ca_server},
    ca::{
        CaError,
        audit::{Audit, Sink},
        authority::{Authority, AuthoritySettings},
        callers::{ConfiguredNodes, JoinTokens, kubernetes},
        service::{ListenError, Listeners, Service, ServiceParts},
    },
    config::{AuthorityConfig, ConfigError},
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
    Kubernetes(#[from] kubernetes::KubernetesError),
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
    runtime.block_on(serve(&config))
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

async fn serve(config: &AuthorityConfig) -> Result<(), AuthorityError> {
    let stop = CancellationToken::new();
    let _lock = lock(&config.runtime_dir)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("signals cannot be handled"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("signals cannot be handled"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed("signals cannot be handled"))?;
    let audit = Arc::new(open_audit(config)?);
    let listeners = Listeners::bind(config).await?;
    let opening = settings(config);
    let authority = tokio::task::spawn_blocking(|| Authority::open(opening)).await;
    let authority =
        authority.map_err(|error| failed("the CA cannot be opened")(io::Error::other(error)))??;
    let service = open_service(config, authority.clone(), Arc::clone(&audit)).await?;
    let addresses: Vec<_> = listeners.addresses().iter().map(ToString::to_string).collect();
    tokio::spawn({
        let (authority, stop) = (authority.clone(), stop.clone());
        async move { authority.run(stop).await }
    });
    let admin = Arc::new(CaAdmin {
        service: Arc::clone(&service),
        authority,
        trust_domain: config.trust_domain.clone(),
        listen: addresses.clone(),
        join_tokens: config.join_tokens.clone(),
    });
    let socket = CaAdminServer::bind(&config.runtime_dir, AdminLimits::default())?;
    if let Some(address) = config.metrics.listen {
        let metrics = MetricsServer::bind(address, AdminLimits::default()).await?;
        tokio::spawn(ca_server::serve_metrics(metrics, Arc::clone(&admin), stop.clone()));
    }
    tokio::spawn(socket.serve(admin, stop.clone()));
    tokio::spawn(Arc::clone(&service).follow(stop.clone()));
    let serving = tokio::spawn(listeners.serve(service, stop.clone()));
    tracing::info!(trust_domain = %config.trust_domain, listen = ?addresses, "meshd ca is ready");
    systemd::ready("certificates may be asked for");
    let _watchdog = systemd::spawn_watchdog(vec![tokio::runtime::Handle::current()]);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => audit.reopen(),
        }
    }
    systemd::stopping(STOPPING);
    tracing::info!("stopping");
    stop.cancel();
    // An error means that it panicked: it serves no more either way.
    let served = serving.await;
    let _written = tokio::task::spawn_blocking(move || audit.shutdown()).await;
    served.unwrap_or(Ok(()))?;
    tracing::info!("stopped");
    Ok(())
}

async fn open_service(
    config: &AuthorityConfig,
    authority: Authority,
    audit: Arc<Audit>,
) -> Result<Arc<Service>, AuthorityError> {
    let kubernetes = match &config.kubernetes {
        Some(k) => Some(kubernetes::Tokens::connect(k.kubeconfig.as_deref(), k.audiences.clone()).await?),
        None => None,
    };
    let parts = ServiceParts {
        join_tokens: JoinTokens::new(authority.state().clone()),
        jwt: authority.open_jwt(&config.directory)?,
        authority: Arc::new(authority),
        placement: Arc::new(ConfiguredNodes::new(&config.nodes)),
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
