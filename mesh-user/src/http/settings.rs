//! The bounds and choices of the HTTP path. Each has a default that is safe against a hostile peer; nothing here is read
//! from a file.

use std::time::Duration;

/// What is done with a header whose name has an underscore, which some applications read as a hyphen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// Forwarded, as Envoy does by default. A look-alike of a header that the gate sets or removes is dropped all the same.
    #[default]
    Allow,
    /// The request is refused with 400.
    Refuse,
    /// The header is dropped before the gate sees the request.
    Drop,
}

/// Bounds and choices.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Longest head, trailer section or HTTP/2 header list in bytes; 431 above it.
    pub max_head_bytes: usize,
    /// Most header fields in a head or trailer section; 431 above it.
    pub max_headers: usize,
    /// How long a client may take for a head, from its first byte to its last; 408 above it.
    pub head_timeout: Duration,
    /// How long the first bytes may take until the connection counts as not HTTP; `None` waits for the client.
    pub detect_timeout: Option<Duration>,
    /// Headers with an underscore in their name.
    pub underscores: Underscores,
    /// Most bytes of an unwanted body that are read over to keep a connection or to let a last answer arrive.
    pub drain_bytes: usize,
    /// Longest time spent on that.
    pub drain_timeout: Duration,
    /// Buffer of one direction of a body or tunnel, in bytes.
    pub body_buffer_bytes: usize,
    /// Most HTTP/2 streams that a client may have open at once.
    pub max_streams: u32,
    /// HTTP/2 flow-control window of a stream, in bytes.
    pub stream_window_bytes: u32,
    /// HTTP/2 flow-control window of a connection, in bytes.
    pub connection_window_bytes: u32,
    /// HTTP/2 streams after which a client that resets half of them early is cut off (CVE-2023-44487).
    pub reset_budget: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_head_bytes: 60 * 1024,
            max_headers: 100,
            head_timeout: Duration::from_secs(60),
            detect_timeout: None,
            underscores: Underscores::Allow,
            drain_bytes: 64 * 1024,
            drain_timeout: Duration::from_secs(1),
            body_buffer_bytes: 64 * 1024,
            max_streams: 100,
            stream_window_bytes: 256 * 1024,
            connection_window_bytes: 1024 * 1024,
            reset_budget: 500,
        }
    }
}
