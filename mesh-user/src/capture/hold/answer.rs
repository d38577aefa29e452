//! The packets that end a held connect, as the network would have sent them: RST+ACK, or ICMP's host
//! unreachable. They travel over the workload's own loopback only.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use etherparse::{
    Icmpv4Type, Icmpv6Type, PacketBuilder, PacketBuilderStep, TcpHeader, err::packet::BuildWriteError,
    icmpv4, icmpv6,
};

const HOPS: u8 = 64;
const WINDOW: u16 = 65_535;

/// The SYN that is held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Syn {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// Host byte order.
    pub(super) sequence: u32,
}

/// Connection refused (RFC 9293 section 3.10.7.1).
///
/// # Errors
/// When the two ends are of different families.
pub(super) fn reset(syn: &Syn) -> io::Result<Vec<u8>> {
    let header = TcpHeader {
        rst: true,
        ack: true,
        acknowledgment_number: syn.sequence.wrapping_add(1),
        ..TcpHeader::new(syn.to.port(), syn.from.port(), 0, 0)
    };
    packet(syn.to.ip(), syn.from.ip(), |ip| finish(|out| ip.tcp_header(header).write(out, &[])))
}

/// Host unreachable: type 3 code 1, or type 1 code 3, with the packet that it is about (RFC 792, RFC 4443
/// section 3.1).
///
/// # Errors
/// As [`reset`].
pub(super) fn unreachable(syn: &Syn) -> io::Result<Vec<u8>> {
    let about =
        TcpHeader { syn: true, ..TcpHeader::new(syn.from.port(), syn.to.port(), syn.sequence, WINDOW) };
    let about = packet(syn.from.ip(), syn.to.ip(), |ip| finish(|out| ip.tcp_header(about).write(out, &[])))?;
    let is_v4 = syn.from.is_ipv4();
    packet(syn.to.ip(), syn.from.ip(), |ip| {
        finish(|out| {
            if is_v4 {
                let host = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Host);
                ip.icmpv4(host).write(out, &about)
            } else {
                let address = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Address);
                ip.icmpv6(address).write(out, &about)
            }
        })
    })
}

type IpStep = PacketBuilderStep<etherparse::IpHeaders>;

fn packet(
    from: IpAddr,
    to: IpAddr,
    build: impl FnOnce(IpStep) -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => build(PacketBuilder::ipv4(from.octets(), to.octets(), HOPS)),
        (IpAddr::V6(from), IpAddr::V6(to)) => build(PacketBuilder::ipv6(from.octets(), to.octets(), HOPS)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn finish(write: impl FnOnce(&mut Vec<u8>) -> Result<(), BuildWriteError>) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(128);
    write(&mut out).map_err(io::Error::other)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;

    fn syn(from: &str, to: &str) -> Syn {
        Syn { from: from.parse().unwrap(), to: to.parse().unwrap(), sequence: u32::MAX }
    }

    #[test]
    fn a_refusal_acknowledges_the_syn_whatever_its_sequence_number() {
        for (from, to) in [("127.0.0.1:40000", "127.0.0.1:15001"), ("[::1]:40000", "[::1]:15001")] {
            let bytes = reset(&syn(from, to)).unwrap();
            let packet = SlicedPacket::from_ip(&bytes).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
            assert!(tcp.rst() && tcp.ack() && !tcp.syn());
            assert_eq!(tcp.acknowledgment_number(), 0);
            assert_eq!((tcp.source_port(), tcp.destination_port()), (15001, 40000));
        }
    }

    #[test]
    fn an_unreachable_error_carries_the_syn_it_is_about() {
        let bytes = unreachable(&syn("10.0.0.1:40000", "127.0.0.1:15001")).unwrap();
        let packet = SlicedPacket::from_ip(&bytes).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else { panic!("no ICMP") };
        assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, 1));
        let about = SlicedPacket::from_ip(icmp.payload()).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = about.transport else { panic!("no TCP inside") };
        assert_eq!((tcp.source_port(), tcp.sequence_number()), (40000, u32::MAX));
        let bytes = unreachable(&syn("[fd00::1]:40000", "[::1]:15001")).unwrap();
        let packet = SlicedPacket::from_ip(&bytes).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("no ICMPv6") };
        assert_eq!((icmp.type_u8(), icmp.code_u8()), (1, 3));
    }

    #[test]
    fn ends_of_two_families_are_no_packet() {
        assert!(reset(&syn("127.0.0.1:1", "[::1]:2")).is_err());
    }
}
