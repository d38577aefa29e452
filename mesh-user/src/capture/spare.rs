//! TCP sockets made ahead in a namespace: each visit there is two system calls. Only while connections follow each other
//! closely is more than one made, so that a quiet workload has none.

use std::{
    io,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::parking::Mutex;
use crate::sys::netns::NetNs;

/// Made in one visit; all but one stay for the next connections.
const AT_ONCE: usize = 4;
/// A visit so soon after the last one is one of many.
const SOON: Duration = Duration::from_millis(100);

/// Sockets that have done nothing yet: non-blocking, close-on-exec, of IPv4 and of IPv6.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<[Family; 2]>);

#[derive(Debug, Default)]
struct Family {
    sockets: Vec<Socket>,
    visited: Option<Instant>,
}

impl Spare {
    /// One of them, or a new one.
    ///
    /// # Errors
    /// When the kernel refuses one, or the way into the namespace.
    pub(super) fn take(&self, netns: &NetNs, is_ipv6: bool) -> io::Result<Socket> {
        let family = usize::from(is_ipv6);
        let ahead = {
            let family = &mut self.0.lock()[family];
            if let Some(socket) = family.sockets.pop() {
                return Ok(socket);
            }
            let visited = family.visited.replace(Instant::now());
            if visited.is_some_and(|at| at.elapsed() < SOON) { AT_ONCE - 1 } else { 0 }
        };
        let domain = if is_ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let make = || Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP));
        // What cannot be made ahead is asked for when it is needed.
        let visit =
            || Ok::<_, io::Error>((make()?, (0..ahead).map_while(|_| make().ok()).collect::<Vec<_>>()));
        let (socket, others) = netns.run_in(visit)??;
        let sockets = &mut self.0.lock()[family].sockets;
        sockets.extend(others);
        // Several threads may have been there.
        sockets.truncate(AT_ONCE - 1);
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_made_ahead_only_for_connections_that_follow_each_other() {
        let (netns, spare) = (NetNs::current().unwrap(), Spare::default());
        let made_ahead = || spare.0.lock()[0].sockets.len();
        spare.take(&netns, false).unwrap();
        assert_eq!(made_ahead(), 0);
        spare.take(&netns, false).unwrap();
        assert_eq!(made_ahead(), AT_ONCE - 1);
        spare.take(&netns, true).unwrap();
        spare.take(&netns, false).unwrap();
        assert_eq!(made_ahead(), AT_ONCE - 2);
    }
}
