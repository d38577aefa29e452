//! Answers of meshd's own: denials, refusals, and that the application cannot be reached. The connection stays where what
//! is left of the request can be read over within a bound, else it is closed so that the answer still arrives.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use std::sync::atomic::AtomicU64;

use super::{
    super::{error::HttpError, gate::Version, settings::Settings},
    body,
    framing::Framing,
    head::ParsedRequest,
    reading::Reading,
    write,
};

/// What is said when the application cannot be reached; Envoy's words, which operators search for.
pub(in super::super) const UNREACHABLE: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";

/// What is said when the application does not speak HTTP; Envoy's words.
pub(in super::super) const NOT_HTTP: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: protocol error";

/// A status and a text.
pub(super) fn plain(status: StatusCode, text: &'static str) -> (StatusCode, HeaderMap, Bytes) {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
    (status, headers, Bytes::from_static(text.as_bytes()))
}

/// Answers a request of which no byte of the body was used, and reads the body over. True where the next request can
/// follow.
pub(super) async fn instead<R, W>(
    answer: &(StatusCode, HeaderMap, Bytes),
    method: &str,
    request: &ParsedRequest,
    from: &mut Reading<R>,
    to: &mut W,
    settings: &Settings,
) -> Result<bool, HttpError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let left = match request.body {
        _ if !request.keep_alive || request.version == Version::Http10 || method == "CONNECT" => None,
        Framing::None => Some(0),
        // Whether the client sends the body after all is its choice: what comes next could be either.
        _ if request.expects_continue => None,
        Framing::Length(length) => {
            usize::try_from(length).ok().filter(|length| *length <= settings.drain_bytes)
        }
        Framing::Chunked => body::chunked_here(&from.buffer, settings.max_head_bytes),
        Framing::UntilClose => None,
    };
    say(answer, left.is_none(), method == "HEAD", to).await?;
    let Some(left) = left else { return Ok(false) };
    let here = left.min(from.buffer.len());
    from.buffer.advance(here);
    let (mut nowhere, count) = (tokio::io::sink(), AtomicU64::new(0));
    let rest = body::by_length(from, &mut nowhere, (left - here) as u64, settings.body_buffer_bytes, &count);
    Ok(matches!(timeout(settings.head_timeout, rest).await, Ok(Ok(()))))
}

/// Writes an answer.
pub(super) async fn say<W: AsyncWrite + Unpin>(
    (status, headers, body): &(StatusCode, HeaderMap, Bytes),
    close: bool,
    head: bool,
    to: &mut W,
) -> Result<(), HttpError> {
    let mut out = BytesMut::with_capacity(256 + body.len());
    write::local(&mut out, *status, headers, body, close, head);
    to.write_all_buf(&mut out).await.map_err(HttpError::Peer)?;
    to.flush().await.map_err(HttpError::Peer)
}

/// Ends the writing direction, then reads over what the client still sends: closing at once would reset the connection
/// and could take back the answer (RFC 9112 section 9.6).
pub(super) async fn linger<R, W>(from: &mut Reading<R>, to: &mut W, settings: &Settings)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if to.shutdown().await.is_err() {
        return;
    }
    let drain = async {
        let mut left = settings.drain_bytes;
        while left > 0 {
            from.buffer.clear();
            match from.fill(settings.body_buffer_bytes.min(left)).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    };
    _ = timeout(settings.drain_timeout, drain).await;
}
