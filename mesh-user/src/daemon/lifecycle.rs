//! Start, run, stop. Nothing is captured before everything that serves it is ready, and hooks are the last
//! to go.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicBool},
    thread,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    DaemonError,
    cluster::{self, Cluster},
    endpoint,
    endpoint::Publisher,
    pods::{self, Pods},
    reload::{InForce, Runtime},
    source::Source,
    svid_source,
    workload_api::WorkloadApi,
};
use crate::{
    admin::{AdminLimits, AdminServer, MetricsServer},
    ca::{SvidStore, federation::Federation, merged},
    capture::{
        Capture, CaptureLimits, CaptureSettings, Form, KernelPath,
        canary::{self, Capability},
    },
    config::{self, CaptureForm, Config, SameNode, ShutdownHooks, Uncaptured},
    discovery::{
        FileSource, Snapshot,
        jwks::{JwksSettings, JwksStore},
    },
    identity::TrustBundles,
    proxy::{Acceptors, Mesh, MeshParts, Workers, relay::CloseReason},
    sys::{cgroup, process},
    telemetry::{AccessLog, AccessLogFormat, AccessLogSettings, Metrics, MetricsLimits, logging, systemd},
    tls::{KernelTls, TlsContext, TlsSettings},
};

/// Set to 1, this environment variable has the eBPF programs log captures and refusals, for debugging.
const PROGRAM_LOG: &str = "MESHD_BPF_LOG";
/// How often workloads that could not be enrolled are tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often a stopping daemon looks whether its connections have ended.
const DRAIN_POLL: Duration = Duration::from_millis(50);
/// So long at most the start waits until each identity's SVID has been asked for.
const FIRST_SVIDS: Duration = Duration::from_secs(15);

/// Runs meshd until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or capture cannot be ended in order.
pub fn run(config: &Path) -> Result<(), DaemonError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    // Before any key is made or read.
    process::forbid_dumps().map_err(DaemonError::io("core dumps cannot be forbidden"))?;
    let files = Arc::new(FileSource::open(config)?);
    let snapshot = files.snapshot();
    logging::init(&snapshot.config.log, logging::LogFormat::Text)?;
    raise_descriptor_limit(&snapshot.config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::io("the control runtime cannot be made"))?;
    runtime.block_on(daemon(files, snapshot))
}

async fn daemon(files: Arc<FileSource>, snapshot: Arc<Snapshot>) -> Result<(), DaemonError> {
    let mut signals = Signals::new().map_err(DaemonError::io("signals cannot be handled"))?;
    let stop = CancellationToken::new();
    let cluster = Cluster::open(&snapshot.config).await?.map(Arc::new);
    let (runtime, federation) = start(&snapshot, &stop)?;
    let runtime = Arc::new(runtime);
    let admin = AdminServer::bind(&snapshot.config.runtime_dir, AdminLimits::default())?;
    let metrics = match snapshot.config.metrics.listen {
        Some(address) => Some(MetricsServer::bind(address, AdminLimits::default()).await?),
        None => None,
    };
    tokio::spawn({
        let (svids, stop) = (Arc::clone(&runtime.mesh.svids), stop.clone());
        async move { svids.run(stop).await }
    });
    let source = Arc::new(Source::new(Arc::clone(&runtime), Arc::clone(&files), cluster.clone()));
    let mut doors = Some((admin, metrics.zip(snapshot.config.metrics.listen)));
    let mut serve = || doors.take().map(|(admin, metrics)| serve(admin, metrics, &source, &runtime, &stop));
    let (mut serving, mut watching) = (None, None);
    let snapshot = match &cluster {
        None => snapshot,
        Some(cluster) => {
            watching = Some(cluster.begin(&files, &stop));
            serving = serve();
            tokio::select! {
                snapshot = cluster::whole(&files) => snapshot,
                () = signals.stop() => {
                    stop.cancel();
                    return finish(&runtime);
                }
            }
        }
    };
    first_svids(&runtime, &snapshot).await;
    if let Some(cluster) = &cluster {
        pods::follow_cluster(&runtime, cluster, &stop);
    }
    if let Some(pods) = &runtime.pods {
        pods.first(pods::of_files(&snapshot.world)).await;
        runtime.gate_pods();
    }
    runtime.begin(&snapshot)?;
    tokio::spawn(pods::follow(Arc::clone(&runtime), stop.clone()));
    let below = super::check::below_the_root(&runtime);
    if !below.proven {
        tracing::warn!(detail = %below.detail, "{}", below.meaning);
    }
    let serving = serving.or_else(serve);
    super::node_lease::keep(&snapshot.config, Arc::<Source>::clone(&source), &stop);
    if let Some(workload_api) = &runtime.workload_api {
        let metrics = Arc::clone(&runtime.mesh.metrics);
        workload_api.serve(runtime.capture.cgroup(), metrics, stop.clone());
    }
    tokio::spawn(Arc::clone(&files).run(stop.clone()));
    let federated = federation.trust();
    tokio::spawn(federation.run(stop.clone()));
    endpoint::serve(&snapshot.config, &runtime, &stop).await?;
    let ready = format!("{} connections may come", runtime.mesh.relay_kind().as_str());
    tracing::info!(node = %snapshot.config.node, relay = runtime.mesh.relay_kind().as_str(), "meshd is ready");
    systemd::ready(&ready);
    let mut runtimes = runtime.workers.handles();
    runtimes.push(tokio::runtime::Handle::current());
    let _watchdog = systemd::spawn_watchdog(runtimes);
    supervise(&runtime, &files, &mut signals, federated).await;
    drain(&runtime, &mut signals).await;
    stop.cancel();
    for ending in [serving, watching].into_iter().flatten() {
        // An error means that it panicked: it serves no more either way.
        let _ = ending.await;
    }
    finish(&runtime)
}

