//! Drives an HTTP/2 connection: accepts streams, polls those that run, and the connection to the application, all in one
//! task, so that whatever ends the connection ends all of it.

use std::{future::pending, io};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{
    Reason, client,
    server::{Builder, Connection},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    select,
    sync::mpsc::unbounded_channel,
    time::timeout,
};

use super::{
    super::{
        error::{HttpError, Refusal},
        gate::Gate,
        observe::Observer,
        settings::Settings,
    },
    resets::Resets,
    stream::Shared,
    upstream::Upstream,
};

/// Serves a connection from its preface on.
pub(in super::super) async fn drive<P, A, O, F, G, B>(
    peer: P,
    open: &O,
    gate: &G,
    observer: &B,
    settings: &Settings,
) -> Result<(), HttpError>
where
    P: AsyncRead + AsyncWrite + Unpin + Send,
    A: AsyncRead + AsyncWrite + Unpin + Send,
    O: Fn() -> F + Send + Sync,
    F: Future<Output = io::Result<A>> + Send,
    G: Gate,
    B: Observer,
{
    let mut connection = timeout(settings.head_timeout, server(settings).handshake(peer))
        .await
        .map_err(|_| Refusal::Timeout)?
        .map_err(HttpError::PeerH2)?;
    let (opened, mut to_drive) = unbounded_channel();
    let upstream = Upstream::new(open, settings, opened);
    let shared = Shared { upstream, gate, observer, settings };
    let mut application: Option<client::Connection<A, Bytes>> = None;
    let mut streams = FuturesUnordered::new();
    let mut resets = Resets::new(settings.reset_budget);
    let ended = loop {
        select! {
            biased;
            Some(early) = streams.next() => if resets.exceeded_by(early) {
                break Err(HttpError::RapidReset);
            },
            Some(opened) = to_drive.recv() => application = Some(opened),
            () = driven(&mut application) => {
                application = None;
                // Its end is the client's end: streams that still come are refused, to be tried elsewhere.
                connection.graceful_shutdown();
            }
            accepted = connection.accept() => match accepted {
                None => break Ok(()),
                Some(Err(error)) => break Err(HttpError::PeerH2(error)),
                Some(Ok((request, respond))) => streams.push(shared.one(request, respond)),
            },
        }
    };
    if ended.is_err() {
        send_away(&mut connection, settings).await;
    }
    drop(connection);
    // Streams that were cut off report themselves, and the application is told.
    let finish = async {
        loop {
            select! {
                biased;
                next = streams.next() => if next.is_none() { break },
                Some(opened) = to_drive.recv() => application = Some(opened),
                () = driven(&mut application) => application = None,
            }
        }
    };
    _ = timeout(settings.drain_timeout, finish).await;
    drop(streams);
    drop(shared);
    if application.is_some() {
        _ = timeout(settings.drain_timeout, driven(&mut application)).await;
    }
    ended
}

/// GOAWAY, and the time to write it.
async fn send_away<P>(connection: &mut Connection<P, Bytes>, settings: &Settings)
where
    P: AsyncRead + AsyncWrite + Unpin,
{
    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    // The connection is over either way.
    _ = timeout(settings.drain_timeout, std::future::poll_fn(|context| connection.poll_closed(context)))
        .await;
}

/// Polls the application's connection until it has ended. How it ended its streams tell.
async fn driven<A: AsyncRead + AsyncWrite + Unpin>(application: &mut Option<client::Connection<A, Bytes>>) {
    match application {
        None => pending().await,
        Some(connection) => _ = connection.await,
    }
}

fn server(settings: &Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(settings.max_streams)
        .initial_window_size(settings.stream_window_bytes)
        .initial_connection_window_size(settings.connection_window_bytes)
        .max_header_list_size(u32::try_from(settings.max_head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(settings.body_buffer_bytes)
        // Small messages that wait for a slow application cost memory beyond their bytes: as much as the window again.
        .data_frame_budget(settings.connection_window_bytes as usize);
    builder
}
