//! Moves the body and trailers of one direction of a stream. Bytes are acknowledged to their sender only when the receiver
//! has room for them: a slow receiver stops the sender, stream by stream.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use tokio::select;

/// Why a direction ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The sender reset the stream, or its connection failed.
    From(h2::Error),
    /// The receiver did.
    To(h2::Error),
    /// A trailer that may not be there.
    Trailer,
}

impl From<h2::Error> for Stop {
    /// Of the receiver, which is what fails in sending.
    fn from(error: h2::Error) -> Self {
        Self::To(error)
    }
}

/// Moves all of it, and the end with it.
pub(super) async fn pump(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    count: &AtomicU64,
    mut good_trailers: impl FnMut(&HeaderMap) -> bool,
) -> Result<(), Stop> {
    loop {
        let data = select! {
            biased;
            reset = poll_fn(|context| to.poll_reset(context)) => return Err(Stop::To(reset.map_or_else(|error| error, Into::into))),
            data = from.data() => data,
        };
        let Some(data) = data else { break };
        let data = data.map_err(Stop::From)?;
        let (length, last) = (data.len(), from.is_end_stream());
        if last || length > 0 {
            send(data, last, to).await?;
        }
        count.fetch_add(length as u64, Relaxed);
        from.flow_control().release_capacity(length).map_err(Stop::From)?;
        if last {
            return Ok(());
        }
    }
    match from.trailers().await.map_err(Stop::From)? {
        None => to.send_data(Bytes::new(), true)?,
        Some(trailers) if good_trailers(&trailers) => to.send_trailers(trailers)?,
        Some(_) => return Err(Stop::Trailer),
    }
    Ok(())
}

async fn send(mut data: Bytes, last: bool, to: &mut SendStream<Bytes>) -> Result<(), Stop> {
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let room = match to.capacity() {
            0 => match poll_fn(|context| to.poll_capacity(context)).await {
                Some(room) => room?,
                None => return Err(Stop::To(Reason::CANCEL.into())),
            },
            room => room,
        };
        let part = data.split_to(room.min(data.len()));
        to.send_data(part, last && data.is_empty())?;
        if data.is_empty() {
            return Ok(());
        }
    }
    to.send_data(data, last)?;
    Ok(())
}
