//! One shape for every address in a map: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// 127.0.0.1 as it lies in memory on the wire.
pub const LOOPBACK_V4_NET: u32 = u32::from_ne_bytes([127, 0, 0, 1]);

const V4_PREFIX_NET: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
const ONE_NET: u32 = u32::from_ne_bytes([0, 0, 0, 1]);

/// An address as four 32-bit words that lie in memory in network byte order, as the kernel's contexts
/// give them; IPv4 is v4-mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddrNet {
    /// The four words, each in network byte order.
    pub words_net: [u32; 4],
}

impl AddrNet {
    /// `::`, which also stands for "none".
    pub const UNSPECIFIED: Self = Self { words_net: [0; 4] };
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self { words_net: [0, 0, 0, ONE_NET] };

    /// The v4-mapped form of an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn from_v4_net(address_net: u32) -> Self {
        Self { words_net: [0, 0, V4_PREFIX_NET, address_net] }
    }

    /// The IPv4 address in network byte order, if this is a v4-mapped one.
    #[inline(always)]
    pub const fn v4_net(&self) -> Option<u32> {
        let [a, b, c, d] = self.words_net;
        if a | b == 0 && c == V4_PREFIX_NET { Some(d) } else { None }
    }

    /// `::` (none).
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words_net;
        a | b | c | d == 0
    }

    /// `::` or 0.0.0.0.
    #[inline(always)]
    pub const fn is_wildcard(&self) -> bool {
        let [a, b, c, d] = self.words_net;
        a | b | d == 0 && (c == 0 || c == V4_PREFIX_NET)
    }

    /// An address that never leaves the namespace: 127.0.0.0/8 or `::1`, and the unspecified ones, which
    /// `connect` takes for loopback.
    #[inline(always)]
    pub const fn is_loopback_or_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words_net;
        if a | b != 0 {
            return false;
        }
        if c == V4_PREFIX_NET {
            return d == 0 || d.to_ne_bytes()[0] == 127;
        }
        c == 0 && (d == 0 || d == ONE_NET)
    }
}

impl From<IpAddr> for AddrNet {
    fn from(address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
        Self { words_net: [word(0), word(4), word(8), word(12)] }
    }
}

impl From<AddrNet> for IpAddr {
    fn from(address: AddrNet) -> Self {
        if let Some(v4_net) = address.v4_net() {
            return Self::V4(Ipv4Addr::from(v4_net.to_ne_bytes()));
        }
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(address.words_net) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(octets))
    }
}

#[cfg(feature = "user")]
// SAFETY: four integers: no padding, every bit pattern valid.
unsafe impl aya::Pod for AddrNet {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["10.1.2.3", "127.0.0.1", "0.0.0.0", "::1", "::", "fd00:1::2", "2001:db8:1:2:3:4:5:6"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(AddrNet::from(address)), address, "{text}");
        }
    }

    #[test]
    fn the_wildcards_are_those_of_both_families() {
        for (text, wildcard) in
            [("0.0.0.0", true), ("::", true), ("127.0.0.1", false), ("::1", false), ("0.0.0.1", false)]
        {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(AddrNet::from(address).is_wildcard(), wildcard, "{text}");
        }
    }

    #[test]
    fn loopback_covers_both_families_and_the_unspecified_addresses() {
        for (text, loopback) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("0.0.0.0", true),
            ("::1", true),
            ("::", true),
            ("::ffff:127.0.0.1", true),
            ("126.0.0.1", false),
            ("::2", false),
            ("fd00::1", false),
            ("::ffff:10.0.0.1", false),
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(AddrNet::from(address).is_loopback_or_unspecified(), loopback, "{text}");
        }
    }
}
