//! One request that was let through and its response, both ways at once: a response may begin, or end, while the request
//! is still being sent. What each side does at its end is told to the driver, which alone decides how it goes on.

use std::{
    io,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed},
};

use bytes::BytesMut;
use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    select,
};

use super::{
    super::{
        error::{HttpError, Refusal},
        gate::{Edits, Version},
        settings::Settings,
    },
    body::{self, CopyError, Trailers},
    head::{ParsedRequest, ParsedResponse, is_request_only, parse_response},
    reading::Reading,
    scan::{HeadScan, Scanned},
    write,
};

/// Room for a request's head to arrive in.
pub(super) const HEAD_ROOM: usize = 2048;
/// Room for a response's head and the start of its body, which then leave in one write.
const RESPONSE_ROOM: usize = 16 * 1024;

/// What both directions tell of themselves while they run.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Body bytes from the client.
    pub(super) received: AtomicU64,
    /// Body bytes to the client.
    pub(super) sent: AtomicU64,
    /// Status of the final response, once known.
    status: AtomicU16,
    /// A byte of a response may have been written: nothing else may be said.
    pub(super) response_begun: AtomicBool,
    /// The whole request was written.
    request_sent: AtomicBool,
    /// The client was told to continue.
    continued: AtomicBool,
    /// The whole response was written: once the request is sent there is nothing to watch for.
    answered: AtomicBool,
}

impl Progress {
    pub(super) fn status(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status.load(Relaxed)).ok()
    }
}

/// A request with what was decided.
#[derive(Clone, Copy)]
pub(super) struct Allowed<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) parsed: &'a ParsedRequest,
    pub(super) edits: &'a Edits,
    pub(super) settings: &'a Settings,
    pub(super) progress: &'a Progress,
}

/// How an exchange ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Both sides can take the next request.
    Next,
    /// The response was written; no request follows.
    Last,
    /// The application switched: bytes from here on. Whether the client has already ended its direction.
    Tunnel { peer_ended: bool },
    /// The application ended before it answered anything.
    Unanswered,
    /// The request's body was malformed.
    Malformed(Refusal),
    /// The application's answer is not HTTP.
    BadResponse,
    /// A side failed, or the response was cut off.
    Broken(HttpError),
}

/// How the request's direction ended.
enum RequestEnd {
    /// Sent, and the response is there too.
    Sent,
    /// The client ended its direction after the request, and the application was told.
    HalfClosed,
    /// The client ended inside of the body, and the application was told.
    Truncated,
    /// The application takes no more; it may still answer.
    Unwanted,
    Malformed(Refusal),
    PeerFailed(io::Error),
}

/// How the response's direction ended.
enum ResponseEnd {
    Final { persistent: bool },
    Switched,
}

enum ResponseError {
    Unanswered,
    Bad,
    Broken(HttpError),
}

/// Sends the request and relays the response.
pub(super) async fn exchange<PR, PW, AR, AW>(
    allowed: Allowed<'_>,
    peer_read: &mut Reading<PR>,
    peer_write: &mut PW,
    app_read: &mut Reading<AR>,
    app_write: &mut AW,
) -> Ended
where
    PR: AsyncRead + Unpin + Send,
    PW: AsyncWrite + Unpin + Send,
    AR: AsyncRead + Unpin + Send,
    AW: AsyncWrite + Unpin + Send,
{
    let progress = allowed.progress;
    let mut request = pin!(send_request(allowed, peer_read, app_write));
    let mut request_end = None;
    let response_end = {
        let mut response = pin!(relay_response(allowed, app_read, peer_write));
        loop {
            select! {
                biased;
                end = &mut response => break end,
                end = &mut request, if request_end.is_none() => match end {
                    RequestEnd::Malformed(refusal) => return Ended::Malformed(refusal),
                    RequestEnd::PeerFailed(error) => return Ended::Broken(HttpError::Peer(error)),
                    end => request_end = Some(end),
                },
            }
        }
    };
    let response_end = match response_end {
        Ok(end) => end,
        Err(ResponseError::Unanswered) => return Ended::Unanswered,
        Err(ResponseError::Bad) => return Ended::BadResponse,
        Err(ResponseError::Broken(error)) => return Ended::Broken(error),
    };
    progress.answered.store(true, Relaxed);
    let sent = progress.request_sent.load(Relaxed);
    match (response_end, request_end) {
        (ResponseEnd::Final { persistent }, None) if sent => {
            // What the application said beyond its answer must not become the answer to the next request.
            let in_step = app_read.buffer.is_empty();
            if persistent && in_step && allowed.parsed.keep_alive { Ended::Next } else { Ended::Last }
        }
        (ResponseEnd::Final { persistent }, None) => {
            // A client that was not told to continue may send its next request where the application reads a body, or
            // the other way round: neither may be.
            let waiting = allowed.parsed.expects_continue && !progress.continued.load(Relaxed);
            if persistent && !waiting {
                rest_of_request(request, app_read).await;
            }
            Ended::Last
        }
        (ResponseEnd::Final { .. }, Some(_)) => Ended::Last,
        (ResponseEnd::Switched, None) if sent => Ended::Tunnel { peer_ended: false },
        (ResponseEnd::Switched, None) => match request.await {
            RequestEnd::Sent => Ended::Tunnel { peer_ended: false },
            RequestEnd::HalfClosed => Ended::Tunnel { peer_ended: true },
            RequestEnd::Malformed(refusal) => Ended::Malformed(refusal),
            RequestEnd::PeerFailed(error) => Ended::Broken(HttpError::Peer(error)),
            RequestEnd::Truncated | RequestEnd::Unwanted => Ended::Broken(HttpError::RequestTruncated),
        },
        (ResponseEnd::Switched, Some(RequestEnd::HalfClosed)) => Ended::Tunnel { peer_ended: true },
        (ResponseEnd::Switched, Some(_)) => Ended::Broken(HttpError::RequestTruncated),
    }
}

