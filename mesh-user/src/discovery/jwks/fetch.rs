//! One fetch of a key set: resolve, check the address, connect to that very address, ask once, read a bounded answer in
//! bounded time. Never follows a redirect, uses a proxy, or keeps a connection.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, Response, Uri,
    body::Incoming,
    client::conn::http1,
    header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, HOST, LOCATION, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{super::system_roots::system_roots, address};
use crate::jwt::{JwksSource, KeyLocation, KeySet, KeySetError, MAX_JWKS_BYTES, fetchable, json};

/// Why keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a place that anything can be fetched from.
    #[error("{0}")]
    Url(String),
    /// The name does not resolve.
    #[error("{host} does not resolve: {source}")]
    Resolve {
        /// From the URL.
        host: String,
        /// The cause.
        source: io::Error,
    },
    /// Every address that the name has is one that must not be asked.
    #[error(
        "{host} has no address that may be connected to: {address} {why}; allow it in jwks.allowAddresses"
    )]
    Address {
        /// From the URL.
        host: String,
        /// The first of them.
        address: SocketAddr,
        /// What it is.
        why: &'static str,
    },
    /// Nobody answers.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where the name leads.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The server's certificate is not believed, or it speaks no TLS.
    #[error("TLS with {host}: {source}; a private authority belongs in jwks.extraRoots")]
    Tls {
        /// From the URL.
        host: String,
        /// The cause.
        source: io::Error,
    },
    /// Not HTTP, or broken off.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// Not an answer that holds keys.
    #[error("the server answers {0}")]
    Status(u16),
    /// The URL in the policy must be the place itself.
    #[error("the server redirects to {0:?}, which is not followed; name the place itself")]
    Redirect(String),
    /// More than a key set can be.
    #[error("the answer is larger than 128 KiB")]
    TooLarge,
    /// The rule's `timeout`.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Not an `OpenID` provider's configuration.
    #[error("the discovery document {0}")]
    Discovery(&'static str),
    /// Not a key set.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
    /// A key set of which nothing can be used: taken for a mistake of the provider.
    #[error("none of the {0} keys of the set can be used")]
    NoKeys(usize),
}

/// Fetches key sets.
pub(super) struct Fetcher {
    /// Made at the first fetch over https: a node without token issuers has no need of the system's roots.
    tls: OnceCell<TlsConnector>,
    extra_roots: Vec<CertificateDer<'static>>,
    allowed: Vec<IpNet>,
}

impl Fetcher {
    /// Believes the system's roots and `extra_roots`.
    ///
    /// # Errors
    /// When one of `extra_roots` is no certificate.
    pub(super) fn new(
        allowed: Vec<IpNet>,
        extra_roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        let mut checked = RootCertStore::empty();
        extra_roots.iter().try_for_each(|root| checked.add(root.clone()))?;
        Ok(Self { tls: OnceCell::new(), extra_roots, allowed })
    }

    async fn tls(&self) -> io::Result<&TlsConnector> {
        let connector = || async {
            let extra_roots = self.extra_roots.clone();
            // It reads some hundred files.
            tokio::task::spawn_blocking(move || connector(extra_roots)).await.map_err(io::Error::other)?
        };
        self.tls.get_or_try_init(connector).await
    }

    #[cfg(test)]
    pub(super) fn has_read_roots(&self) -> bool {
        self.tls.initialized()
    }

    pub(super) async fn fetch(&self, source: &JwksSource) -> Result<KeySet, FetchError> {
        let url = match &source.location {
            KeyLocation::Jwks(url) => url.to_string(),
            KeyLocation::Discovery(url) => discovered(url, &self.get(url, source.timeout).await?)?,
        };
        let keys = KeySet::parse(&self.get(&url, source.timeout).await?)?;
        if keys.is_empty() { Err(FetchError::NoKeys(keys.skipped())) } else { Ok(keys) }
    }

    async fn get(&self, url: &str, timeout: Duration) -> Result<Bytes, FetchError> {
        let uri = fetchable(url).map_err(FetchError::Url)?;
        let answer = tokio::time::timeout(timeout, self.get_untimed(&uri));
        answer.await.unwrap_or(Err(FetchError::TimedOut(timeout)))
    }

    async fn get_untimed(&self, uri: &Uri) -> Result<Bytes, FetchError> {
        let encrypted = uri.scheme_str() == Some("https");
        // An IPv6 address stands in brackets only in a URL.
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let stream = self.connect(host, port).await?;
        if !encrypted {
            return ask(stream, uri).await;
        }
        let failed = |source| FetchError::Tls { host: host.to_owned(), source };
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(io::Error::other(e)))?;
        let tls = self.tls().await.map_err(failed)?;
        ask(tls.connect(name, stream).await.map_err(failed)?, uri).await
    }

    /// Connects to the first address that may be and answers. The address that was checked is the one that is used: a
    /// name that resolves differently the next time gains nothing.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, FetchError> {
        let unresolved = |source| FetchError::Resolve { host: host.to_owned(), source };
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((host, port)).await.map_err(unresolved)?.collect();
        let own = address::own().map_err(unresolved)?;
        let mut failure = unresolved(io::Error::from(io::ErrorKind::NotFound));
        for address in addresses {
            if let Some(why) = address::refused(address.ip(), &own, &self.allowed) {
                failure = FetchError::Address { host: host.to_owned(), address, why };
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(source) => failure = FetchError::Connect { address, source },
            }
        }
        Err(failure)
    }
}

fn connector(extra_roots: Vec<CertificateDer<'static>>) -> io::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system_roots("key servers"));
    for root in extra_roots {
        roots.add(root).map_err(io::Error::other)?;
    }
    if roots.is_empty() {
        tracing::warn!("no root certificates: keys cannot be fetched over https; install ca-certificates");
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// One request on a connection of its own.
async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    uri: &Uri,
) -> Result<Bytes, FetchError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let authority = uri.authority().map(hyper::http::uri::Authority::as_str).unwrap_or_default();
    let request = Request::get(uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str))
        .header(HOST, authority)
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(ACCEPT_ENCODING, "identity")
        .header(USER_AGENT, concat!("meshd/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| FetchError::Url(error.to_string()))?;
    read(sender.send_request(request).await?).await
}

async fn read(response: Response<Incoming>) -> Result<Bytes, FetchError> {
    let status = response.status();
    if status.is_redirection() {
        let to =
            response.headers().get(LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        return Err(FetchError::Redirect(to.unwrap_or_default().chars().take(200).collect()));
    }
    if !status.is_success() {
        return Err(FetchError::Status(status.as_u16()));
    }
    match Limited::new(response.into_body(), MAX_JWKS_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        // It is the one or the other.
        Err(error) => {
            Err(error.downcast::<hyper::Error>().map_or(FetchError::TooLarge, |e| FetchError::Http(*e)))
        }
    }
}

/// `jwks_uri` of a provider's configuration (`OpenID` Connect Discovery 1.0 section 3).
fn discovered(from: &str, document: &[u8]) -> Result<String, FetchError> {
    let members =
        json::object(document).ok_or(FetchError::Discovery("is not a JSON object with each member once"))?;
    let uri = members.get("jwks_uri").and_then(|uri| uri.as_str());
    let uri = uri.ok_or(FetchError::Discovery("has no jwks_uri"))?;
    // What was asked for in secret is not told in the open.
    if from.starts_with("https://") && !uri.starts_with("https://") {
        return Err(FetchError::Discovery("came by https and names a jwks_uri that is not"));
    }
    Ok(uri.to_owned())
}
