//! The question that each request asks, and the answers: let it through with edits, or deny it. The gate behind it knows
//! policies and tokens; this side knows neither.

use std::{borrow::Cow, fmt, future::Future, ops::Range, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Decides requests.
pub trait Gate: Send + Sync {
    /// Decides one request. Called once per request, before any byte of it reaches the application. May be dropped
    /// before it ends, when the client goes away.
    fn decide(&self, head: &RequestHead<'_>) -> impl Future<Output = Decision> + Send;
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Decision {
    /// Forwarded with these edits.
    Allow(Edits),
    /// Answered with this.
    Deny(Denial),
}

/// The HTTP version of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

/// Where a field's name and value lie in the bytes of its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldSpan {
    pub(super) name: Range<usize>,
    pub(super) value: Range<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Fields<'a> {
    Spans(&'a [u8], &'a [FieldSpan]),
    Map(&'a HeaderMap),
}

/// A request as the application will see it, but for the edits. Borrowed: nothing is copied for the gate.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// Case matters.
    pub method: &'a str,
    /// The request target as sent: origin, absolute, authority or asterisk form.
    pub target: &'a str,
    /// Path and query of the target, not normalized; `*` for `OPTIONS *`, empty for `CONNECT`.
    pub path: &'a str,
    /// Host and port as sent, in the target, `:authority` or `Host`, which agree; empty where HTTP/1.0 sent none.
    pub authority: &'a str,
    /// HTTP version.
    pub version: Version,
    fields: Fields<'a>,
}

impl<'a> RequestHead<'a> {
    /// A head whose fields are kept as spans of `bytes`.
    pub(super) fn with_spans(self, bytes: &'a [u8], spans: &'a [FieldSpan]) -> Self {
        Self { fields: Fields::Spans(bytes, spans), ..self }
    }

    /// A head whose fields are in a map.
    pub(super) fn with_map(self, map: &'a HeaderMap) -> Self {
        Self { fields: Fields::Map(map), ..self }
    }

    /// A head without fields; also for tests of a gate.
    pub fn new(
        method: &'a str,
        target: &'a str,
        path: &'a str,
        authority: &'a str,
        version: Version,
    ) -> Self {
        Self { method, target, path, authority, version, fields: Fields::Spans(&[], &[]) }
    }

    /// A head with the fields of a map; also for tests of a gate.
    #[must_use]
    pub fn fields_from(self, map: &'a HeaderMap) -> Self {
        self.with_map(map)
    }

    /// Names and values in the order sent; in HTTP/2 the fields of one name stand together. Names have the case in which
    /// they were sent, values no space around them. `Host` is among them where it was sent.
    ///
    /// HTTP/2 may split `cookie` into several fields, to be joined with `; ` (RFC 9113 section 8.2.3).
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        self.raw_fields().map(|(name, value)| (std::str::from_utf8(name).unwrap_or_default(), value))
    }

    fn raw_fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let (spans, map) = match self.fields {
            Fields::Spans(bytes, spans) => (Some((bytes, spans)), None),
            Fields::Map(map) => (None, Some(map)),
        };
        let from_spans = spans.into_iter().flat_map(|(bytes, spans)| {
            spans.iter().map(|span| (&bytes[span.name.clone()], &bytes[span.value.clone()]))
        });
        let from_map = map.into_iter().flatten();
        from_spans.chain(from_map.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
    }

    /// All values of a header, in the order sent; the name in any case.
    pub fn values<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let named = move |own: &[u8]| own.eq_ignore_ascii_case(name.as_bytes());
        self.raw_fields().filter(move |(own, _)| named(own)).map(|(_, value)| value)
    }

    /// Whether a denial has to be told as gRPC.
    pub fn is_grpc(&self) -> bool {
        self.values("content-type").any(|value| {
            let Some((kind, rest)) = value.split_at_checked(b"application/grpc".len()) else { return false };
            kind.eq_ignore_ascii_case(b"application/grpc")
                && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        })
    }
}