/// The application has answered in full and reads on; so it gets the rest, until it ends or says more.
async fn rest_of_request<R: AsyncRead + Unpin>(
    request: impl Future<Output = RequestEnd>,
    app_read: &mut Reading<R>,
) {
    if app_read.buffer.is_empty() {
        select! {
            _ = request => {}
            _ = app_read.io.read_u8() => {}
        }
    }
}

async fn send_request<R, W>(allowed: Allowed<'_>, peer: &mut Reading<R>, app: &mut W) -> RequestEnd
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Allowed { parsed, edits, settings, progress, .. } = allowed;
    let mut out = BytesMut::new();
    write::request(&mut out, allowed.bytes, parsed, edits);
    let forbidden = |name: &str| is_request_only(name) || edits.names(name);
    let trailers = Trailers { request: true, forbidden: &forbidden };
    match body::forward(parsed.body, out, peer, app, settings, trailers, &progress.received).await {
        Ok(()) => {}
        Err(CopyError::From(error)) => return RequestEnd::PeerFailed(error),
        Err(CopyError::To(_)) => return RequestEnd::Unwanted,
        Err(CopyError::Refused(refusal)) => return RequestEnd::Malformed(refusal),
        Err(CopyError::Truncated) => {
            // An error here is the application's end, which its reading half tells.
            _ = app.shutdown().await;
            return RequestEnd::Truncated;
        }
    }
    progress.request_sent.store(true, Relaxed);
    if progress.answered.load(Relaxed) {
        return RequestEnd::Sent;
    }
    // The client's end reaches the application as it would without meshd; what it sends before the response stays here.
    loop {
        if !peer.buffer.is_empty() {
            return std::future::pending().await;
        }
        match peer.fill(HEAD_ROOM).await {
            Ok(0) => {
                _ = app.shutdown().await;
                return RequestEnd::HalfClosed;
            }
            Ok(_) => {}
            Err(error) => return RequestEnd::PeerFailed(error),
        }
    }
}

async fn relay_response<R, W>(
    allowed: Allowed<'_>,
    app: &mut Reading<R>,
    peer: &mut W,
) -> Result<ResponseEnd, ResponseError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Allowed { parsed: request, edits, settings, progress, .. } = allowed;
    let method = request.method(allowed.bytes);
    loop {
        let (bytes, parsed) = response_head(app, method, settings).await?;
        let mut out = BytesMut::new();
        write::response(&mut out, &bytes, &parsed, edits);
        let switch = parsed.status == StatusCode::SWITCHING_PROTOCOLS;
        if switch && !request.upgrade.offered {
            return Err(ResponseError::Bad);
        }
        let interim = parsed.status.is_informational() && !switch;
        if interim && request.version == Version::Http10 {
            continue;
        }
        progress.response_begun.store(true, Relaxed);
        if !interim {
            progress.status.store(parsed.status.as_u16(), Relaxed);
        }
        let trailers = Trailers { request: false, forbidden: &is_framing };
        body::forward(parsed.body, out, app, peer, settings, trailers, &progress.sent)
            .await
            .map_err(broken)?;
        if interim {
            progress.continued.fetch_or(parsed.status == StatusCode::CONTINUE, Relaxed);
            progress.response_begun.store(false, Relaxed);
        } else if switch || (method == "CONNECT" && parsed.status.is_success()) {
            return Ok(ResponseEnd::Switched);
        } else {
            let refused = method == "CONNECT";
            return Ok(ResponseEnd::Final { persistent: parsed.persistent && !refused });
        }
    }
}

fn is_framing(name: &str) -> bool {
    ["content-length", "transfer-encoding"].iter().any(|own| name.eq_ignore_ascii_case(own))
}

fn broken(error: CopyError) -> ResponseError {
    ResponseError::Broken(match error {
        CopyError::From(error) => HttpError::Application(error),
        CopyError::To(error) => HttpError::Peer(error),
        CopyError::Truncated => HttpError::ResponseTruncated,
        CopyError::Refused(_) => HttpError::ResponseMalformed,
    })
}

async fn response_head<R: AsyncRead + Unpin>(
    app: &mut Reading<R>,
    method: &str,
    settings: &Settings,
) -> Result<(BytesMut, ParsedResponse), ResponseError> {
    let mut scan = HeadScan::response();
    let end = loop {
        match scan.feed(&app.buffer, settings.max_head_bytes).map_err(|_| ResponseError::Bad)? {
            Scanned::Complete(end) => break end,
            Scanned::NeedMore => {}
        }
        match app.fill(RESPONSE_ROOM).await {
            Ok(0) if app.buffer.is_empty() => return Err(ResponseError::Unanswered),
            Ok(0) => return Err(ResponseError::Broken(HttpError::ResponseTruncated)),
            Ok(_) => {}
            Err(error) => return Err(ResponseError::Broken(HttpError::Application(error))),
        }
    };
    let bytes = app.buffer.split_to(end);
    let parsed = parse_response(&bytes, method, settings).map_err(|_| ResponseError::Bad)?;
    Ok((bytes, parsed))
}
