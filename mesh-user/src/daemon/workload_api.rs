//! The Workload API as part of the daemon: what it hands out follows what is in force.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use crate::{
    ca::{
        EmbeddedCa,
        jwt_svid::JwtAuthority,
        workload_api::{WorkloadApiLimits, WorkloadApiParts, WorkloadApiServer, WorkloadApiSettings},
    },
    config::Config,
    identity::{TrustBundles, TrustDomain},
    world::World,
};

/// The server and what it is told.
pub(super) struct WorkloadApi {
    /// Until it serves.
    server: Mutex<Option<WorkloadApiServer>>,
    ca: Arc<EmbeddedCa>,
    authority: Arc<JwtAuthority>,
    domain: TrustDomain,
    world: watch::Sender<Arc<World>>,
    trust: watch::Sender<Arc<TrustBundles>>,
}

impl WorkloadApi {
    /// Binds the socket, where the node's file wants it. The runtime directory's lock says that no other daemon has it.
    ///
    /// # Errors
    /// When the socket cannot be made, or the JWT authority's key cannot be read.
    pub(super) fn bind(config: &Config, ca: &Arc<EmbeddedCa>) -> Result<Option<Self>, DaemonError> {
        if !config.workload_api.enabled {
            return Ok(None);
        }
        let domain = config.trust_domain.clone();
        let authority = Arc::new(JwtAuthority::open(&config.jwt_directory(), domain.clone())?);
        let socket = config.workload_api_socket();
        let server =
            WorkloadApiServer::bind(&WorkloadApiSettings { socket, limits: WorkloadApiLimits::default() })?;
        tracing::info!(socket = %server.path().display(), "the SPIFFE Workload API is served");
        Ok(Some(Self {
            server: Mutex::new(Some(server)),
            ca: Arc::clone(ca),
            authority,
            domain,
            world: watch::Sender::default(),
            trust: watch::Sender::default(),
        }))
    }

    /// Adds the node's own JWT authority to what is believed.
    pub(super) fn add_authorities(&self, trust: &mut TrustBundles) {
        let own = trust.jwt_authorities.entry(self.domain.clone()).or_default();
        own.extend(self.authority.published().clone());
    }

    /// What is in force from now on.
    pub(super) fn put(&self, world: &Arc<World>, trust: Arc<TrustBundles>) {
        // Trust first: nobody gets an SVID with a bundle that does not hold its root yet.
        self.trust.send_replace(trust);
        self.world.send_replace(Arc::clone(world));
    }

    /// Serves until cancelled; begins once.
    pub(super) fn serve(&self, stop: CancellationToken) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(server) = server else { return };
        let parts = WorkloadApiParts {
            world: self.world.subscribe(),
            trust: self.trust.subscribe(),
            issuer: Arc::<EmbeddedCa>::clone(&self.ca),
            minter: Some(Arc::<JwtAuthority>::clone(&self.authority)),
        };
        tokio::spawn(async move {
            if let Err(error) = server.serve(parts, stop).await {
                tracing::error!(%error, "the Workload API is no longer served");
            }
        });
    }
}
