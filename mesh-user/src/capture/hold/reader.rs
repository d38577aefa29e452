//! Reads the programs' ring buffer on a thread of its own and hands each event on. It never waits for those
//! who take them. As long as it runs it tells the programs so: they hold a `connect` for nobody.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use mesh_common::HeldConnect;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};

use super::Desk;
use crate::{
    capture::{CaptureError, objects::NodeObject},
    sys::bpf::{MapFd, read_pod},
};

const RING: &str = "HELD";
const UNTIL: &str = "HELD_UNTIL";
/// How late a stop may be noticed.
const WAIT_MS: u16 = 500;
/// How often the programs are told that we live.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// How long the programs hold a `connect` for a daemon that has been silent: longer than a restart takes, shorter
/// than applications wait.
const SILENCE: Duration = Duration::from_secs(5);
/// Events taken before the programs are told again that we live.
const BATCH: usize = 1024;

/// Reads until dropped.
#[derive(Debug)]
pub(in crate::capture) struct Reader(Arc<AtomicBool>);

impl Reader {
    pub(in crate::capture) fn start(node: &mut NodeObject, desk: Arc<Desk>) -> Result<Self, CaptureError> {
        let failed = |action, map| move |source| CaptureError::Map { action, map, source };
        let mut alive = Alive { until: node.map(UNTIL)?, told: Instant::now() };
        let mut ring = node.ring(RING)?;
        // Before the first hook is attached.
        alive.tell().map_err(failed("write", UNTIL))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let read = move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = alive.tell_again() {
                    tracing::error!(%error, "connects cannot be held any more; they are refused");
                    return;
                }
                if !take_some(&mut ring, &desk) {
                    // Woken or not, there may be events.
                    let _ =
                        poll(&mut [PollFd::new(ring.as_fd(), PollFlags::POLLIN)], PollTimeout::from(WAIT_MS));
                }
            }
        };
        let named = thread::Builder::new().name("held-connects".to_owned());
        named.spawn(read).map_err(failed("start the thread that reads", RING))?;
        Ok(Self(stop))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether there was anything.
fn take_some(ring: &mut RingBuf<MapData>, desk: &Desk) -> bool {
    for taken in 0..BATCH {
        let Some(event) = ring.next() else { return taken > 0 };
        // Only our own programs write here, whole events of one size.
        if let Some(held) = read_pod::<HeldConnect>(&event) {
            desk.take(held);
        }
    }
    true
}

struct Alive {
    until: MapFd<u32, u64>,
    told: Instant,
}

impl Alive {
    /// Where it was not said a moment ago: not for every event.
    fn tell_again(&mut self) -> io::Result<()> {
        if self.told.elapsed() < TELL_EVERY { Ok(()) } else { self.tell() }
    }

    fn tell(&mut self) -> io::Result<()> {
        // The clock of `bpf_ktime_get_ns`.
        let until = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?) + SILENCE;
        self.until.insert(&0, &u64::try_from(until.as_nanos()).unwrap_or(u64::MAX))?;
        self.told = Instant::now();
        Ok(())
    }
}
