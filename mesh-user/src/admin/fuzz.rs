//! The door for the fuzz targets: both sides of the admin API over a stream that is no socket.

use std::sync::Arc;

use hyper::Method;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::{AdminLimits, AdminSource, ClientError, client, routes, server};

/// Serves one connection: the admin API, or metrics alone.
pub fn serve<S>(stream: S, source: Arc<dyn AdminSource>, metrics_only: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = if metrics_only { routes::metrics_router(source) } else { routes::admin_router(source) };
    let slots = Arc::new(tokio::sync::Semaphore::new(1));
    server::spawn_connection(stream, &router, AdminLimits::default(), &slots, &CancellationToken::new());
}

/// meshctl's `GET` of a document from whoever is at the other end.
pub async fn get<T: DeserializeOwned, S>(stream: S, path: &str) -> Result<T, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    client::parse(&client::exchange_over(stream, Method::GET, path, bytes::Bytes::new()).await?)
}
