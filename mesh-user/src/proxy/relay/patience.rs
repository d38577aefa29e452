//! How long a relay waits for ends that show no life. One timer each per connection, set again only when it
//! fires: activity costs an atomic store.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::sleep};

use super::stats::LiveStats;
use crate::sys::socket::{Owed, owed};

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
        // Data sent again and probes of a closed window come at intervals of up to two minutes: a long silence
        // alone may be one in which nobody spoke.
        let is_asked = owed.since_sent < owed.silence || owed.unanswered_probes > 0;
        let still = |asked: &Instant| owed.silence + TICK >= now - *asked;
        self.asked = is_asked.then(|| self.asked.filter(still).unwrap_or(now));
        self.asked.map_or(Duration::ZERO, |asked| now - asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (seconds of silence, seconds since something was sent, unanswered probes), looked at every 30 s.
    fn open_for(looks: &[(u64, u64, u8)]) -> u64 {
        let (begun, mut question, mut open) = (Instant::now(), Question::default(), Duration::ZERO);
        for (&(silence_s, since_sent_s, unanswered_probes), turn) in looks.iter().zip(1..) {
            let owed = Owed {
                silence: Duration::from_secs(silence_s),
                since_sent: Duration::from_secs(since_sent_s),
                unanswered_probes,
            };
            open = question.open_for(&owed, begun + Duration::from_secs(30) * turn);
        }
        open.as_secs()
    }

    #[test]
    fn only_a_peer_that_was_asked_and_says_nothing_is_silent() {
        for (what, looks, seconds) in [
            ("idle for an hour", &[(3600, 3600, 0), (3630, 3630, 0), (3660, 3660, 0)][..], 0),
            ("asked after an hour", &[(3600, 1, 0), (3630, 5, 0), (3660, 10, 0)], 60),
            ("asked just now", &[(3600, 3600, 0), (3630, 3630, 0), (3660, 1, 0)], 0),
            ("answers what is sent again", &[(0, 1, 0), (20, 21, 0), (50, 51, 0)], 0),
            ("talks all the time", &[(1, 0, 0), (1, 0, 0), (1, 0, 0)], 0),
            ("does not read, but answers probes", &[(25, 90, 1), (5, 120, 0), (35, 150, 1)], 0),
            ("gone while it did not read", &[(25, 90, 1), (55, 120, 1), (85, 150, 2)], 60),
        ] {
            assert_eq!(open_for(looks), seconds, "{what}");
        }
    }
}
