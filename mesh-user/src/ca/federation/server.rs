//! The bundle endpoint: answers `GET /` over TLS with this trust domain's own bundle, and nothing else. Asks nobody who they
//! are, since a bundle is public; bounds connections, sizes and time.
//!
//! Source: SPIFFE Federation sections 4 and 5.2.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::ResolvesServerCert;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::hex;
use crate::{
    ca::{CaError, files, spiffe_bundle},
    identity::JwtAuthorities,
    tls::endpoint_server,
};

/// In the state folder: the number that this node last published, and of what.
const PUBLISHED: &str = "published-bundle.json";

/// Bounds on those who ask.
#[derive(Debug, Clone, Copy)]
pub struct EndpointLimits {
    /// Connections at once; more are closed at accept.
    pub connections: usize,
    /// From accept to the last byte of the answer.
    pub connection_timeout: Duration,
    /// Of a request's header, in bytes; at least 8192.
    pub header_bytes: usize,
}

impl Default for EndpointLimits {
    fn default() -> Self {
        Self { connections: 64, connection_timeout: Duration::from_secs(10), header_bytes: 8192 }
    }
}

/// This trust domain's bundle, as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnTrust {
    body: Bytes,
    tag: HeaderValue,
}

impl OwnTrust {
    /// The bundle of `roots` and of the keys of JWT-SVIDs. `sequence` grows with each change, over restarts and replicas; whoever asks is told to look
    /// again after `refresh_hint`.
    ///
    /// # Errors
    /// When a root's key is of a type that JWK has no form for.
    pub fn new(
        roots: &[CertificateDer<'_>],
        jwt: &JwtAuthorities,
        sequence: u64,
        refresh_hint: Duration,
    ) -> Result<Self, CaError> {
        let mut bundle = spiffe_bundle::write(roots, jwt, UNIX_EPOCH)?;
        bundle["spiffe_sequence"] = json!(sequence);
        bundle["spiffe_refresh_hint"] = json!(refresh_hint.as_secs());
        let body = Bytes::from(bundle.to_string());
        let tag = format!("\"{}\"", hex(digest(&SHA256, &body).as_ref()));
        let tag = HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("\"\""));
        Ok(Self { body, tag })
    }

    /// JSON, UTF-8.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Whether a client says that it has this very one (RFC 9110 section 13.1.2).
    fn is_known(&self, if_none_match: Option<&HeaderValue>) -> bool {
        let Some(known) = if_none_match.and_then(|value| value.to_str().ok()) else { return false };
        let own = self.tag.to_str().unwrap_or_default();
        known.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == own)
    }
}

/// Numbers a node's own bundle where its CA does not: each change of contents gets a higher number than the last, which is
/// kept in a file.
#[derive(Debug)]
pub struct OwnTrustKeeper {
    state_dir: PathBuf,
    refresh_hint: Duration,
    last: Option<Published>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Published {
    sequence: u64,
    /// SHA-256 of the roots and keys, hex.
    of: String,
}

impl OwnTrustKeeper {
    /// Goes on with the number in the state folder, if there is one.
    pub fn open(state_dir: &Path, refresh_hint: Duration) -> Self {
        let kept = files::read_secret(&state_dir.join(PUBLISHED));
        let last = kept
            .inspect_err(|error| tracing::warn!(%error, "the published bundle's number begins anew"))
            .ok()
            .flatten()
            .and_then(|text| serde_json::from_str(&text).ok());
        Self { state_dir: state_dir.to_owned(), refresh_hint, last }
    }

    /// The bundle of these roots and keys of JWT-SVIDs, with the last number where they are the same, else with one that is higher, also than
    /// those of other nodes that published before now.
    ///
    /// # Errors
    /// When the number cannot be kept or the bundle not be written.
    pub fn publish(
        &mut self,
        roots: &[CertificateDer<'_>],
        jwt: &JwtAuthorities,
        now: SystemTime,
    ) -> Result<OwnTrust, CaError> {
        let keys = jwt.keys().map(|kid| kid.as_bytes());
        let each = roots.iter().map(AsRef::as_ref).chain(keys).map(|one| hex(digest(&SHA256, one).as_ref()));
        let of = hex(digest(&SHA256, each.collect::<String>().as_bytes()).as_ref());
        let last = self.last.as_ref();
        if let Some(last) = last.filter(|last| last.of == of) {
            return OwnTrust::new(roots, jwt, last.sequence, self.refresh_hint);
        }
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let published =
            Published { sequence: last.map_or(now, |last| now.max(last.sequence.saturating_add(1))), of };
        let text = json!(published).to_string();
        files::write(&self.state_dir, PUBLISHED, text.as_bytes(), 0o600)?;
        let trust = OwnTrust::new(roots, jwt, published.sequence, self.refresh_hint);
        self.last = Some(published);
        trust
    }
}

/// The bound endpoint.
pub struct BundleServer {
    listener: TcpListener,
    tls: TlsAcceptor,
    limits: EndpointLimits,
}

impl std::fmt::Debug for BundleServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BundleServer").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl BundleServer {
    /// Binds it, so that a process that cannot have the address says so at its start.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(
        address: SocketAddr,
        certificate: Arc<dyn ResolvesServerCert>,
        limits: EndpointLimits,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let tls = endpoint_server(certificate).map_err(io::Error::other)?.into();
        Ok(Self { listener, tls, limits })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves the newest of `trust` until `stop`.
    pub async fn serve(self, trust: watch::Receiver<Arc<OwnTrust>>, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // EMFILE and its like stay until something closes.
                    tracing::warn!(%error, "a connection to the bundle endpoint could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let (tls, limits, trust, stop) = (self.tls.clone(), self.limits, trust.clone(), stop.clone());
            tokio::spawn(async move {
                let conversation =
                    tokio::time::timeout(limits.connection_timeout, converse(stream, tls, limits, trust));
                if let Some(Ok(Err(error))) = stop.run_until_cancelled(conversation).await {
                    tracing::debug!(%error, "a connection to the bundle endpoint ended badly");
                }
                drop(slot);
            });
        }
    }
}

/// One request and its answer.
async fn converse(
    stream: TcpStream,
    tls: TlsAcceptor,
    limits: EndpointLimits,
    trust: watch::Receiver<Arc<OwnTrust>>,
) -> io::Result<()> {
    let stream = tls.accept(stream).await?;
    let service = service_fn(|request| {
        let response = answer(&request, &trust.borrow());
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.connection_timeout)
        .max_buf_size(limits.header_bytes.max(8192))
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

fn answer<B>(request: &Request<B>, trust: &OwnTrust) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    response.headers_mut().insert(ETAG, trust.tag.clone());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if trust.is_known(request.headers().get(IF_NONE_MATCH)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = Full::new(trust.body.clone());
    response
}
