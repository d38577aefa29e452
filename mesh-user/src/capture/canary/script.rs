//! What is tried, step by step, in lockstep with the child. A step that fails fails those that follow from
//! it; its reason is kept.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use socket2::Socket;

use super::{
    super::{EnrolledNamespace, PeerViewGuard},
    Capability, SERVER_PORT, STEP_LIMIT,
    peer::{CONNECT_FAILED, Child},
    stage::{CLIENT, SERVER},
};

type Seen = Result<String, String>;

const POLL: Duration = Duration::from_millis(1);

/// Accepts from a non-blocking or blocking listener, within a limit.
pub(super) fn accept_within(listener: &TcpListener, limit: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + limit;
    loop {
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(POLL);
            }
            result => return result,
        }
    }
}

/// What is held while the script goes on: a connection that ends takes its entries with it.
#[derive(Default)]
struct Held {
    streams: Vec<TcpStream>,
    sockets: Vec<Socket>,
    guards: Vec<PeerViewGuard>,
}

struct Play {
    client: EnrolledNamespace,
    server: EnrolledNamespace,
    child: Child,
    held: Held,
    /// Address families that both namespaces have, as indices into [`CLIENT`] and [`SERVER`].
    families: usize,
}

pub(super) fn play(client: EnrolledNamespace, server: EnrolledNamespace, child: Child) -> Vec<Capability> {
    let mut play = Play { client, server, child, held: Held::default(), families: 0 };
    let ready = play.child.families();
    play.families = *ready.as_ref().unwrap_or(&0);
    let mut rows = [Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), Ok(())].map(|row| match &ready {
        Ok(_) => row.map(|()| String::new()),
        Err(why) => Err(why.clone()),
    });
    let mut clients = Vec::new();
    for family in 0..play.families {
        let [redirect, original, view, ..] = &mut rows;
        let found = play.outbound(family, redirect, original, view);
        clients.push(found);
    }
    let mptcp = if ready.is_ok() { play.mptcp() } else { Err("not tried".to_owned()) };
    for (family, client) in clients.iter().enumerate() {
        let [.., steering, server_view, _] = &mut rows;
        let steered = client.ok_or("no client was captured".to_owned()).and_then(|c| play.inbound(family, c));
        note(steering, steered);
        let seen =
            client.ok_or("no client was captured".to_owned()).and_then(|c| play.server_view(family, c));
        note(server_view, seen);
    }
    play.server.listeners.inbound.clear();
    for family in 0..play.families {
        let refused = play.empty_slot(family);
        note(&mut rows[5], refused);
    }
    let [redirect, original, view, steering, server_view, empty] = rows;
    table([redirect, original, view, steering, server_view, empty, mptcp])
}

/// Adds a family's result to a row: all must succeed.
fn note(row: &mut Seen, seen: Seen) {
    *row = match (std::mem::replace(row, Ok(String::new())), seen) {
        (Err(first), _) => Err(first),
        (Ok(_), Err(why)) => Err(why),
        (Ok(before), Ok(now)) if before.is_empty() => Ok(now),
        (Ok(before), Ok(now)) => Ok(format!("{before}; {now}")),
    };
}

impl Play {
    fn server_address(family: usize) -> SocketAddr {
        SocketAddr::new(SERVER[family], SERVER_PORT)
    }

    /// The client's connection arrives at our listener, and we learn where it wanted to go. Returns the
    /// client as others should see it.
    fn outbound(
        &mut self,
        family: usize,
        redirect: &mut Seen,
        original: &mut Seen,
        view: &mut Seen,
    ) -> Option<SocketAddr> {
        let wanted = Self::server_address(family);
        // The kernel completes the client's connect; a client that failed is not worth waiting for.
        let line = self.child.line();
        let limit = match &line {
            Ok(line) if !line.starts_with(CONNECT_FAILED) => STEP_LIMIT,
            _ => Duration::ZERO,
        };
        let accepted = match self.client.listeners.outbound.get(family) {
            Some(listener) => accept_within(listener, limit)
                .map_err(|error| format!("connect to {wanted} did not reach meshd's listener: {error}")),
            None => Err("meshd has no listener of this family".to_owned()),
        };
        let app = accepted.as_ref().ok().map(|(_, app)| *app);
        note(redirect, accepted.as_ref().map_or_else(|why| Err(why.clone()), |_| Ok(wanted.to_string())));
        let found = app.and_then(|app| self.client.net.original_dst(app));
        let expected = app.map(|app| SocketAddr::new(CLIENT[family], app.port()));
        note(
            original,
            match &found {
                Some(found) if found.destination == wanted && found.source == expected => {
                    Ok(wanted.to_string())
                }
                other => Err(format!("wanted {wanted} from {expected:?}, the maps say {other:?}")),
            },
        );
        let said = line.and_then(|line| match expected {
            Some(own) if line == format!("{wanted} {own}") => Ok(line),
            _ => {
                Err(format!("getpeername and getsockname should say {wanted} {expected:?}; they say {line}"))
            }
        });
        note(view, said);
        self.held.streams.extend(accepted.ok().map(|(stream, _)| stream));
        expected
    }

