//! What a head says. Pure functions over bytes; strict for requests, as lenient for responses as is safe when they are
//! written anew. What they accept has one reading.

use std::{mem::MaybeUninit, ops::Range};

use http::StatusCode;

use super::{
    super::{
        error::Refusal,
        gate::{FieldSpan, RequestHead, Version, looks_like},
        settings::{Settings, Underscores},
    },
    framing::{Framing, Lengths},
    target,
};

/// Most fields that a head is ever parsed for, whatever the settings say.
const MAX_FIELDS: usize = 128;

/// Where the path lies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Path {
    At(Range<usize>),
    Own(String),
}

/// What a request head says, as ranges of its bytes.
#[derive(Debug)]
pub struct ParsedRequest {
    pub(super) version: Version,
    method: Range<usize>,
    target: Range<usize>,
    path: Path,
    authority: Range<usize>,
    pub(super) fields: Vec<FieldSpan>,
    pub(super) body: Framing,
    /// Whether the client wants the connection to stay.
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
    pub(super) upgrade: Upgrade,
}

/// The protocols that a client offers to switch to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Upgrade {
    /// One that the application may switch to.
    pub(super) offered: bool,
    /// One that would hide requests, and is left out.
    pub(super) hiding: bool,
}

impl ParsedRequest {
    /// The head for the gate; `bytes` are those that were parsed.
    pub fn head<'a>(&'a self, bytes: &'a [u8]) -> RequestHead<'a> {
        let text = |range: &Range<usize>| text_at(bytes, range);
        let path = match &self.path {
            Path::At(range) => text(range),
            Path::Own(path) => path,
        };
        let head = RequestHead::new(
            text(&self.method),
            text(&self.target),
            path,
            text(&self.authority),
            self.version,
        );
        head.with_spans(bytes, &self.fields)
    }

    /// The method.
    pub(super) fn method<'a>(&self, bytes: &'a [u8]) -> &'a str {
        text_at(bytes, &self.method)
    }
}

/// What a response head says, as ranges of its bytes.
#[derive(Debug)]
pub struct ParsedResponse {
    pub(super) version: Version,
    pub(super) status: StatusCode,
    pub(super) reason: Range<usize>,
    pub(super) fields: Vec<FieldSpan>,
    pub(super) body: Framing,
    /// Whether the connection stays after it.
    pub(super) persistent: bool,
}

fn text_at<'a>(bytes: &'a [u8], range: &Range<usize>) -> &'a str {
    bytes.get(range.clone()).and_then(|part| std::str::from_utf8(part).ok()).unwrap_or_default()
}

/// Where `part`, a slice of `whole`, lies in it.
fn span(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize).min(whole.len());
    start..(start + part.len()).min(whole.len())
}

impl From<httparse::Error> for Refusal {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::TooManyHeaders => Self::TooLarge,
            httparse::Error::Version => Self::Version,
            _ => Self::Malformed,
        }
    }
}

/// What fields common to requests and responses say about the connection.
#[derive(Debug, Default)]
struct Options {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Options {
    fn see(&mut self, value: &[u8]) {
        for option in list(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
    }

    fn persistent(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}

/// The entries of a comma-separated list.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty())
}

/// Protocols that carry requests which the gate would not see.
pub(super) fn hides_requests(protocol: &[u8]) -> bool {
    let starts = |prefix: &[u8]| protocol.get(..prefix.len()).is_some_and(|p| p.eq_ignore_ascii_case(prefix));
    starts(b"h2") || starts(b"h3") || starts(b"http/") || starts(b"tls/")
}

/// Fields that a recipient must get; `Connection` may not have the next hop drop them.
const END_TO_END: [&[u8]; 8] = [
    b"authorization",
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"cookie",
    b"expect",
    b"host",
    b"transfer-encoding",
];

/// Fields that mean nothing, or harm, in a trailer of a request (RFC 9110 section 6.5.1).
const REQUEST_ONLY: [&str; 14] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "host",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a field may only be a header.
pub(in super::super) fn is_request_only(name: &str) -> bool {
    REQUEST_ONLY.iter().any(|own| looks_like(name, own))
}

/// Reads a head that [`HeadScan`](super::scan::HeadScan) found complete.
pub fn parse_request(bytes: &[u8], settings: &Settings) -> Result<ParsedRequest, Refusal> {
    let mut store = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let room = &mut store[..settings.max_headers.min(MAX_FIELDS)];
    match request.parse_with_uninit_headers(bytes, room) {
        Ok(httparse::Status::Complete(end)) if end == bytes.len() => {}
        // A space in the target makes of its rest a version too.
        Err(httparse::Error::Version) if !has_other_version(bytes) => return Err(Refusal::Malformed),
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(Refusal::Malformed),
    }
    let (Some(method), Some(text), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Refusal::Malformed);
    };
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let mut seen = Seen::default();
    let mut fields = Vec::with_capacity(request.headers.len());
    for field in request.headers.iter() {
        if field.name.contains('_') && !keep_underscore(field.name, settings.underscores)? {
            continue;
        }
        seen.see(field.name, field.value)?;
        fields.push(FieldSpan { name: span(bytes, field.name.as_bytes()), value: span(bytes, field.value) });
    }
    let body = seen.lengths.of_request(version)?;
    if method == "CONNECT" && body != Framing::None {
        return Err(Refusal::Framing);
    }
    let target = target::target(method, text.as_bytes())?;
    let in_target = target.authority.map(|range| &text[range]);
    let authority = match (in_target, seen.host) {
        (_, None) if version == Version::Http11 => return Err(Refusal::Host),
        (None, None) => 0..0,
        (Some(own), None) => span(bytes, own.as_bytes()),
        (Some(own), Some(host)) if !own.as_bytes().eq_ignore_ascii_case(host) => return Err(Refusal::Host),
        (_, Some(host)) => span(bytes, host),
    };
    let path = &text[target.path];
    let path = if target.implied_slash {
        Path::Own(format!("/{path}"))
    } else {
        Path::At(span(bytes, path.as_bytes()))
    };
    Ok(ParsedRequest {
        version,
        method: span(bytes, method.as_bytes()),
        target: span(bytes, text.as_bytes()),
        path,
        authority,
        fields,
        body,
        keep_alive: seen.options.persistent(version),
        expects_continue: seen.expects_continue && version == Version::Http11,
        upgrade: Upgrade {
            offered: seen.upgrade.offered && seen.options.upgrade && version == Version::Http11,
            ..seen.upgrade
        },
    })
}

/// Whether the request line has three parts, the last of which names a version of HTTP.
fn has_other_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut parts = line.split(|byte| *byte == b' ').skip(2);
    parts.next().is_some_and(|version| version.starts_with(b"HTTP/")) && parts.next().is_none()
}

