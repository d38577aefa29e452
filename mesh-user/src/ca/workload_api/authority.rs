//! Clients of gRPC's C core (Python, C++, Ruby) and Java send the socket's path as `:authority`, which is none to `h2`: it
//! answers each of their calls with `PROTOCOL_ERROR` (hyperium/h2#487, grpc/grpc#38142). Nothing here looks at the
//! authority, so on its way in it becomes one letter. Pure.
//!
//! HPACK's state needs no following for that: the letter takes the value's place where it is spelt out, so that `h2`'s table
//! gets the letter, and later references to it, which count from the newest entry, mean the same. Being no longer than what
//! it replaces, it never drives an entry out of the table that the client still counts on (RFC 7541 section 4.1).
//!
//! Sources: RFC 9113 sections 3.4, 4.1, 6.2, 6.10; RFC 7541 sections 5 and 6.

use std::io;

use bytes::{Buf as _, BytesMut};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// As long as a frame may be here (`SETTINGS_MAX_FRAME_SIZE`'s default), and longer than any request's headers.
const MAX_BLOCK: usize = 16_384;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// The bytes that a client sends, between socket and server.
#[derive(Debug, Default)]
pub(super) struct Rewriter {
    /// What is not yet enough to go on.
    pending: BytesMut,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Preface,
    Frame,
    /// The rest of a frame that does not matter here.
    Through(usize),
    /// Headers that go on in the next frame.
    Block {
        /// Whether the stream ends with them, and which it is.
        end_stream: u8,
        stream: [u8; 4],
        block: Vec<u8>,
    },
    /// No HTTP/2: the server says so.
    Other,
}

impl Rewriter {
    /// Takes what came, and adds what is ready to `out`.
    ///
    /// # Errors
    /// When frames are not as they must be, in a way that hides where headers are.
    pub(super) fn feed(&mut self, bytes: &[u8], out: &mut BytesMut) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        while self.step(out)? {}
        Ok(())
    }

    /// False: more bytes are needed.
    fn step(&mut self, out: &mut BytesMut) -> io::Result<bool> {
        match &mut self.state {
            State::Preface => {
                let length = self.pending.len().min(PREFACE.len());
                if PREFACE.get(..length) != self.pending.get(..length) {
                    self.state = State::Other;
                    return Ok(true);
                }
                if length < PREFACE.len() {
                    return Ok(false);
                }
                out.extend_from_slice(&self.pending.split_to(length));
                self.state = State::Frame;
                Ok(true)
            }
            State::Other => {
                out.extend_from_slice(&self.pending.split());
                Ok(false)
            }
            State::Through(left) => {
                let length = self.pending.len().min(*left);
                out.extend_from_slice(&self.pending.split_to(length));
                *left -= length;
                let done = *left == 0;
                if done {
                    self.state = State::Frame;
                }
                Ok(done)
            }
            State::Frame | State::Block { .. } => self.frame(out),
        }
    }

    fn frame(&mut self, out: &mut BytesMut) -> io::Result<bool> {
        let Some(&[a, b, c, kind, flags, s0, s1, s2, s3]) = self.pending.first_chunk::<FRAME_HEADER>() else {
            return Ok(false);
        };
        let (length, stream) =
            (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c), [s0, s1, s2, s3]);
        let continues = matches!(&self.state, State::Block { stream: begun, .. } if kind == CONTINUATION && *begun == stream);
        if matches!(self.state, State::Block { .. }) && !continues {
            return Err(invalid("headers are cut off by another frame"));
        }
        if kind != HEADERS && !continues {
            out.extend_from_slice(&self.pending.split_to(FRAME_HEADER));
            self.state = State::Through(length);
            return Ok(true);
        }
        if length > MAX_BLOCK {
            return Err(invalid("a frame of headers is too long"));
        }
        if self.pending.len() < FRAME_HEADER + length {
            return Ok(false);
        }
        self.pending.advance(FRAME_HEADER);
        let payload = self.pending.split_to(length);
        let (end_stream, mut block) = match std::mem::replace(&mut self.state, State::Frame) {
            State::Block { end_stream, block, .. } => (end_stream, block),
            _ => (flags & END_STREAM, Vec::new()),
        };
        block.extend_from_slice(if continues { &payload } else { fragment(&payload, flags)? });
        if block.len() > MAX_BLOCK {
            return Err(invalid("headers are too long"));
        }
        if flags & END_HEADERS == 0 {
            self.state = State::Block { end_stream, stream, block };
            return Ok(true);
        }
        // One that cannot be read is the server's to refuse.
        let block = without_authority(&block).unwrap_or(block);
        let length = u32::try_from(block.len()).unwrap_or(u32::MAX).to_be_bytes();
        out.extend_from_slice(&length[1..]);
        out.extend_from_slice(&[HEADERS, end_stream | END_HEADERS]);
        out.extend_from_slice(&stream);
        out.extend_from_slice(&block);
        Ok(true)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The piece of a header block in a HEADERS frame, without padding and priority.
