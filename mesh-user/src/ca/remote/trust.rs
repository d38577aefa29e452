//! Whom to believe, as a CA elsewhere tells it: read with bounds, and the last word of it kept in a file, so that a restart
//! without the CA still verifies peers. The file holds certificates and revocation lists only.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use prost::Message as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::sync::watch;

use super::{RemoteError, channel::MAX_ANSWER_BYTES};
use crate::{
    ca::{
        CaError, files,
        proto::meshd::{Bundle, TrustState},
        spiffe_bundle,
    },
    identity::{JwtAuthorities, RevocationList, TrustBundles, TrustDomain},
};

/// In the node's `stateDir`.
const FILE: &str = "trust.pb";
const MAX_DOMAINS: usize = 256;
const MAX_ROOTS: usize = 64;
const MAX_LISTS: usize = 64;

/// What is believed now.
pub(super) struct Trust {
    domain: TrustDomain,
    /// For verifiers of this module.
    pub(super) bundles: Arc<ArcSwap<TrustBundles>>,
    /// For the daemon.
    told: watch::Sender<Arc<TrustBundles>>,
    /// Which version a value of `told` is, and which one decides about connections.
    versions: Mutex<Versions>,
    in_force: watch::Sender<u64>,
    directory: PathBuf,
}

struct Versions {
    told: u64,
    bundles: Arc<TrustBundles>,
}

impl Trust {
    /// What was kept, else what the roots file says.
    pub(super) fn open(directory: &Path, domain: TrustDomain, roots: TrustBundles) -> Self {
        let kept = read(directory).and_then(|state| Some((state.version, parse(&domain, &state).ok()?)));
        let kept = kept.inspect(|(version, _)| {
            tracing::info!(version, "the trust that the CA told last is in force until it tells more");
        });
        let (version, bundles) = kept.unwrap_or((0, roots));
        let bundles = Arc::new(bundles);
        Self {
            domain,
            bundles: Arc::new(ArcSwap::new(Arc::clone(&bundles))),
            told: watch::Sender::new(Arc::clone(&bundles)),
            versions: Mutex::new(Versions { told: version, bundles }),
            in_force: watch::Sender::new(0),
            directory: directory.to_owned(),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.told.subscribe()
    }

    /// Versions that decide about connections, to be acknowledged.
    pub(super) fn in_force(&self) -> watch::Receiver<u64> {
        self.in_force.subscribe()
    }

    /// Whether any root of our own trust domain is known.
    pub(super) fn is_known(&self) -> bool {
        self.bundles.load().roots.contains_key(&self.domain)
    }

    /// The version that was told last.
    pub(super) fn version(&self) -> u64 {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).told
    }

    /// Takes what the CA tells; keeps it in the file.
    ///
    /// # Errors
    /// When it is nothing that can be believed: what is in force stays.
    pub(super) async fn learn(&self, state: TrustState) -> Result<(), RemoteError> {
        let bundles = parse(&self.domain, &state)
            .map_err(|what| RemoteError::Answer { subject: "its trust".to_owned(), what })?;
        let bundles = Arc::new(bundles);
        {
            let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
            *versions = Versions { told: state.version, bundles: Arc::clone(&bundles) };
        }
        self.bundles.store(Arc::clone(&bundles));
        self.told.send_replace(bundles);
        let directory = self.directory.clone();
        let kept = tokio::task::spawn_blocking(move || {
            files::write(&directory, FILE, &state.encode_to_vec(), 0o600)
        });
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, "what the CA tells of trust is not kept: a restart without the CA believes older word");
        }
        Ok(())
    }

    /// The daemon decides by this now.
    pub(super) fn put_in_force(&self, bundles: &Arc<TrustBundles>) {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&versions.bundles, bundles) {
            let version = versions.told;
            self.in_force.send_if_modified(|known| std::mem::replace(known, version) != version);
        }
    }
}

fn read(directory: &Path) -> Option<TrustState> {
    let path = directory.join(FILE);
    let bytes = match files::read_private(&path, MAX_ANSWER_BYTES as u64) {
        Ok(bytes) => bytes?,
        Err(error) => {
            tracing::warn!(%error, "the trust that was kept is not used");
            return None;
        }
    };
    let state = TrustState::decode(bytes.as_slice());
    state.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot be read")).ok()
}

/// The bundles that a message holds. `own` must be among them.
pub(in crate::ca) fn parse(own: &TrustDomain, state: &TrustState) -> Result<TrustBundles, String> {
    if state.bundles.len() > MAX_DOMAINS || state.encoded_len() > MAX_ANSWER_BYTES {
        return Err("it has more trust domains or bytes than any mesh".to_owned());
    }
    let mut bundles = TrustBundles::default();
    for bundle in &state.bundles {
        let name = bundle.trust_domain.strip_prefix("spiffe://").unwrap_or(&bundle.trust_domain);
        let domain: TrustDomain = name.parse().map_err(|error| format!("{name:?}: {error}"))?;
        if bundle.roots.len() > MAX_ROOTS || bundle.revocation_lists.len() > MAX_LISTS {
            return Err(format!("{domain} has more than {MAX_ROOTS} roots or {MAX_LISTS} revocation lists"));
        }
        let mut roots = Vec::new();
        for root in &bundle.roots {
            let root = CertificateDer::from(root.clone());
            webpki::anchor_from_trusted_cert(&root)
                .map_err(|error| format!("{domain}: bad root: {error}"))?;
            roots.push(root);
        }
        let mut lists = Vec::new();
        for list in &bundle.revocation_lists {
            let list = RevocationList::new(CertificateRevocationListDer::from(list.clone()));
            lists.push(list.map_err(|error| format!("{domain}: bad revocation list: {error}"))?);
        }
        if bundles.roots.insert(domain.clone(), roots).is_some() {
            return Err(format!("{domain} comes twice"));
        }
        let keys = jwt_authorities(bundle).map_err(|what| format!("{domain}: {what}"))?;
        if !keys.is_empty() {
            bundles.jwt_authorities.insert(domain.clone(), keys);
        }
        if !lists.is_empty() {
            bundles.revoked.insert(domain, lists);
        }
    }
    if bundles.roots.get(own).is_none_or(Vec::is_empty) {
        return Err(format!("it has no root of {own}, so no SVID could be believed"));
    }
    Ok(bundles)
}

fn jwt_authorities(bundle: &Bundle) -> Result<JwtAuthorities, String> {
    if bundle.jwt_authorities.len() > MAX_ROOTS {
        return Err(format!("more than {MAX_ROOTS} keys of JWT-SVIDs"));
    }
    let keys = bundle.jwt_authorities.iter().map(|key| serde_json::from_slice(key));
    let keys: Vec<serde_json::Value> =
        keys.collect::<Result<_, _>>().map_err(|error| format!("a key of JWT-SVIDs is no JSON: {error}"))?;
    Ok(spiffe_bundle::jwt_authorities(keys.iter()))
}

/// Roots from a file that an operator or Kubernetes keeps; links are followed, as its mounts are made of them.
///
/// # Errors
/// When it cannot be read, or holds no root.
pub(super) fn roots_file(path: &Path, domain: &TrustDomain) -> Result<TrustBundles, CaError> {
    let text = files::read_mounted(path)?;
    let roots = files::parse_bundle(path, &text)?;
    Ok(TrustBundles { roots: [(domain.clone(), roots)].into(), ..TrustBundles::default() })
}
