//! The `hold` form: the programs keep an application's SYN back and tell it here through a ring buffer. Each
//! held connect is handed on once, however often its SYN is sent again, until it is completed, refused, left
//! unanswered or given up by the application.

mod answer;
#[cfg(fuzzing)]
pub mod fuzz;
mod leg;
mod reader;
mod share;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use lru::LruCache;
use mesh_common::{HeldConnect, held_event};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Captured, WorkloadNet, parking::Mutex};
pub use leg::HeldLeg;
pub(super) use reader::Reader;
use share::Share;

/// Who waits for held connects, and which are being decided.
#[derive(Debug)]
pub(super) struct Desk {
    /// Held connects of one subscriber that wait to be taken up. What does not fit is told again by the client's
    /// own retransmission.
    waiting_limit: usize,
    spaces: Mutex<HashMap<u64, Vec<mpsc::Sender<Pending>>>>,
    /// By socket cookie: the connect that is being decided, by its number.
    pending: Mutex<HashMap<u64, (usize, CancellationToken)>>,
    numbers: AtomicUsize,
    /// By socket cookie: the sequence number of the SYN that was answered by a connection. Its retransmissions may still
    /// wait in the ring, and would be taken for another connect.
    completed: Mutex<LruCache<u64, u32>>,
}

/// A held connect, and the word that the application gave it up.
#[derive(Debug)]
struct Pending {
    held: HeldConnect,
    number: usize,
    given_up: CancellationToken,
}

impl Desk {
    pub(super) fn new(waiting_limit: usize) -> Self {
        Self {
            waiting_limit,
            spaces: Mutex::default(),
            pending: Mutex::default(),
            numbers: AtomicUsize::new(0),
            completed: Mutex::new(LruCache::new(
                NonZeroUsize::new(waiting_limit).unwrap_or(NonZeroUsize::MIN),
            )),
        }
    }

    /// Takes in one event of the programs.
    pub(super) fn take(&self, held: HeldConnect) {
        match held.kind {
            held_event::HELD => self.hand_on(held),
            held_event::ABANDONED => {
                if let Some((_, given_up)) = self.pending.lock().remove(&held.socket_cookie) {
                    given_up.cancel();
                }
            }
            _ => {}
        }
    }

    fn hand_on(&self, held: HeldConnect) {
        if self.completed.lock().peek(&held.socket_cookie) == Some(&held.sequence) {
            return;
        }
        let (number, given_up) = (self.numbers.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        {
            let mut pending = self.pending.lock();
            if pending.contains_key(&held.socket_cookie) {
                return; // its SYN was sent again while meshd decides
            }
            pending.insert(held.socket_cookie, (number, given_up.clone()));
        }
        let subscriber = {
            let mut spaces = self.spaces.lock();
            spaces.get_mut(&held.netns_cookie).and_then(|subscribers| {
                subscribers.retain(|subscriber| !subscriber.is_closed());
                Some(subscribers.get(number.checked_rem(subscribers.len())?)?.clone())
            })
        };
        let taken = subscriber
            .is_some_and(|subscriber| subscriber.try_send(Pending { held, number, given_up }).is_ok());
        if !taken {
            self.forget(held.socket_cookie, number);
        }
    }

    /// The SYN of this sequence number has become a connection.
    fn complete(&self, socket_cookie: u64, sequence: u32) {
        self.completed.lock().put(socket_cookie, sequence);
    }

    /// The connect is decided; the socket may have been used for another one meanwhile.
    fn forget(&self, socket_cookie: u64, number: usize) {
        let mut pending = self.pending.lock();
        if pending.get(&socket_cookie).is_some_and(|(current, _)| *current == number) {
            pending.remove(&socket_cookie);
        }
    }

    fn subscribe(&self, netns_cookie: u64) -> mpsc::Receiver<Pending> {
        let (sender, receiver) = mpsc::channel(self.waiting_limit);
        self.spaces.lock().entry(netns_cookie).or_default().push(sender);
        receiver
    }

    /// Nobody serves this namespace any more: its subscribers end.
    pub(super) fn close(&self, netns_cookie: u64) {
        self.spaces.lock().remove(&netns_cookie);
    }
}

/// A namespace's held connects.
#[derive(Clone, Debug)]
pub struct HeldConnects {
    desk: Arc<Desk>,
    net: Arc<WorkloadNet>,
}

impl HeldConnects {
    pub(super) fn new(desk: Arc<Desk>, net: Arc<WorkloadNet>) -> Self {
        Self { desk, net }
    }