fn fragment(payload: &[u8], flags: u8) -> io::Result<&[u8]> {
    let bad = || invalid("a frame of headers is malformed");
    let (padding, rest) = match payload.split_first() {
        Some((padding, rest)) if flags & PADDED != 0 => (usize::from(*padding), rest),
        None if flags & PADDED != 0 => return Err(bad()),
        _ => (0, payload),
    };
    let rest = rest.get(if flags & PRIORITY != 0 { 5 } else { 0 }..).ok_or_else(bad)?;
    rest.len().checked_sub(padding).and_then(|length| rest.get(..length)).ok_or_else(bad)
}

/// The block with one letter for each authority that is spelt out; none: it cannot be read.
fn without_authority(block: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(block.len());
    let mut rest = block;
    while let Some(first) = rest.first() {
        let start = rest;
        // RFC 7541 section 6: indexed; size of the table; literals, of which those with incremental indexing come first.
        let is_authority = match first {
            0x80.. => {
                integer(&mut rest, 7)?;
                None
            }
            0x20..0x40 => {
                integer(&mut rest, 5)?;
                None
            }
            _ => {
                let index = integer(&mut rest, if *first >= 0x40 { 6 } else { 4 })?;
                let name = if index == 0 { string(&mut rest)? } else { &[] };
                Some(index == AUTHORITY || name == b":authority")
            }
        };
        let before_value = rest;
        if is_authority.is_some() {
            let value = string(&mut rest)?;
            if is_authority == Some(true) && !value.is_empty() {
                out.extend_from_slice(start.get(..start.len() - before_value.len())?);
                out.extend_from_slice(b"\x01u");
                continue;
            }
        }
        out.extend_from_slice(start.get(..start.len() - rest.len())?);
    }
    Some(out)
}

/// RFC 7541 section 5.1.
fn integer(bytes: &mut &[u8], prefix: u32) -> Option<usize> {
    let mask = (1_u8 << prefix) - 1;
    let (first, mut rest) = bytes.split_first()?;
    let mut value = usize::from(first & mask);
    if value == usize::from(mask) {
        // More than a block can need is none.
        for shift in [0, 7, 14] {
            let (byte, after) = rest.split_first()?;
            (value, rest) = (value + (usize::from(byte & 0x7f) << shift), after);
            if byte & 0x80 == 0 {
                *bytes = rest;
                return Some(value);
            }
        }
        return None;
    }
    *bytes = rest;
    Some(value)
}

