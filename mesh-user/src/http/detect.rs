//! Tells HTTP/1, HTTP/2 by prior knowledge, and everything else apart by the first bytes. Pure: it reads nothing and
//! waits for nothing; the answer does not depend on how the bytes were split.

/// The client's connection preface of HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that is taken for one; the longest registered has 17.
const MAX_METHOD: usize = 32;

/// Methods that with a `/` after them are HTTP whatever follows, so that a malformed request is refused as one.
const METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"];

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// A request line of HTTP/1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// Another protocol: only rules for TCP can be applied.
    NotHttp,
    /// The bytes so far could still be HTTP.
    NeedMore,
}

/// Looks at the first bytes of a connection. A request line without an end within `max_line` bytes is HTTP/1, to be
/// refused as too long.
pub fn detect(bytes: &[u8], max_line: usize) -> Detected {
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return if common == PREFACE.len() { Detected::Http2 } else { Detected::NeedMore };
    }
    let window = &bytes[..bytes.len().min(MAX_METHOD + 1)];
    let Some(method_end) = window.iter().position(|byte| !is_token(*byte)) else {
        return if window.len() > MAX_METHOD { Detected::NotHttp } else { Detected::NeedMore };
    };
    if method_end == 0 || bytes[method_end] != b' ' {
        return Detected::NotHttp;
    }
    let rest = &bytes[method_end + 1..];
    match rest.first() {
        None => Detected::NeedMore,
        Some(b'/') if METHODS.contains(&&bytes[..method_end]) => Detected::Http1,
        Some(_) => by_version(rest, max_line.saturating_sub(method_end + 1)),
    }
}

/// Whether the line ends in a version of HTTP/1. A control character means another protocol, which must not be held
/// until it happens to send a line's end.
fn by_version(rest: &[u8], max: usize) -> Detected {
    for (at, byte) in rest.iter().enumerate() {
        match byte {
            _ if at >= max => return Detected::Http1,
            b'\r' if rest.get(at + 1).is_none_or(|next| *next == b'\n') => {}
            b'\n' => return if has_version(&rest[..at]) { Detected::Http1 } else { Detected::NotHttp },
            0..=0x1f | 0x7f => return Detected::NotHttp,
            _ => {}
        }
    }
    Detected::NeedMore
}

fn has_version(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    matches!(line, [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if minor.is_ascii_digit())
}

/// A character of a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 200;

    #[test]
    fn first_bytes_say_the_protocol() {
        use Detected::*;
        let long_target = [b"GOT /".as_slice(), &[b'a'; MAX]].concat();
        let long_method = [b'A'; 40];
        let cases: [(&[u8], Detected); 32] = [
            (b"", NeedMore),
            (b"G", NeedMore),
            (b"GET", NeedMore),
            (b"GET ", NeedMore),
            (b"GET /", Http1),
            (b"GET /\0", Http1),
            (b"GET /\r\n", Http1),
            (b"GET / HTTP/2.0\r\n", Http1),
            (b"GET *", NeedMore),
            (b"OPTIONS * HTTP/1.1\r\n", Http1),
            (b"CONNECT a:1 HTTP/1.1\r\n", Http1),
            (b"GET http://a/ HTTP/1.0\n", Http1),
            (b"GET http://a/ HTTP/1.7\r\n", Http1),
            (b"PURGE /x HTTP/1.1", NeedMore),
            (b"PURGE /x HTTP/1.1\r", NeedMore),
            (b"PURGE /x HTTP/1.1\r\n", Http1),
            (b"PURGE /x HTTP/1.1\rX", NotHttp),
            (b"PURGE /x HTTP/3.1\r\n", NotHttp),
            (b"get key\r\n", NotHttp),
            (b"AUTH secret\r\n", NotHttp),
            (b"AUTH sec\0", NotHttp),
            (b"EHLO host\r\n", NotHttp),
            (b"*1\r\n$4\r\nPING\r\n", NotHttp),
            (b"\r\nGET / HTTP/1.1\r\n", NotHttp),
            (&[0x16, 3, 1, 2], NotHttp),
            (b" GET / HTTP/1.1\r\n", NotHttp),
            (&long_method, NotHttp),
            (&long_target, Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSX", NotHttp),
            (b"PRI * HTTP/1.1\r\n", Http1),
        ];
        for (bytes, expected) in cases {
            assert_eq!(detect(bytes, MAX), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn once_said_it_stays(bytes in prop::collection::vec(prop_oneof![
            Just(b' '), Just(b'\r'), Just(b'\n'), Just(b'/'), Just(b'A'), Just(b'G'), Just(0), any::<u8>()
        ], 0..80), start in prop::sample::select(vec!["", "GET ", "GOT /x ", "GOT / HTTP/1.1", "PRI * HTTP/2.0\r\n"])) {
            let bytes = [start.as_bytes(), &bytes].concat();
            let whole = detect(&bytes, MAX);
            for end in 0..bytes.len() {
                let part = detect(&bytes[..end], MAX);
                prop_assert!(part == Detected::NeedMore || part == whole, "{end}: {part:?}, then {whole:?}");
            }
        }
    }
}
