//! What is known when a rule is looked at: a connection, and on the HTTP path a request on it. Borrows
//! everything: deciding a connection allocates nothing for it.

use std::net::IpAddr;

use super::{
    L4Request,
    http::{HttpRequest, HttpTest},
    matcher::Test,
};
use crate::identity::SpiffeId;

/// What of a request is not known when remembered traffic is decided, and whether a test of it counts as passed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unseen {
    /// All is known.
    Nothing,
    /// Headers, and claims that are not kept.
    Unkept {
        /// What such a test comes to.
        assumed: bool,
        /// The original client neither.
        client: bool,
    },
    /// All of it.
    Http(bool),
}

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
    pub(super) unseen: Unseen,
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
            unseen: Unseen::Nothing,
        }
    }

    /// What a test of the request comes to, its `not` included, where what it asks about is not known.
    pub(super) fn assumed(&self, test: &HttpTest) -> Option<bool> {
        match self.unseen {
            Unseen::Nothing => None,
            Unseen::Http(assumed) => Some(assumed),
            Unseen::Unkept { assumed, .. } => {
                let token = self.http.is_some_and(|http| http.claims.is_some());
                test.is_unkept(token).then_some(assumed)
            }
        }
    }

    /// What a test of the original client comes to where who that was is not known.
    pub(super) fn assumed_client(&self) -> Option<bool> {
        match self.unseen {
            Unseen::Unkept { assumed, client: true } => Some(assumed),
            Unseen::Nothing | Unseen::Http(_) | Unseen::Unkept { .. } => None,
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
