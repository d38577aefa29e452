//! How long a relay waits for ends that show no life. One timer each per connection, set again only when it
//! fires: activity costs an atomic store.

use std::{
    convert::Infallible,
    future::pending,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    time::{Sleep, sleep},
};

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

/// [`keep_alive`] and [`silent`] for a socket that belongs to a stream: to be asked whenever that one waits.
pub(in crate::proxy) struct Vigil {
    timer: Pin<Box<Sleep>>,
    /// When the kernel is to probe, and after how long a quiet.
    keep_alive: Option<(Instant, Duration)>,
    /// When to look whether the peer is silent, and how long it may be.
    look: Option<(Instant, Duration)>,
    question: Question,
}

impl Vigil {
    /// Zero: not at all.
    pub(in crate::proxy) fn new(keepalive_idle: Duration, user_timeout: Duration) -> Self {
        let now = Instant::now();
        let half = |limit: Duration| (!limit.is_zero()).then(|| (now + limit / 2, limit));
        let mut vigil = Self {
            timer: Box::pin(sleep(Duration::ZERO)),
            keep_alive: half(keepalive_idle),
            look: half(user_timeout),
            question: Question::default(),
        };
        vigil.set_timer();
        vigil
    }

    fn set_timer(&mut self) {
        let next = self.keep_alive.iter().chain(&self.look).map(|(due, _)| *due).min();
        if let Some(next) = next {
            self.timer.as_mut().reset(next.into());
        }
    }

    /// Ready when the peer has been silent for too long.
    pub(in crate::proxy) fn poll(&mut self, wire: &TcpStream, context: &mut Context<'_>) -> Poll<()> {
        while self.keep_alive.is_some() || self.look.is_some() {
            ready!(self.timer.as_mut().poll(context));
            let now = Instant::now();
            if let Some((_, idle)) = self.keep_alive.take_if(|(due, _)| *due <= now) {
                // Only a socket that has ended refuses; its error is seen elsewhere.
                let _ = socket::keep_alive(wire, idle);
            }
            if let Some((due, limit)) = self.look.as_mut().filter(|(due, _)| *due <= now) {
                // A socket that cannot be asked has ended; its error is seen elsewhere.
                if owed(wire).is_ok_and(|owed| self.question.open_for(&owed, now) >= *limit) {
                    return Poll::Ready(());
                }
                *due = now + *limit / 2;
            }
            self.set_timer();
        }
        Poll::Pending
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

    #[tokio::test]
    async fn a_quiet_peer_is_probed_and_one_that_is_well_is_not_silent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let probed = || socket2::SockRef::from(&wire).keepalive().unwrap();
        let mut vigil = Vigil::new(Duration::from_millis(4), Duration::from_millis(2));
        assert!(!probed());
        std::future::poll_fn(|context| {
            assert!(vigil.poll(&wire, context).is_pending(), "it owes nothing");
            if probed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let mut never = Vigil::new(Duration::ZERO, Duration::ZERO);
        std::future::poll_fn(|context| {
            assert!(never.poll(&wire, context).is_pending());
            Poll::Ready(())
        })
        .await;
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
