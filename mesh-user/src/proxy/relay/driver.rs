//! Runs a relay from its first byte to its outcome: both directions, idle time, cancellation, and how the
//! sockets are closed. An end that is not clean on one leg is never made to look clean on the other.

use std::{
    future::poll_fn,
    io::{self, Read as _},
    net::Shutdown,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, time::timeout};

use super::{
    Pump, WireLeg,
    handover::{Handover, HandoverState},
    ktls::Ktls,
    legs::Legs,
    patience::{idle, keep_alive, silent},
    plain::Plain,
    rest::Rests,
    stats::{EndedBy, LiveStats, RelayOptions, RelayOutcome},
    userspace::Userspace,
};
use crate::sys::socket::{reset_on_close, take_error};

/// How long a peer may take to be told why its connection ends, and again to hear it.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(1);
/// Read at a time from a peer that is not listened to any more.
const IGNORED_BYTES: usize = 4096;

/// Relays until both directions have ended, or one leg fails. Both sockets are closed at return, unless they
/// are in the outcome's hand-over.
pub async fn relay(app: TcpStream, wire: WireLeg, options: &RelayOptions, live: &LiveStats) -> RelayOutcome {
    let none_ended = (false, false);
    match wire {
        WireLeg::Plain(stream) => {
            relay_pump(app, stream, &mut Plain::default(), none_ended, options, live).await
        }
        WireLeg::Userspace(established) => {
            let (stream, mut pump) = Userspace::new(*established);
            relay_pump(app, stream, &mut pump, none_ended, options, live).await
        }
        WireLeg::Ktls { wire, splice } => {
            let (stream, mut pump) = Ktls::new(*wire, splice, options);
            relay_pump(app, stream, &mut pump, none_ended, options, live).await
        }
    }
}

enum Ended {
    By(EndedBy),
    Quiet(HandoverState),
}

/// `ended` says which directions, outbound and inbound, have ended before.
pub(super) async fn relay_pump(
    app: TcpStream,
    wire: TcpStream,
    pump: &mut impl Pump,
    ended: (bool, bool),
    options: &RelayOptions,
    live: &LiveStats,
) -> RelayOutcome {
    let rest = Rests::default();
    let legs = Legs { app: &app, wire: &wire, live, rest: &rest, app_ended: false };
    let mut directions = Directions { outbound_ended: ended.0, inbound_ended: ended.1 };
    let ended = {
        let mut handover = pin!(live.handover_requested().cancelled());
        // An RST is seen even by a relay that reads neither leg: one blocked, or past the end of a stream.
        let app_error = pin!(app.ready(Interest::ERROR));
        let wire_error = pin!(wire.ready(Interest::ERROR));
        tokio::select! {
            biased;
            () = live.cancelled().cancelled() => Ended::By(EndedBy::Closed),
            ended = poll_fn(|cx| {
                if let Poll::Ready(ended_by) = directions.poll(cx, pump, legs) {
                    return Poll::Ready(Ended::By(ended_by));
                }
                if live.handover_requested().is_cancelled() || handover.as_mut().poll(cx).is_ready() {
                    return pump.handover().map_or(Poll::Pending, |state| Poll::Ready(Ended::Quiet(state)));
                }
                Poll::Pending
            }) => ended,
            _ = app_error => Ended::By(EndedBy::AppReset),
            _ = wire_error => Ended::By(EndedBy::WireReset),
            () = idle(live, options.idle_timeout) => Ended::By(EndedBy::Idle),
            () = silent(&wire, options.user_timeout) => Ended::By(EndedBy::Silent),
            never = keep_alive(&wire, options.keepalive_idle) => match never {},
        }
    };
    match ended {
        Ended::By(EndedBy::Finished) => RelayOutcome::of(EndedBy::Finished, live),
        Ended::By(ended_by) => {
            // The kernel keeps the error of a bad record for the next call, which may be one that sends. It is all that
            // is told of a record whose end cannot be found.
            let pending = take_error(&wire);
            let ended_by = match ended_by {
                EndedBy::WireReset => pump.wire_failed(pending.as_ref()),
                ended_by => ended_by,
            };
            part(app, wire, pump, &ended_by, live).await;
            RelayOutcome::of(ended_by, live)
        }
        Ended::Quiet(state) => match Handover::new(app, wire, state) {
            Ok(handover) => RelayOutcome {
                handover: Some(Box::new(handover)),
                ..RelayOutcome::of(EndedBy::HandedOver, live)
            },
            Err(error) => RelayOutcome::local(&error, live),
        },
    }
}

/// Closes both legs after an end that is not clean. The application learns of it at once, by a reset; a peer that can still be spoken to is
/// told why in TLS's own words.
async fn part(app: TcpStream, wire: TcpStream, pump: &mut impl Pump, ended_by: &EndedBy, live: &LiveStats) {
    reset_on_close(&app);
    drop(app);
    let said = match ended_by {
        EndedBy::WireProtocol(_) | EndedBy::KeyExhausted | EndedBy::KeyUpdateUnsupported => {
            timeout(LAST_WORDS_PATIENCE, pump.say_last_words(&wire, ended_by, live)).await
        }
        _ => Ok(Ok(false)),
    };
    let heard = matches!(said, Ok(Ok(true))) && timeout(LAST_WORDS_PATIENCE, let_hear(&wire)).await.is_ok();
    if !heard {
        reset_on_close(&wire);
    }
}

/// Ends our direction and waits for the peer to end its own: a reset may overtake what was sent before it.
async fn let_hear(wire: &TcpStream) {
    // A peer that is gone needs no waiting for, and is told nothing by a failed shutdown.
    if SockRef::from(wire).shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut ignored = vec![0; IGNORED_BYTES];
    loop {
        match wire.async_io(Interest::READABLE, || (&*SockRef::from(wire)).read(&mut ignored)).await {
            Ok(0) => return,
            Ok(_) => {}
            // The kernel reads no further after a bad record: the caller's patience decides.
            Err(_) => std::future::pending().await,
        }
    }
}

struct Directions {
    outbound_ended: bool,
    inbound_ended: bool,
}

impl Directions {
    fn poll(&mut self, cx: &mut Context<'_>, pump: &mut impl Pump, legs: Legs<'_>) -> Poll<EndedBy> {
        let legs = Legs { app_ended: self.outbound_ended, ..legs };
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

impl RelayOutcome {
    fn of(ended_by: EndedBy, live: &LiveStats) -> Self {
        Self {
            ended_by,
            app_to_wire_bytes: live.app_to_wire_bytes(),
            wire_to_app_bytes: live.wire_to_app_bytes(),
            handover: None,
        }
    }

    pub(super) fn local(error: &io::Error, live: &LiveStats) -> Self {
        Self::of(EndedBy::Local(error.to_string()), live)
    }
}
