//! Copies bodies from one side to the other with one buffer per direction: nothing more is read before what was read is
//! written. By length a body is a plain copy of so many bytes ([`by_length`]), which a relay in the kernel could do.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{
    super::{error::Refusal, settings::Settings},
    chunked::{ChunkedDecoder, Piece},
    framing::Framing,
    head::parse_trailers,
    reading::Reading,
    scan::{HeadScan, Scanned},
    write,
};

/// Why a copy ended early.
#[derive(Debug)]
pub(super) enum CopyError {
    /// Reading failed.
    From(io::Error),
    /// Writing failed.
    To(io::Error),
    /// The end came inside of the body.
    Truncated,
    /// The body is malformed.
    Refused(Refusal),
}

/// Whose body it is: trailers of a request are looked at, and lines of a response may end in a bare LF.
#[derive(Clone, Copy)]
pub(super) struct Trailers<'a> {
    pub(super) request: bool,
    /// Whether a name may not be there.
    pub(super) forbidden: &'a (dyn Fn(&str) -> bool + Send + Sync),
}

/// Writes `out`, which holds the head, and the body after it.
pub(super) async fn forward<R, W>(
    framing: Framing,
    mut out: BytesMut,
    from: &mut Reading<R>,
    to: &mut W,
    settings: &Settings,
    trailers: Trailers<'_>,
    count: &AtomicU64,
) -> Result<(), CopyError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    match framing {
        Framing::None => flush(&mut out, to).await,
        Framing::Length(length) => {
            // What has arrived with the head leaves with it, in one write.
            let here = from.buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            out.extend_from_slice(&from.buffer[..here]);
            from.buffer.advance(here);
            flush(&mut out, to).await?;
            count.fetch_add(here as u64, Ordering::Relaxed);
            drop(out);
            by_length(from, to, length - here as u64, settings.body_buffer_bytes, count).await
        }
        Framing::Chunked => by_chunk(out, from, to, settings, trailers, count).await,
        Framing::UntilClose => {
            flush(&mut out, to).await?;
            drop(out);
            until_end(from, to, settings.body_buffer_bytes, count).await
        }
    }
}

async fn flush<W: AsyncWrite + Unpin>(out: &mut BytesMut, to: &mut W) -> Result<(), CopyError> {
    if !out.is_empty() {
        to.write_all_buf(out).await.map_err(CopyError::To)?;
        to.flush().await.map_err(CopyError::To)?;
    }
    Ok(())
}

/// Exactly `left` bytes, those in the buffer first. Needs nothing of HTTP: a relay that moves bytes in the kernel can
/// take its place.
pub(super) async fn by_length<R, W>(
    from: &mut Reading<R>,
    to: &mut W,
    mut left: u64,
    room: usize,
    count: &AtomicU64,
) -> Result<(), CopyError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        if from.buffer.is_empty() && from.fill(room.min(wanted)).await.map_err(CopyError::From)? == 0 {
            return Err(CopyError::Truncated);
        }
        let here = from.buffer.len().min(wanted);
        to.write_all(&from.buffer[..here]).await.map_err(CopyError::To)?;
        to.flush().await.map_err(CopyError::To)?;
        from.buffer.advance(here);
        left -= here as u64;
        count.fetch_add(here as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Until the end, which is not passed on.
pub(super) async fn until_end<R, W>(
    from: &mut Reading<R>,
    to: &mut W,
    room: usize,
    count: &AtomicU64,
) -> Result<(), CopyError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    match by_length(from, to, u64::MAX, room, count).await {
        Err(CopyError::Truncated) => Ok(()),
        ended => ended,
    }
}

/// Chunks, written anew without their extensions, and trailers.
async fn by_chunk<R, W>(
    mut out: BytesMut,
    from: &mut Reading<R>,
    to: &mut W,
    settings: &Settings,
    trailers: Trailers<'_>,
    count: &AtomicU64,
) -> Result<(), CopyError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut decoder = ChunkedDecoder::default();
    loop {
        let (used, piece) = decoder.next(&from.buffer).map_err(CopyError::Refused)?;
        if let Piece::Data(range) = &piece {
            write::chunk(&mut out, &from.buffer[range.clone()]);
            count.fetch_add(range.len() as u64, Ordering::Relaxed);
        }
        from.buffer.advance(used);
        match piece {
            Piece::Data(_) if out.len() < settings.body_buffer_bytes => {}
            Piece::Data(_) => flush(&mut out, to).await?,
            Piece::NeedMore => {
                flush(&mut out, to).await?;
                fill(from, settings.body_buffer_bytes).await?;
            }
            Piece::Last => break,
        }
    }
    flush(&mut out, to).await?;
    trailer_section(&mut out, from, settings, trailers).await?;
    flush(&mut out, to).await
}

async fn fill<R: AsyncRead + Unpin>(from: &mut Reading<R>, room: usize) -> Result<(), CopyError> {
    match from.fill(room).await {
        Ok(0) => Err(CopyError::Truncated),
        Ok(_) => Ok(()),
        Err(error) => Err(CopyError::From(error)),
    }
}

/// Reads the trailer section and writes it behind a last chunk.
async fn trailer_section<R: AsyncRead + Unpin>(
    out: &mut BytesMut,
    from: &mut Reading<R>,
    settings: &Settings,
    trailers: Trailers<'_>,
) -> Result<(), CopyError> {
    let mut scan = if trailers.request { HeadScan::request() } else { HeadScan::response() };
    let end = loop {
        match scan.feed(&from.buffer, settings.max_head_bytes).map_err(CopyError::Refused)? {
            Scanned::Complete(end) => break end,
            Scanned::NeedMore => fill(from, settings.body_buffer_bytes).await?,
        }
    };
    let bytes = from.buffer.split_to(end);
    checked_trailers(out, &bytes, settings, trailers).map_err(CopyError::Refused)
}

fn checked_trailers(
    out: &mut BytesMut,
    bytes: &[u8],
    settings: &Settings,
    trailers: Trailers<'_>,
) -> Result<(), Refusal> {
    let spans = parse_trailers(bytes, settings.max_headers)?;
    for span in &spans {
        let name = std::str::from_utf8(&bytes[span.name.clone()]).map_err(|_| Refusal::Malformed)?;
        if (trailers.forbidden)(name) {
            return Err(Refusal::Trailer);
        }
    }
    out.extend_from_slice(b"0\r\n");
    write::fields(out, bytes, &spans);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Whether a whole chunked body lies in these bytes, and how long it is there.
pub(super) fn chunked_here(bytes: &[u8], max_head: usize) -> Option<usize> {
    let (mut decoder, mut at) = (ChunkedDecoder::default(), 0);
    loop {
        let (used, piece) = decoder.next(&bytes[at..]).ok()?;
        at += used;
        match piece {
            Piece::Data(_) => {}
            Piece::NeedMore => return None,
            Piece::Last => break,
        }
    }
    match HeadScan::request().feed(&bytes[at..], max_head) {
        Ok(Scanned::Complete(end)) => Some(at + end),
        _ => None,
    }
}
