//! Trust in other trust domains, by their bundle endpoints: one task per trust domain fetches its bundle, verifies who
//! serves it, and fetches again before it grows old. The last good bundle stays in force while fetching fails, also over a
//! restart. Bundles of two trust domains are never merged, and never signs anything.
//!
//! Source: SPIFFE Federation.

mod certificate;
mod document;
mod kept;
mod schedule;
mod server;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use hyper::{Uri, header::HeaderValue};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use tokio::{
    sync::{OnceCell, watch},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

pub use certificate::{CertificateFiles, SvidCertificate};
pub use server::{BundleServer, EndpointLimits, OwnTrust, OwnTrustKeeper};

use super::{CaError, read_bundle};
use crate::{
    config::{EndpointProfile, FederatedTrustDomain, FederationConfig, endpoint_url},
    discovery::{
        WebError,
        web::{Answer, Ask, Web, web_connector},
    },
    identity::{RevocationList, SpiffeId, TrustBundles, TrustDomain},
    tls::{PeerVerifier, endpoint_client, provider},
};
use document::{Bundle, MAX_BYTES, Standing};
use kept::{Folder, Kept};

/// One fetch, from the look-up of the name to the last byte.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How far the endpoint's clock may differ from ours when its SVID is verified.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// A bundle that an operator puts there.
const MAX_FILE_BYTES: u64 = MAX_BYTES as u64;

/// How the trust in one other trust domain is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationStatus {
    /// Whose trust it is.
    pub trust_domain: TrustDomain,
    /// What is asked.
    pub bundle_endpoint: String,
    /// Roots in force; 0: nobody of it is believed.
    pub roots: usize,
    /// Of the bundle in force.
    pub sequence: Option<u64>,
    /// Unix time of the last fetch that went well; none: not since the start.
    pub fetched_at_seconds: Option<u64>,
    /// Fetches that failed since the last that did not.
    pub failures: u32,
    /// Why the last fetch failed, or what it brought was not taken; none: it did not.
    pub last_error: Option<String>,
}

/// Why a bundle could not be had.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Web(#[from] WebError),
    #[error("no answer within {TIMEOUT:?}")]
    TimedOut,
    #[error("{0}")]
    Bundle(String),
    #[error(
        "the bundle's number {fetched} is lower than {newest}, which was in force: the older one is ignored"
    )]
    Stale { fetched: u64, newest: u64 },
}

/// The other trust domains of a mesh.
pub struct Federation {
    relationships: Vec<Relationship>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Federation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Federation").field("relationships", &self.relationships.len()).finish_non_exhaustive()
    }
}

/// What all relationships have in common.
struct Shared {
    web: Web,
    /// Of `https_web`; made at the first fetch that needs it.
    web_tls: OnceCell<TlsConnector>,
    extra_roots: Vec<CertificateDer<'static>>,
    folder: Folder,
    /// In force, by trust domain: what endpoints that show an SVID are held against.
    trust: Arc<ArcSwap<TrustBundles>>,
    told: watch::Sender<Arc<TrustBundles>>,
    status: Mutex<BTreeMap<TrustDomain, FederationStatus>>,
}

/// Another trust domain and what is known of it.
struct Relationship {
    domain: TrustDomain,
    endpoint: Uri,
    known_by: KnownBy,
    bundle_file: Option<PathBuf>,
    began_with: Option<String>,
    known: Option<Bundle>,
    newest: Option<u64>,
    /// Of what is known, in the endpoint's words.
    tag: Option<HeaderValue>,
}

enum KnownBy {
    Web,
    Svid(TlsConnector),
}

