//! The few rtnetlink requests that a throwaway namespace needs: a veth pair, addresses, links up.
//! Nothing here is ever sent in the node's own namespace; callers run it inside one they have made.
//! Numbers: `include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,veth}.h`.

use std::{
    io::{self, Read},
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use socket2::{Domain, Socket, Type};

use super::netlink::{self, REQUEST_ACK};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const NLM_F_CREATE_EXCL: u16 = 0x200 | 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection: the address works at once.
const IFA_F_NODAD: u8 = 2;
const IFF_UP: u32 = 1;

/// The loopback interface of every namespace.
pub const LOOPBACK_INDEX: u32 = 1;

/// A request socket in the namespace in which it was opened.
#[derive(Debug)]
pub struct Rtnetlink(Socket);

impl Rtnetlink {
    /// Opens one in this thread's namespace.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), None)?;
        Ok(Self(socket))
    }

    /// Makes a veth pair: one end here, the other in `peer_netns`, both with this name and index.
    pub fn add_veth(&self, name: &str, index: u32, peer_netns: BorrowedFd<'_>) -> io::Result<()> {
        let name = attribute(IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        let netns = attribute(IFLA_NET_NS_FD, &peer_netns.as_raw_fd().to_ne_bytes());
        let peer = attribute(VETH_INFO_PEER, &[link(index, 0), name.clone(), netns].concat());
        let kind = attribute(IFLA_INFO_KIND, b"veth\0");
        let info = attribute(IFLA_LINKINFO, &[kind, attribute(IFLA_INFO_DATA, &peer)].concat());
        self.request(RTM_NEWLINK, NLM_F_CREATE_EXCL, &[link(index, 0), name, info].concat())
    }

    /// Takes a link up.
    pub fn set_up(&self, index: u32) -> io::Result<()> {
        self.request(RTM_NEWLINK, 0, &link(index, IFF_UP))
    }

    /// Gives a link an address.
    pub fn add_address(&self, index: u32, address: IpAddr, prefix_bits: u8) -> io::Result<()> {
        let (family, bytes) = match address {
            IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
            IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
        };
        let family = u8::try_from(family).unwrap_or_default();
        let mut body = vec![family, prefix_bits, IFA_F_NODAD, 0];
        body.extend(index.to_ne_bytes());
        body.extend(attribute(IFA_LOCAL, &bytes));
        body.extend(attribute(IFA_ADDRESS, &bytes));
        self.request(RTM_NEWADDR, NLM_F_CREATE_EXCL, &body)
    }

    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.0.send(&netlink::message(kind, flags | REQUEST_ACK, body)?)?;
        let mut reply = [0; 4096];
        let length = (&self.0).read(&mut reply)?;
        netlink::acknowledgement(reply.get(..length).unwrap_or_default())
    }
}

/// `struct ifinfomsg`: family, type, index, flags, and which flags to change.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(index.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // None of ours comes near 64 KiB.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = length.to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}
