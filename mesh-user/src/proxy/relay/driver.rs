//! Runs a relay from its first byte to its outcome: both directions, idle time, cancellation, and how the
//! sockets are closed. An end that is not clean on one leg is never made to look clean on the other.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{io::Interest, net::TcpStream};

use super::{
    Pump, WireLeg,
    legs::Legs,
    plain::Plain,
    stats::{EndedBy, LiveStats, RelayOptions, RelayOutcome},
    userspace::Userspace,
};
use crate::sys::socket::reset_on_close;

/// Relays until both directions have ended, or one leg fails. Both sockets are closed at return.
pub async fn relay(app: TcpStream, wire: WireLeg, options: &RelayOptions, live: &LiveStats) -> RelayOutcome {
    let ended_by = match wire {
        WireLeg::Plain(stream) => drive(app, stream, &mut Plain::default(), options, live).await,
        WireLeg::Userspace(established) => {
            let (stream, mut pump) = Userspace::new(*established);
            drive(app, stream, &mut pump, options, live).await
        }
        WireLeg::Ktls { .. } => EndedBy::Local("not built yet".to_owned()),
    };
    RelayOutcome {
        ended_by,
        app_to_wire_bytes: live.app_to_wire_bytes(),
        wire_to_app_bytes: live.wire_to_app_bytes(),
    }
}

async fn drive(
    app: TcpStream,
    wire: TcpStream,
    pump: &mut impl Pump,
    options: &RelayOptions,
    live: &LiveStats,
) -> EndedBy {
    let legs = Legs { app: &app, wire: &wire, live };
    let mut directions = Directions { outbound_ended: false, inbound_ended: false };
    // An RST is seen even by a relay that reads neither leg: one blocked, or past the end of a stream.
    let app_error = pin!(app.ready(Interest::ERROR));
    let wire_error = pin!(wire.ready(Interest::ERROR));
    let ended_by = tokio::select! {
        biased;
        () = live.cancelled().cancelled() => EndedBy::Closed,
        ended_by = poll_fn(|cx| directions.poll(cx, pump, legs)) => ended_by,
        _ = app_error => EndedBy::AppReset,
        _ = wire_error => EndedBy::WireReset,
        () = idle(live, options.idle_timeout) => EndedBy::Idle,
    };
    if ended_by != EndedBy::Finished {
        reset_on_close(&app);
        reset_on_close(&wire);
    }
    ended_by
}

struct Directions {
    outbound_ended: bool,
    inbound_ended: bool,
}

impl Directions {
    fn poll(&mut self, cx: &mut Context<'_>, pump: &mut impl Pump, legs: Legs<'_>) -> Poll<EndedBy> {
        // Inbound first: what it receives may have to be answered (key updates) by the other direction.
        if !self.inbound_ended {
            match pump.poll_inbound(cx, legs) {
                Poll::Ready(Ok(())) => self.inbound_ended = true,
                Poll::Ready(Err(ended_by)) => return Poll::Ready(ended_by),
                Poll::Pending => {}
            }
        }
        if !self.outbound_ended {
            match pump.poll_outbound(cx, legs) {
                Poll::Ready(Ok(())) => self.outbound_ended = true,
                Poll::Ready(Err(ended_by)) => return Poll::Ready(ended_by),
                Poll::Pending => {}
            }
        }
        if self.inbound_ended && self.outbound_ended { Poll::Ready(EndedBy::Finished) } else { Poll::Pending }
    }
}

/// One timer per connection, set again only when it fires: activity costs an atomic store.
async fn idle(live: &LiveStats, timeout: Duration) {
    loop {
        let left = timeout.saturating_sub(live.idle());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}
