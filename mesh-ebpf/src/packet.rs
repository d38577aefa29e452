//! What the `cgroup_skb` programs read of a packet: addresses, and where the transport's header is.

use aya_ebpf::{bindings::__sk_buff, programs::SkBuffContext};
use mesh_common::AddrNet;

use crate::read::read_field;

/// `__sk_buff.protocol` is in network byte order (`linux/if_ether.h`).
const ETH_P_IPV6_BE: u32 = 0x86dd_u16.to_be() as u32;
const V6_HEADER_BYTES: usize = 40;
const V4_HEADER_BYTES: usize = 20;
const NEXT_HOP_BY_HOP: u32 = 0;
const NEXT_ROUTING: u32 = 43;
const NEXT_DESTINATION_OPTIONS: u32 = 60;
/// IPv6 extension headers that are looked behind.
const MAX_EXTENSIONS: u32 = 4;

/// What is read of a packet's headers.
pub(crate) struct Packet {
    pub(crate) source: AddrNet,
    pub(crate) destination: AddrNet,
    /// For IPv6 that of the next header, an extension or not.
    pub(crate) protocol: u32,
    /// Where the header after the IP header begins.
    pub(crate) payload_at: usize,
    /// IPv4 options or an IPv6 extension header, which may lead the packet elsewhere than its destination says.
    pub(crate) has_options: bool,
}

impl Packet {
    /// Whether a TCP packet carries data, or its header cannot be read.
    #[inline(always)]
    pub(crate) fn has_tcp_data(&self, ctx: &SkBuffContext) -> bool {
        // The header's length in words of four bytes, in the upper half of its byte 12.
        let Ok(length) = ctx.load::<u8>(self.payload_at + 12) else { return true };
        self.payload_at + usize::from(length >> 4) * 4 < ctx.len() as usize
    }

    /// The protocol behind the extension headers, and where its header begins; none: too many of them.
    #[inline(always)]
    pub(crate) fn transport(&self, ctx: &SkBuffContext) -> Option<(u32, usize)> {
        let (mut protocol, mut at) = (self.protocol, self.payload_at);
        if at != V6_HEADER_BYTES {
            return Some((protocol, at));
        }
        for _ in 0..MAX_EXTENSIONS {
            if !is_extension(protocol) {
                return Some((protocol, at));
            }
            // Its length in words of eight bytes, without the first (RFC 8200 section 4.3).
            let [next, words]: [u8; 2] = ctx.load(at).ok()?;
            protocol = u32::from(next);
            at += (usize::from(words) + 1) * 8;
        }
        (!is_extension(protocol)).then_some((protocol, at))
    }
}

#[inline(always)]
fn is_extension(protocol: u32) -> bool {
    matches!(protocol, NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_DESTINATION_OPTIONS)
}

/// Reads a packet that begins with its IP header.
#[inline(always)]
pub(crate) fn read(ctx: &SkBuffContext) -> Option<Packet> {
    // SAFETY: a valid context; the field is readable in these hooks.
    if unsafe { read_field!(ctx.skb.skb, __sk_buff, protocol) } == ETH_P_IPV6_BE {
        return read_v6(ctx);
    }
    let [first] = ctx.load::<[u8; 1]>(0).ok()?;
    let [protocol] = ctx.load::<[u8; 1]>(9).ok()?;
    let [source, destination] = ctx.load::<[u32; 2]>(12).ok()?;
    let header_bytes = usize::from(first & 0xf) * 4;
    Some(Packet {
        source: AddrNet::from_v4_net(source),
        destination: AddrNet::from_v4_net(destination),
        protocol: u32::from(protocol),
        payload_at: header_bytes,
        has_options: header_bytes > V4_HEADER_BYTES,
    })
}

#[inline(always)]
fn read_v6(ctx: &SkBuffContext) -> Option<Packet> {
    let [next] = ctx.load::<[u8; 1]>(6).ok()?;
    let source = AddrNet { words_net: ctx.load::<[u32; 4]>(8).ok()? };
    let destination = AddrNet { words_net: ctx.load::<[u32; 4]>(24).ok()? };
    let protocol = u32::from(next);
    let is_multicast = destination.words_net[0].to_ne_bytes()[0] == 0xff;
    // Multicast listener reports, the kernel's own, have a hop-by-hop header.
    let has_options = is_extension(protocol) && !is_multicast;
    Some(Packet { source, destination, protocol, payload_at: V6_HEADER_BYTES, has_options })
}
