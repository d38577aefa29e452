//! One request for a document: resolve, check the address, connect to that very address, ask once, read a bounded answer.
//! Never follows a redirect, uses a proxy, or keeps a connection. Whoever calls bounds the time.

mod address;

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{
        ACCEPT, ACCEPT_ENCODING, CONNECTION, ETAG, HOST, HeaderValue, IF_NONE_MATCH, LOCATION, USER_AGENT,
    },
};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::system_roots::system_roots;

/// Why a document could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
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
    #[error("{host} has no address that may be connected to: {address} {why}; allow it in {setting}")]
    Address {
        /// From the URL.
        host: String,
        /// The first of them.
        address: SocketAddr,
        /// What it is.
        why: &'static str,
        /// The field of the node's file that would allow it.
        setting: &'static str,
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
    #[error("TLS with {host}: {source}; {hint}")]
    Tls {
        /// From the URL.
        host: String,
        /// The cause.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// Not HTTP, or broken off.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// Not an answer that holds a document.
    #[error("the server answers {0}")]
    Status(u16),
    /// The URL must be the place itself.
    #[error("the server redirects to {0:?}, which is not followed; name the place itself")]
    Redirect(String),
    /// More than such a document can be.
    #[error("the answer is larger than {} KiB", .0 / 1024)]
    TooLarge(usize),
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// Media types.
    pub(crate) accept: &'static str,
    /// Of the answer's body.
    pub(crate) max_bytes: usize,
    /// The `ETag` of what is known already.
    pub(crate) known: Option<&'a HeaderValue>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The document, and its `ETag`.
    Document(Bytes, Option<HeaderValue>),
    /// What is known already is the newest.
    NotModified,
}

/// Asks web servers.
#[derive(Debug)]
pub(crate) struct Web {
    /// Addresses that may be connected to although they are loopback, link-local, the node's own, or a metadata service.
    pub(crate) allowed: Vec<IpNet>,
    /// The field of the node's file that `allowed` is from.
    pub(crate) allowed_setting: &'static str,
    /// What to do when a server is not believed.
    pub(crate) tls_hint: &'static str,
}

impl Web {
    /// Asks once. `tls` is for URLs of the scheme https.
    ///
    /// # Errors
    /// When there is no answer, or none that is a document.
    pub(crate) async fn get(
        &self,
        uri: &Uri,
        tls: Option<&TlsConnector>,
        what: Ask<'_>,
    ) -> Result<Answer, WebError> {
        let encrypted = uri.scheme_str() == Some("https");
        let (host, port) = (host(uri), uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 }));
        let stream = self.connect(host, port).await?;
        if !encrypted {
            return ask(stream, uri, what).await;
        }
        let failed = |source| self.distrusted(uri, source);
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(io::Error::other(e)))?;
        let tls = tls.ok_or_else(|| failed(io::Error::other("nothing to speak it with")))?;
        ask(tls.connect(name, stream).await.map_err(failed)?, uri, what).await
    }

    /// TLS did not come about.
    pub(crate) fn distrusted(&self, uri: &Uri, source: io::Error) -> WebError {
        WebError::Tls { host: host(uri).to_owned(), source: in_our_words(source), hint: self.tls_hint }
    }

    /// Connects to the first address that may be and answers. The address that was checked is the one that is used: a
    /// name that resolves differently the next time gains nothing.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, WebError> {
        let unresolved = |source| WebError::Resolve { host: host.to_owned(), source };
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((host, port)).await.map_err(unresolved)?.collect();
        let own = address::own().map_err(unresolved)?;
        let mut failure = unresolved(io::Error::from(io::ErrorKind::NotFound));
        for address in addresses {
            if let Some(why) = address::refused(address.ip(), &own, &self.allowed) {
                let setting = self.allowed_setting;
                failure = WebError::Address { host: host.to_owned(), address, why, setting };
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(source) => failure = WebError::Connect { address, source },
            }
        }
        Err(failure)
    }
}

/// What a verifier of ours said, without what rustls wraps it in.
fn in_our_words(error: io::Error) -> io::Error {
    use rustls::{CertificateError::Other, Error::InvalidCertificate};
    match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(InvalidCertificate(Other(ours))) => io::Error::other(ours.0.to_string()),
        _ => error,
    }
}

/// An IPv6 address stands in brackets only in a URL.
fn host(uri: &Uri) -> &str {
    let host = uri.host().unwrap_or_default();
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

/// Believes the system's roots and `extra_roots`. Reads some hundred files, so it may block for a moment; `whose` are the
/// servers, for the log.
///
/// # Errors
/// When one of `extra_roots` is no certificate.
pub(crate) fn web_connector(
    extra_roots: Vec<CertificateDer<'static>>,
    whose: &str,
) -> io::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system_roots(whose));
    for root in extra_roots {
        roots.add(root).map_err(io::Error::other)?;
    }
    if roots.is_empty() {
        tracing::warn!("no root certificates: {whose} cannot be asked over https; install ca-certificates");
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
    what: Ask<'_>,
) -> Result<Answer, WebError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let authority = uri.authority().map(hyper::http::uri::Authority::as_str).unwrap_or_default();
    let mut request = Request::get(uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str))
        .header(HOST, authority)
        .header(ACCEPT, what.accept)
        .header(ACCEPT_ENCODING, "identity")
        .header(USER_AGENT, concat!("meshd/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close");
    if let Some(known) = what.known {
        request = request.header(IF_NONE_MATCH, known);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| WebError::Url(error.to_string()))?;
    read(sender.send_request(request).await?, what).await
}

async fn read(response: Response<Incoming>, what: Ask<'_>) -> Result<Answer, WebError> {
    let status = response.status();
    if status == StatusCode::NOT_MODIFIED && what.known.is_some() {
        return Ok(Answer::NotModified);
    }
    if status.is_redirection() {
        let to =
            response.headers().get(LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        return Err(WebError::Redirect(to.unwrap_or_default().chars().take(200).collect()));
    }
    if !status.is_success() {
        return Err(WebError::Status(status.as_u16()));
    }
    let tag = response.headers().get(ETAG).cloned();
    match Limited::new(response.into_body(), what.max_bytes).collect().await {
        Ok(body) => Ok(Answer::Document(body.to_bytes(), tag)),
        // It is the one or the other.
        Err(error) => Err(error
            .downcast::<hyper::Error>()
            .map_or(WebError::TooLarge(what.max_bytes), |e| WebError::Http(*e))),
    }
}