/// RFC 7541 section 5.2, as it is coded.
fn string<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = integer(bytes, 7)?;
    let (string, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(string)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn fed(pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let (mut rewriter, mut out) = (Rewriter::default(), BytesMut::new());
        for piece in pieces {
            rewriter.feed(piece, &mut out)?;
        }
        Ok(out.to_vec())
    }

    /// `:method: POST`, an authority in this form, `te: trailers` as a literal.
    fn block(authority: &[u8]) -> Vec<u8> {
        [b"\x83", authority, b"\x40\x02te\x08trailers"].concat()
    }

    #[test]
    fn an_authority_that_is_spelt_out_becomes_one_letter() {
        for (sent, got) in [
            // As the C core, nghttp2 and Java write it.
            (&b"\x40\x0a:authority\x0a%2Frun%2Fx"[..], &b"\x40\x0a:authority\x01u"[..]),
            (b"\x41\x06/run/x", b"\x41\x01u"),
            (b"\x01\x86\xff\xff\xff\xff\xff\xff", b"\x01\x01u"),
            (b"\x11\x06/run/x", b"\x11\x01u"),
            // Nothing to replace.
            (b"\x41\x00", b"\x41\x00"),
            (b"\xbe", b"\xbe"),
            (b"\x3f\xe1\x1f", b"\x3f\xe1\x1f"),
            (b"\x44\x06/run/x", b"\x44\x06/run/x"),
        ] {
            assert_eq!(without_authority(&block(sent)), Some(block(got)), "{sent:?}");
        }
        for cut in [&b"\x41"[..], b"\x41\x05ab", b"\x7f", b"\x7f\xff\xff\xff\xff", b"\x40\x7f\xff"] {
            assert_eq!(without_authority(cut), None, "{cut:?}");
        }
    }

    #[test]
    fn it_does_so_wherever_the_headers_are_cut_and_changes_nothing_else() {
        let sent = block(b"\x41\x06/run/x");
        let got = frame(HEADERS, END_HEADERS | END_STREAM, &block(b"\x41\x01u"));
        let padded = [&[2][..], &[0; 5], &sent, &[0, 0]].concat();
        let (settings, data) = (frame(4, 0, &[0; 6]), frame(0, 1, &[7; 100]));
        let (one, two) = sent.split_at(4);
        for headers in [
            frame(HEADERS, END_HEADERS | END_STREAM, &sent),
            frame(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITY, &padded),
            [frame(HEADERS, END_STREAM, one), frame(CONTINUATION, END_HEADERS, two)].concat(),
        ] {
            let all = [PREFACE, &settings, &headers, &data].concat();
            let wanted = [PREFACE, &settings, &got, &data].concat();
            assert_eq!(fed(&[&all]).unwrap(), wanted);
            let bytes: Vec<&[u8]> = all.chunks(1).collect();
            assert_eq!(fed(&bytes).unwrap(), wanted);
        }
        assert_eq!(fed(&[b"GET / HT", b"TP/1.1\r\n\r\n"]).unwrap(), b"GET / HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn what_hides_where_headers_are_ends_the_connection() {
        for frames in [
            [frame(HEADERS, 0, b"\x83"), frame(0, 0, b"")].concat(),
            [frame(HEADERS, 0, &[0; 9000]), frame(CONTINUATION, 0, &[0; 9000])].concat(),
            frame(HEADERS, END_HEADERS | PADDED, &[9, 0x83]),
            frame(HEADERS, END_HEADERS | PADDED, &[]),
            frame(HEADERS, END_HEADERS | PRIORITY, &[0; 4]),
            vec![0xff, 0xff, 0xff, HEADERS, 0, 0, 0, 0, 1],
        ] {
            assert!(fed(&[PREFACE, &frames]).is_err(), "{:?}", frames.first_chunk::<9>());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hold_much(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let (mut rewriter, mut out) = (Rewriter::default(), BytesMut::new());
            let fed = rewriter.feed(PREFACE, &mut out).and_then(|()| rewriter.feed(&bytes, &mut out));
            prop_assert!(fed.is_err() || rewriter.pending.len() <= FRAME_HEADER + MAX_BLOCK);
            prop_assert!(out.len() <= PREFACE.len() + bytes.len());
            without_authority(&bytes);
        }
    }
}
