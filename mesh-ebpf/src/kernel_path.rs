//! The kernel path: both workloads are here and policy allows the pair, so the client's socket reaches the server's
//! as it would without meshd. The record that the client's socket leaves proves who it is: `sk_lookup` in the
//! server's namespace admits what is recorded, and nothing else is let through on its account.
//!
//! Two programs guard the opening, and pass everything later by its socket's state. Egress notes the SYN's sequence
//! number. Ingress lets a server take only a SYN with that number, and a client only an answer from the namespace
//! that its verdict names: whoever answers for a stolen address gets no byte.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_RB_NO_WAKEUP, bpf_sock, bpf_sock_ops, bpf_tcp_sock},
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_ringbuf_query,
        bpf_tcp_sock as tcp_sock_of,
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use mesh_common::{
    AddrNet, ConnectionTuple, Counter, KernelConnection, KernelEnd, KernelPair, KernelPairKey,
    KernelPathConfig, SockView, WorkloadEntry, socket_flags,
};

use crate::{
    context::{Ends, IPPROTO_TCP, TCP_LISTEN, TCP_SYN_SENT, bound_address, full_socket, read_wide},
    maps::{KERNEL_CONNECTIONS, KERNEL_ENDS, KERNEL_PAIRS, KERNEL_PATH, KERNEL_USED, count, view},
    meshed::is_local_address,
    packet::{self, Packet},
    read::read_field,
    word,
};

const PASS: i32 = 1;
const DROP: i32 = 0;
/// `BPF_RB_AVAIL_DATA`, `include/uapi/linux/bpf.h`.
const AVAILABLE_BYTES: u64 = 0;
/// `BPF_RB_FORCE_WAKEUP`.
const WAKE_UP: u64 = 2;
/// meshd looks now and then by itself; it is woken where so many bytes wait.
const WAKE_UP_AT: u64 = 1 << 16;
/// A quarter is left for connections that begin at once on different processors, each seeing room for itself.
const SPARE_SHARE: u64 = 4;
/// Bits of the byte with TCP's flags.
const SYN: u8 = 2;
const ACK: u8 = 16;

// States before TCP_CLOSE in which a FIN had been acknowledged, or had arrived (`include/net/tcp_states.h`).
const TCP_FIN_WAIT2: u32 = 5;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

/// The path's settings, while it is open.
#[inline(always)]
fn open() -> Option<&'static KernelPathConfig> {
    KERNEL_PATH.get(0).filter(|config| config.generation != 0)
}

#[inline(always)]
fn verdict(
    config: &KernelPathConfig,
    slot: u32,
    server: AddrNet,
    port_be: u16,
) -> Option<&'static KernelPair> {
    let key = KernelPairKey { client_slot: slot, port_be, reserved: 0, server };
    // SAFETY: only user space writes it, whole; where memory is handed on to another verdict meanwhile, the record names
    // a namespace that its server's lookup does not admit.
    let pair = unsafe { KERNEL_PAIRS.get(&key) }?;
    (pair.generation == config.generation).then_some(pair)
}

/// What a connect that may take the kernel path is remembered as; none: it goes through meshd.
#[inline(always)]
pub(crate) fn admitted(
    socket: *mut bpf_sock,
    netns_cookie: u64,
    entry: &WorkloadEntry,
    destination: AddrNet,
    port_be: u16,
) -> Option<SockView> {
    let config = open()?;
    verdict(config, entry.slot, destination, port_be)?;
    let local = if destination.v4_net().is_some() { entry.local_v4 } else { entry.local_v6 };
    let bound = bound_address(socket);
    if local.is_unspecified() || !(bound.is_wildcard() || bound == local) {
        return None;
    }
    // SAFETY: an aligned word of the map's; either of two values will do.
    let used = KERNEL_USED.get(0).map_or(u64::MAX, |used| unsafe { core::ptr::read_volatile(used) });
    if used >= config.room - config.room / SPARE_SHARE {
        count(Counter::KernelPathTableFull);
        return None;
    }
    Some(SockView {
        netns_cookie,
        flags: socket_flags::KERNEL_PATH,
        slot: entry.slot,
        peer: destination,
        local,
        peer_port_be: port_be,
        reserved: [0; 3],
    })
}

