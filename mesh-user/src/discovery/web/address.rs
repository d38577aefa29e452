//! Which addresses may be fetched from. A policy names the URL and a resolver names the address: neither may turn
//! meshd, which runs in the host's network as root, against the node or its cloud's metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Services of clouds that hand out credentials to whoever asks from a machine, beside those that are link-local
/// (169.254.169.254): Alibaba, Azure's wire server, Oracle.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// AWS, Google.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Why `address` must not be connected to; none: it may be. `own` are the node's addresses, `allowed` what the
/// node's administrator takes anyway.
pub(super) fn refused(address: IpAddr, own: &[IpAddr], allowed: &[IpNet]) -> Option<&'static str> {
    let address = address.to_canonical();
    if allowed.iter().any(|net| net.contains(&address)) {
        return None;
    }
    if own.iter().any(|own| own.to_canonical() == address) {
        return Some("is the node's own");
    }
    match address {
        IpAddr::V4(v4) => refused_v4(v4),
        IpAddr::V6(v6) => refused_v6(v6).or_else(|| inner(v6).and_then(|v4| refused(v4.into(), own, &[]))),
    }
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address {
        a if a.is_loopback() => Some("is loopback"),
        a if a.octets()[0] == 0 => Some("is unspecified"),
        a if a.is_link_local() => Some("is link-local, where clouds have their metadata"),
        a if METADATA_V4.contains(&a) => Some("is a cloud's metadata service"),
        a if a.is_multicast() || a.is_broadcast() => Some("is multicast or broadcast"),
        _ => None,
    }
}

fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address {
        a if a.is_loopback() => Some("is loopback"),
        a if a.is_unspecified() => Some("is unspecified"),
        a if a.is_unicast_link_local() => Some("is link-local"),
        a if METADATA_V6.contains(&a) => Some("is a cloud's metadata service"),
        a if a.is_multicast() => Some("is multicast"),
        _ => None,
    }
}

/// The IPv4 address that a gateway on the way makes of an IPv6 one: NAT64 (RFC 6052), 6to4 (RFC 3056), compatible
/// (RFC 4291 section 2.5.5.1).
fn inner(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            Some(v4(high, low))
        }
        _ => None,
    }
}

/// Addresses of the node's interfaces, in the namespace that connections are made from.
pub(super) fn own() -> std::io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| interface.address);
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    Ok(addresses.filter_map(ip).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_and_its_cloud_are_not_asked() {
        let own = ["10.1.2.3".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        for (address, good) in [
            ("93.184.216.34", true),
            ("10.1.2.4", true),
            ("192.168.0.1", true),
            ("100.64.0.1", true),
            ("2606:4700::1", true),
            ("fd00::1", true),
            ("64:ff9b::5db8:d822", true),
            ("10.1.2.3", false),
            ("::ffff:10.1.2.3", false),
            ("2001:db8::7", false),
            ("127.0.0.1", false),
            ("127.8.8.8", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("::", false),
            ("169.254.169.254", false),
            ("::ffff:169.254.169.254", false),
            ("64:ff9b::169.254.169.254", false),
            ("64:ff9b::10.1.2.3", false),
            ("2002:a9fe:a9fe::1", false),
            ("::169.254.169.254", false),
            ("fe80::1", false),
            ("100.100.100.200", false),
            ("168.63.129.16", false),
            ("192.0.0.192", false),
            ("fd00:ec2::254", false),
            ("fd20:ce::254", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("ff02::1", false),
        ] {
            let ip: IpAddr = address.parse().unwrap();
            assert_eq!(refused(ip, &own, &[]).is_none(), good, "{address}");
            let all = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
            assert_eq!(refused(ip, &own, &all), None, "{address}");
        }
        let only = ["127.0.0.1/32".parse().unwrap()];
        assert_eq!(refused("127.0.0.1".parse().unwrap(), &[], &only), None);
        assert!(refused("127.0.0.2".parse().unwrap(), &[], &only).is_some());
    }

    #[test]
    fn the_nodes_own_addresses_are_known() {
        assert!(own().unwrap().iter().any(IpAddr::is_loopback));
    }
}
