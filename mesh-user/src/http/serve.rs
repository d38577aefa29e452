//! The door of the HTTP path: finds out what the client speaks, and drives it. What is not HTTP goes back to the caller
//! with every byte that was read, since only rules for TCP can be applied to it.

use std::{future::pending, io};

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    select,
    time::sleep,
};

use super::{
    detect::{Detected, detect},
    error::HttpError,
    gate::Gate,
    h1::{self, End},
    h2,
    observe::Observer,
    prefixed::Prefixed,
    settings::Settings,
};

/// Room for the first bytes.
const FIRST_ROOM: usize = 2048;

/// How a connection ended.
#[derive(Debug)]
pub enum Served<P> {
    /// It is not HTTP: to be decided and relayed as TCP, the bytes first. Silence for the time set counts as such, and so
    /// does an end before anything was clear.
    NotHttp {
        /// The connection.
        peer: P,
        /// What was read from it.
        read: BytesMut,
    },
    /// It has ended, and the client was told in order; the error is for the log.
    Ended(Option<HttpError>),
    /// It broke inside of a message: to be reset (no `close_notify`, no FIN), so that the client sees that it was cut off.
    Cut {
        /// The connection.
        peer: P,
        /// Why.
        error: HttpError,
    },
}

/// Serves a connection whose TLS has ended. `read` was read from it before; `open` connects to the application, and is
/// called only when a request was let through.
pub async fn serve<P, A, O, F, G, B>(
    mut peer: P,
    mut read: BytesMut,
    open: O,
    gate: &G,
    observer: &B,
    settings: &Settings,
) -> Served<P>
where
    P: AsyncRead + AsyncWrite + Unpin + Send,
    A: AsyncRead + AsyncWrite + Unpin + Send,
    O: Fn() -> F + Send + Sync,
    F: Future<Output = io::Result<A>> + Send,
    G: Gate,
    B: Observer,
{
    match look(&mut peer, &mut read, settings).await {
        Ok(Detected::Http1) => match h1::drive(peer, read, &open, gate, observer, settings).await {
            End::Closed(error) => Served::Ended(error),
            End::Cut(peer, error) => Served::Cut { peer, error },
        },
        Ok(Detected::Http2) => {
            let peer = Prefixed::new(read.freeze(), peer);
            // Apart, so that the connections of HTTP/1, which are many and idle, are no larger for it.
            Served::Ended(Box::pin(h2::drive(peer, &open, gate, observer, settings)).await.err())
        }
        Ok(Detected::NotHttp | Detected::NeedMore) => Served::NotHttp { peer, read },
        Err(error) => Served::Cut { peer, error: HttpError::Peer(error) },
    }
}

/// Reads until it is clear what the client speaks, at most for the time set; [`serve`] goes on with what was read.
///
/// # Errors
/// The stream's own.
pub async fn look<P>(peer: &mut P, read: &mut BytesMut, settings: &Settings) -> io::Result<Detected>
where
    P: AsyncRead + Unpin,
{
    let patience = async {
        match settings.detect_timeout {
            Some(patience) => sleep(patience).await,
            None => pending().await,
        }
    };
    let look = async {
        loop {
            match detect(read, settings.max_head_bytes) {
                Detected::NeedMore => {}
                found => return Ok(found),
            }
            read.reserve(FIRST_ROOM);
            if peer.read_buf(&mut (&mut *read).limit(FIRST_ROOM)).await? == 0 {
                return Ok(Detected::NotHttp);
            }
        }
    };
    select! {
        found = look => found,
        () = patience => Ok(Detected::NotHttp),
    }
}