/// The connection has its tuple, and its SYN is about to leave: without a record it does not.
#[inline(always)]
pub(crate) fn connecting(ctx: *mut bpf_sock_ops, view: &SockView, ends: &Ends) {
    let Some(config) = open() else { return };
    let port_host = u32::from(u16::from_be(view.peer_port_be));
    if ends.local != view.local || ends.remote != view.peer || ends.remote_port_host != port_host {
        count(Counter::CaptureUndone);
        return;
    }
    let Some(pair) = verdict(config, view.slot, view.peer, view.peer_port_be) else { return };
    // SAFETY: the helpers take this hook's own context, or nothing.
    let (client_cookie, client_netns, started_ns) =
        unsafe { (bpf_get_socket_cookie(ctx.cast()), bpf_get_netns_cookie(ctx.cast()), bpf_ktime_get_ns()) };
    let connection = KernelConnection {
        started_ns,
        client_cookie,
        client_netns,
        server_netns: pair.server_netns,
        run: config.run,
        client_slot: view.slot,
        server_slot: pair.server_slot,
        sequence: 0,
        admitted: 0,
    };
    if KERNEL_CONNECTIONS.insert(&tuple_of(ends), &connection, u64::from(BPF_ANY)).is_ok() {
        count(Counter::KernelPath);
        use_up(1);
    } else {
        count(Counter::KernelPathTableFull);
    }
}

/// The client's socket is closed: what was recorded of it is told and forgotten.
#[inline(always)]
pub(crate) fn closed(ctx: *mut bpf_sock_ops, ends: &Ends, state: u32) {
    let tuple = tuple_of(ends);
    // SAFETY: copied before the entry is removed.
    let Some(connection) = (unsafe { KERNEL_CONNECTIONS.get(&tuple) }).copied() else { return };
    // SAFETY: the helper takes this hook's own context.
    if unsafe { bpf_get_socket_cookie(ctx.cast()) } != connection.client_cookie {
        return;
    }
    if KERNEL_CONNECTIONS.remove(&tuple).is_err() {
        return;
    }
    use_up(u64::MAX);
    let ours_acknowledged = matches!(state, TCP_FIN_WAIT2 | TCP_TIME_WAIT | TCP_LAST_ACK | TCP_CLOSING);
    let theirs_arrived =
        matches!(state, TCP_FIN_WAIT2 | TCP_TIME_WAIT | TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING);
    // SAFETY: a valid context. A SYN and a FIN count as a byte each.
    let (acknowledged, received) = unsafe {
        (read_wide!(ctx, bpf_sock_ops, bytes_acked), read_wide!(ctx, bpf_sock_ops, bytes_received))
    };
    let end = KernelEnd {
        tuple,
        connection,
        // SAFETY: a helper without arguments.
        ended_ns: unsafe { bpf_ktime_get_ns() },
        sent: acknowledged.saturating_sub(1 + u64::from(ours_acknowledged)),
        received: received.saturating_sub(u64::from(theirs_arrived)),
        state,
        reserved: 0,
    };
    // SAFETY: our own ring.
    let waiting =
        unsafe { bpf_ringbuf_query(core::ptr::addr_of!(KERNEL_ENDS).cast_mut().cast(), AVAILABLE_BYTES) };
    let flags = if waiting > WAKE_UP_AT { WAKE_UP } else { u64::from(BPF_RB_NO_WAKEUP) };
    if KERNEL_ENDS.output(&end, flags).is_err() {
        count(Counter::KernelPathEndLost);
    }
}

#[inline(always)]
fn use_up(change: u64) {
    if let Some(used) = KERNEL_USED.get_ptr_mut(0) {
        // SAFETY: a value of the map's, changed here only.
        unsafe { word::add(used, change) };
    }
}

#[inline(always)]
fn tuple_of(ends: &Ends) -> ConnectionTuple {
    ConnectionTuple {
        client: ends.local,
        server: ends.remote,
        client_port_host: ends.local_port_host,
        server_port_host: ends.remote_port_host,
    }
}

/// What a socket whose SYN is out has to do with the kernel path.
enum Client {
    Other,
    /// Its verdict was taken back, or another program changed where it goes.
    Unrecorded,
    Recorded(*mut KernelConnection),
}

#[inline(always)]
fn client(socket: *mut bpf_sock) -> Client {
    let Some(view) = view(socket) else { return Client::Other };
    if view.flags & socket_flags::KERNEL_PATH == 0 {
        return Client::Other;
    }
    let tuple = ConnectionTuple {
        client: view.local,
        server: view.peer,
        // SAFETY: a full socket; the field is in host byte order.
        client_port_host: unsafe { read_field!(socket, bpf_sock, src_port) },
        server_port_host: u32::from(u16::from_be(view.peer_port_be)),
    };
    KERNEL_CONNECTIONS.get_ptr_mut(&tuple).map_or(Client::Unrecorded, Client::Recorded)
}

