//! A workload's network namespace as the proxy uses it: sockets made inside, marked as meshd's own before
//! they do anything, and the way back from an accepted connection to where it wanted to go.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use arc_swap::ArcSwap;
use mesh_common::{AddrNet, HeldConnect, OWN_PRIORITY, PeerView, TupleKey};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    maps::{Shared, tuple_key},
    parking::Mutex,
    spare::Spare,
};
use crate::sys::{netns::NetNs, socket::prepare_leg};

/// Where a captured connection wanted to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalDestination {
    /// The address and port that the application gave to `connect`.
    pub destination: SocketAddr,
    /// The client's [`super::PlannedWorkload::id`] in the plan now in force.
    pub workload: u32,
    /// The client as others should see it: its workload's address of that family and the application's own
    /// port; `None` if the workload has no such address.
    pub source: Option<SocketAddr>,
}

/// Whose connections arrive at a namespace's inbound listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundOwner {
    /// One workload owns the namespace.
    One(u32),
    /// The namespace is shared; the local port says which workload.
    ByPort(HashMap<u16, u32>),
}

/// A namespace in which meshd listens.
#[derive(Debug)]
pub struct WorkloadNet {
    netns: NetNs,
    shared: Arc<Shared>,
    inbound: ArcSwap<InboundOwner>,
    outbound_port: u16,
    inbound_port: u16,
    /// Sockets that send what a held connect is answered with, IPv4 and IPv6, made when first needed.
    raw: Mutex<[Option<Arc<Socket>>; 2]>,
    spare: Spare,
}

impl WorkloadNet {
    /// Without ports yet: they are found by trying.
    pub(super) fn new(netns: NetNs, shared: Arc<Shared>) -> Self {
        let inbound = ArcSwap::from_pointee(InboundOwner::ByPort(HashMap::new()));
        let (raw, spare) = (Mutex::default(), Spare::default());
        Self { netns, shared, inbound, outbound_port: 0, inbound_port: 0, raw, spare }
    }

    pub(super) fn on_ports(self, outbound_port: u16, inbound_port: u16) -> Self {
        Self { outbound_port, inbound_port, ..self }
    }

    pub(super) fn set_inbound(&self, owner: InboundOwner) {
        self.inbound.store(Arc::new(owner));
    }

    /// The namespace's cookie: a number that the kernel never uses again.
    pub fn cookie(&self) -> u64 {
        self.netns.cookie()
    }

    /// The namespace itself.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The id, in the plan now in force, of the workload that answers on a local port.
    pub fn inbound_workload(&self, local_port: u16) -> Option<u32> {
        match &**self.inbound.load() {
            InboundOwner::One(id) => Some(*id),
            InboundOwner::ByPort(ports) => ports.get(&local_port).copied(),
        }
    }

    /// Whether a connection accepted at the inbound listener came to that listener's own address instead of
    /// being steered to it: then it has no original destination and must be reset.
    pub fn is_own_listener(&self, local: SocketAddr) -> bool {
        local.ip().to_canonical().is_loopback()
            && (local.port() == self.inbound_port || local.port() == self.outbound_port)
    }

    /// Takes the original destination of a connection that the outbound listener accepted from `peer`.
    /// `None`: nobody knows, or its workload is gone; reset the connection.
    pub fn original_dst(&self, peer: SocketAddr) -> Option<OriginalDestination> {
        let original = self.shared.by_tuple.take(&tuple_key(self.cookie(), peer)).ok()??;
        let destination = SocketAddr::new(original.addr.into(), u16::from_be(original.port_be));
        self.original(original.slot, destination, peer)
    }

    /// Where a held connect from `client` wants to go; `None`: its workload is gone.
    pub(super) fn original_of(&self, held: &HeldConnect, client: SocketAddr) -> Option<OriginalDestination> {
        let destination = SocketAddr::new(held.destination.into(), u16::from_be(held.destination_port_be));
        self.original(held.slot, destination, client)
    }

    fn original(&self, slot: u32, destination: SocketAddr, peer: SocketAddr) -> Option<OriginalDestination> {
        let slots = self.shared.slots.load();
        let owner = match slot {
            // Captured before its pod was enrolled: whose the namespace is now.
            0 => slots.values().find(|owner| owner.netns == Some(self.cookie()))?,
            slot => slots.get(&slot)?,
        };
        let local = if destination.is_ipv4() { owner.local_v4 } else { owner.local_v6 };
        // A client that bound an address of its own keeps it.
        let bound = peer.ip().to_canonical();
        let source = if bound.is_loopback() { local } else { Some(bound) };
        Some(OriginalDestination {
            destination,
            workload: owner.id,
            source: source.map(|address| SocketAddr::new(address, peer.port())),
        })
    }

    /// Starts a wire leg from inside the namespace: non-blocking, close-on-exec, never captured. The connect
    /// is under way when this returns: wait for writability, then read `SO_ERROR`.
    ///
    /// It leaves from `source` where that is possible, from that address with another port where only the
    /// port cannot be had.
    pub fn wire_socket(&self, dst: SocketAddr, source: Option<SocketAddr>) -> io::Result<Socket> {
        let Some(source) = source.filter(|source| source.is_ipv4() == dst.is_ipv4()) else {
            let socket = self.own_socket(dst)?;
            socket.set_tcp_nodelay(true)?;
            start_connect(&socket, dst)?;
            return Ok(socket);
        };
        match self.wire_socket_from(dst, source) {
            Err(error) if source.port() != 0 && is_denied(&error) => {
                self.wire_socket_from(dst, SocketAddr::new(source.ip(), 0))
            }
            result => result,
        }
    }