impl Federation {
    /// Reads what is kept and what operators put there; asks nobody yet. `own` is this mesh's trust domain.
    ///
    /// # Errors
    /// When a file that the configuration names cannot be used, or the state folder cannot.
    pub fn open(config: &FederationConfig, own: &TrustDomain, state_dir: &Path) -> Result<Self, CaError> {
        let federated: Vec<_> = config.trust_domains.iter().map(|entry| &entry.trust_domain).collect();
        let folder = Folder::open(state_dir, &federated)?;
        let extra_roots = config.extra_roots.iter().map(|file| read_bundle(file));
        let trust = Arc::new(ArcSwap::from_pointee(TrustBundles::default()));
        let shared = Arc::new(Shared {
            web: Web {
                allowed: config.allow_addresses.clone(),
                allowed_setting: "federation.allowAddresses",
                tls_hint: "see the profile, endpointSpiffeId and bundleFile of the trust domain, or federation.extraRoots",
            },
            web_tls: OnceCell::new(),
            extra_roots: extra_roots.collect::<Result<Vec<_>, _>>()?.concat(),
            folder,
            told: watch::Sender::new(trust.load_full()),
            status: Mutex::default(),
            trust,
        });
        let verifier = Arc::new(PeerVerifier::new(
            own.clone(),
            Vec::new(),
            CLOCK_SKEW,
            Arc::clone(&shared.trust),
            provider().signature_verification_algorithms,
        ));
        let relationships = config.trust_domains.iter().map(|entry| shared.begin(entry, &verifier));
        Ok(Self { relationships: relationships.collect::<Result<_, _>>()?, shared })
    }

    /// What is believed of the other trust domains, now and after each change. One of which nothing is known yet has no root.
    pub fn trust(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.shared.told.subscribe()
    }

    /// Asks for each trust domain's status, whenever it is called.
    pub fn watcher(&self) -> FederationWatcher {
        FederationWatcher(Arc::clone(&self.shared))
    }

    /// Fetches until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for relationship in self.relationships {
            let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
            tasks.spawn(async move { stop.run_until_cancelled(relationship.keep_fresh(shared)).await });
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a trust domain's bundle is not fetched any more");
            }
        }
    }
}

/// Sees how federation is doing.
#[derive(Clone)]
pub struct FederationWatcher(Arc<Shared>);

impl FederationWatcher {
    /// In force now.
    pub fn trust(&self) -> Arc<TrustBundles> {
        self.0.trust.load_full()
    }

    /// Endpoints' SVIDs are held against these lists from now on. Nobody is told: who merges trust has them already.
    pub fn revoke(&self, revoked: &BTreeMap<TrustDomain, Vec<RevocationList>>) {
        self.0.told.send_if_modified(|told| {
            if told.revoked != *revoked {
                *told = Arc::new(TrustBundles { revoked: revoked.clone(), ..TrustBundles::clone(told) });
                self.0.trust.store(Arc::clone(told));
            }
            false
        });
    }

    /// By trust domain.
    pub fn status(&self) -> Vec<FederationStatus> {
        self.0.status().values().cloned().collect()
    }

    /// What an operator must act on.
    pub fn problems(&self) -> Vec<String> {
        let of = |status: &FederationStatus| {
            let error = status.last_error.as_ref()?;
            let domain = &status.trust_domain;
            Some(if status.roots == 0 {
                format!("nobody of trust domain {domain} is believed, its bundle cannot be had: {error}")
            } else {
                format!("the trust bundle of {domain} is not refreshed, the last one stays in force: {error}")
            })
        };
        self.0.status().values().filter_map(of).collect()
    }
}

