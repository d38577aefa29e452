//! Decides remembered traffic by any policy. What is not remembered of it (headers, most claims, unread requests) is taken
//! both ways: where the answers differ, the answer is that it is not known.

use std::{net::SocketAddr, sync::Arc};

use serde_json::{Map, Value};

use super::{
    DenyReason, HttpVerdict, L4Request, Mode, RuleRef, WorkloadPolicy,
    compile::Policy,
    connection::{Connection, Unseen},
    http::{Headers, HttpRequest, Normalization, NormalizedPath},
    traffic::{Content, Seen, SeenRequest, Traffic},
};
use crate::{identity::SpiffeId, world::World};

/// What a policy says of remembered traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Allowed, with the words of the verdict.
    Allowed(String),
    /// Denied, with the words of the verdict.
    Denied(String),
    /// An external authorizer is asked.
    Asks(String),
    /// It depends on what is not remembered.
    Unknown(String),
}

impl Outcome {
    /// `allowed`, `denied`, `asks` or `unknown`.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Allowed(_) => "allowed",
            Self::Denied(_) => "denied",
            Self::Asks(_) => "asks",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Why, for people.
    pub fn why(&self) -> &str {
        match self {
            Self::Allowed(why) | Self::Denied(why) | Self::Asks(why) | Self::Unknown(why) => why,
        }
    }

    fn of(verdict: &HttpVerdict) -> Self {
        let why = verdict.to_string();
        match verdict {
            HttpVerdict::Allow { .. } => Self::Allowed(why),
            HttpVerdict::Deny { .. } => Self::Denied(why),
            HttpVerdict::Custom { .. } => Self::Asks(why),
        }
    }
}

struct NoHeaders;

impl Headers for NoHeaders {
    fn each_value<'h>(&'h self, _name: &str, _each: &mut dyn FnMut(&'h [u8])) {}
}

impl WorkloadPolicy {
    /// Decides what was seen as if it came now.
    pub fn replay(&self, world: &World, seen: &Seen) -> Outcome {
        let traffic = &*seen.traffic;
        let port = traffic.destination.port();
        let connection = L4Request {
            peer: self.peer(world, traffic),
            src: SocketAddr::new(traffic.source_ip, 0),
            dst: traffic.destination,
            sni: traffic.sni.as_deref(),
        };
        match &traffic.content {
            Content::NotHttp => Outcome::of(&self.decide(&connection).into()),
            Content::Request(request) => self.replay_request(&connection, request),
            Content::Unread if !self.inspects_requests(port) => Outcome::of(&self.decide(&connection).into()),
            Content::Unread => self.replay_unread(&connection),
        }
    }

    /// With DISABLE nothing is proven; where it was DISABLE, an enrolled client would prove what it is.
    fn peer<'a>(&self, world: &'a World, traffic: &'a Traffic) -> Option<&'a SpiffeId> {
        match (self.mode(traffic.destination.port()), traffic.mode) {
            (Mode::Disable, _) => None,
            (_, Mode::Disable) => {
                let client = traffic.client.as_ref()?;
                world.by_name(&client.namespace, &client.name).map(|workload| &workload.spiffe_id)
            }
            _ => traffic.peer.as_ref(),
        }
    }

    fn replay_request(&self, connection: &L4Request<'_>, seen: &SeenRequest) -> Outcome {
        // It was normalized when it was seen.
        let path = seen.path.as_deref().map(|path| NormalizedPath::new(path, Normalization::None));
        let path = match path.transpose() {
            Ok(path) => path,
            Err(error) => return Outcome::Unknown(error.to_string()),
        };
        let request =
            request(connection, &seen.method, path.as_ref(), seen.host.as_deref(), seen.claims.as_ref());
        let unkept = |assumed| Unseen::Unkept { assumed, client: seen.forwarded };
        let what = "headers, claims or an original client, which are not remembered";
        self.both_ways(connection, &request, unkept, what)
    }

    /// Either it would turn out to be no HTTP, or each of its requests would be decided.
    fn replay_unread(&self, connection: &L4Request<'_>) -> Outcome {
        let why = "its requests, which no rule has asked about so far";
        let requests =
            self.both_ways(connection, &request(connection, "", None, None, None), Unseen::Http, why);
        let as_tcp = Outcome::of(&self.decide(connection).into());
        match &requests {
            Outcome::Unknown(_) => requests,
            _ if requests.class() == as_tcp.class() => requests,
            _ => Outcome::Unknown(format!(
                "it depends on whether it is HTTP: {}; else {}",
                requests.why(),
                as_tcp.why()
            )),
        }
    }

    fn both_ways(
        &self,
        connection: &L4Request<'_>,
        request: &HttpRequest<'_>,
        unseen: impl Fn(bool) -> Unseen,
        what: &str,
    ) -> Outcome {
        let [taken, not_taken] = [true, false].map(|assumed| Connection {
            unseen: unseen(assumed),
            ..Connection::new(connection, Some(request))
        });
        if self.is_strict_plaintext(connection) {
            return Outcome::of(&HttpVerdict::Deny { reason: DenyReason::StrictPlaintext });
        }
        let strictest = Outcome::of(&self.verdict(&taken, &not_taken));
        let most_lenient = Outcome::of(&self.verdict(&not_taken, &taken));
        if strictest.class() == most_lenient.class() {
            return strictest;
        }
        Outcome::Unknown(format!("it depends on {what}: {}; or {}", strictest.why(), most_lenient.why()))
    }

    /// The first answer, with one view of the request for rules that restrict, and one for those that permit.
    fn verdict(&self, restricts: &Connection<'_>, permits: &Connection<'_>) -> HttpVerdict {
        let first = |policies: &[Arc<Policy>], view: &Connection<'_>| -> Option<(Arc<str>, RuleRef)> {
            policies.iter().find_map(|p| Some((Arc::clone(&p.provider), p.first_match(view)?.clone())))
        };
        if let Some((provider, rule)) = first(&self.enforced.custom, restricts) {
            return HttpVerdict::Custom { provider, rule };
        }
        if let Some((_, rule)) = first(&self.enforced.deny, restricts) {
            return HttpVerdict::Deny { reason: DenyReason::Rule(rule) };
        }
        if self.enforced.allow.is_empty() {
            return HttpVerdict::Allow { rule: None };
        }
        match first(&self.enforced.allow, permits) {
            Some((_, rule)) => HttpVerdict::Allow { rule: Some(rule) },
            None => HttpVerdict::Deny { reason: DenyReason::NoAllowMatched },
        }
    }
}

fn request<'a>(
    connection: &L4Request<'_>,
    method: &'a str,
    path: Option<&'a NormalizedPath<'a>>,
    authority: Option<&'a str>,
    claims: Option<&'a Map<String, Value>>,
) -> HttpRequest<'a> {
    HttpRequest { method, path, authority, headers: &NoHeaders, claims, remote_ip: connection.src.ip() }
}