    fn wire_socket_from(&self, dst: SocketAddr, source: SocketAddr) -> io::Result<Socket> {
        let socket = self.own_socket(dst)?;
        socket.set_tcp_nodelay(true)?;
        if source.port() == 0 {
            // The kernel picks the port at connect, when it knows the whole tuple.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        } else {
            // An earlier connection from that port may be in TIME_WAIT; connect still refuses a taken tuple.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&source.into())?;
        start_connect(&socket, dst)?;
        Ok(socket)
    }

    /// Starts an app leg: a connection to the application on its own address, from that address, so that it
    /// counts as the workload's own. The application is shown `client` as its peer. Otherwise as
    /// [`WorkloadNet::wire_socket`]; keep the guard as long as the socket.
    pub fn app_socket(
        &self,
        local_dst: SocketAddr,
        client: SocketAddr,
    ) -> io::Result<(Socket, PeerViewGuard)> {
        let socket = self.own_socket(local_dst)?;
        prepare_leg(&socket)?;
        socket.bind(&SocketAddr::new(local_dst.ip(), 0).into())?;
        let own = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let key = tuple_key(self.cookie(), own);
        let view = PeerView { addr: client.ip().into(), port_be: client.port().to_be(), reserved: 0 };
        self.shared.peer_of.insert(&key, &view)?;
        let guard = PeerViewGuard { shared: self.shared.clone(), key };
        start_connect(&socket, local_dst)?;
        Ok((socket, guard))
    }

    /// The port to which captured connects are rewritten.
    pub(super) fn outbound_port(&self) -> u16 {
        self.outbound_port
    }

    /// The port of the inbound listener.
    pub(super) fn inbound_port(&self) -> u16 {
        self.inbound_port
    }

    /// Begins a simultaneous open with a socket that waits in SYN-SENT: from the end it sent its SYN to.
    pub(super) fn simultaneous_open(&self, from: SocketAddr, to: SocketAddr) -> io::Result<Socket> {
        let socket = self.own_socket(from)?;
        prepare_leg(&socket)?;
        // All of them share this end; the other end tells them apart. A listener's may be left there from a run in
        // the other form.
        socket.set_reuse_address(true)?;
        // Without this the kernel compares each new one with all that there are (`inet_csk_get_port`,
        // net/ipv4/inet_connection_sock.c).
        socket.set_reuse_port(true)?;
        socket.bind(&from.into())?;
        start_connect(&socket, to)?;
        Ok(socket)
    }

    /// Sends a whole IP packet within the namespace.
    pub(super) fn send_raw(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = {
            let mut sockets = self.raw.lock();
            let slot = &mut sockets[usize::from(to.is_ipv6())];
            match slot {
                Some(socket) => Arc::clone(socket),
                None => Arc::clone(slot.insert(Arc::new(self.raw_socket(to)?))),
            }
        };
        // A raw socket takes the protocol for the port, which must be its own or 0.
        socket.send_to(packet, &SocketAddr::new(to.ip(), 0).into()).map(|_| ())
    }

    /// `IPPROTO_RAW` sends packets as they are and receives none (raw(7)).
    fn raw_socket(&self, for_address: SocketAddr) -> io::Result<Socket> {
        let kind = Type::RAW.nonblocking().cloexec();
        let make =
            || Socket::new(Domain::for_address(for_address), kind, Some(Protocol::from(libc::IPPROTO_RAW)));
        self.netns.run_in(make)?
    }

    /// Binds a listener in the namespace; only its own loopback reaches it unless a program steers to it. What it accepts
    /// is prepared as a leg.
    pub(super) fn listen(&self, address: SocketAddr, backlog: i32) -> io::Result<Socket> {
        let socket = self.bind(address)?;
        socket.listen(backlog)?;
        Ok(socket)
    }

    /// Takes a port in the namespace.
    pub(super) fn bind(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = self.own_socket(address)?;
        prepare_leg(&socket)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    }

    fn own_socket(&self, for_address: SocketAddr) -> io::Result<Socket> {
        let socket = self.spare.take(&self.netns, for_address.is_ipv6())?;
        self.shared.mark_own(socket.as_fd())?;
        setsockopt(&socket, sockopt::Priority, &OWN_PRIORITY.cast_signed())?;
        Ok(socket)
    }
}

/// The port is taken, or a privileged one that this process may not have.
fn is_denied(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
    matches!(error.kind(), AddrInUse | AddrNotAvailable | PermissionDenied)
}

fn start_connect(socket: &Socket, dst: SocketAddr) -> io::Result<()> {
    match socket.connect(&SockAddr::from(dst)) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        result => result,
    }
}

/// Keeps what the application is shown of an app leg's client; removes what is left of it when dropped.
#[derive(Debug)]
pub struct PeerViewGuard {
    shared: Arc<Shared>,
    key: TupleKey,
}

impl Drop for PeerViewGuard {
    fn drop(&mut self) {
        // Gone already where the application's own socket has taken it over.
        let _: io::Result<bool> = self.shared.peer_of.remove(&self.key);
    }
}

/// The address a workload's clients of one family are told they have.
pub(super) fn primary(addresses: &[IpAddr], v4: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == v4)
}

pub(super) fn primary_net(addresses: &[IpAddr], v4: bool) -> AddrNet {
    primary(addresses, v4).map_or(AddrNet::UNSPECIFIED, AddrNet::from)
}
