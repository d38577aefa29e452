//! What the daemon gives the admin API, behind one trait, and the question `policy explain` asks. Parsed
//! here once; the API itself never looks into the daemon's state.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use super::api::{
    CertRow, CheckRow, ConnectionRow, Explanation, JwksRow, PolicyRow, ReloadReport, Status, WorkloadRow,
};
use super::{
    question::RequestQuery,
    review::{ImpactReport, LintRow, PolicyFiles},
};
use crate::identity::SpiffeId;

/// The daemon as the admin API sees it. Calls run off the relay's threads and may block for a moment.
pub trait AdminSource: Send + Sync + 'static {
    /// The daemon in a few figures.
    fn status(&self) -> Status;
    /// All workloads known, local ones first.
    fn workloads(&self) -> Vec<WorkloadRow>;
    /// Live connections.
    fn connections(&self) -> Vec<ConnectionRow>;
    /// SVIDs and roots; never keys.
    fn certs(&self) -> Vec<CertRow>;
    /// Policy documents in force.
    fn policies(&self) -> Vec<PolicyRow>;
    /// What the canary proved.
    fn check(&self) -> Vec<CheckRow>;
    /// Where keys of token issuers are fetched from.
    fn jwks(&self) -> Vec<JwksRow>;
    /// What in documents bites.
    fn lint(&self, files: &PolicyFiles) -> Result<Vec<LintRow>, String>;
    /// What documents would have done to what was seen.
    fn impact(&self, files: &PolicyFiles) -> Result<ImpactReport, String>;
    /// Decides a connection, or a request, that nobody made.
    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, ExplainError>;
    /// Reads configuration and policies again; on `Err` the old ones stay.
    fn reload(&self) -> Result<ReloadReport, String>;
    /// `OpenMetrics` text.
    fn metrics_text(&self) -> String;
    /// A connection to the admin socket was refused (`credentials`, `limit`), or to the metrics endpoint
    /// (`metrics_limit`): to be counted.
    fn admin_refused(&self, reason: &'static str);
}

/// Who would connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExplainSource {
    /// A peer that proves this identity.
    Identity(SpiffeId),
    /// A workload by name.
    Workload {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The workload at this address, or, where there is none, a plaintext peer.
    Address(IpAddr),
}

/// To whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExplainTarget {
    /// A workload, or else a service, by name.
    Named {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A workload's or a service's address.
    Address(IpAddr),
}

/// `GET /v1/policy/explain?from=...&to=...`, or with a request `POST /v1/policy/explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainQuery {
    /// The client.
    pub from: ExplainSource,
    /// The server.
    pub to: ExplainTarget,
    /// Its port.
    pub port: u16,
    /// None: the connection is asked about.
    pub request: Option<RequestQuery>,
}

/// Why a connection cannot be explained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// `from` does not parse.
    #[error("--from {0:?} is none of: a SPIFFE ID, namespace/name, an IP address")]
    BadFrom(String),
    /// `to` does not parse.
    #[error("--to {0:?} is none of: namespace/name:port, 10.0.0.1:port, [fd00::1]:port")]
    BadTo(String),
    /// Nothing that could be sent.
    #[error("{0}")]
    BadRequest(String),
    /// Neither workload nor service.
    #[error("{0} is not known on this node; `meshctl workloads` lists what is")]
    Unknown(String),
    /// The port is excluded from capture, or not declared.
    #[error("{0} is not captured on port {1}: connections pass without meshd and without policy")]
    NotCaptured(String, u16),
    /// Several workloads own ports of the client's address, so it does not say who the client is.
    #[error("{0} is shared by {1}; give one of them as --from")]
    SharedAddress(IpAddr, String),
    /// A service without workloads.
    #[error("{0} has no endpoint: meshd refuses connections to it")]
    NoEndpoint(String),
}

impl FromStr for ExplainSource {
    type Err = ExplainError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ExplainError::BadFrom(text.to_owned());
        if text.contains("://") {
            return text.parse().map(Self::Identity).map_err(|_| bad());
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (namespace, name) = namespaced(text).ok_or_else(bad)?;
        Ok(Self::Workload { namespace, name })
    }
}

impl ExplainQuery {
    /// Parses both ends as given on the command line or in the query string.
    pub fn parse(from: &str, to: &str) -> Result<Self, ExplainError> {
        let from = from.parse()?;
        if let Ok(address) = to.parse::<SocketAddr>() {
            return Ok(Self {
                from,
                to: ExplainTarget::Address(address.ip()),
                port: address.port(),
                request: None,
            });
        }
        let bad = || ExplainError::BadTo(to.to_owned());
        let (target, port) = to.rsplit_once(':').ok_or_else(bad)?;
        let (namespace, name) = namespaced(target).ok_or_else(bad)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?;
        Ok(Self { from, to: ExplainTarget::Named { namespace, name }, port, request: None })
    }
}

fn namespaced(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text.split_once('/')?;
    let valid = |part: &str| {
        !part.is_empty()
            && part.len() <= 253
            && !part.contains(|c: char| c.is_whitespace() || "/:".contains(c))
    };
    (valid(namespace) && valid(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_client_and_server_is_read() {
        let query = ExplainQuery::parse("shop/web", "10.0.2.2:5432").unwrap();
        assert_eq!(query.from, ExplainSource::Workload { namespace: "shop".into(), name: "web".into() });
        assert_eq!((query.to, query.port), (ExplainTarget::Address("10.0.2.2".parse().unwrap()), 5432));
        let query = ExplainQuery::parse("spiffe://cluster.local/ns/shop/sa/web", "shop/db:5432").unwrap();
        assert!(matches!(query.from, ExplainSource::Identity(_)));
        assert_eq!(query.to, ExplainTarget::Named { namespace: "shop".into(), name: "db".into() });
        let query = ExplainQuery::parse("fd00::1", "[fd00::2]:80").unwrap();
        assert_eq!(query.from, ExplainSource::Address("fd00::1".parse().unwrap()));
        assert_eq!(query.port, 80);
    }

    #[test]
    fn nonsense_is_refused_with_the_forms_that_are_accepted() {
        for from in ["", "web", "a/b/c", "spiffe://", "https://x/y", "a/ b"] {
            assert!(matches!(ExplainQuery::parse(from, "a/b:1"), Err(ExplainError::BadFrom(_))), "{from:?}");
        }
        for to in ["", "a/b", "a/b:0", "a/b:65536", "db:5432", "a/b:", "fd00::2:80"] {
            assert!(matches!(ExplainQuery::parse("a/b", to), Err(ExplainError::BadTo(_))), "{to:?}");
        }
    }
}
