//! The chunked coding (RFC 9112 section 7.1), strictly: what it accepts has one reading, and extensions are read over
//! within a bound. Pure; the caller writes chunks of its own, so that no oddity of these reaches the application.

use std::ops::Range;

use super::super::error::Refusal;

/// Longest chunk extension in bytes. None is in use that needs more; reading them without a bound is a known drain.
const MAX_EXTENSION_BYTES: u32 = 1024;

/// Most digits of a chunk size: what 64 bits hold.
const MAX_SIZE_DIGITS: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { value: u64, digits: u8 },
    Extension { value: u64, bytes: u32 },
    SizeLf { value: u64 },
    Data(u64),
    DataCr,
    DataLf,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Data of a chunk, at this range of the bytes given.
    Data(Range<usize>),
    /// The last chunk's line: the trailer section follows.
    Last,
    /// Nothing more in these bytes.
    NeedMore,
}

/// Takes chunks apart.
#[derive(Debug, Clone)]
pub struct ChunkedDecoder {
    state: State,
}

const FIRST: State = State::Size { value: 0, digits: 0 };

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self { state: FIRST }
    }
}

impl ChunkedDecoder {
    /// The next piece, and how many bytes were used up with it.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Piece), Refusal> {
        for (at, byte) in bytes.iter().enumerate() {
            self.state = match (self.state, byte) {
                (State::Data(left), _) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    let after = left - length as u64;
                    self.state = if after == 0 { State::DataCr } else { State::Data(after) };
                    return Ok((at + length, Piece::Data(at..at + length)));
                }
                (State::SizeLf { value: 0 }, b'\n') => {
                    self.state = FIRST;
                    return Ok((at + 1, Piece::Last));
                }
                (State::SizeLf { value }, b'\n') => State::Data(value),
                (State::DataCr, b'\r') => State::DataLf,
                (State::DataLf, b'\n') => FIRST,
                (State::Size { value, digits }, _) => in_size(value, digits, *byte)?,
                (State::Extension { value, .. }, b'\r') => State::SizeLf { value },
                (State::Extension { value, bytes }, b'\t' | b' '..=b'~' | 0x80..)
                    if bytes < MAX_EXTENSION_BYTES =>
                {
                    State::Extension { value, bytes: bytes + 1 }
                }
                _ => return Err(Refusal::Chunk),
            };
        }
        Ok((bytes.len(), Piece::NeedMore))
    }
}

fn in_size(value: u64, digits: u8, byte: u8) -> Result<State, Refusal> {
    match byte {
        b'\r' if digits > 0 => Ok(State::SizeLf { value }),
        b';' if digits > 0 => Ok(State::Extension { value, bytes: 0 }),
        _ if digits == MAX_SIZE_DIGITS => Err(Refusal::Chunk),
        _ => {
            let digit = char::from(byte).to_digit(16).ok_or(Refusal::Chunk)?;
            Ok(State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data, whether the last chunk came, and what is left behind it.
    fn decode(parts: &[&[u8]]) -> Result<(Vec<u8>, bool, Vec<u8>), Refusal> {
        let (mut decoder, mut data, mut last, mut rest) =
            (ChunkedDecoder::default(), Vec::new(), false, Vec::new());
        for part in parts {
            let mut part = *part;
            while !last {
                let (used, piece) = decoder.next(part)?;
                match piece {
                    Piece::Data(range) => data.extend(&part[range]),
                    Piece::Last => last = true,
                    Piece::NeedMore => break,
                }
                part = &part[used..];
            }
            if last {
                rest.extend(part);
            }
        }
        Ok((data, last, rest))
    }

    /// Data, whether the last chunk came, and the rest.
    type Decoded<'a> = (&'a [u8], bool, &'a [u8]);

    #[test]
    fn chunks_have_one_reading() {
        let long_extension = [b"1;".as_slice(), &[b'x'; 1025], b"\r\na\r\n0\r\n"].concat();
        let cases: [(&[u8], Option<Decoded<'_>>); 24] = [
            (b"0\r\n\r\n", Some((b"", true, b"\r\n"))),
            (b"3\r\nabc\r\n0\r\nX: y\r\n\r\n", Some((b"abc", true, b"X: y\r\n\r\n"))),
            (b"A\r\n0123456789\r\n00\r\n", Some((b"0123456789", true, b""))),
            (b"1\r\na\r\n2;n=\"v\"\r\nbc\r\n0;x\r\n", Some((b"abc", true, b""))),
            (b"5\r\nab", Some((b"ab", false, b""))),
            (b"ffffffffffffffff\r\nab", Some((b"ab", false, b""))),
            (b"10000000000000000\r\n", None),
            (b"00000000000000000\r\n", None),
            (b"\r\n", None),
            (b";x\r\n", None),
            (b"g\r\n", None),
            (b"0x3\r\nabc", None),
            (b"+3\r\nabc", None),
            (b" 3\r\nabc", None),
            (b"3 \r\nabc", None),
            (b"3\nabc", None),
            (b"3\r\r\nabc", None),
            (b"3;\nabc", None),
            (b"3;a\rb\r\nabc", None),
            (b"3;a\0\r\nabc", None),
            (b"3\r\nabcd", None),
            (b"3\r\nabc\n0\r\n", None),
            (b"3\r\nabc\r0\r\n", None),
            (&long_extension, None),
        ];
        for (bytes, expected) in cases {
            let found = decode(&[bytes]).ok();
            let found = found.as_ref().map(|(data, last, rest)| (&**data, *last, &**rest));
            assert_eq!(found, expected, "{:?}", String::from_utf8_lossy(bytes));
            let bytewise: Vec<_> = bytes.chunks(1).collect();
            assert_eq!(decode(&bytewise), decode(&[bytes]), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn splits_do_not_matter(bytes in prop::collection::vec(prop::sample::select(b"0123af;\r\n x".to_vec()), 0..60),
                                at in 0_usize..60) {
            let at = at.min(bytes.len());
            prop_assert_eq!(decode(&[&bytes]), decode(&[&bytes[..at], &bytes[at..]]));
        }
    }
}
