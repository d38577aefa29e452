//! What is remembered of connections and requests: only what rules can ask about, without query, body, tokens and headers.
//! Of a token's claims the four are kept that rules know by a name of their own; of the rest nothing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde_json::{Map, Value};

use super::Mode;
use crate::{identity::SpiffeId, world::WorkloadName};

/// Claims behind `request.auth.principal`, `.audiences` and `.presenter`.
pub const KEPT_CLAIMS: [&str; 4] = ["iss", "sub", "aud", "azp"];

/// One kind of connection or request; whatever differs in nothing here is counted together.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// The workload that the client's address is of.
    pub client: Option<WorkloadName>,
    /// The client's address, canonical.
    pub source_ip: IpAddr,
    /// The identity that was proven; none: plaintext.
    pub peer: Option<SpiffeId>,
    /// The workload that was asked, on this node.
    pub server: WorkloadName,
    /// Its own address and port.
    pub destination: SocketAddr,
    /// Peer authentication of that port at the time.
    pub mode: Mode,
    /// Server name of a program's own TLS.
    pub sni: Option<Arc<str>>,
    /// What was seen of it.
    pub content: Content,
}

/// What was seen of the bytes.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Nothing: no rule asked about requests.
    Unread,
    /// They were looked at, and were no HTTP.
    NotHttp,
    /// A request.
    Request(SeenRequest),
}

/// A request, as far as it is remembered.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenRequest {
    /// Such as `GET`.
    pub method: Box<str>,
    /// Normalized, without query; none: `CONNECT`.
    pub path: Option<Box<str>>,
    /// As sent.
    pub host: Option<Box<str>>,
    /// It came for somebody else, as a proxy that is believed said; for whom is not kept.
    pub forwarded: bool,
    /// [`KEPT_CLAIMS`] of the token that was believed; none: no token came.
    pub claims: Option<Map<String, Value>>,
}

/// Traffic with how often and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What.
    pub traffic: Arc<Traffic>,
    /// Connections or requests.
    pub count: u64,
    /// Unix time.
    pub last_seconds: u64,
}

impl Traffic {
    /// The client for people: workload, else address.
    pub fn client(&self) -> String {
        self.client.as_ref().map_or_else(|| self.source_ip.to_string(), ToString::to_string)
    }
}