/// What the fields of a request say together.
#[derive(Debug, Default)]
struct Seen<'a> {
    lengths: Lengths<'a>,
    options: Options,
    host: Option<&'a [u8]>,
    expects_continue: bool,
    upgrade: Upgrade,
}

impl<'a> Seen<'a> {
    fn see(&mut self, name: &str, value: &'a [u8]) -> Result<(), Refusal> {
        self.lengths.see(name, value);
        if name.eq_ignore_ascii_case("host") {
            if self.host.replace(value).is_some() || !target::is_host(value) {
                return Err(Refusal::Host);
            }
        } else if name.eq_ignore_ascii_case("connection") {
            if list(value).any(|option| END_TO_END.iter().any(|own| option.eq_ignore_ascii_case(own))) {
                return Err(Refusal::Connection);
            }
            self.options.see(value);
        } else if name.eq_ignore_ascii_case("expect") {
            self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
        } else if name.eq_ignore_ascii_case("upgrade") {
            self.upgrade.offered |= list(value).any(|protocol| !hides_requests(protocol));
            self.upgrade.hiding |= list(value).any(hides_requests);
        } else if name.eq_ignore_ascii_case("http2-settings") {
            self.upgrade.hiding = true;
        }
        Ok(())
    }
}

fn keep_underscore(name: &str, choice: Underscores) -> Result<bool, Refusal> {
    match choice {
        Underscores::Refuse => Err(Refusal::Underscore),
        Underscores::Drop => Ok(false),
        Underscores::Allow
            if ["content-length", "transfer-encoding"].iter().any(|own| looks_like(name, own)) =>
        {
            Err(Refusal::Underscore)
        }
        Underscores::Allow => Ok(true),
    }
}

/// Reads a response head that [`HeadScan`](super::scan::HeadScan) found complete, to a request with that method.
pub fn parse_response(bytes: &[u8], method: &str, settings: &Settings) -> Result<ParsedResponse, Refusal> {
    let mut store = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let room = &mut store[..settings.max_headers.min(MAX_FIELDS)];
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, room)? {
        httparse::Status::Complete(end) if end == bytes.len() => {}
        _ => return Err(Refusal::Malformed),
    }
    let (Some(minor), Some(code)) = (response.version, response.code) else { return Err(Refusal::Malformed) };
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let status = StatusCode::from_u16(code).map_err(|_| Refusal::Malformed)?;
    let (mut lengths, mut options) = (Lengths::default(), Options::default());
    for field in response.headers.iter() {
        lengths.see(field.name, field.value);
        if field.name.eq_ignore_ascii_case("connection") {
            options.see(field.value);
        }
    }
    let body = lengths.of_response(method, status)?;
    Ok(ParsedResponse {
        version,
        status,
        reason: response.reason.map_or(0..0, |reason| span(bytes, reason.as_bytes())),
        fields: spans(bytes, response.headers),
        body,
        persistent: options.persistent(version) && body != Framing::UntilClose,
    })
}

/// Reads a trailer section that [`HeadScan`](super::scan::HeadScan) found complete.
pub(super) fn parse_trailers(bytes: &[u8], max_headers: usize) -> Result<Vec<FieldSpan>, Refusal> {
    let mut store = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(bytes, &mut store[..max_headers.min(MAX_FIELDS)])? {
        httparse::Status::Complete((end, fields)) if end == bytes.len() => Ok(spans(bytes, fields)),
        _ => Err(Refusal::Malformed),
    }
}

fn spans(bytes: &[u8], fields: &[httparse::Header<'_>]) -> Vec<FieldSpan> {
    let of = |field: &httparse::Header<'_>| FieldSpan {
        name: span(bytes, field.name.as_bytes()),
        value: span(bytes, field.value),
    };
    fields.iter().map(of).collect()
}
