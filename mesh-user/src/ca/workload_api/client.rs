//! A Workload API as the source of this node's SVIDs: SPIRE's agent, or another meshd. It gives what is registered for
//! meshd's own process, pushes what is new, and is asked again when it goes away. What it sends is believed only where it fits
//! together: key and leaf, leaf and SPIFFE ID, chain and bundle.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use rustls::{pki_types::PrivatePkcs8KeyDer, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use x509_parser::{
    prelude::{FromDer, X509Certificate},
    revocation_list::CertificateRevocationList,
};
use zeroize::{Zeroize, Zeroizing};

use super::{MAX_ANSWER_BYTES, SECURITY_HEADER};
use crate::{
    ca::{
        CaError, SvidSource,
        proto::workload::{
            JwtBundlesRequest, JwtBundlesResponse, X509svid, X509svidRequest, X509svidResponse,
            spiffe_workload_api_client::SpiffeWorkloadApiClient,
        },
        spiffe_bundle,
    },
    identity::{JwtAuthorities, RevocationList, SpiffeId, Svid, TrustBundles, TrustDomain},
    jwt::json,
    tls::{PeerRole, PeerVerifier, provider},
};

/// Names the socket where the node's file does not (SPIFFE Workload Endpoint section 4).
const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MIN_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// More SVIDs, certificates of one kind or keys of one domain are a mistake.
const MAX_ITEMS: usize = 4096;

/// Why a Workload API gives no SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The address is no Unix socket's.
    #[error(
        "{0:?} is no address of a Workload API: write unix:///path/of/the.sock, here or in SPIFFE_ENDPOINT_SOCKET"
    )]
    Address(String),
    /// Nobody answers, or the stream broke.
    #[error("the Workload API at {path} cannot be used: {what}; it is tried again")]
    Unavailable {
        /// The socket.
        path: PathBuf,
        /// What happened.
        what: String,
    },
    /// The server knows no workload that meshd's process is.
    #[error(
        "the Workload API at {0} has no identity for meshd: register its process there (with SPIRE, an entry for each \
         identity that meshd is to have)"
    )]
    Denied(PathBuf),
    /// What it sent does not fit together.
    #[error("the Workload API at {path} sent what is not believed: {what}")]
    Invalid {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It gave others.
    #[error("the Workload API at {path} gave no SVID for {id}: register that identity for meshd's process")]
    NotRegistered {
        /// The socket.
        path: PathBuf,
        /// Whose SVID was asked for.
        id: String,
    },
}

/// SVIDs and trust from a Workload API. It is asked until this is dropped.
pub struct WorkloadApiSource {
    path: PathBuf,
    received: watch::Receiver<Arc<Received>>,
    trust: watch::Receiver<Arc<TrustBundles>>,
    pushed: watch::Receiver<u64>,
    stop: CancellationToken,
}

impl fmt::Debug for WorkloadApiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApiSource").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for WorkloadApiSource {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What is known so far.
#[derive(Debug, Clone, Default)]
struct Received {
    svids: BTreeMap<SpiffeId, Svid>,
    /// Why there is nothing newer.
    error: Option<ClientError>,
}

impl WorkloadApiSource {
    /// Begins to ask the server at `address` (`unix:///path`); none: the one that `SPIFFE_ENDPOINT_SOCKET` names. Must be
    /// called in a runtime; returns before anything is known.
    ///
    /// # Errors
    /// When the address is none of a Unix socket.
    pub fn start(address: Option<&str>) -> Result<Self, ClientError> {
        let path = match address {
            Some(address) => socket_path(address)?,
            None => socket_path(&std::env::var(ENDPOINT_VARIABLE).unwrap_or_default())?,
        };
        let (sender, received) = watch::channel(Arc::default());
        let (trust_sender, trust) = watch::channel(Arc::default());
        let (push_sender, pushed) = watch::channel(0);
        let stop = CancellationToken::new();
        let publisher = Arc::new(Publisher {
            path: path.clone(),
            received: sender,
            trust: trust_sender,
            pushed: push_sender,
            parts: Mutex::default(),
        });
        for follow in [Follow::X509, Follow::Jwt] {
            let (publisher, stop) = (Arc::clone(&publisher), stop.clone());
            tokio::spawn(async move { stop.run_until_cancelled(follow.run(&publisher)).await });
        }
        Ok(Self { path, received, trust, pushed, stop })
    }
}

