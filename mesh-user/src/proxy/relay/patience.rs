//! How long a relay waits for ends that show no life. One timer each per connection, set again only when it
//! fires: activity costs an atomic store.

use std::{
    convert::Infallible,
    future::pending,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::sleep};

use super::stats::LiveStats;
use crate::sys::socket::{self, Owed, owed};

/// Ends when nothing has moved for `limit`; never, if that is zero.
pub(super) async fn idle(live: &LiveStats, limit: Duration) {
    if limit.is_zero() {
        return pending().await;
    }
    loop {
        let left = limit.saturating_sub(live.idle());
        if left.is_zero() {
            return;
        }
        sleep(left).await;
    }
}

/// Has the kernel probe a quiet peer. In half of the time there is nothing to probe yet, and most connections have
/// ended, so that they need not be set up for it.
pub(super) async fn keep_alive(wire: &TcpStream, idle: Duration) -> Infallible {
    if !idle.is_zero() {
        sleep(idle / 2).await;
        // Only a socket that has ended refuses; its error is seen elsewhere.
        let _ = socket::keep_alive(wire, idle);
    }
    pending().await
}

/// Ends when the peer has left unanswered for `limit` what was sent to it; never, if that is zero.
///
/// `TCP_USER_TIMEOUT` would also end the connection of a peer that is well and only does not read
/// (`tcp_probe_timer`, `net/ipv4/tcp_timer.c`), which without meshd may pause for as long as it likes.
pub(super) async fn silent(wire: &TcpStream, limit: Duration) {
    if limit.is_zero() {
        return pending().await;
    }
    let mut question = Question::default();
    loop {
        sleep(limit / 2).await;
        // A socket that cannot be asked has ended; its error is seen elsewhere.
        if owed(wire).is_ok_and(|owed| question.open_for(&owed, Instant::now()) >= limit) {
            return;
        }
    }
}

/// The kernel's clock for these times ticks so seldom at most.
const TICK: Duration = Duration::from_millis(20);

/// Whether something waits for the peer's answer, looked at now and then.
#[derive(Debug, Default)]
struct Question {
    asked: Option<Instant>,
}

impl Question {
    /// How long the peer is known to have said nothing though it was asked.
    fn open_for(&mut self, owed: &Owed, now: Instant) -> Duration {
        // A peer that is well answers whatever is sent again, so it is never quiet for longer than that takes, which
        // may be two minutes. Probes of a closed window are counted until it answers.
        let is_late = owed.unacknowledged > 0 && owed.silence > owed.sent_again_after + TICK;
        let is_asked = is_late || owed.unanswered_probes > 0;
        let still = |asked: &Instant| owed.silence + TICK >= now - *asked;
        self.asked = is_asked.then(|| self.asked.filter(still).unwrap_or(now));
        self.asked.map_or(Duration::ZERO, |asked| now - asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (seconds of silence, seconds until data is sent again, segments, probes), looked at every 30 s.
    fn open_for(looks: &[(u64, u64, u32, u8)]) -> u64 {
        let (begun, mut question, mut open) = (Instant::now(), Question::default(), Duration::ZERO);
        for (&(silence_s, again_s, unacknowledged, unanswered_probes), turn) in looks.iter().zip(1..) {
            let owed = Owed {
                silence: Duration::from_secs(silence_s),
                sent_again_after: Duration::from_secs(again_s),
                unacknowledged,
                unanswered_probes,
            };
            open = question.open_for(&owed, begun + Duration::from_secs(30) * turn);
        }
        open.as_secs()
    }

    #[test]
    fn only_a_peer_that_was_asked_and_says_nothing_is_silent() {
        for (what, looks, seconds) in [
            ("idle for an hour", &[(3600, 1, 0, 0), (3630, 1, 0, 0), (3660, 1, 0, 0)][..], 0),
            ("asked after an hour", &[(3600, 1, 2, 0), (3630, 16, 2, 0), (3660, 32, 2, 0)], 60),
            ("asked just now", &[(3600, 1, 0, 0), (3630, 1, 0, 0), (3660, 1, 1, 0)], 0),
            (
                "answers what is sent again, and drops it",
                &[(30, 51, 3, 0), (9, 102, 3, 0), (39, 102, 3, 0)],
                0,
            ),
            ("talks all the time", &[(1, 1, 9, 0), (1, 1, 9, 0), (1, 1, 9, 0)], 0),
            ("does not read, but answers probes", &[(25, 51, 0, 1), (5, 51, 0, 0), (35, 51, 0, 1)], 0),
            ("gone while it did not read", &[(25, 51, 0, 1), (55, 102, 0, 1), (85, 102, 0, 2)], 60),
        ] {
            assert_eq!(open_for(looks), seconds, "{what}");
        }
    }
}
