//! What is known when a rule is looked at: a connection, and on the HTTP path a request on it. Borrows
//! everything: deciding a connection allocates nothing for it.

use std::net::IpAddr;

use super::{L4Request, http::HttpRequest, matcher::Test};
use crate::identity::SpiffeId;

/// A connection as rules see it.
#[derive(Debug)]
pub(super) struct Connection<'a> {
    pub(super) peer: Option<&'a SpiffeId>,
    pub(super) account: Option<(&'a str, &'a str)>,
    pub(super) source_ip: IpAddr,
    /// On TCP the original client is the connection's source: no X-Forwarded-For, no PROXY protocol.
    pub(super) remote_ip: IpAddr,
    pub(super) destination_ip: IpAddr,
    pub(super) destination_port: u16,
    pub(super) sni: Option<&'a str>,
    /// None: a connection that is decided as TCP.
    pub(super) http: Option<&'a HttpRequest<'a>>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(request: &L4Request<'a>, http: Option<&'a HttpRequest<'a>>) -> Self {
        let source_ip = request.src.ip().to_canonical();
        Self {
            peer: request.peer,
            account: request.peer.and_then(|id| id.service_account()),
            source_ip,
            remote_ip: http.map_or(source_ip, |http| http.remote_ip.to_canonical()),
            destination_ip: request.dst.ip().to_canonical(),
            destination_port: request.dst.port(),
            sni: request.sni,
            http,
        }
    }

    /// What a test looked at, for people.
    pub(super) fn describe(&self, test: &Test) -> String {
        match test {
            Test::Principal(_) | Test::Namespace(_) | Test::ServiceAccount(_) => self.peer.map_or_else(
                || "a peer without identity (plaintext)".to_owned(),
                |id| format!("{}{}", id.trust_domain(), id.path()),
            ),
            Test::SourceIp(_) => self.source_ip.to_string(),
            Test::RemoteIp(_) => self.remote_ip.to_string(),
            Test::DestinationIp(_) => self.destination_ip.to_string(),
            Test::DestinationPort(_) => format!("port {}", self.destination_port),
            Test::Sni(_) => self.sni.unwrap_or("no SNI").to_owned(),
            Test::Http(test) => {
                self.http.map_or_else(|| "what TCP does not show".to_owned(), |http| test.describe(http))
            }
        }
    }
}