/// Opens the admin socket, and the metrics' address where there is one.
fn serve(
    admin: AdminServer,
    metrics: Option<(MetricsServer, SocketAddr)>,
    source: &Arc<Source>,
    runtime: &Runtime,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    if let Some((metrics, address)) = metrics {
        tracing::info!(%address, "metrics are served over TCP");
        tokio::spawn(metrics.serve(Arc::<Source>::clone(source), stop.clone()));
    }
    tokio::spawn(admin.serve(Arc::<Source>::clone(source), runtime.authority.clone(), stop.clone()))
}

/// Connections are captured when their workloads can prove themselves. A CA that is away does not hold up the start for
/// longer: connections wait for their workload's first SVID then.
async fn first_svids(runtime: &Runtime, snapshot: &Snapshot) {
    let began = Instant::now();
    runtime.certify(snapshot);
    let tried = runtime.mesh.svids.tried_once(FIRST_SVIDS).await;
    let summary = runtime.mesh.svids.summary(SystemTime::now());
    let elapsed = began.elapsed();
    if !tried || summary.missing > 0 {
        tracing::warn!(missing = summary.missing, ?elapsed, "not every identity has an SVID yet");
    } else {
        tracing::info!(svids = summary.valid, ?elapsed, "every identity has its SVID");
    }
}

