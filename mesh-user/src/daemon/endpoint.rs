//! Serves this mesh's own trust bundle to other trust domains, where the node's file says so. The bundle is that of the
//! roots in force here.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{DaemonError, reload::Runtime};
use crate::{
    ca::{
        CaError,
        federation::{
            BundleServer, CertificateFiles, EndpointLimits, OwnTrust, OwnTrustKeeper, SvidCertificate,
        },
    },
    config::{Config, EndpointProfile},
    identity::{JwtAuthorities, SpiffeId, TrustBundles, TrustDomain},
};

/// What the endpoint serves, and under which number.
pub(super) struct Publisher {
    own: TrustDomain,
    keeper: Mutex<OwnTrustKeeper>,
    newest: watch::Sender<Arc<OwnTrust>>,
}

impl Publisher {
    /// Begins with what is in force. None: nothing is served.
    ///
    /// # Errors
    /// When the bundle or its number cannot be written.
    pub(super) fn new(config: &Config, trust: &TrustBundles) -> Result<Option<Self>, CaError> {
        if config.federation.listen.is_none() {
            return Ok(None);
        }
        let mut keeper = OwnTrustKeeper::open(&config.state_dir, config.federation.refresh_hint());
        let own = config.trust_domain.clone();
        let first = keeper.publish(roots(&own, trust), &jwt(&own, trust), SystemTime::now())?;
        let newest = watch::Sender::new(Arc::new(first));
        Ok(Some(Self { own, keeper: Mutex::new(keeper), newest }))
    }

    /// The roots in force may be new ones.
    pub(super) fn publish(&self, trust: &TrustBundles) {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        match keeper.publish(roots(&self.own, trust), &jwt(&self.own, trust), SystemTime::now()) {
            Ok(published) => {
                self.newest.send_replace(Arc::new(published));
            }
            Err(error) => tracing::error!(%error, "the trust bundle is not published, the one before stays"),
        }
    }
}

fn roots<'a>(own: &TrustDomain, trust: &'a TrustBundles) -> &'a [CertificateDer<'static>] {
    trust.roots.get(own).map(Vec::as_slice).unwrap_or_default()
}

fn jwt(own: &TrustDomain, trust: &TrustBundles) -> JwtAuthorities {
    trust.jwt_authorities.get(own).cloned().unwrap_or_default()
}

/// What the endpoint's SVID says, where it shows one.
pub(super) fn endpoint_id(config: &Config) -> Option<SpiffeId> {
    let federation = &config.federation;
    let shows_svid = federation.listen.is_some() && federation.profile == EndpointProfile::HttpsSpiffe;
    shows_svid.then(|| federation.endpoint_id(&config.trust_domain)).flatten()
}

/// Binds the endpoint and serves it until `stop`.
pub(super) async fn serve(
    config: &Config,
    runtime: &Arc<Runtime>,
    stop: &CancellationToken,
) -> Result<(), DaemonError> {
    let federation = &config.federation;
    let (Some(address), Some(publisher)) = (federation.listen, &runtime.publisher) else { return Ok(()) };
    let cannot = DaemonError::io("the bundle endpoint cannot listen at federation.listen");
    let limits = EndpointLimits::default();
    let files = federation.certificate_file.as_ref().zip(federation.key_file.as_ref());
    let server = if let (EndpointProfile::HttpsWeb, Some((chain, key))) = (federation.profile, files) {
        let files = Arc::new(CertificateFiles::open(chain, key)?);
        let server = BundleServer::bind(address, Arc::<CertificateFiles>::clone(&files), limits).await;
        tokio::spawn(files.run(stop.clone()));
        server.map_err(cannot)?
    } else {
        let (mesh, id) = (Arc::clone(&runtime.mesh), endpoint_id(config));
        let svid = SvidCertificate::new(move || mesh.svids.get(id.as_ref()?));
        BundleServer::bind(address, Arc::new(svid), limits).await.map_err(cannot)?
    };
    tracing::info!(%address, "the trust bundle is served to other trust domains");
    tokio::spawn(server.serve(publisher.newest.subscribe(), stop.clone()));
    Ok(())
}