impl SvidSource for WorkloadApiSource {
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Svid, CaError>> {
        let mut received = self.received.clone();
        Box::pin(async move {
            // Until the first answer, whatever it is.
            let known = received.wait_for(|r| !r.svids.is_empty() || r.error.is_some()).await;
            let known = known.map(|known| Arc::clone(&known)).unwrap_or_default();
            if let Some(svid) = known.svids.get(id) {
                return Ok(svid.clone());
            }
            let absent = || ClientError::NotRegistered { path: self.path.clone(), id: id.to_string() };
            Err(known.error.clone().unwrap_or_else(absent).into())
        })
    }

    fn trust(&self) -> watch::Receiver<Arc<TrustBundles>> {
        self.trust.clone()
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.pushed.clone())
    }
}

/// A scheme and an absolute path, nothing else (SPIFFE Workload Endpoint section 4).
fn socket_path(address: &str) -> Result<PathBuf, ClientError> {
    let path = address.strip_prefix("unix:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    let path = path.filter(|path| path.starts_with('/') && !path.contains(['?', '#']));
    path.map(PathBuf::from).ok_or_else(|| ClientError::Address(address.to_owned()))
}

/// Puts what both streams say together.
struct Publisher {
    path: PathBuf,
    received: watch::Sender<Arc<Received>>,
    trust: watch::Sender<Arc<TrustBundles>>,
    pushed: watch::Sender<u64>,
    parts: Mutex<TrustBundles>,
}

impl Publisher {
    fn x509(&self, svids: BTreeMap<SpiffeId, Svid>, trust: TrustBundles) {
        // Trust first: who gets a new SVID can believe those that come with it.
        self.trust(|parts| (parts.roots, parts.revoked) = (trust.roots, trust.revoked));
        self.received.send_replace(Arc::new(Received { svids, error: None }));
        self.pushed.send_modify(|count| *count += 1);
    }

    fn trust(&self, change: impl FnOnce(&mut TrustBundles)) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut parts);
        let next = Arc::new(parts.clone());
        self.trust.send_if_modified(|known| {
            let changed = *known != next;
            *known = next;
            changed
        });
    }

    /// What was received before stays.
    fn failed(&self, error: ClientError) {
        let svids = self.received.borrow().svids.clone();
        self.received.send_replace(Arc::new(Received { svids, error: Some(error) }));
    }
}

/// What a stream is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    X509,
    Jwt,
}

impl Follow {
    /// Asks for ever; a server that refuses or goes away is asked again, ever more rarely.
    async fn run(self, publisher: &Publisher) {
        let mut failures = 0;
        loop {
            let error = match self.stream(publisher, &mut failures).await {
                Ok(()) => unavailable(&publisher.path, "it ended the stream"),
                Err(error) => error,
            };
            if self == Self::X509 {
                tracing::warn!(%error, failures, "no new SVIDs from the Workload API");
                publisher.failed(error);
            } else {
                // Not every server has JWT authorities; who needs them is told when a token comes.
                tracing::debug!(%error, failures, "no JWT authorities from the Workload API");
            }
            tokio::time::sleep(backoff(failures, rand::random())).await;
            failures = failures.saturating_add(1);
        }
    }

    async fn stream(self, publisher: &Publisher, failures: &mut u32) -> Result<(), ClientError> {
        let path = &publisher.path;
        let mut client = connect(path).await?;
        let failed = |status: Status| status_error(path, &status);
        match self {
            Self::X509 => {
                let answers = client.fetch_x509svid(meant(X509svidRequest {})).await.map_err(failed)?;
                let mut answers: Streaming<X509svidResponse> = answers.into_inner();
                while let Some(answer) = answers.message().await.map_err(failed)? {
                    let (svids, trust) =
                        read(answer, SystemTime::now()).map_err(|what| invalid(path, what))?;
                    publisher.x509(svids, trust);
                    *failures = 0;
                }
            }
            Self::Jwt => {
                let answers = client.fetch_jwt_bundles(meant(JwtBundlesRequest {})).await.map_err(failed)?;
                let mut answers: Streaming<JwtBundlesResponse> = answers.into_inner();
                while let Some(answer) = answers.message().await.map_err(failed)? {
                    let authorities = read_jwt(&answer).map_err(|what| invalid(path, what))?;
                    publisher.trust(|parts| parts.jwt_authorities = authorities);
                    *failures = 0;
                }
            }
        }
        Ok(())
    }
}

async fn connect(path: &Path) -> Result<SpiffeWorkloadApiClient<Channel>, ClientError> {
    let failed = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        unavailable(path, &format!("{error}{cause}"))
    };
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).map_err(|e| failed(&e))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT);
    let channel = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await;
    let channel = channel.map_err(|_| failed(&io::Error::from(io::ErrorKind::TimedOut)))?;
    let client = SpiffeWorkloadApiClient::new(channel.map_err(|e| failed(&e))?);
    Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
}