/// Everything but the hooks.
fn start(snapshot: &Arc<Snapshot>, stop: &CancellationToken) -> Result<(Runtime, Federation), DaemonError> {
    let config = &snapshot.config;
    let metrics = Arc::new(Metrics::new(&config.node, MetricsLimits::default()));
    let wants_kernel_path = config.same_node == SameNode::Kernel || snapshot.world.wants_kernel_path();
    let follows_pods = pods::wanted(config, &snapshot.world);
    let settings = CaptureSettings { pods: follows_pods, ..capture_settings(config, wants_kernel_path)? };
    let capture = Capture::start(&settings)?;
    let proofs = if config.capture.canary {
        prove(&settings)?
    } else {
        tracing::warn!("capture.canary is off: nothing about capture is proven");
        Vec::new()
    };
    capture.choose(form(config.capture.form, &proofs))?;
    let opened = svid_source::open(config, stop)?;
    let workload_api = WorkloadApi::bind(config, &opened)?;
    let authority = opened.authority;
    let svids = Arc::new(SvidStore::new(opened.source).counted_by(Arc::clone(&metrics)));
    let federation = Federation::open(&config.federation, &config.trust_domain, &config.state_dir)?;
    let own = merged(TrustBundles::clone(&svids.trust().borrow()), &snapshot.bundles);
    let mut trust = merged(own, &federation.trust().borrow());
    if let Some(workload_api) = &workload_api {
        workload_api.add_authorities(&mut trust);
    }
    let publisher = Publisher::new(config, &trust)?;
    let bundles = Arc::new(ArcSwap::from_pointee(trust));
    let tls = TlsContext::new(
        TlsSettings {
            trust_domain_aliases: config.trust_domain_aliases.clone(),
            clock_skew: config.limits.clock_skew(),
            ..TlsSettings::new(config.trust_domain.clone())
        },
        Arc::clone(&bundles),
    );
    let kernel_tls = KernelTls::probe();
    tracing::info!(%kernel_tls, "probed");
    let access_log = AccessLog::to_stderr(access_log_settings(config), &metrics)
        .map_err(DaemonError::io("the access log's thread cannot be started"))?;
    let mesh = Arc::new(Mesh::new(MeshParts {
        snapshot: Arc::clone(snapshot),
        svids,
        tls,
        kernel_tls,
        kernel_path: kernel_path(&capture, &proofs),
        keys: Arc::new(jwks(config)?),
        metrics,
        access_log,
    }));
    mesh.tell_kernel_ends().map_err(DaemonError::io("the kernel path's thread cannot be started"))?;
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = Workers::start(cores).map_err(DaemonError::io("the workers cannot be started"))?;
    let runtime = Runtime {
        mesh,
        workers,
        acceptors: Acceptors::default(),
        capture,
        bundles,
        workload_api,
        authority,
        federation: federation.watcher(),
        publisher,
        endpoint_id: endpoint::endpoint_id(config),
        proofs,
        in_force: InForce::nothing(),
        recheck_kernel_path: AtomicBool::new(false),
        unsettled: AtomicBool::new(false),
        failed: Mutex::new(HashMap::new()),
        pods: follows_pods
            .then(|| Pods::start(config, stop))
            .transpose()
            .map_err(DaemonError::io("pods cannot be followed"))?,
        units: Mutex::new(Vec::new()),
    };
    Ok((runtime, federation))
}

/// Runs the canary. What meshd cannot do without must be proven, or it does not start; hooks of an earlier run
/// stay and fail closed.
fn prove(settings: &CaptureSettings) -> Result<Vec<Capability>, DaemonError> {
    let started = Instant::now();
    let proofs = canary::prove(settings)?;
    let failed: Vec<_> = proofs
        .iter()
        .filter(|proof| proof.required && !proof.proven)
        .map(|proof| format!("{} ({})", proof.name, proof.detail))
        .collect();
    if !failed.is_empty() {
        return Err(DaemonError::Canary(failed.join("; ")));
    }
    for proof in proofs.iter().filter(|proof| !proof.proven) {
        tracing::warn!(name = proof.name, detail = %proof.detail, "not proven: {}", proof.meaning);
    }
    tracing::info!(proven = proofs.len(), elapsed = ?started.elapsed(), "the canary proved capture");
    Ok(proofs)
}

fn jwks(config: &Config) -> Result<JwksStore, DaemonError> {
    let failed = |error: String| DaemonError::Jwks(error);
    let settings = JwksSettings::load(&config.jwks).map_err(|error| failed(error.to_string()))?;
    JwksStore::open(settings).map_err(|error| failed(error.to_string()))
}

/// The kernel path, where the configuration wants it and nothing was seen that forbids it.
fn kernel_path(capture: &Capture, proofs: &[Capability]) -> Option<Arc<KernelPath>> {
    let disproven = proofs.iter().any(|proof| proof.name == canary::KERNEL_PATH && !proof.proven);
    capture.kernel_path().filter(|_| !disproven)
}

/// The form that the configuration names, or the best one that was proven.
fn form(wanted: CaptureForm, proofs: &[Capability]) -> Form {
    let proven = proofs.iter().any(|proof| proof.name == canary::HELD_CONNECT && proof.proven);
    if wanted == CaptureForm::Hold && !proven {
        tracing::warn!("capture.form is hold, which nothing has proven on this kernel");
    }
    match wanted {
        CaptureForm::Hold => Form::Hold,
        CaptureForm::Auto if proven => Form::Hold,
        CaptureForm::Auto | CaptureForm::Listener => Form::Listener,
    }
}

