//! The connection to the application, opened when the first stream was let through and shared by all that follow.

use std::io;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OnceCell, mpsc::UnboundedSender},
};

use super::super::{error::HttpError, settings::Settings};

/// Opens the connection once; whoever drives the streams drives it too.
pub(super) struct Upstream<'a, O, A> {
    open: &'a O,
    settings: &'a Settings,
    sender: OnceCell<SendRequest<Bytes>>,
    opened: UnboundedSender<Connection<A, Bytes>>,
}

impl<'a, O, A, F> Upstream<'a, O, A>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    O: Fn() -> F + Sync,
    F: Future<Output = io::Result<A>> + Send,
{
    /// `opened` gets the connection, at most one at a time.
    pub(super) fn new(
        open: &'a O,
        settings: &'a Settings,
        opened: UnboundedSender<Connection<A, Bytes>>,
    ) -> Self {
        Self { open, settings, sender: OnceCell::new(), opened }
    }

    /// A handle for one request. After a failure the next request tries again.
    pub(super) async fn sender(&self) -> Result<SendRequest<Bytes>, HttpError> {
        let connect = || async {
            let stream = (self.open)().await.map_err(HttpError::Open)?;
            let (sender, connection) =
                client(self.settings).handshake(stream).await.map_err(HttpError::ApplicationH2)?;
            // The receiver is dropped only with the streams that ask.
            _ = self.opened.send(connection);
            Ok(sender)
        };
        self.sender.get_or_try_init(connect).await.cloned()
    }
}

fn client(settings: &Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(settings.stream_window_bytes)
        .initial_connection_window_size(settings.connection_window_bytes)
        .max_header_list_size(u32::try_from(settings.max_head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(settings.body_buffer_bytes);
    builder
}
