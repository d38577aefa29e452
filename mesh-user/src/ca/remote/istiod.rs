//! istiod as the source of SVIDs, asked as ztunnel asks: with the node agent's service-account token, for identities of
//! workloads on its node.
//!
//! Source: istio/istio `security/pkg/nodeagent/caclient/providers/citadel`, istio/ztunnel `src/identity/caclient.rs`.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use rustls::SupportedProtocolVersion;
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Address, RemoteError, ServerIdentity,
    channel::Connector,
    client::Client,
    request::{self, NewKey},
    token::bearer,
    trust::{Trust, roots_file},
};
use crate::{
    ca::{
        CaError, SvidSource, files,
        proto::meshd::{Bundle, TrustState},
        workload_api::{ExportableSvid, IssueExportable},
    },
    identity::{SpiffeId, Svid, TrustBundles, TrustDomain},
};

/// Until istiod has answered.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the roots' file is looked at. Kubernetes swaps links there, which not every watcher sees.
const LOOK: Duration = Duration::from_secs(5);
/// istiod's own.
static VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// How a node asks istiod.
#[derive(Debug, Clone)]
pub struct IstiodSettings {
    /// Ours.
    pub trust_domain: TrustDomain,
    /// Where istiod is.
    pub address: Address,
    /// Who it must prove to be.
    pub server: ServerIdentity,
    /// Its root: what Istio puts into the config map `istio-ca-root-cert`.
    pub roots_file: PathBuf,
    /// The node agent's service-account token, renewed by Kubernetes.
    pub token_file: PathBuf,
    /// Istio's name of the cluster.
    pub cluster_id: String,
    /// Where the last known trust is kept.
    pub state_dir: PathBuf,
    /// Life of an SVID that is asked for.
    pub svid_lifetime: Duration,
    /// How far clocks may differ.
    pub clock_skew: Duration,
}

/// istiod, asked over gRPC.
pub struct Istiod {
    settings: IstiodSettings,
    client: Client,
    trust: Trust,
    /// What the last answer ended with, and what the file says.
    roots: tokio::sync::Mutex<Roots>,
}

#[derive(Default)]
struct Roots {
    of_file: Vec<CertificateDer<'static>>,
    of_answer: Option<CertificateDer<'static>>,
}

impl Istiod {
    /// Reads the roots; nothing is asked yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the roots file holds none, or the state folder cannot be used.
    pub fn open(settings: IstiodSettings) -> Result<Arc<Self>, CaError> {
        files::open_directory(&settings.state_dir)?;
        let bundles = roots_file(&settings.roots_file, &settings.trust_domain)?;
        let of_file = bundles.roots.values().flatten().cloned().collect();
        let trust = Trust::open(&settings.state_dir, settings.trust_domain.clone(), bundles);
        let connector = Connector {
            address: settings.address.clone(),
            server: settings.server.clone(),
            trust_domain: settings.trust_domain.clone(),
            versions: &VERSIONS,
            bundles: Arc::clone(&trust.bundles),
            roots_file: Some(settings.roots_file.clone()),
            clock_skew: settings.clock_skew,
            own: Arc::new(ArcSwap::from_pointee(None)),
        };
        let client = Client::new(connector, Arc::clone(&trust.bundles))?;
        let roots = Roots { of_file, of_answer: None }.into();
        Ok(Arc::new(Self { settings, client, trust, roots }))
    }

    /// Follows the roots' file until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = look.tick() => self.look_at_roots().await,
            }
        }
    }

    async fn look_at_roots(&self) {
        let (file, domain) = (self.settings.roots_file.clone(), self.settings.trust_domain.clone());
        let read = tokio::task::spawn_blocking(move || roots_file(&file, &domain)).await;
        match read {
            Ok(Ok(bundles)) => {
                let roots = bundles.roots.into_values().flatten().collect();
                self.believe(|known| known.of_file = roots).await;
            }
            Ok(Err(error)) => tracing::warn!(%error, "ca.rootsFile is not used; the last roots stay"),
            Err(_) => {}
        }
    }

    /// Puts other roots into force where they differ.
    async fn believe(&self, change: impl FnOnce(&mut Roots)) {
        let mut roots = self.roots.lock().await;
        change(&mut roots);
        let mut all = roots.of_file.clone();
        all.extend(roots.of_answer.iter().filter(|root| !roots.of_file.contains(root)).cloned());
        if self.trust.bundles.load().roots.get(&self.settings.trust_domain) == Some(&all) {
            return;
        }
        let bundle = Bundle {
            trust_domain: self.settings.trust_domain.to_string(),
            roots: all.iter().map(|root| root.to_vec()).collect(),
            ..Bundle::default()
        };
        let state = TrustState { version: self.trust.version() + 1, bundles: vec![bundle] };
        match self.trust.learn(state).await {
            Ok(()) => tracing::info!(roots = all.len(), "istiod's roots have changed"),
            Err(error) => tracing::warn!(%error, "istiod's roots are not used; the last ones stay"),
        }
    }

    async fn certify(&self, id: &SpiffeId) -> Result<(Svid, NewKey), RemoteError> {
        let key = NewKey::generate()?;
        let request = request::certificate(key.csr(Some(id))?, self.settings.svid_lifetime, Some(id));
        let mut request = tonic::Request::new(request);
        let token = bearer(&self.settings.token_file).await?;
        request.metadata_mut().insert("authorization", token);
        if let Ok(cluster) = self.settings.cluster_id.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let subject = id.to_string();
        let answer = timeout(CALL_TIMEOUT, self.client.create(&subject, request)).await;
        let answer = answer.unwrap_or_else(|_| {
            let what = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
            self.client.told(Err(tonic::Status::deadline_exceeded(what)))
        })?;
        // Who signed it is who istiod says, as for istio-agent: the server has proven itself by roots believed before.
        if let Some(root) = answer.roots.last().cloned() {
            self.believe(|known| known.of_answer = Some(root)).await;
        }
        Ok((answer.svid(Some(id), &key, &self.client.verifier, SystemTime::now())?, key))
    }
}

impl SvidSource for Istiod {
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Svid, CaError>> {
        Box::pin(async { Ok(self.certify(id).await?.0) })
    }

    fn trust(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.trust.subscribe()
    }

    fn trouble(&self) -> Option<String> {
        self.client.trouble()
    }

    fn trust_in_force(&self, trust: &Arc<TrustBundles>) {
        self.trust.put_in_force(trust);
    }
}

impl IssueExportable for Istiod {
    fn issue_exportable<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<ExportableSvid, CaError>> {
        Box::pin(async {
            let (svid, key) = self.certify(id).await?;
            Ok(ExportableSvid::new(svid, key.to_der()))
        })
    }
}