    /// A connection from the client's namespace, as a wire leg makes it, arrives at our inbound listener.
    fn inbound(&mut self, family: usize, client: SocketAddr) -> Seen {
        let wanted = Self::server_address(family);
        let socket =
            self.client.net.wire_socket(wanted, Some(client)).map_err(|e| format!("wire leg: {e}"))?;
        self.held.sockets.push(socket);
        let listener = self.server.listeners.inbound.get(family).ok_or("meshd has no listener")?;
        let (stream, from) = accept_within(listener, STEP_LIMIT)
            .map_err(|error| format!("{wanted} was not steered to meshd's listener: {error}"))?;
        let local = stream.local_addr().map_err(|error| error.to_string())?;
        self.held.streams.push(stream);
        if local == wanted && from == client {
            Ok(format!("{from} to {local}"))
        } else {
            Err(format!("steered as {from} to {local}, not {client} to {wanted}"))
        }
    }

    /// The server is shown the real client of an app leg.
    fn server_view(&mut self, family: usize, client: SocketAddr) -> Seen {
        let wanted = Self::server_address(family);
        let (socket, guard) =
            self.server.net.app_socket(wanted, client).map_err(|error| format!("app leg: {error}"))?;
        self.held.sockets.push(socket);
        self.held.guards.push(guard);
        let line = self.child.line()?;
        if line == format!("{client} {client}") {
            Ok(client.to_string())
        } else {
            Err(format!("accept and getpeername should say {client}; they say {line}"))
        }
    }

    fn mptcp(&self) -> Seen {
        let line = self.child.line()?;
        match line.split_once('|') {
            Some(("made", _)) => Err("an enrolled workload could make an MPTCP socket".to_owned()),
            Some((why, "made")) => Ok(why.to_owned()),
            Some((_, why)) => Ok(format!("this kernel has none: {why}")),
            None => Err(line),
        }
    }

    /// With the listener gone a connection from outside is refused at once; it must not reach the server.
    fn empty_slot(&self, family: usize) -> Seen {
        let wanted = Self::server_address(family);
        let socket = self.client.net.wire_socket(wanted, None).map_err(|e| format!("wire leg: {e}"))?;
        let deadline = Instant::now() + STEP_LIMIT;
        while Instant::now() < deadline {
            match socket.take_error() {
                Ok(Some(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Ok("connection refused".to_owned());
                }
                Ok(Some(error)) | Err(error) => return Err(format!("{wanted}: {error}")),
                Ok(None) if socket.peer_addr().is_ok() => {
                    return Err(format!("{wanted} was reached past meshd"));
                }
                Ok(None) => thread::sleep(POLL),
            }
        }
        Err(format!("{wanted}: no answer within {} s", STEP_LIMIT.as_secs()))
    }
}

/// Names are for scripts, meanings for people.
const NAMES: [(&str, &str); 7] = [
    (
        "connect redirect",
        "connections of workloads to meshed destinations reach meshd; else they would leave in plaintext",
    ),
    (
        "original destination",
        "meshd knows where a captured connection wanted to go; else it must reset every one",
    ),
    (
        "client's view",
        "getpeername and getsockname tell clients the truth; else programs see meshd's loopback address",
    ),
    (
        "inbound steering",
        "connections from outside meet meshd before the workload; else nothing would be checked",
    ),
    (
        "server's view",
        "accept and getpeername show servers their real client; else they see their own address",
    ),
    (
        "empty slot refuses",
        "while meshd is down inbound connections are refused; else they would pass unchecked",
    ),
    ("MPTCP refused", "programs fall back to TCP, which is captured; an MPTCP socket would escape"),
];

fn table(rows: [Seen; 7]) -> Vec<Capability> {
    NAMES
        .into_iter()
        .zip(rows)
        .map(|((name, meaning), seen)| Capability {
            name,
            proven: seen.is_ok(),
            required: true,
            meaning,
            detail: seen.unwrap_or_else(|why| why),
        })
        .collect()
}