/// What is changed in a request that is let through. Names and values are of checked types, so that nothing in them can
/// end a line. Fields that say where a message ends or for whom it is cannot be edited and are passed over.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    /// Replaces path and query; `None` forwards them as sent. Ignored for `CONNECT` and `*`.
    pub path: Option<PathEdit>,
    /// Taken out, with their look-alikes that have `_` for `-`.
    pub remove: Vec<HeaderName>,
    /// Take the place of all fields of their name and of its look-alikes.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Added after those that are there.
    pub append: Vec<(HeaderName, HeaderValue)>,
    /// Put among the fields of the final response.
    pub response: Vec<(HeaderName, HeaderValue, ResponsePut)>,
    /// The rule that let it through, for the report.
    pub rule: Option<Arc<str>>,
    /// Whom the sender was taken for, for the report.
    pub principal: Option<Arc<str>>,
}

/// How a field is put among those of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponsePut {
    /// Beside those of its name.
    Add,
    /// In their place.
    Replace,
    /// Where there is none.
    AddIfAbsent,
    /// Where there is one, in its place.
    ReplaceIfPresent,
}

/// A path and query that is safe to write into a request line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathEdit(String);

impl PathEdit {
    /// `None` unless it begins with `/` and holds only visible ASCII without `#`.
    pub fn new(path: impl Into<String>) -> Option<Self> {
        let path = path.into();
        (path.starts_with('/') && is_target(path.as_bytes())).then_some(Self(path))
    }

    /// Path and query.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Visible ASCII without a fragment (RFC 9112 section 3.2).
pub(super) fn is_target(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| matches!(byte, 0x21..=0x7e) && *byte != b'#')
}

/// Fields that say how long a message is, for whom, and what the next hop may drop.
const FRAMING: [&str; 8] =
    ["connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

pub(super) fn is_editable(name: &HeaderName) -> bool {
    !FRAMING.contains(&name.as_str())
}

/// Equal in any case, and with `_` taken for `-`, as CGI and WSGI applications read names.
pub(crate) fn looks_like(name: &str, other: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(|(a, b)| fold(a) == fold(b))
}

impl Edits {
    /// Takes out a field, those that were put by earlier edits too.
    pub fn take_out(&mut self, name: &HeaderName) {
        for put in [&mut self.set, &mut self.append] {
            put.retain(|(own, _)| !looks_like(own.as_str(), name.as_str()));
        }
        if !self.remove.contains(name) {
            self.remove.push(name.clone());
        }
    }

    /// Whether a field as sent is left out.
    pub fn drops(&self, name: &str) -> bool {
        self.remove
            .iter()
            .chain(self.set.iter().map(|(name, _)| name))
            .any(|own| is_editable(own) && looks_like(name, own.as_str()))
    }

    /// Fields that are written in addition.
    pub fn added(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.set.iter().chain(&self.append).filter(|(name, _)| is_editable(name))
    }

    /// Which of these edits of a response count for one whose names `has` knows: names whose fields go, and fields that
    /// come.
    pub(super) fn of_response(&self, has: impl Fn(&HeaderName) -> bool) -> ResponseEdits<'_> {
        let mut edits = ResponseEdits::default();
        for (name, value, put) in self.response.iter().filter(|(name, ..)| is_editable(name)) {
            let replaces = matches!(put, ResponsePut::Replace | ResponsePut::ReplaceIfPresent);
            match put {
                ResponsePut::AddIfAbsent if has(name) => continue,
                ResponsePut::ReplaceIfPresent if !has(name) => continue,
                _ if replaces => edits.dropped.push(name),
                _ => {}
            }
            edits.added.push((name, value));
        }
        edits
    }

    /// Whether the gate speaks of this field at all: then no trailer and no `Connection` may.
    pub(super) fn names(&self, name: &str) -> bool {
        let added = self.set.iter().chain(&self.append).map(|(name, _)| name);
        self.remove.iter().chain(added).any(|own| looks_like(name, own.as_str()))
    }
}

