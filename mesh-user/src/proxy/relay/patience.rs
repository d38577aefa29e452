//! How long a relay waits for ends that show no life. One timer each per connection, set again only when it
//! fires: activity costs an atomic store.

use std::{future::pending, time::Duration};

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

/// Ends when the peer owes acknowledgements and has sent none for `limit`; never, if that is zero.
///
/// `TCP_USER_TIMEOUT` would also end the connection of a peer that is well and only does not read
/// (`tcp_probe_timer`, `net/ipv4/tcp_timer.c`), which without meshd may pause for as long as it likes.
pub(super) async fn silent(wire: &TcpStream, limit: Duration) {
    if limit.is_zero() {
        return pending().await;
    }
    loop {
        sleep(limit / 2).await;
        // A socket that cannot be asked has ended; its error is seen elsewhere.
        if owed(wire).is_ok_and(|owed| is_dead(&owed, limit)) {
            return;
        }
    }
}

fn is_dead(owed: &Owed, limit: Duration) -> bool {
    owed.silence >= limit && (owed.retransmitted > 0 || owed.unanswered_probes > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_peer_that_owes_an_answer_is_dead() {
        const LIMIT: Duration = Duration::from_secs(60);
        for (silence_s, retransmitted, unanswered_probes, dead) in [
            (3600, 0, 0, false), // nothing was asked of it
            (59, 7, 0, false),
            (60, 7, 0, true),
            // The kernel asks a closed window at intervals of up to two minutes; one answer may be on its way.
            (110, 0, 1, false),
            (110, 0, 2, true),
        ] {
            let owed = Owed { silence: Duration::from_secs(silence_s), retransmitted, unanswered_probes };
            assert_eq!(is_dead(&owed, LIMIT), dead, "{owed:?}");
        }
    }
}