    /// A share of them: each held connect goes to one subscriber.
    pub fn subscribe(&self) -> HoldCapture {
        HoldCapture { share: Share::new(&self.desk, self.net.cookie()), net: Arc::clone(&self.net) }
    }
}

/// The `hold` form's share of a namespace's captured connections.
#[derive(Debug)]
pub struct HoldCapture {
    share: Share,
    net: Arc<WorkloadNet>,
}

impl HoldCapture {
    /// Waits for the next held connect; none when the namespace is not captured any more.
    pub async fn next(&mut self) -> Option<Captured> {
        loop {
            let Pending { held, number, given_up } = self.share.recv().await?;
            let leg = HeldLeg::new((self.share.desk(), number), &self.net, &held, given_up);
            // A workload that is gone: its SYN stays unanswered until its TCP gives up or it is enrolled again.
            if let Some(original) = self.net.original_of(&held, leg.client()) {
                return Some(Captured { leg: leg.into(), original });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETNS: u64 = 7;
    const LIMIT: usize = 16;

    fn held(kind: u32, socket_cookie: u64) -> HeldConnect {
        HeldConnect { netns_cookie: NETNS, socket_cookie, kind, ..HeldConnect::default() }
    }

    #[test]
    fn a_syn_sent_again_is_handed_on_once_until_it_is_decided() {
        let desk = Desk::new(LIMIT);
        let mut queue = desk.subscribe(NETNS);
        desk.take(held(held_event::HELD, 1));
        desk.take(held(held_event::HELD, 1));
        let first = queue.try_recv().unwrap();
        assert!(queue.try_recv().is_err());
        desk.forget(1, first.number);
        desk.take(held(held_event::HELD, 1));
        assert!(queue.try_recv().is_ok());
    }

    #[test]
    fn a_syn_sent_again_before_it_became_a_connection_is_no_other_connect() {
        let desk = Desk::new(LIMIT);
        let mut queue = desk.subscribe(NETNS);
        desk.take(held(held_event::HELD, 1));
        let first = queue.try_recv().unwrap();
        desk.complete(1, first.held.sequence);
        desk.forget(1, first.number);
        desk.take(held(held_event::HELD, 1));
        assert!(queue.try_recv().is_err());
        desk.take(HeldConnect { sequence: 5, ..held(held_event::HELD, 1) });
        assert!(queue.try_recv().is_ok(), "the socket connects again");
    }

    #[test]
    fn giving_up_reaches_whoever_decides_and_the_socket_may_connect_again() {
        let desk = Desk::new(LIMIT);
        let mut queue = desk.subscribe(NETNS);
        desk.take(held(held_event::HELD, 1));
        let first = queue.try_recv().unwrap();
        desk.take(held(held_event::ABANDONED, 1));
        assert!(first.given_up.is_cancelled());
        desk.take(held(held_event::HELD, 1));
        let second = queue.try_recv().unwrap();
        assert!(!second.given_up.is_cancelled());
        desk.forget(1, first.number);
        desk.take(held(held_event::ABANDONED, 1));
        assert!(second.given_up.is_cancelled(), "the first connect's end is not the second's");
    }

    #[test]
    fn without_a_subscriber_or_room_the_next_syn_is_a_new_chance() {
        let desk = Desk::new(LIMIT);
        desk.take(held(held_event::HELD, 1));
        let mut queue = desk.subscribe(NETNS);
        desk.take(held(held_event::HELD, 1));
        assert!(queue.try_recv().is_ok());
        for cookie in 2..LIMIT as u64 + 10 {
            desk.take(held(held_event::HELD, cookie));
        }
        assert_eq!(desk.pending.lock().len(), LIMIT + 1);
        desk.close(NETNS);
        drop(queue);
    }

    /// A namespace that is enrolled anew gets new subscribers, and its clients send their SYNs again.
    #[test]
    fn what_a_subscriber_leaves_behind_is_handed_to_the_next_one() {
        let desk = Arc::new(Desk::new(LIMIT));
        let gone = Share::new(&desk, NETNS);
        desk.take(held(held_event::HELD, 1));
        drop(gone);
        assert!(desk.pending.lock().is_empty());
        let mut queue = desk.subscribe(NETNS);
        desk.take(held(held_event::HELD, 1));
        assert!(queue.try_recv().is_ok());
    }

    #[test]
    fn held_connects_are_dealt_out_in_turn() {
        let desk = Desk::new(LIMIT);
        let mut queues = [desk.subscribe(NETNS), desk.subscribe(NETNS)];
        (0..4).for_each(|cookie| desk.take(held(held_event::HELD, cookie)));
        for queue in &mut queues {
            assert!(queue.try_recv().is_ok() && queue.try_recv().is_ok() && queue.try_recv().is_err());
        }
    }
}
