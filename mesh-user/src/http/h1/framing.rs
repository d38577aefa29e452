//! How long the body of a message is (RFC 9112 section 6.3). A request whose length two readers could see differently is
//! refused; nothing is repaired.

use http::StatusCode;

use super::super::{error::Refusal, gate::Version};

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// With the last chunk and its trailers.
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

/// What the fields of a head say about its body.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lengths<'a> {
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    repeated: bool,
}

impl<'a> Lengths<'a> {
    /// Takes note of one field.
    pub(super) fn see(&mut self, name: &str, value: &'a [u8]) {
        let before = if name.eq_ignore_ascii_case("content-length") {
            self.content_length.replace(value)
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            self.transfer_encoding.replace(value)
        } else {
            return;
        };
        self.repeated |= before.is_some();
    }

    /// The body of a request.
    pub(super) fn of_request(self, version: Version) -> Result<Framing, Refusal> {
        match (self.content_length, self.transfer_encoding) {
            _ if self.repeated => Err(Refusal::Framing),
            (None, None) => Ok(Framing::None),
            // A leading zero is an octal number to some.
            (Some([b'0', _, ..]), None) => Err(Refusal::Framing),
            (Some(length), None) => digits(length).map(Framing::Length).ok_or(Refusal::Framing),
            (None, Some(coding)) if version == Version::Http11 && coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(Framing::Chunked)
            }
            _ => Err(Refusal::Framing),
        }
    }

    /// The body of a response to a request with that method.
    pub(super) fn of_response(self, method: &str, status: StatusCode) -> Result<Framing, Refusal> {
        let tunnel = method == "CONNECT" && status.is_success();
        let empty = status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || method == "HEAD";
        match (self.content_length, self.transfer_encoding) {
            _ if tunnel || empty => Ok(Framing::None),
            _ if self.repeated => Err(Refusal::Framing),
            (None, None) => Ok(Framing::UntilClose),
            (Some(length), None) => digits(length).map(Framing::Length).ok_or(Refusal::Framing),
            (None, Some(codings)) => {
                let last = codings.rsplit(|byte| *byte == b',').next().unwrap_or_default();
                let chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
                Ok(if chunked { Framing::Chunked } else { Framing::UntilClose })
            }
            (Some(_), Some(_)) => Err(Refusal::Framing),
        }
    }
}

/// Only digits, no sign, no list.
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = [(&'static str, &'static str)];

    fn lengths<'a>(fields: &[(&'a str, &'a str)]) -> Lengths<'a> {
        let mut lengths = Lengths::default();
        for (name, value) in fields {
            lengths.see(name, value.as_bytes());
        }
        lengths
    }

    #[test]
    fn the_length_of_a_request_is_clear_or_refused() {
        let (cl, te) = ("Content-Length", "Transfer-Encoding");
        let wrong = Err(Refusal::Framing);
        let cases: [(&Fields, Version, Result<Framing, Refusal>); 21] = [
            (&[], Version::Http11, Ok(Framing::None)),
            (&[(cl, "0")], Version::Http11, Ok(Framing::Length(0))),
            (&[("content-LENGTH", "12")], Version::Http11, Ok(Framing::Length(12))),
            (&[(cl, "5")], Version::Http10, Ok(Framing::Length(5))),
            (&[(te, "chunked")], Version::Http11, Ok(Framing::Chunked)),
            (&[(te, "Chunked")], Version::Http11, Ok(Framing::Chunked)),
            (&[(te, "chunked")], Version::Http10, wrong),
            (&[(cl, "5"), (te, "chunked")], Version::Http11, wrong),
            (&[(cl, "5"), (cl, "5")], Version::Http11, wrong),
            (&[(cl, "5, 5")], Version::Http11, wrong),
            (&[(cl, "010")], Version::Http11, wrong),
            (&[(cl, "+5")], Version::Http11, wrong),
            (&[(cl, "-1")], Version::Http11, wrong),
            (&[(cl, "0x5")], Version::Http11, wrong),
            (&[(cl, "5 ")], Version::Http11, wrong),
            (&[(cl, "")], Version::Http11, wrong),
            (&[(cl, "18446744073709551616")], Version::Http11, wrong),
            (&[(te, "chunked"), (te, "chunked")], Version::Http11, wrong),
            (&[(te, "gzip, chunked")], Version::Http11, wrong),
            (&[(te, "identity")], Version::Http11, wrong),
            (&[(te, "\u{b}chunked")], Version::Http11, wrong),
        ];
        for (fields, version, expected) in cases {
            assert_eq!(lengths(fields).of_request(version), expected, "{fields:?} {version}");
        }
    }

    #[test]
    fn the_length_of_a_response_depends_on_its_request() {
        let (cl, te) = ("content-length", "transfer-encoding");
        let wrong = Err(Refusal::Framing);
        let cases: [(&Fields, &str, u16, Result<Framing, Refusal>); 14] = [
            (&[], "GET", 200, Ok(Framing::UntilClose)),
            (&[(cl, "7")], "GET", 200, Ok(Framing::Length(7))),
            (&[(cl, "7")], "HEAD", 200, Ok(Framing::None)),
            (&[(cl, "7")], "GET", 304, Ok(Framing::None)),
            (&[], "GET", 204, Ok(Framing::None)),
            (&[], "GET", 100, Ok(Framing::None)),
            (&[], "CONNECT", 200, Ok(Framing::None)),
            (&[(cl, "7")], "CONNECT", 407, Ok(Framing::Length(7))),
            (&[(te, "chunked")], "GET", 200, Ok(Framing::Chunked)),
            (&[(te, "gzip, chunked")], "GET", 200, Ok(Framing::Chunked)),
            (&[(te, "gzip")], "GET", 200, Ok(Framing::UntilClose)),
            (&[(te, "chunked"), (cl, "7")], "GET", 200, wrong),
            (&[(cl, "7"), (cl, "8")], "GET", 200, wrong),
            (&[(cl, "x")], "GET", 200, wrong),
        ];
        for (fields, method, status, expected) in cases {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(lengths(fields).of_response(method, status), expected, "{fields:?} {method} {status}");
        }
    }
}
