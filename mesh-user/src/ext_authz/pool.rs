//! Connections to one authorizer on behalf of one workload, kept for the next check. What they are made of is the
//! caller's matter; here they speak HTTP/1.1 or gRPC. Every answer is bounded, no redirect is followed, and a check goes
//! out a second time only where the connection it was sent on had been used before and is gone.

use std::{
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::PathAndQuery};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tower_service::Service;

use super::{
    AskError, Connector, ServiceName,
    proto::{CHECK, CheckRequest, CheckResponse},
};

/// What an authorizer's answer may hold: a page that says why not.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// What its head may hold.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// HTTP/1.1 connections that wait for the next check.
const MAX_IDLE: usize = 16;
/// How long a connection on which checks wait may be silent before its far end is asked for a sign of life, and how long
/// that may take. gRPC servers take more frequent questions for an attack.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

#[derive(Debug, Default)]
pub(super) struct Pool {
    plain: Mutex<Vec<http1::SendRequest<Full<Bytes>>>>,
    grpc: Mutex<Option<http2::SendRequest<Body>>>,
}

impl Pool {
    /// Asks over HTTP/1.1.
    pub(super) async fn ask_plain(
        &self,
        request: Request<Full<Bytes>>,
        service: &ServiceName,
        connector: &impl Connector,
    ) -> Result<Response<Bytes>, AskError> {
        while let Some(mut sender) = self.take() {
            if sender.ready().await.is_err() {
                continue;
            }
            match self.exchange(sender, request.clone()).await {
                // It was closed while the check was on its way.
                Err(AskError::Http(error)) if error.is_incomplete_message() || error.is_canceled() => {}
                answered => return answered,
            }
        }
        let io = connector.connect(service).await.map_err(AskError::Connect)?;
        let handshake = http1::Builder::new().max_buf_size(MAX_HEAD_BYTES).handshake(TokioIo::new(io));
        let (sender, connection) = handshake.await?;
        // How it ended is told to who waits for an answer.
        tokio::spawn(connection);
        self.exchange(sender, request).await
    }

    async fn exchange(
        &self,
        mut sender: http1::SendRequest<Full<Bytes>>,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, AskError> {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = bounded(body).await?;
        let mut idle = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE && !sender.is_closed() {
            idle.push(sender);
        }
        Ok(Response::from_parts(head, body))
    }

    fn take(&self) -> Option<http1::SendRequest<Full<Bytes>>> {
        self.plain.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Asks over gRPC.
    pub(super) async fn ask_grpc(
        &self,
        request: CheckRequest,
        timeout: Duration,
        service: &ServiceName,
        connector: &impl Connector,
    ) -> Result<CheckResponse, AskError> {
        let known = self.grpc.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sender) = known.filter(|sender| !sender.is_closed()) {
            let answered = call(sender.clone(), request.clone(), timeout, service).await;
            if answered.is_ok() || !sender.is_closed() {
                return answered;
            }
        }
        let io = connector.connect(service).await.map_err(AskError::Connect)?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .handshake(TokioIo::new(io));
        let (sender, connection) = handshake.await?;
        tokio::spawn(connection);
        *self.grpc.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        call(sender, request, timeout, service).await
    }

    /// The connection may be one that leads nowhere: the next check makes another.
    pub(super) fn forget(&self) {
        *self.grpc.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

async fn bounded(body: Incoming) -> Result<Bytes, AskError> {
    match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        // It is the one or the other.
        Err(error) => {
            Err(error.downcast::<hyper::Error>().map_or(AskError::TooLarge, |e| AskError::Http(*e)))
        }
    }
}

async fn call(
    sender: http2::SendRequest<Body>,
    request: CheckRequest,
    timeout: Duration,
    service: &ServiceName,
) -> Result<CheckResponse, AskError> {
    // Istio's pilot names the host, without its port.
    let origin = Uri::builder().scheme("http").authority(service.authority()).path_and_query("/").build();
    let origin = origin.map_err(|error| AskError::Connect(error.to_string()))?;
    let mut client =
        tonic::client::Grpc::with_origin(Channel(sender), origin).max_decoding_message_size(MAX_ANSWER_BYTES);
    client.ready().await?;
    let mut request = tonic::Request::new(request);
    request.set_timeout(timeout);
    let codec = tonic_prost::ProstCodec::default();
    Ok(client.unary(request, PathAndQuery::from_static(CHECK), codec).await?.into_inner())
}

/// One HTTP/2 connection, as tonic wants it.
struct Channel(http2::SendRequest<Body>);

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
