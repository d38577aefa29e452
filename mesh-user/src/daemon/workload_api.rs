//! The Workload API as part of the daemon: what it hands out follows what is in force.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{DaemonError, svid_source::Opened};
use crate::{
    ca::{
        jwt_svid::{JwtAuthority, MintJwt},
        workload_api::{
            IssueExportable, WorkloadApiLimits, WorkloadApiParts, WorkloadApiServer, WorkloadApiSettings,
        },
    },
    config::Config,
    identity::{TrustBundles, TrustDomain},
    telemetry::Metrics,
    world::World,
};

/// The server and what it is told.
pub(super) struct WorkloadApi {
    /// Until it serves.
    server: Mutex<Option<WorkloadApiServer>>,
    issuer: Arc<dyn IssueExportable>,
    minter: Option<Arc<dyn MintJwt>>,
    /// The node's own, where minting is not the work of a CA elsewhere.
    jwt: Option<Arc<JwtAuthority>>,
    domain: TrustDomain,
    world: watch::Sender<Arc<World>>,
    trust: watch::Sender<Arc<TrustBundles>>,
}

impl WorkloadApi {
    /// Binds the socket, where the node's file wants it. The runtime directory's lock says that no other daemon has it.
    ///
    /// # Errors
    /// When the socket cannot be made, or who issues this node's SVIDs certifies no keys of workloads.
    pub(super) fn bind(config: &Config, opened: &Opened) -> Result<Option<Self>, DaemonError> {
        if !config.workload_api.enabled {
            return Ok(None);
        }
        let issuer = opened.exportable.clone().ok_or(DaemonError::NoWorkloadKeys)?;
        let socket = config.workload_api_socket();
        let server =
            WorkloadApiServer::bind(&WorkloadApiSettings { socket, limits: WorkloadApiLimits::default() })?;
        tracing::info!(socket = %server.path().display(), "the SPIFFE Workload API is served");
        Ok(Some(Self {
            server: Mutex::new(Some(server)),
            issuer,
            minter: opened.minter.clone(),
            jwt: opened.jwt.clone(),
            domain: config.trust_domain.clone(),
            world: watch::Sender::default(),
            trust: watch::Sender::default(),
        }))
    }

    /// Adds the node's own JWT authority to what is believed.
    pub(super) fn add_authorities(&self, trust: &mut TrustBundles) {
        let Some(jwt) = &self.jwt else { return };
        let own = trust.jwt_authorities.entry(self.domain.clone()).or_default();
        own.extend(jwt.published());
    }

    /// What is in force from now on.
    pub(super) fn put(&self, world: &Arc<World>, trust: Arc<TrustBundles>) {
        // Trust first: nobody gets an SVID with a bundle that does not hold its root yet.
        self.trust.send_replace(trust);
        self.world.send_replace(Arc::clone(world));
    }

    /// Serves until cancelled; begins once.
    pub(super) fn serve(&self, cgroup_root: PathBuf, metrics: Arc<Metrics>, stop: CancellationToken) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(server) = server else { return };
        let parts = WorkloadApiParts {
            world: self.world.subscribe(),
            cgroup_root,
            trust: self.trust.subscribe(),
            issuer: Arc::clone(&self.issuer),
            minter: self.minter.clone(),
            metrics: Some(metrics),
        };
        tokio::spawn(async move {
            if let Err(error) = server.serve(parts, stop).await {
                tracing::error!(%error, "the Workload API is no longer served");
            }
        });
    }
}