impl Shared {
    fn begin(
        self: &Arc<Self>,
        entry: &FederatedTrustDomain,
        verifier: &Arc<PeerVerifier>,
    ) -> Result<Relationship, CaError> {
        let invalid = |what: String| CaError::Invalid {
            path: PathBuf::from(format!("federation.trustDomains of {}", entry.trust_domain)),
            what,
        };
        let known_by = match (entry.profile, &entry.endpoint_spiffe_id) {
            (EndpointProfile::HttpsWeb, _) => KnownBy::Web,
            (EndpointProfile::HttpsSpiffe, Some(id)) => {
                let id: SpiffeId = id.parse().map_err(|error| invalid(format!("{error}")))?;
                let client = endpoint_client(Arc::clone(verifier), id).map_err(|e| invalid(e.to_string()))?;
                KnownBy::Svid(client.into())
            }
            (EndpointProfile::HttpsSpiffe, None) => return Err(invalid("lacks endpointSpiffeId".to_owned())),
        };
        let endpoint = endpoint_url(&entry.bundle_endpoint).map_err(invalid)?;
        let mut relationship = Relationship {
            domain: entry.trust_domain.clone(),
            endpoint,
            known_by,
            bundle_file: entry.bundle_file.clone(),
            began_with: None,
            known: None,
            newest: None,
            tag: None,
        };
        if let Some((kept, bundle)) = self.folder.load(&relationship.domain) {
            relationship.began_with = kept.began_with;
            relationship.newest = kept.newest;
            relationship.known = Some(bundle);
        }
        relationship.look_at_file()?;
        self.put_into_force(&relationship);
        self.status().insert(
            relationship.domain.clone(),
            FederationStatus {
                trust_domain: relationship.domain.clone(),
                bundle_endpoint: relationship.endpoint.to_string(),
                roots: relationship.known.as_ref().map_or(0, |bundle| bundle.roots.len()),
                sequence: relationship.known.as_ref().and_then(|bundle| bundle.sequence),
                fetched_at_seconds: None,
                failures: 0,
                last_error: None,
            },
        );
        Ok(relationship)
    }

    fn status(&self) -> MutexGuard<'_, BTreeMap<TrustDomain, FederationStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A trust domain that is followed has an entry, if an empty one: it is never taken for another name of ours.
    fn put_into_force(&self, relationship: &Relationship) {
        let known = relationship.known.as_ref();
        let (roots, keys) =
            known.map(|bundle| (bundle.roots.clone(), bundle.jwt_authorities.clone())).unwrap_or_default();
        let domain = &relationship.domain;
        let changed = self.told.send_if_modified(|told| {
            if told.roots.get(domain) == Some(&roots) && told.jwt_authorities.get(domain) == Some(&keys) {
                return false;
            }
            let mut trust = TrustBundles::clone(told);
            trust.roots.insert(domain.clone(), roots);
            trust.jwt_authorities.insert(domain.clone(), keys);
            *told = Arc::new(trust);
            self.trust.store(Arc::clone(told));
            true
        });
        if changed {
            let roots = relationship.known.as_ref().map_or(0, |bundle| bundle.roots.len());
            tracing::info!(trust_domain = %relationship.domain, roots, "the trust in another trust domain changed");
        }
    }

    async fn web_tls(&self) -> io::Result<&TlsConnector> {
        let connector = || async {
            let extra_roots = self.extra_roots.clone();
            let connector = move || web_connector(extra_roots, "bundle endpoints");
            tokio::task::spawn_blocking(connector).await.map_err(io::Error::other)?
        };
        self.web_tls.get_or_try_init(connector).await
    }
}

impl Relationship {
    async fn keep_fresh(mut self, shared: Arc<Shared>) {
        let mut failures = 0_u32;
        loop {
            failures = if self.refresh(&shared, failures).await { 0 } else { failures.saturating_add(1) };
            let hint = self.known.as_ref().and_then(|bundle| bundle.refresh_hint);
            tokio::time::sleep(schedule::delay(self.known.is_some(), hint, failures, rand::random())).await;
        }
    }

    /// One round; whether it went well. `failures` is how many before it did not.
    async fn refresh(&mut self, shared: &Shared, failures: u32) -> bool {
        if let Err(error) = self.look_at_file() {
            tracing::warn!(trust_domain = %self.domain, %error, "the bundle file is not used");
        }
        shared.put_into_force(self);
        let outcome = tokio::time::timeout(TIMEOUT, self.fetch(shared)).await;
        let outcome = outcome.unwrap_or(Err(FetchError::TimedOut));
        shared.put_into_force(self);
        let good = outcome.is_ok();
        self.report(shared, outcome, if good { 0 } else { failures.saturating_add(1) });
        good
    }