/// What is changed in one response.
#[derive(Debug, Default)]
pub(super) struct ResponseEdits<'a> {
    pub(super) dropped: Vec<&'a HeaderName>,
    pub(super) added: Vec<(&'a HeaderName, &'a HeaderValue)>,
}

/// What a denied client gets.
#[derive(Debug, Clone)]
pub struct Denial {
    /// Status for HTTP; gRPC gets 200 with the `grpc-status` that Envoy makes of it.
    pub status: StatusCode,
    /// Body for HTTP, `grpc-message` for gRPC.
    pub body: Bytes,
    /// Added to the response; framing fields are passed over. A `content-type` replaces `text/plain`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The rule that denied it, for the report.
    pub rule: Option<Arc<str>>,
    /// Whom the sender was taken for, for the report.
    pub principal: Option<Arc<str>>,
}

impl Denial {
    /// With a status and body of one's own.
    pub fn new(status: StatusCode, body: impl Into<Cow<'static, str>>) -> Self {
        let body = match body.into() {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        };
        Self { status, body, headers: Vec::new(), rule: None, principal: None }
    }

    /// Istio's answer when policy denies.
    pub fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "RBAC: access denied")
    }

    /// For a bad token (RFC 6750 section 3).
    pub fn unauthorized(body: impl Into<Cow<'static, str>>, challenge: HeaderValue) -> Self {
        let mut denial = Self::new(StatusCode::UNAUTHORIZED, body);
        denial.headers.push((http::header::WWW_AUTHENTICATE, challenge));
        denial
    }

    /// The code that gRPC knows for the status (Envoy's `httpToGrpcStatus`).
    pub(super) fn grpc_status(&self) -> u8 {
        match self.status.as_u16() {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        }
    }

    /// The response's fields other than framing, and its body.
    pub(super) fn response(&self, grpc: bool) -> (StatusCode, HeaderMap, Bytes) {
        let mut headers = HeaderMap::new();
        let kind = if grpc { "application/grpc" } else { "text/plain" };
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
        for (name, value) in self.headers.iter().filter(|(name, _)| is_editable(name)) {
            if *name != http::header::CONTENT_TYPE {
                headers.append(name, value.clone());
            } else if !grpc {
                headers.insert(name, value.clone());
            }
        }
        if !grpc {
            // These have none (RFC 9110 sections 15.3.5, 15.4.5).
            let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&self.status);
            return (self.status, headers, if bodiless { Bytes::new() } else { self.body.clone() });
        }
        headers.insert("grpc-status", HeaderValue::from(u16::from(self.grpc_status())));
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.body)) {
            headers.insert("grpc-message", message);
        }
        (StatusCode::OK, headers, Bytes::new())
    }
}

/// The call's end as its response's head or trailers say it; none: they do not, or it is no number that gRPC knows
/// (grpc/grpc `doc/statuscodes.md`), of which an application could invent any.
pub(super) fn grpc_status_of(headers: &HeaderMap) -> Option<u8> {
    let status = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    (0..=16).contains(&status).then_some(status)
}

