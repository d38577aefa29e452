//! meshctl's side of the admin API: one short request at a time over the Unix socket, with errors that say
//! what to do. Answers are bounded in size and time.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

use super::{api::ApiError, ca_server::CA_SOCKET_NAME, server::SOCKET_NAME};

/// Longest answer taken, in bytes: 65 536 connections at about 1 KiB each.
const MAX_ANSWER_BYTES: usize = 96 * 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(45);

/// Why meshd gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "meshd is not running: {path}: {source}\nstart it with `systemctl start meshd` or `meshd run --config FILE`, or name its folder with --runtime-dir"
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The failing call's error.
        source: io::Error,
    },
    /// No `meshd ca` listens.
    #[error(
        "meshd ca is not running: {path}: {source}\nstart it with `systemctl start meshd-ca` or `meshd ca --config FILE`, or name its folder with --ca-runtime-dir"
    )]
    CaNotRunning {
        /// The socket.
        path: PathBuf,
        /// The failing call's error.
        source: io::Error,
    },
    /// The file's mode forbids it, or meshd refused this user.
    #[error("permission denied on {0}: run meshctl as root or as the daemon's user")]
    PermissionDenied(PathBuf),
    /// The socket cannot be used.
    #[error("meshd's admin socket {path} cannot be used: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The failing call's error.
        source: io::Error,
    },
    /// It closed, or spoke no HTTP.
    #[error("meshd closed the connection without an answer ({0}); its log says why (`journalctl -u meshd`)")]
    NoAnswer(String),
    /// No answer in time.
    #[error("meshd did not answer within {} s; is it overloaded? See `systemctl status meshd`", TIMEOUT.as_secs())]
    TimedOut,
    /// It answered with a failure.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What meshd says.
        message: String,
    },
    /// Not the document expected.
    #[error("meshd's answer is not understood ({0}); are meshd and meshctl of the same version?")]
    BadAnswer(String),
}

/// A client for the daemon of one runtime folder.
#[derive(Debug, Clone)]
pub struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    /// For the daemon whose runtime folder this is.
    pub fn new(runtime_dir: &Path) -> Self {
        Self { socket: runtime_dir.join(SOCKET_NAME) }
    }

    /// For the `meshd ca` whose runtime folder this is.
    pub fn of_ca(runtime_dir: &Path) -> Self {
        Self { socket: runtime_dir.join(CA_SOCKET_NAME) }
    }

    /// `GET` of a JSON document.
    pub async fn get<T: DeserializeOwned>(&self, path_and_query: &str) -> Result<T, ClientError> {
        parse(&self.request(Method::GET, path_and_query).await?)
    }

    /// `POST` without body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        parse(&self.request(Method::POST, path).await?)
    }

    /// `POST` of a JSON document.
    pub async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::BadAnswer(error.to_string()))?;
        parse(&self.request_with(Method::POST, path, body.into()).await?)
    }

    /// `GET` of plain text.
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let body = self.request(Method::GET, path).await?;
        String::from_utf8(body.into()).map_err(|error| ClientError::BadAnswer(error.to_string()))
    }

    async fn request(&self, method: Method, path_and_query: &str) -> Result<Bytes, ClientError> {
        self.request_with(method, path_and_query, Bytes::new()).await
    }

    async fn request_with(
        &self,
        method: Method,
        path_and_query: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let exchange = self.exchange(method, path_and_query, body);
        tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_elapsed| ClientError::TimedOut)?
    }

    async fn exchange(
        &self,
        method: Method,
        path_and_query: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.connect_error(source))?;
        exchange_over(stream, method, path_and_query, body).await
    }

    fn connect_error(&self, source: io::Error) -> ClientError {
        let path = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if path.ends_with(CA_SOCKET_NAME) => {
                ClientError::CaNotRunning { path, source }
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path, source }
            }
            io::ErrorKind::PermissionDenied => ClientError::PermissionDenied(path),
            _ => ClientError::Connect { path, source },
        }
    }
}

/// One request over a connection that is then closed.
pub(super) async fn exchange_over<S>(
    stream: S,
    method: Method,
    path_and_query: &str,
    body: Bytes,
) -> Result<Bytes, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let no_answer = |error: hyper::Error| ClientError::NoAnswer(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(no_answer)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path_and_query)
        .header(header::HOST, "meshd")
        .header(header::CONNECTION, "close")
        .body(Full::new(body))
        .map_err(|error| ClientError::NoAnswer(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(no_answer)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| ClientError::NoAnswer(error.to_string()))?.to_bytes();
    if status == StatusCode::OK {
        return Ok(body);
    }
    let message = match serde_json::from_slice::<ApiError>(&body) {
        Ok(document) => document.error,
        Err(_) => format!("meshd answered {status}: {}", String::from_utf8_lossy(&body).trim()),
    };
    Err(ClientError::Refused { status: status.as_u16(), message })
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::BadAnswer(error.to_string()))
}

/// Percent-encodes a value for a query string (RFC 3986 section 2.1).
pub fn query_value(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            use std::fmt::Write;
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}
