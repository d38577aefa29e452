//! As much HTTP/1.1 as a client needs that asks its own server for the same file again and again.

use std::io::{Error, ErrorKind, Read, Result};

use crate::subject::TEAM_HEADER;

/// More than the largest answer.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// A request for `path`.
pub(super) fn request(path: &str, keep_alive: bool) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!("GET {path} HTTP/1.1\r\nHost: server\r\n{TEAM_HEADER}\r\nConnection: {connection}\r\n\r\n")
        .into_bytes()
}

/// How long the answer is that begins with `received`; none: its headers are not complete. Fails on anything but a
/// success with a length.
pub(super) fn answer_len(received: &[u8]) -> Result<Option<usize>> {
    let bad = |what: &str| Error::new(ErrorKind::InvalidData, what.to_owned());
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&received[..end]).map_err(|_| bad("headers are not text"))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(bad("the answer is no success"));
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.map(|length| Some(end + 4 + length)).ok_or_else(|| bad("the answer has no length"))
}

/// Reads one whole answer.
pub(super) fn read_answer(stream: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    let mut received = 0;
    loop {
        match stream.read(&mut buffer[received..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => received += count,
        }
        if answer_len(&buffer[..received])?.is_some_and(|length| received >= length) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello";

    #[test]
    fn an_answer_has_headers_and_the_length_they_say() {
        assert_eq!(answer_len(ANSWER).unwrap(), Some(ANSWER.len()));
        assert_eq!(answer_len(&ANSWER[..30]).unwrap(), None);
    }

    #[test]
    fn an_answer_in_pieces_is_read_whole() {
        struct ByteByByte<'a>(&'a [u8]);
        impl Read for ByteByByte<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
                let count = self.0.len().min(1);
                self.0.read(&mut buffer[..count])
            }
        }
        read_answer(&mut ByteByByte(ANSWER), &mut [0; 200]).unwrap();
        let cut = &mut ByteByByte(&ANSWER[..ANSWER.len() - 1]);
        assert_eq!(read_answer(cut, &mut [0; 200]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn errors_and_answers_without_a_length_are_refused() {
        assert!(answer_len(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(answer_len(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