/// `grpc-message` as gRPC over HTTP/2 writes it: all but visible ASCII and space, and `%`, as `%XX`.
fn percent_encoded(text: &[u8]) -> String {
    use std::fmt::Write;
    text.iter().fold(String::with_capacity(text.len()), |mut encoded, &byte| {
        match byte {
            0x20..=0x7e if byte != b'%' => encoded.push(char::from(byte)),
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("Application/gRPC+proto", true),
            ("application/grpc; charset=x", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("app", false),
        ] {
            let map = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(value))]);
            let head = RequestHead::new("POST", "/", "/", "a", Version::Http2).fields_from(&map);
            assert_eq!(head.is_grpc(), expected, "{value}");
        }
    }

    #[test]
    fn a_calls_end_is_a_number_that_grpc_knows() {
        for (value, expected) in
            [("0", Some(0)), ("16", Some(16)), ("17", None), ("-1", None), ("OK", None), ("", None)]
        {
            let map = HeaderMap::from_iter([(
                HeaderName::from_static("grpc-status"),
                HeaderValue::from_str(value).unwrap(),
            )]);
            assert_eq!(grpc_status_of(&map), expected, "{value}");
        }
        assert_eq!(grpc_status_of(&HeaderMap::new()), None);
    }

    #[test]
    fn a_denial_is_told_in_the_words_of_the_protocol() {
        let (status, headers, body) = Denial::forbidden().response(false);
        assert_eq!((status.as_u16(), body.as_ref()), (403, b"RBAC: access denied".as_slice()));
        assert_eq!(headers["content-type"], "text/plain");
        let (status, headers, body) = Denial::forbidden().response(true);
        assert_eq!((status.as_u16(), body.len(), headers.len()), (200, 0, 3));
        assert_eq!(headers["grpc-status"], "7");
        assert_eq!(headers["grpc-message"], "RBAC: access denied");
        let challenge = HeaderValue::from_static("Bearer");
        let (_, headers, _) = Denial::unauthorized("50%\n", challenge).response(true);
        assert_eq!(headers["grpc-status"], "16");
        assert_eq!(headers["grpc-message"], "50%25%0A");
        assert_eq!(headers["www-authenticate"], "Bearer");
    }

    #[test]
    fn edits_reach_look_alikes_and_leave_framing_alone() {
        let name = |text: &'static str| HeaderName::from_static(text);
        let value = HeaderValue::from_static("1");
        let edits = Edits {
            remove: vec![name("x-role"), name("content-length")],
            set: vec![(name("host"), value.clone()), (name("x-user"), value)],
            ..Edits::default()
        };
        for (field, dropped) in
            [("X_Role", true), ("x-user", true), ("Content-Length", false), ("Host", false)]
        {
            assert_eq!(edits.drops(field), dropped, "{field}");
        }
        assert_eq!(edits.added().count(), 1);
    }

    #[test]
    fn what_is_taken_out_is_gone_whoever_put_it() {
        let name = |text: &'static str| HeaderName::from_static(text);
        let value = HeaderValue::from_static("1");
        let mut edits = Edits {
            set: vec![(name("x-user"), value.clone())],
            append: vec![(name("x_user"), value.clone()), (name("x-other"), value)],
            ..Edits::default()
        };
        edits.take_out(&name("x-user"));
        assert!(edits.drops("X-User"));
        let left: Vec<_> = edits.added().map(|(name, _)| name.as_str()).collect();
        assert_eq!(left, ["x-other"]);
    }

    #[test]
    fn a_field_is_put_into_a_response_as_asked() {
        use ResponsePut::{Add, AddIfAbsent, Replace, ReplaceIfPresent};
        for (put, present, added, dropped) in [
            (Add, true, true, false),
            (Add, false, true, false),
            (Replace, true, true, true),
            (Replace, false, true, true),
            (AddIfAbsent, true, false, false),
            (AddIfAbsent, false, true, false),
            (ReplaceIfPresent, true, true, true),
            (ReplaceIfPresent, false, false, false),
        ] {
            let (name, value) = (HeaderName::from_static("x-a"), HeaderValue::from_static("1"));
            let framing = (HeaderName::from_static("content-length"), value.clone(), put);
            let edits = Edits { response: vec![(name, value, put), framing], ..Edits::default() };
            let edits = edits.of_response(|_| present);
            assert_eq!(
                (edits.added.len() == 1, edits.dropped.len() == 1),
                (added, dropped),
                "{put:?} {present}"
            );
        }
    }

    #[test]
    fn a_path_edit_cannot_end_the_line() {
        for (path, good) in
            [("/a?b", true), ("a", false), ("/a b", false), ("/\r\nX:", false), ("/#", false), ("", false)]
        {
            assert_eq!(PathEdit::new(path).is_some(), good, "{path:?}");
        }
    }
}
