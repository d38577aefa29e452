//! Judges captured packets: is a marker readable anywhere, raw or across segments; is a TCP stream nothing but TLS
//! records from its first byte on; did anybody talk who should not. Reads pcap files of tcpdump; knows no daemon.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, bail, ensure};

const SLL2_HEADER: usize = 20;
const LINKTYPE_LINUX_SLL2: u32 = 276;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// A TCP segment as captured.
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
    seq: u32,
    payload: Vec<u8>,
}

/// One direction of one connection, put together from its segments.
pub(crate) struct Stream {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
    /// No byte before the last captured one is missing.
    complete: bool,
    /// Data was captured cut short.
    first_seq: u32,
    segments: BTreeMap<u32, Vec<u8>>,
    pub(crate) resets: usize,
}

/// Everything seen on the wire during a capture.
pub(crate) struct Wiretap {
    raw: Vec<Vec<u8>>,
    streams: Vec<Stream>,
}

/// A well-formed sequence of TLS records.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) handshake: usize,
    pub(crate) application_data: usize,
}

impl Wiretap {
    /// Reads a pcap file of link type `LINUX_SLL2`.
    pub(crate) fn read(file: &[u8]) -> anyhow::Result<Self> {
        ensure!(file.len() >= 24, "pcap file shorter than its header");
        let magic = u32_le(file, 0)?;
        ensure!(
            magic == 0xa1b2_c3d4 || magic == 0xa1b2_3c4d,
            "not a pcap file of this byte order: {magic:#x}"
        );
        let linktype = u32_le(file, 20)?;
        ensure!(linktype == LINKTYPE_LINUX_SLL2, "link type {linktype} instead of {LINKTYPE_LINUX_SLL2}");
        let (mut raw, mut at) = (Vec::new(), 24);
        while at + 16 <= file.len() {
            let length = usize::try_from(u32_le(file, at + 8)?)?;
            let Some(packet) = file.get(at + 16..at + 16 + length) else { break };
            raw.push(packet.to_vec());
            at += 16 + length;
        }
        let streams = assemble(raw.iter().filter_map(|packet| segment(packet)));
        Ok(Self { raw, streams })
    }

    /// How many packets were seen (one packet counts once per interface it crossed).
    pub(crate) fn packets(&self) -> usize {
        self.raw.len()
    }

    /// Where `marker` can be read, if anywhere.
    pub(crate) fn find(&self, marker: &[u8]) -> Option<String> {
        if let Some(stream) = self.streams.iter().find(|stream| contains(&stream.bytes, marker)) {
            return Some(format!("in the stream {} -> {}", stream.from, stream.to));
        }
        self.raw.iter().position(|packet| contains(packet, marker)).map(|index| format!("in packet {index}"))
    }

    /// The marker is nowhere in plaintext.
    pub(crate) fn must_not_show(&self, marker: &str) -> anyhow::Result<()> {
        ensure!(self.packets() > 0, "nothing was captured: the wiretap proves nothing");
        match self.find(marker.as_bytes()) {
            None => Ok(()),
            Some(place) => bail!("plaintext leaked: {marker:?} is readable {place}\n{}", self.summary()),
        }
    }

    /// Streams to or from port `port` of `host`.
    pub(crate) fn streams_with(&self, host: IpAddr, port: u16) -> impl Iterator<Item = &Stream> {
        let end = SocketAddr::new(host, port);
        self.streams.iter().filter(move |stream| stream.from == end || stream.to == end)
    }

    /// Between `client` and `server`, and both ways, only TLS records flowed, and application data among them.
    pub(crate) fn must_be_tls_between(&self, client: IpAddr, server: SocketAddr) -> anyhow::Result<()> {
        for (from_client, what) in [(true, "client to server"), (false, "server to client")] {
            let mut data = 0;
            let streams = self.streams_with(server.ip(), server.port()).filter(|stream| {
                let (near, far) =
                    if from_client { (stream.from, stream.to) } else { (stream.to, stream.from) };
                near.ip() == client && far == server && !stream.bytes.is_empty()
            });
            for stream in streams {
                let records =
                    stream.tls_records().with_context(|| format!("{} -> {}", stream.from, stream.to))?;
                data += records.application_data;
            }
            ensure!(data > 0, "no TLS application data {what} ({client} and {server})\n{}", self.summary());
        }
        Ok(())
    }

    /// No TCP packet but between the given pairs of hosts.
    pub(crate) fn must_only_join(&self, pairs: &[(IpAddr, IpAddr)]) -> anyhow::Result<()> {
        let expected = |a: IpAddr, b: IpAddr| pairs.iter().any(|&pair| pair == (a, b) || pair == (b, a));
        match self.streams.iter().find(|stream| !expected(stream.from.ip(), stream.to.ip())) {
            None => Ok(()),
            Some(stream) => bail!("unexpected flow {} -> {}\n{}", stream.from, stream.to, self.summary()),
        }
    }

