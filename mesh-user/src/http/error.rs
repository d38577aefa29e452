//! Why a request was refused before it was decided, and why a connection ended. Messages never repeat what the peer sent.

use std::io;

use http::StatusCode;

/// A request that is answered without a decision, because two readers could understand it differently or it is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A line that does not end in CRLF, or a CR elsewhere (RFC 9112 section 2.2).
    #[error("a line of the head ends in a bare LF or holds a bare CR")]
    LineEnd,
    /// NUL or another control character in the head.
    #[error("the head holds a control character")]
    Control,
    /// Start line or a field that the grammar does not allow: obs-fold, space before the colon, bad name.
    #[error("the head is not HTTP by RFC 9112")]
    Malformed,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("the HTTP version is not supported")]
    Version,
    /// More bytes or more fields than the settings allow.
    #[error("the head is too large")]
    TooLarge,
    /// A target with a fragment, characters outside of visible ASCII, or of a form that the method does not have.
    #[error("the request target is not one that RFC 9112 section 3.2 allows")]
    Target,
    /// `Host` missing, repeated or not a host, or another than the target's or than `:authority`.
    #[error("the host is missing, repeated, malformed, or differs from the target's")]
    Host,
    /// Content-Length repeated, not digits, or beside Transfer-Encoding; Transfer-Encoding other than `chunked`.
    #[error("the length of the body is ambiguous")]
    Framing,
    /// `Connection` names a field that is meant for the recipient (RFC 9110 section 7.6.1).
    #[error("Connection names an end-to-end field")]
    Connection,
    /// A header name with an underscore, where the settings refuse it or it looks like a framing header.
    #[error("a header name holds an underscore")]
    Underscore,
    /// A chunk size, extension or trailer that the grammar or a bound does not allow.
    #[error("the chunked body is malformed")]
    Chunk,
    /// A trailer that would change framing, routing or what the gate decided on.
    #[error("a trailer names a field that may only be a header")]
    Trailer,
    /// The head did not arrive in time.
    #[error("the head did not arrive in time")]
    Timeout,
}

impl Refusal {
    /// The status that the client gets.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Why a connection or request ended other than in order.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Reading from or writing to the client failed.
    #[error("the client's connection failed: {0}")]
    Peer(#[source] io::Error),
    /// Reading from or writing to the application failed.
    #[error("the application's connection failed: {0}")]
    Application(#[source] io::Error),
    /// The application could not be connected to; the client got 503.
    #[error("the application could not be connected to: {0}")]
    Open(#[source] io::Error),
    /// The client ended inside of a head or body.
    #[error("the client ended inside of a request")]
    RequestTruncated,
    /// The application ended inside of a response.
    #[error("the application ended inside of a response")]
    ResponseTruncated,
    /// What the application sent is not HTTP, or its length is ambiguous.
    #[error("the application's response is not HTTP, see its own log")]
    ResponseMalformed,
    /// What the client sent was refused.
    #[error("the request was refused: {0}")]
    Refused(#[from] Refusal),
    /// HTTP/2 failed on the client's side.
    #[error("HTTP/2 with the client failed: {0}")]
    PeerH2(#[source] h2::Error),
    /// HTTP/2 failed on the application's side.
    #[error("HTTP/2 with the application failed: {0}")]
    ApplicationH2(#[source] h2::Error),
    /// The client opened and reset streams without end (CVE-2023-44487); it was sent away.
    #[error("the client reset more streams than it let finish")]
    RapidReset,
}