fn meant<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    request
}

fn unavailable(path: &Path, what: &str) -> ClientError {
    ClientError::Unavailable { path: path.to_owned(), what: what.to_owned() }
}

fn invalid(path: &Path, what: String) -> ClientError {
    ClientError::Invalid { path: path.to_owned(), what }
}

fn status_error(path: &Path, status: &Status) -> ClientError {
    match status.code() {
        Code::PermissionDenied => ClientError::Denied(path.to_owned()),
        code => {
            // Its own words end up in the log: a bounded piece of one line.
            let said: String = status.message().chars().filter(|c| !c.is_control()).take(200).collect();
            unavailable(path, &format!("{code:?}: {said}"))
        }
    }
}

/// Doubles; half of it is chance.
fn backoff(failures: u32, chance: f64) -> Duration {
    let wait = MIN_BACKOFF.saturating_mul(1 << failures.min(16)).min(MAX_BACKOFF);
    wait.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
}

/// The SVIDs of an answer and what they are held against. One that does not fit together spoils all: a server that is
/// wrong about one is not believed about others.
pub(in crate::ca) fn read(
    mut answer: X509svidResponse,
    now: SystemTime,
) -> Result<(BTreeMap<SpiffeId, Svid>, TrustBundles), String> {
    let mut messages = std::mem::take(&mut answer.svids);
    let result = read_parts(&mut messages, &answer, now);
    for message in &mut messages {
        message.x509_svid_key.zeroize();
    }
    result
}

fn read_parts(
    messages: &mut [X509svid],
    answer: &X509svidResponse,
    now: SystemTime,
) -> Result<(BTreeMap<SpiffeId, Svid>, TrustBundles), String> {
    if messages.is_empty() || messages.len() > MAX_ITEMS || answer.federated_bundles.len() > MAX_ITEMS {
        return Err("no SVID, or too many".to_owned());
    }
    let mut trust = TrustBundles::default();
    let mut ids = Vec::new();
    for message in &*messages {
        let id: SpiffeId =
            message.spiffe_id.parse().map_err(|e| format!("{:.100?}: {e}", message.spiffe_id))?;
        add_roots(&mut trust, id.trust_domain(), &message.bundle)?;
        ids.push(id);
    }
    for (domain, bundle) in &answer.federated_bundles {
        add_roots(&mut trust, &trust_domain(domain)?, bundle)?;
    }
    for der in &answer.crl {
        let list = RevocationList::new(CertificateRevocationListDer::from(der.clone()));
        let list = list.map_err(|error| format!("a revocation list cannot be read: {error}"))?;
        // Nothing says whose it is but its issuer: that is a root's subject, or a certificate below one.
        for domain in domains_of(&trust.roots, &list) {
            let known = trust.revoked.entry(domain).or_default();
            if !known.contains(&list) {
                known.push(list.clone());
            }
        }
    }
    let verified = Arc::new(ArcSwap::from_pointee(trust.clone()));
    let mut svids = BTreeMap::new();
    for (id, message) in ids.into_iter().zip(messages) {
        let svid = svid(&id, message, &verified, now).map_err(|what| format!("the SVID of {id}: {what}"))?;
        // A server may know several for one identity; the first is the default one.
        svids.entry(id).or_insert(svid);
    }
    Ok((svids, trust))
}

fn trust_domain(id: &str) -> Result<TrustDomain, String> {
    let name = id.strip_prefix("spiffe://").unwrap_or(id);
    name.parse().map_err(|error| format!("a bundle of {id:.100?}: {error}"))
}

fn add_roots(trust: &mut TrustBundles, domain: &TrustDomain, bundle: &[u8]) -> Result<(), String> {
    let known = trust.roots.entry(domain.clone()).or_default();
    for root in certificates(bundle).map_err(|what| format!("the bundle of {domain} {what}"))? {
        webpki::anchor_from_trusted_cert(&root)
            .map_err(|e| format!("the bundle of {domain} has a bad root: {e}"))?;
        if !known.contains(&root) {
            known.push(root);
        }
    }
    if known.is_empty() || known.len() > MAX_ITEMS {
        return Err(format!("the bundle of {domain} is empty, or too large"));
    }
    Ok(())
}