    /// One line per stream.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!("{} packets\n", self.raw.len());
        for stream in self.streams.iter().take(20) {
            let begin = String::from_utf8_lossy(&stream.bytes[..stream.bytes.len().min(48)]).into_owned();
            let _ =
                writeln!(text, "{} -> {}: {} bytes, {begin:?}", stream.from, stream.to, stream.bytes.len());
        }
        text
    }
}

impl Stream {
    /// Counts TLS records (RFC 8446 section 5.1); an error where the stream is not made of them.
    pub(crate) fn tls_records(&self) -> anyhow::Result<Records> {
        ensure!(self.complete, "bytes are missing in the captured stream");
        let (mut records, mut rest) = (Records::default(), self.bytes.as_slice());
        while !rest.is_empty() {
            let offset = self.bytes.len() - rest.len();
            let Some((&[kind, major, minor, hi, lo], body)) = rest.split_first_chunk::<5>() else {
                // The last record may still be on its way when a connection is cut.
                break;
            };
            ensure!((20..=23).contains(&kind) && major == 3 && minor <= 4, "no TLS record at byte {offset}");
            match kind {
                22 => records.handshake += 1,
                23 => records.application_data += 1,
                _ => {}
            }
            let length = usize::from(u16::from_be_bytes([hi, lo])).min(body.len());
            rest = &body[length..];
        }
        Ok(records)
    }

    fn new(first: &Segment) -> Self {
        Self {
            from: first.from,
            to: first.to,
            bytes: Vec::new(),
            complete: true,
            first_seq: first.seq.wrapping_add(u32::from(first.flags & SYN != 0)),
            segments: BTreeMap::new(),
            resets: 0,
        }
    }

    fn add(&mut self, segment: &Segment) {
        self.resets += usize::from(segment.flags & RST != 0);
        let offset =
            segment.seq.wrapping_add(u32::from(segment.flags & SYN != 0)).wrapping_sub(self.first_seq);
        // Keepalive probes lie one byte before the stream.
        if segment.payload.is_empty() || offset > u32::MAX / 2 {
            return;
        }
        let known = self.segments.entry(offset).or_default();
        if known.len() < segment.payload.len() {
            known.clone_from(&segment.payload);
        }
    }

    fn put_together(&mut self) {
        for (&offset, payload) in &self.segments {
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            match self.bytes.len().checked_sub(offset) {
                Some(known) if known < payload.len() => self.bytes.extend_from_slice(&payload[known..]),
                Some(_) => {}
                None => {
                    self.complete = false;
                    self.bytes.extend_from_slice(payload);
                }
            }
        }
        self.segments.clear();
    }
}

/// Groups segments into streams; a SYN with another sequence number begins the port pair's next connection.
fn assemble(segments: impl Iterator<Item = Segment>) -> Vec<Stream> {
    let (mut streams, mut latest) =
        (Vec::<Stream>::new(), BTreeMap::<(SocketAddr, SocketAddr), usize>::new());
    for segment in segments {
        let key = (segment.from, segment.to);
        let is_new = latest.get(&key).is_none_or(|&index| {
            segment.flags & SYN != 0 && streams[index].first_seq != segment.seq.wrapping_add(1)
        });
        if is_new {
            latest.insert(key, streams.len());
            streams.push(Stream::new(&segment));
        }
        streams[latest[&key]].add(&segment);
    }
    streams.iter_mut().for_each(Stream::put_together);
    streams
}

/// The TCP segment in an SLL2 packet, if it is one.
fn segment(packet: &[u8]) -> Option<Segment> {
    let ip = packet.get(SLL2_HEADER..)?;
    let (source, destination, tcp) = match u16_be(packet, 0)? {
        0x0800 => {
            let header = usize::from(ip.first()? & 0x0f) * 4;
            let end = usize::from(u16_be(ip, 2)?).min(ip.len());
            if *ip.get(9)? != 6 {
                return None;
            }
            let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
            // A segment beyond 64 KiB (BIG TCP) says 0.
            let end = if end == 0 { ip.len() } else { end };
            (IpAddr::V4(address(12)?), IpAddr::V4(address(16)?), ip.get(header..end)?)
        }
        0x86dd => {
            if *ip.get(6)? != 6 {
                return None;
            }
            let length = usize::from(u16_be(ip, 4)?);
            let end = if length == 0 { ip.len() } else { (40 + length).min(ip.len()) };
            let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
            (IpAddr::V6(address(8)?), IpAddr::V6(address(24)?), ip.get(40..end)?)
        }
        _ => return None,
    };
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(source, u16_be(tcp, 0)?),
        to: SocketAddr::new(destination, u16_be(tcp, 2)?),
        flags: *tcp.get(13)?,
        seq: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        payload: tcp.get(header..)?.to_vec(),
    })
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn u16_be(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_le(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    let four = bytes.get(at..at + 4).context("pcap file ends in a header")?;
    Ok(u32::from_le_bytes(four.try_into()?))
}