/// `cgroup_skb/egress`: notes the SYN's sequence number.
#[cgroup_skb]
pub(crate) fn kernel_egress(ctx: SkBuffContext) -> i32 {
    let Some(socket) = full_socket(ctx.skb.skb) else { return PASS };
    // SAFETY: a full socket. In this state a socket sends nothing but its SYN.
    if unsafe { read_field!(socket, bpf_sock, state) } != TCP_SYN_SENT {
        return PASS;
    }
    let record = match client(socket) {
        Client::Other => return PASS,
        Client::Unrecorded => {
            count(Counter::KernelPathWithdrawn);
            return DROP;
        }
        Client::Recorded(record) => record,
    };
    // SAFETY: a full TCP socket; the result is checked.
    let tcp = unsafe { tcp_sock_of(socket) };
    if tcp.is_null() {
        return DROP;
    }
    let Some(packet) = packet::read(&ctx) else { return DROP };
    // Fast Open's data would be sent before it is known who answers; TCP sends the SYN again without.
    if packet.protocol != IPPROTO_TCP || packet.has_tcp_data(&ctx) {
        return DROP;
    }
    // SAFETY: not null; in SYN_SENT it is the SYN's own number. The record is a value of our map, written whole
    // words at a time.
    unsafe {
        let sequence = read_field!(tcp, bpf_tcp_sock, snd_una);
        core::ptr::write_volatile(core::ptr::addr_of_mut!((*record).sequence), sequence);
    }
    PASS
}

/// `cgroup_skb/ingress`: who may answer, and whose SYN is taken.
#[cgroup_skb]
pub(crate) fn kernel_ingress(ctx: SkBuffContext) -> i32 {
    let Some(socket) = full_socket(ctx.skb.skb) else { return PASS };
    // SAFETY: a full socket.
    match unsafe { read_field!(socket, bpf_sock, state) } {
        TCP_LISTEN => to_server(&ctx),
        TCP_SYN_SENT => to_client(socket),
        _ => PASS,
    }
}

#[inline(always)]
fn to_client(socket: *mut bpf_sock) -> i32 {
    let is_admitted = match client(socket) {
        Client::Other => return PASS,
        Client::Unrecorded => false,
        // SAFETY: a value of our map.
        Client::Recorded(record) => unsafe {
            core::ptr::read_volatile(core::ptr::addr_of!((*record).admitted)) != 0
        },
    };
    if is_admitted {
        return PASS;
    }
    count(Counter::KernelPathForged);
    DROP
}

#[inline(always)]
fn to_server(ctx: &SkBuffContext) -> i32 {
    let Some(packet) = packet::read(ctx) else { return PASS };
    // Only a local workload's client has a record.
    if !is_local_address(0, packet.source) {
        return PASS;
    }
    let Some((protocol, at)) = packet.transport(ctx) else {
        count(Counter::KernelPathForged);
        return DROP;
    };
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    let Some((tuple, sequence)) = opening(ctx, &packet, at) else { return PASS };
    // SAFETY: copied; the words that matter are written once, before the SYN leaves and when it has arrived.
    let Some(record) = (unsafe { KERNEL_CONNECTIONS.get(&tuple) }) else { return PASS };
    if record.sequence == sequence && record.admitted != 0 {
        return PASS;
    }
    count(Counter::KernelPathForged);
    DROP
}

/// Of a packet that opens a connection: its ends and its SYN's sequence number. With SYN cookies the handshake's
/// last packet meets the listener too.
#[inline(always)]
fn opening(ctx: &SkBuffContext, packet: &Packet, at: usize) -> Option<(ConnectionTuple, u32)> {
    let ports: [u8; 4] = ctx.load(at).ok()?;
    let sequence = u32::from_be_bytes(ctx.load(at + 4).ok()?);
    let flags: u8 = ctx.load(at + 13).ok()?;
    let sequence = match flags & (SYN | ACK) {
        SYN => sequence,
        _ => sequence.wrapping_sub(1),
    };
    let tuple = ConnectionTuple {
        client: packet.source,
        server: packet.destination,
        client_port_host: u32::from(u16::from_be_bytes([ports[0], ports[1]])),
        server_port_host: u32::from(u16::from_be_bytes([ports[2], ports[3]])),
    };
    Some((tuple, sequence))
}

/// Whether this is the SYN of a connection on the kernel path, which goes past meshd by right.
#[inline(always)]
pub(crate) fn is_recorded(view: &SockView, destination: AddrNet, port_be: u16) -> bool {
    view.flags & socket_flags::KERNEL_PATH != 0 && view.peer == destination && view.peer_port_be == port_be
}
