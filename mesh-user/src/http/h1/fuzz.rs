//! The door for the fuzz targets: what of a message's framing was understood, and heads and chunks as they are written anew.

use bytes::BytesMut;

use super::{
    super::gate::Edits,
    head::{ParsedRequest, ParsedResponse},
    write,
};

/// How a request was understood beside its head: its body, and what becomes of the connection.
pub fn framing(request: &ParsedRequest) -> String {
    let ParsedRequest { body, keep_alive, expects_continue, upgrade, .. } = request;
    format!("{body:?}, stays: {keep_alive}, 100: {expects_continue}, may switch: {}", upgrade.offered)
}

/// Whether it offers a protocol that would hide requests.
pub fn hides(request: &ParsedRequest) -> bool {
    request.upgrade.hiding
}

/// As the application gets it where nothing is edited.
pub fn written_request(bytes: &[u8], request: &ParsedRequest) -> Vec<u8> {
    let mut out = BytesMut::new();
    write::request(&mut out, bytes, request, &Edits::default());
    out.to_vec()
}

/// How a response was understood: status, body, fields.
pub fn response(bytes: &[u8], response: &ParsedResponse) -> String {
    let ParsedResponse { version, status, reason, fields, body, persistent } = response;
    let text = |range: &std::ops::Range<usize>| String::from_utf8_lossy(&bytes[range.clone()]).into_owned();
    let fields: Vec<_> = fields.iter().map(|field| (text(&field.name), text(&field.value))).collect();
    format!("{version} {status} {} {body:?} stays: {persistent} {fields:?}", text(reason))
}

/// As the client gets it.
pub fn written_response(bytes: &[u8], response: &ParsedResponse) -> Vec<u8> {
    let mut out = BytesMut::new();
    write::response(&mut out, bytes, response, &Edits::default());
    out.to_vec()
}

/// One chunk as it is written anew.
pub fn chunk(data: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    write::chunk(&mut out, data);
    out.to_vec()
}
