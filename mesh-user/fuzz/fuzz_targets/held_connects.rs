//! The ring buffer's events, in any order and of any size: each held connect is decided by one at a time, the
//! application's word reaches whoever decides, and nothing is remembered that nobody can decide.
//! Input: steps of 3 bytes, what and with what; a step of kind 3 is followed by an event's bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_fuzz::Input;
use mesh_user::capture::fuzz::{Decision, Events, Share};

const ABANDONED: u8 = 2;
const EVENT_BYTES: usize = size_of::<mesh_common::HeldConnect>();

/// Few, so that the queues are full now and then.
const WAITING_LIMIT: usize = 8;

struct Desk {
    events: Events,
    shares: Vec<Share>,
    decisions: Vec<Decision>,
}

fuzz_target!(|input: &[u8]| {
    let (mut input, mut desk, mut steps) = (Input(input), Desk::new(), 0);
    while !input.0.is_empty() && steps < 2000 {
        steps += 1;
        desk.step(&mut input);
        assert!(desk.events.remembered() <= steps, "more is remembered than was held");
    }
    desk.decisions.clear();
    desk.shares.clear();
    assert_eq!(desk.events.remembered(), 0, "a connect is remembered that nobody will decide");
});

impl Desk {
    fn new() -> Self {
        Self { events: Events::new(WAITING_LIMIT), shares: Vec::new(), decisions: Vec::new() }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (what, first, second) = (input.byte(), input.byte(), input.byte());
        let (netns, index) = (first % 3, usize::from(first));
        match what % 8 {
            // Whole events, of few namespaces and sockets, so that they meet.
            0..=2 => self.event(netns, second % 5, what % 8 + 1),
            3 => {
                // Of the right size it may be an event of a socket that no other step names.
                let bytes = input.take(usize::from(second));
                assert_eq!(self.events.take(bytes), bytes.len() == EVENT_BYTES);
            }
            4 if self.shares.len() < 16 => self.shares.push(self.events.subscribe(netns.into())),
            5 if !self.shares.is_empty() => {
                let index = index % self.shares.len();
                if let Some(decision) = self.shares[index].take_up() {
                    self.decide(decision);
                }
            }
            6 if second % 2 == 0 && !self.decisions.is_empty() => {
                self.decisions.swap_remove(index % self.decisions.len());
            }
            6 if !self.shares.is_empty() => {
                self.shares.swap_remove(index % self.shares.len());
            }
            7 => self.events.close(netns.into()),
            _ => {}
        }
    }

    fn event(&mut self, netns: u8, socket: u8, kind: u8) {
        let event = mesh_common::HeldConnect {
            netns_cookie: netns.into(),
            socket_cookie: socket.into(),
            kind: kind.into(),
            ..Default::default()
        };
        let before: Vec<bool> = self.decisions.iter().map(Decision::is_given_up).collect();
        self.events.feed(event);
        for (decision, was) in self.decisions.iter().zip(before) {
            let told = kind == ABANDONED && decision.held.socket_cookie == u64::from(socket);
            assert!(decision.is_given_up() == (was || told), "the application's word reaches somebody else");
        }
    }

    /// One that was given up while it waited in a slow subscriber's queue may come after the socket's next one.
    fn decide(&mut self, decision: Decision) {
        let of_one_socket = |other: &&Decision| other.held.socket_cookie == decision.held.socket_cookie;
        let still = self.decisions.iter().filter(of_one_socket).filter(|other| !other.is_given_up()).count();
        assert!(still == 0 || decision.is_given_up(), "a connect is decided twice");
        self.decisions.push(decision);
    }
}
