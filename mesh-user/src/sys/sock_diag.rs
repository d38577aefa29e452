//! Closing somebody else's TCP socket: `SOCK_DESTROY` of `sock_diag(7)`, what `ss -K` does. Both ends see a reset.
//! Numbers: `include/uapi/linux/{netlink,sock_diag,inet_diag}.h`.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::netlink::{self, REQUEST_ACK};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DESTROY: u16 = 21;
const ALL_STATES: u32 = u32::MAX;
/// `INET_DIAG_NOCOOKIE` in both halves.
const ANY_COOKIE: u64 = u64::MAX;

/// Closes the socket of this thread's namespace that has these two ends, if it is the one with this cookie, a number that
/// the kernel never uses again; none: whichever it is. One that is gone already is an error of the kind `NotFound`.
///
/// # Errors
/// `Unsupported` where the kernel was built without `INET_DIAG_DESTROY`.
pub fn destroy(local: SocketAddr, remote: SocketAddr, cookie: Option<u64>) -> io::Result<()> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.cloexec(),
        Some(Protocol::from(NETLINK_SOCK_DIAG)),
    )?;
    socket.send(&netlink::message(
        SOCK_DESTROY,
        REQUEST_ACK,
        &request(local, remote, cookie.unwrap_or(ANY_COOKIE)),
    )?)?;
    let mut reply = [0; 4096];
    let length = (&socket).read(&mut reply)?;
    netlink::acknowledgement(reply.get(..length).unwrap_or_default())
}

/// `struct inet_diag_req_v2` with its `inet_diag_sockid`.
fn request(local: SocketAddr, remote: SocketAddr, cookie: u64) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = vec![
        u8::try_from(family).unwrap_or_default(),
        u8::try_from(libc::IPPROTO_TCP).unwrap_or_default(),
        0,
        0,
    ];
    body.extend(ALL_STATES.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    body.extend(address(local.ip()));
    body.extend(address(remote.ip()));
    body.extend(0_u32.to_ne_bytes()); // any interface
    // the lower half first, each in host byte order (net/core/sock_diag.c, `sock_diag_check_cookie`)
    for half in [cookie, cookie >> 32] {
        body.extend(u32::try_from(half & u64::from(u32::MAX)).unwrap_or_default().to_ne_bytes());
    }
    body
}

fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            for (to, from) in bytes.iter_mut().zip(ip.octets()) {
                *to = from;
            }
            bytes
        }
    }
}