/// DER, one behind the other.
fn certificates(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|_| "cannot be read".to_owned())?;
        let own = der.get(..der.len() - rest.len()).unwrap_or_default();
        certificates.push(CertificateDer::from(own.to_vec()));
        der = rest;
        if certificates.len() > MAX_ITEMS {
            return Err("has too many certificates".to_owned());
        }
    }
    Ok(certificates)
}

/// The trust domains that a list can be about: those with a root of its issuer's name, else all, where the verifier finds
/// out with each chain.
fn domains_of(
    roots: &BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    list: &RevocationList,
) -> Vec<TrustDomain> {
    let list = CertificateRevocationList::from_der(list.der());
    let named = |root: &CertificateDer<'_>| match (&list, X509Certificate::from_der(root)) {
        (Ok((_, list)), Ok((_, root))) => list.issuer() == root.subject(),
        _ => false,
    };
    let of: Vec<_> =
        roots.iter().filter(|(_, roots)| roots.iter().any(named)).map(|(domain, _)| domain).collect();
    let of: Vec<_> = if of.is_empty() { roots.keys().collect() } else { of };
    of.into_iter().cloned().collect()
}

fn svid(
    id: &SpiffeId,
    message: &mut X509svid,
    trust: &Arc<ArcSwap<TrustBundles>>,
    now: SystemTime,
) -> Result<Svid, String> {
    let chain = certificates(&message.x509_svid)?;
    let pkcs8 = Zeroizing::new(std::mem::take(&mut message.x509_svid_key));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(
        &PrivatePkcs8KeyDer::from(pkcs8.as_slice()).into(),
    )
    .map_err(|_| "its key is no private key (PKCS #8) that is supported".to_owned())?;
    let pair = CertifiedKey::new(chain.clone(), Arc::clone(&key));
    pair.keys_match().map_err(|_| "the key is not the leaf's".to_owned())?;
    let algorithms = provider().signature_verification_algorithms;
    let own = id.trust_domain().clone();
    let verifier = PeerVerifier::new(own, Vec::new(), Duration::ZERO, Arc::clone(trust), algorithms);
    let expected = [id.clone()].into();
    let believed = verifier.verify(&chain, PeerRole::Client, Some(&expected), now);
    believed.map_err(|error| format!("no peer would believe it: {error}"))?;
    let leaf = chain.first().ok_or("it has no certificate")?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| "its leaf cannot be read".to_owned())?;
    let time = |time: x509_parser::time::ASN1Time| SystemTime::from(time.to_datetime());
    let (not_before, not_after) = (time(leaf.validity().not_before), time(leaf.validity().not_after));
    let serial = format!("{:x}", leaf.serial);
    Ok(Svid { spiffe_id: id.clone(), key, not_before, not_after, serial, chain })
}

pub(in crate::ca) fn read_jwt(
    answer: &JwtBundlesResponse,
) -> Result<BTreeMap<TrustDomain, JwtAuthorities>, String> {
    if answer.bundles.len() > MAX_ITEMS {
        return Err("bundles of too many trust domains".to_owned());
    }
    let mut authorities = BTreeMap::new();
    for (domain, bundle) in &answer.bundles {
        let domain = trust_domain(domain)?;
        let set =
            json::object(bundle).ok_or_else(|| format!("the JWT bundle of {domain} is no JSON object"))?;
        let keys = set.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or_else(|| format!("the JWT bundle of {domain} has no list `keys`"))?;
        // Here they need not say what they are for: SPIRE's do not.
        authorities.insert(domain, spiffe_bundle::jwt_authorities(keys.iter()));
    }
    Ok(authorities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_absolute_path_of_a_unix_socket() {
        for (address, path) in [
            ("unix:///run/spire/agent.sock", Some("/run/spire/agent.sock")),
            ("unix:/run/spire/agent.sock", Some("/run/spire/agent.sock")),
            ("unix://run/spire/agent.sock", None),
            ("unix:run/agent.sock", None),
            ("unix:///run/agent.sock?x=y", None),
            ("tcp://127.0.0.1:8081", None),
            ("/run/spire/agent.sock", None),
            ("", None),
        ] {
            assert_eq!(socket_path(address).ok(), path.map(PathBuf::from), "{address}");
        }
    }

    #[test]
    fn waits_double_up_to_a_bound_and_never_agree() {
        assert_eq!(backoff(0, 1.0), MIN_BACKOFF);
        assert_eq!(backoff(1, 1.0), MIN_BACKOFF * 2);
        assert_eq!(backoff(u32::MAX, 1.0), MAX_BACKOFF);
        assert_eq!(backoff(u32::MAX, 0.0), MAX_BACKOFF / 2);
    }
}
