//! `meshd ca`'s gRPC service: certificates for those that prove who they are, join tokens redeemed, trust told to whoever
//! watches. Holds no key: a [`CertificateAuthority`] signs. Each request is bounded in size, time and number, and leaves a
//! line in the audit.

mod certificates;
mod door;
mod join;
mod listen;
mod metrics;
mod own;
#[cfg(test)]
mod tests;
mod tokens;
mod trust;
mod visit;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use listen::{ListenError, Listeners};
pub use metrics::ServiceMetrics;
pub use visit::{Doing, Visit};

use super::{
    CaError,
    audit::Audit,
    callers::{Callers, JoinTokens, Placement, Rates, kubernetes, service_identity},
    jwt_svid::{JwtAuthority, JwtSvidService},
    proto::{
        istio::istio_certificate_service_server::IstioCertificateServiceServer,
        meshd::{join_server::JoinServer, jwt_svid_server::JwtSvidServer, trust_server::TrustServer},
    },
    signing::{CertificateAuthority, Trust},
};
use crate::{
    config::{AuthorityConfig, AuthorityLimits},
    identity::TrustBundles,
    tls::{PeerVerifier, provider},
};
use certificates::Certificates;
use join::NodesJoin;
use own::OwnCertificate;
use tokens::Tokens;
use trust::TrustWatch;

/// What a service is made of.
pub struct ServiceParts {
    /// Signs, and says whom to believe.
    pub authority: Arc<dyn CertificateAuthority>,
    /// What runs where.
    pub placement: Arc<dyn Placement>,
    /// Has service-account tokens reviewed, where Kubernetes is configured.
    pub kubernetes: Option<kubernetes::Tokens>,
    /// In the CA's state.
    pub join_tokens: JoinTokens,
    /// Mints JWT-SVIDs.
    pub jwt: Arc<JwtAuthority>,
    /// Where everything is recorded.
    pub audit: Arc<Audit>,
}

/// The service, to be shared by `Arc`.
pub struct Service {
    authority: Arc<dyn CertificateAuthority>,
    placement: Arc<dyn Placement>,
    callers: Callers,
    join_tokens: JoinTokens,
    jwt: Arc<JwtAuthority>,
    audit: Arc<Audit>,
    metrics: Arc<ServiceMetrics>,
    rates: Rates,
    limits: AuthorityLimits,
    verifier: Arc<PeerVerifier>,
    believed: Arc<ArcSwap<TrustBundles>>,
    own: Arc<OwnCertificate>,
    requests: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    watching: AtomicU64,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Service {
    /// Has its own certificate signed, and serves nobody yet.
    ///
    /// # Errors
    /// When that certificate is not signed.
    pub async fn new(config: &AuthorityConfig, parts: ServiceParts) -> Result<Arc<Self>, CaError> {
        let domain = &config.trust_domain;
        let id = service_identity(domain)
            .map_err(|e| CaError::Sign { subject: domain.to_string(), what: e.to_string() })?;
        let own = OwnCertificate::issue(Arc::clone(&parts.authority), id, config.dns_names.clone()).await?;
        let believed = Arc::new(ArcSwap::from_pointee(own_domain(&*parts.authority)));
        let verifier = Arc::new(PeerVerifier::new(
            domain.clone(),
            Vec::new(),
            Duration::ZERO,
            Arc::clone(&believed),
            provider().signature_verification_algorithms,
        ));
        let limits = config.limits.clone();
        Ok(Arc::new(Self {
            callers: Callers::new(config, Arc::clone(&verifier), parts.kubernetes),
            authority: parts.authority,
            placement: parts.placement,
            join_tokens: parts.join_tokens,
            jwt: parts.jwt,
            audit: parts.audit,
            metrics: Arc::new(ServiceMetrics::new()),
            rates: Rates::new(&limits),
            requests: Arc::new(Semaphore::new(limits.requests as usize)),
            watchers: Arc::new(Semaphore::new(limits.watchers as usize)),
            watching: AtomicU64::new(0),
            verifier,
            believed,
            own: Arc::new(own),
            limits,
        }))
    }

    /// Follows trust and renews the service's own certificate until told to stop.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let renewing = Arc::clone(&self.own).run();
        let mut trust = self.authority.trust();
        let following = async {
            loop {
                self.believed.store(Arc::new(own_domain(&*self.authority)));
                if trust.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = async { tokio::join!(renewing, following); } => {}
        }
    }

    /// What it counts.
    pub fn metrics(&self) -> &ServiceMetrics {
        &self.metrics
    }

    /// Its numbers as Prometheus text.
    pub fn metrics_text(&self) -> String {
        let issuer_end = self.own.issuer_end(&self.authority.trust().borrow());
        self.metrics.text(self.watching(), issuer_end, self.authority.clock_ahead())
    }

    /// The join tokens.
    pub fn join_tokens(&self) -> &JoinTokens {
        &self.join_tokens
    }

    /// The audit, for what the operator does.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Agents that watch trust now.
    pub fn watching(&self) -> u64 {
        self.watching.load(Relaxed)
    }

    /// Whom agents are told to believe.
    pub fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.authority.trust().borrow())
    }

    /// When the service's own certificate ends.
    pub fn own_end(&self) -> SystemTime {
        self.own.not_after()
    }

    /// When the certificate that issues ends; none: it cannot be told.
    pub fn issuer_end(&self) -> Option<SystemTime> {
        self.own.issuer_end(&self.authority.trust().borrow())
    }

    /// Everything that is served.
    fn routes(self: &Arc<Self>) -> Routes {
        let longest = self.limits.message_bytes as usize;
        let certificates = IstioCertificateServiceServer::new(Certificates(Arc::clone(self)));
        let join = JoinServer::new(NodesJoin(Arc::clone(self)));
        let trust = TrustServer::new(TrustWatch(Arc::clone(self)));
        let tokens =
            JwtSvidService::new(Arc::<JwtAuthority>::clone(&self.jwt), Arc::new(Tokens(Arc::clone(self))));
        let tokens = JwtSvidServer::new(tokens);
        Routes::new(certificates.max_decoding_message_size(longest))
            .add_service(tokens.max_decoding_message_size(longest))
            .add_service(join.max_decoding_message_size(longest))
            .add_service(trust.max_decoding_message_size(longest))
            .prepare()
    }
}

/// Callers' certificates are this CA's own: those of other domains are for workloads to believe.
fn own_domain(authority: &dyn CertificateAuthority) -> TrustBundles {
    let trust = Arc::clone(&authority.trust().borrow());
    let domain = authority.trust_domain();
    let roots = trust.bundles.roots.get(domain).cloned().unwrap_or_default();
    let revoked = trust.bundles.revoked.get(domain).cloned().unwrap_or_default();
    TrustBundles {
        roots: [(domain.clone(), roots)].into(),
        revoked: [(domain.clone(), revoked)].into(),
        ..TrustBundles::default()
    }
}
