//! The relay without TLS: both legs are copied as they are. Only for connections that policy lets be plain.

use std::task::{Context, Poll, ready};

use super::{
    Pump,
    buffers::{Buffer, PLAINTEXT_BYTES},
    legs::{Leg, Legs, Moved},
};

/// Buffers of the two directions, held only while bytes wait in them.
#[derive(Default)]
pub(super) struct Plain {
    outbound: Option<Buffer>,
    inbound: Option<Buffer>,
}

impl Pump for Plain {
    fn poll_outbound(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        poll_copy(cx, legs, &mut self.outbound, Leg::App, Leg::Wire)
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>, legs: Legs<'_>) -> Moved<()> {
        poll_copy(cx, legs, &mut self.inbound, Leg::Wire, Leg::App)
    }
}

fn poll_copy(
    cx: &mut Context<'_>,
    legs: Legs<'_>,
    held: &mut Option<Buffer>,
    from: Leg,
    to: Leg,
) -> Moved<()> {
    loop {
        if let Some(buffer) = held {
            while !buffer.is_empty() {
                let written = ready!(legs.poll_write(to, cx, buffer.filled()))?;
                buffer.consume(written);
                count(legs, to, written);
            }
            *held = None;
        }
        let mut buffer = Buffer::borrow();
        match ready!(legs.poll_read(from, cx, &mut buffer.room()[..PLAINTEXT_BYTES]))? {
            0 => return Poll::Ready(legs.finish(to)),
            read => buffer.commit(read),
        }
        *held = Some(buffer);
    }
}

fn count(legs: Legs<'_>, to: Leg, bytes: usize) {
    match to {
        Leg::Wire => legs.live.add_app_to_wire(bytes),
        Leg::App => legs.live.add_wire_to_app(bytes),
    }
}