fn capture_settings(config: &Config, kernel_path: bool) -> Result<CaptureSettings, DaemonError> {
    let cgroup = match &config.capture.cgroup {
        Some(path) => path.clone(),
        None => cgroup::cgroup2_mount()
            .map_err(DaemonError::io("the mounts cannot be read"))?
            .ok_or(DaemonError::NoCgroup)?,
    };
    Ok(CaptureSettings {
        cgroup,
        // the daemon chooses when the canary has spoken
        form: Form::Listener,
        runtime_dir: config.runtime_dir.clone(),
        outbound_port: config.capture.outbound_port,
        inbound_port: config.capture.inbound_port,
        limits: CaptureLimits {
            workloads: config.limits.workloads,
            destinations: config.limits.destinations,
            connections: config.limits.connections,
            held_connects: config.limits.held_connects,
        },
        refuse_uncaptured: config.capture.uncaptured == Uncaptured::Refuse,
        kernel_path,
        pods: false,
        keep_on_exit: config.shutdown.hooks == ShutdownHooks::Keep,
        log_programs: std::env::var_os(PROGRAM_LOG).is_some_and(|value| value == "1"),
    })
}

fn access_log_settings(config: &Config) -> AccessLogSettings {
    AccessLogSettings {
        format: match config.access_log.format {
            config::AccessLogFormat::Json => AccessLogFormat::Json,
            config::AccessLogFormat::Text => AccessLogFormat::Text,
            config::AccessLogFormat::Off => AccessLogFormat::Off,
        },
        per_second: config.access_log.per_second,
    }
}

/// Each connection holds two descriptors; as many as the administrator allows are taken.
fn raise_descriptor_limit(config: &Config) {
    let wanted = u64::from(config.limits.connections) * 2 + 1024;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft < wanted.min(hard) {
        // A refusal leaves the limit as it was, which the warning below tells.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard);
    }
    if hard < wanted {
        tracing::warn!(hard, wanted, "the limit on open files is below what limits.connections may need");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Follows the files and other trust domains, and tries failed workloads again, until told to stop.
async fn supervise(
    runtime: &Arc<Runtime>,
    files: &Arc<FileSource>,
    signals: &mut Signals,
    mut federated: watch::Receiver<Arc<TrustBundles>>,
) {
    let mut told = files.subscribe();
    let mut trust = runtime.mesh.svids.trust();
    // It may have changed since the start.
    trust.mark_changed();
    let mut failures = told.borrow_and_update().failures;
    let mut retry = interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hangup.recv() => {
                systemd::reloading();
                // Logged and counted like every reload; bad files are told by the channel too.
                let _ = runtime.reload(files);
                follow(runtime, files, &mut failures);
                systemd::ready("reloaded");
            }
            changed = told.changed() => {
                if changed.is_err() {
                    return;
                }
                follow(runtime, files, &mut failures);
            }
            Ok(()) = trust.changed() => {
                let closed = runtime.follow_trust();
                tracing::debug!(closed, "what the CA says of trust is in force");
            }
            Ok(()) = federated.changed() => {
                let closed = runtime.follow_trust();
                tracing::info!(closed, "another trust domain's bundle is in force");
            }
            _ = retry.tick() => runtime.retry(),
        }
    }
}

/// Puts into force what is new, and logs and counts a reload that failed since the last look.
fn follow(runtime: &Runtime, files: &FileSource, known_failures: &mut u64) {
    let status = files.status();
    if status.failures != *known_failures {
        *known_failures = status.failures;
        runtime.mesh.metrics.config_reloaded(false);
        if let Some(error) = status.last_error {
            tracing::error!(%error, "the files are refused; what was in force stays in force");
        }
    }
    runtime.catch_up(files);
}

/// New connections are no longer served; live ones get the drain time, a second signal ends it.
async fn drain(runtime: &Runtime, signals: &mut Signals) {
    let time = runtime.mesh.view().snapshot.config.limits.drain_time();
    systemd::stopping(time + Duration::from_secs(5));
    tracing::info!(connections = runtime.mesh.connections.count(), ?time, "draining");
    let deadline = Instant::now() + time;
    let drained = async {
        while runtime.mesh.accepted() > 0 && Instant::now() < deadline {
            sleep(DRAIN_POLL).await;
        }
    };
    tokio::select! {
        () = drained => {}
        () = signals.stop() => {}
    }
    runtime.acceptors.stop();
    runtime.mesh.connections.close_all(&CloseReason::Shutdown);
    let closed = async {
        while runtime.mesh.connections.count() > 0 {
            sleep(DRAIN_POLL).await;
        }
    };
    // Connections that do not end now end with the process.
    let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
}

fn finish(runtime: &Runtime) -> Result<(), DaemonError> {
    runtime.mesh.access_log.shutdown();
    runtime.capture.shutdown()?;
    tracing::info!("stopped");
    Ok(())
}