    /// An operator's bundle is the latest until the next fetch (SPIFFE Federation section 4.2): how trust is mended when
    /// the endpoint's own keys were all replaced.
    fn look_at_file(&mut self) -> Result<(), CaError> {
        let Some(path) = &self.bundle_file else { return Ok(()) };
        let text = read_bounded(path)?;
        let digest = hex(digest(&SHA256, text.as_bytes()).as_ref());
        if self.began_with.as_ref() == Some(&digest) && self.known.is_some() {
            return Ok(());
        }
        let bundle = Bundle::read(path, &text, true);
        let bundle = bundle.map_err(|what| CaError::Invalid { path: path.clone(), what })?;
        self.newest = bundle.sequence;
        self.known = Some(bundle);
        self.began_with = Some(digest);
        self.tag = None;
        Ok(())
    }

    /// Asks once, and takes what is newer than what is known. What was taken is on disk.
    async fn fetch(&mut self, shared: &Shared) -> Result<(), FetchError> {
        let tls = match &self.known_by {
            KnownBy::Svid(connector) => connector,
            KnownBy::Web => {
                shared.web_tls().await.map_err(|error| shared.web.distrusted(&self.endpoint, error))?
            }
        };
        let what = Ask { accept: "application/json", max_bytes: MAX_BYTES, known: self.tag.as_ref() };
        let Answer::Document(body, tag) = shared.web.get(&self.endpoint, Some(tls), what).await? else {
            return Ok(());
        };
        let text = std::str::from_utf8(&body)
            .map_err(|_| FetchError::Bundle("the bundle is no UTF-8".to_owned()))?;
        let from = PathBuf::from(self.endpoint.to_string());
        let bundle = Bundle::read(&from, text, false).map_err(FetchError::Bundle)?;
        match bundle.standing(self.known.as_ref(), self.newest) {
            Standing::Stale => {
                return Err(FetchError::Stale {
                    fetched: bundle.sequence.unwrap_or_default(),
                    newest: self.newest.unwrap_or_default(),
                });
            }
            Standing::New | Standing::Same => {}
        }
        self.newest = self.newest.max(bundle.sequence);
        self.tag = tag;
        self.known = Some(bundle);
        let kept = Kept {
            trust_domain: self.domain.clone(),
            began_with: self.began_with.clone(),
            newest: self.newest,
            bundle: text.to_owned(),
        };
        let folder = shared.folder.clone();
        // It is in force either way: without the file a restart begins with the operator's bundle again.
        match tokio::task::spawn_blocking(move || folder.store(&kept)).await {
            Ok(Err(error)) => tracing::warn!(%error, "a trust bundle could not be kept"),
            Err(error) => tracing::warn!(%error, "a trust bundle could not be kept"),
            Ok(Ok(())) => {}
        }
        Ok(())
    }

    fn report(&self, shared: &Shared, outcome: Result<(), FetchError>, failures: u32) {
        let mut all = shared.status();
        let Some(status) = all.get_mut(&self.domain) else { return };
        status.roots = self.known.as_ref().map_or(0, |bundle| bundle.roots.len());
        status.sequence = self.known.as_ref().and_then(|bundle| bundle.sequence);
        status.failures = failures;
        match outcome {
            Ok(()) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                status.fetched_at_seconds = Some(now.map_or(0, |since| since.as_secs()));
                status.last_error = None;
            }
            Err(error) => {
                let error = error.to_string();
                if status.last_error.as_ref() != Some(&error) {
                    let (domain, url) = (&self.domain, &self.endpoint);
                    tracing::warn!(trust_domain = %domain, %url, %error, "a trust bundle cannot be fetched, the one known stays in force");
                }
                status.last_error = Some(error);
            }
        }
    }
}

fn read_bounded(path: &Path) -> Result<String, CaError> {
    use std::io::Read as _;
    let io = |action| move |source| CaError::Io { path: path.to_owned(), action, source };
    let file = std::fs::File::open(path).map_err(io("open the trust bundle"))?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(io("read the trust bundle"))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let what = format!("is larger than {} KiB, so no trust bundle", MAX_FILE_BYTES >> 10);
        return Err(CaError::Invalid { path: path.to_owned(), what });
    }
    Ok(text)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
