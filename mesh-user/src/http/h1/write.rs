//! Writes heads anew from their parsed form, so that the application parses exactly what the gate was shown. Names keep the
//! case in which they were sent.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode};

use super::{
    super::gate::{Edits, FieldSpan, Version},
    head::{ParsedRequest, ParsedResponse, hides_requests, list},
};

fn field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn version(version: Version) -> &'static [u8] {
    if version == Version::Http10 { b"HTTP/1.0" } else { b"HTTP/1.1" }
}

/// The entries of a list field that are to stay; nothing where none is left.
fn filtered(out: &mut BytesMut, name: &[u8], value: &[u8], stays: impl Fn(&[u8]) -> bool) {
    let kept: Vec<&[u8]> = list(value).filter(|entry| stays(entry)).collect();
    if !kept.is_empty() {
        field(out, name, &kept.join(b", ".as_slice()));
    }
}

/// The request as decided. Offers to switch to a protocol that would hide requests are left out: the request stays
/// HTTP/1.1, which RFC 9110 section 7.8 allows.
pub(in super::super) fn request(out: &mut BytesMut, bytes: &[u8], parsed: &ParsedRequest, edits: &Edits) {
    let head = parsed.head(bytes);
    let edited =
        edits.path.as_ref().filter(|_| head.path.starts_with('/')).map(super::super::gate::PathEdit::as_str);
    let target = match edited {
        Some(path) => path,
        None if head.path.is_empty() => head.target,
        None => head.path,
    };
    out.reserve(bytes.len() + 64);
    out.put_slice(head.method.as_bytes());
    out.put_u8(b' ');
    out.put_slice(target.as_bytes());
    out.put_u8(b' ');
    out.put_slice(version(parsed.version));
    out.put_slice(b"\r\n");
    // HTTP/1.0 may name the host in the target alone, which is not written in that form (RFC 9112 section 3.2.2).
    if !head.path.is_empty() && !head.authority.is_empty() && head.values("host").next().is_none() {
        field(out, b"Host", head.authority.as_bytes());
    }
    for (name, value) in head.fields().filter(|(name, _)| !edits.drops(name)) {
        let raw = name.as_bytes();
        let is = |other: &str| parsed.upgrade.hiding && name.eq_ignore_ascii_case(other);
        if is("http2-settings") {
            continue;
        }
        if is("upgrade") {
            filtered(out, raw, value, |protocol| !hides_requests(protocol));
        } else if is("connection") {
            filtered(out, raw, value, |option| {
                !option.eq_ignore_ascii_case(b"http2-settings")
                    && (parsed.upgrade.offered || !option.eq_ignore_ascii_case(b"upgrade"))
            });
        } else {
            field(out, raw, value);
        }
    }
    for (name, value) in edits.added() {
        field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    out.put_slice(b"\r\n");
}

/// The response, with the fields that the gate adds to a final one.
pub(super) fn response(out: &mut BytesMut, bytes: &[u8], parsed: &ParsedResponse, edits: &Edits) {
    out.reserve(bytes.len() + 16);
    out.put_slice(version(parsed.version));
    out.put_u8(b' ');
    out.put_slice(parsed.status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(&bytes[parsed.reason.clone()]);
    out.put_slice(b"\r\n");
    if parsed.status.is_informational() || edits.response.is_empty() {
        fields(out, bytes, &parsed.fields);
    } else {
        let is = |span: &FieldSpan, name: &HeaderName| {
            bytes[span.name.clone()].eq_ignore_ascii_case(name.as_str().as_bytes())
        };
        let edits = edits.of_response(|name| parsed.fields.iter().any(|span| is(span, name)));
        let kept = |span: &&FieldSpan| !edits.dropped.iter().any(|name| is(span, name));
        for span in parsed.fields.iter().filter(kept) {
            field(out, &bytes[span.name.clone()], &bytes[span.value.clone()]);
        }
        for (name, value) in edits.added {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    out.put_slice(b"\r\n");
}

/// Fields as they were sent.
pub(super) fn fields(out: &mut BytesMut, bytes: &[u8], spans: &[FieldSpan]) {
    for span in spans {
        field(out, &bytes[span.name.clone()], &bytes[span.value.clone()]);
    }
}

/// An answer of meshd's own; without its body to `HEAD`.
pub(super) fn local(
    out: &mut BytesMut,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    close: bool,
    head: bool,
) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
    // Of a response that has no body it would tell the length of another one (RFC 9110 section 8.6).
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        field(out, b"content-length", body.len().to_string().as_bytes());
    }
    for (name, value) in headers {
        field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    if close {
        field(out, b"connection", b"close");
    }
    out.put_slice(b"\r\n");
    if !head {
        out.put_slice(body);
    }
}

/// One chunk.
pub(super) fn chunk(out: &mut BytesMut, data: &[u8]) {
    use std::fmt::Write;
    out.reserve(data.len() + 20);
    // Formatting into a buffer with room does not fail.
    _ = write!(out, "{:x}\r\n", data.len());
    out.put_slice(data);
    out.put_slice(b"\r\n");
}
