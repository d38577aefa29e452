//! Answers `policy explain` from a world and its compiled policies. Pure: the daemon calls it with what is in
//! force, meshctl with what lies in files, and both say the same.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use super::{
    api::{ExplainedRequest, Explanation, Mode},
    explain_request,
    source::{ExplainError, ExplainQuery, ExplainSource, ExplainTarget},
};
use crate::{
    identity::SpiffeId,
    jwt::{KeyLocation, KeySet, Keys},
    policy::{
        self, CompiledPolicies, HttpVerdict, L4Request, Observed, PolicyExplanation, WorkloadPolicy,
        destination_rule::Way, http::Normalization,
    },
    world::{Destination, Workload, World},
};

struct Client<'a> {
    shown: String,
    identity: Option<SpiffeId>,
    address: IpAddr,
    /// None: nobody's `DestinationRule`s are about its connections.
    workload: Option<&'a Workload>,
}

struct Server<'a> {
    workload: &'a Workload,
    address: SocketAddr,
    wanted: SocketAddr,
    steps: Vec<String>,
}

/// What an answer rests on.
#[derive(Clone, Copy)]
pub struct Knowledge<'a> {
    /// Workloads, services, addresses.
    pub world: &'a World,
    /// Compiled for that world.
    pub policies: &'a CompiledPolicies,
    /// What is made of paths before rules see them.
    pub normalization: Normalization,
    /// Keys of token issuers.
    pub keys: &'a dyn Keys,
    /// Unix time, for tokens.
    pub now_seconds: u64,
}

/// Without a daemon nobody has fetched any.
#[derive(Debug)]
pub struct NoKeys;

impl Keys for NoKeys {
    fn keys(&self, _location: &KeyLocation) -> Option<Arc<KeySet>> {
        None
    }

    fn unknown_key(&self, _location: &KeyLocation) {}
}

/// A connection or request with its verdict.
#[derive(Default)]
pub(super) struct Decided {
    pub(super) allowed: bool,
    pub(super) by: String,
    /// What happened before rules were asked.
    pub(super) before: Vec<String>,
    pub(super) policies: Vec<PolicyExplanation>,
    pub(super) mode_sources: Vec<String>,
    pub(super) observed: Observed,
    pub(super) request: Option<ExplainedRequest>,
}

impl Decided {
    pub(super) fn connection(policy: &WorkloadPolicy, connection: &L4Request<'_>) -> Self {
        let explained = policy.explain(connection);
        Self {
            allowed: explained.verdict.is_allowed(),
            by: decided_by(&explained.verdict.into()),
            before: Vec::new(),
            policies: explained.policies,
            mode_sources: explained.mode_sources,
            observed: explained.observed,
            request: None,
        }
    }
}

/// Decides the connection, or the request on it, that `query` describes.
///
/// # Errors
/// When it names nobody, or nothing that meshd decides.
pub fn explain(known: &Knowledge<'_>, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
    let Knowledge { world, policies, .. } = *known;
    let client = client(world, &query.from)?;
    let Server { workload, address, wanted, mut steps } = server(world, &query.to, query.port)?;
    let policy = policies.for_workload(workload.id);
    let mode = policy.mode(address.port());
    let rule = client.workload.zip(world.host(wanted));
    let rule = rule.and_then(|(from, (host, port))| policies.destination_rules().find(from, &host, port));
    let way = Way::to_workload(rule.map(|rule| rule.tls), mode);
    let tls = client.identity.is_some() && matches!(way, Way::Mesh { .. });
    let peer = client.identity.as_ref().filter(|_| tls);
    if let Some(rule) = rule {
        steps.push(format!("DestinationRule {}: {}", rule.rule, told(&way)));
    }
    steps.push(match (&client.identity, tls) {
        (Some(identity), true) => format!("{} proves {identity} by mTLS", client.shown),
        (Some(_), false) if rule.is_some() => "so no identity is proven".to_owned(),
        (Some(_), false) => "mode DISABLE: plaintext, so no identity is proven".to_owned(),
        (None, _) => format!("{} is no enrolled workload: plaintext, so no identity is proven", client.shown),
    });
    if *workload.node != *world.node() {
        steps.push(format!(
            "{} lives on node {}, which decides with its own policies; this is decided with \
             the documents here",
            workload.name, workload.node
        ));
    }
    let src = SocketAddr::new(client.address, 0);
    let connection = L4Request { peer, src, dst: address, sni: None };
    let decided = match &query.request {
        None => Decided::connection(policy, &connection),
        Some(request) => explain_request::judge(known, policy, &connection, request),
    };
    steps.extend(decided.before);
    for considered in &decided.policies {
        let dry_run = if considered.dry_run { " (dry run)" } else { "" };
        let name =
            format!("{} {}/{}{dry_run}", action(considered.action), considered.namespace, considered.name);
        if considered.rules.is_empty() {
            steps.push(format!("{name}: has no rules and matches nothing"));
        }
        for rule in &considered.rules {
            let outcome = if rule.matched { "matches" } else { "does not match" };
            steps.push(format!("{name} rule[{}] {outcome}: {}", rule.rule, rule.why));
        }
    }
    Ok(Explanation {
        allowed: decided.allowed,
        decided_by: decided.by,
        source: client.shown,
        source_spiffe_id: peer.map(ToString::to_string),
        destination: workload.name.to_string(),
        destination_address: address.to_string(),
        destination_spiffe_id: Some(workload.spiffe_id.to_string()),
        mode: mode.into(),
        mode_set_by: decided.mode_sources.join(", "),
        tls,
        steps,
        request: decided.request,
        audit: decided.observed.audit.iter().map(ToString::to_string).collect(),
        dry_run: decided.observed.dry_run.map(|dry_run| {
            let matched: Vec<_> = dry_run.matched.iter().map(ToString::to_string).collect();
            format!("{}; matched: [{}]", dry_run.verdict, matched.join(", "))
        }),
    })
}

/// What a rule has a client do.
fn told(way: &Way<'_>) -> String {
    match way {
        Way::Plaintext => "DISABLE, so plaintext".to_owned(),
        Way::Mesh { names: None } => "ISTIO_MUTUAL".to_owned(),
        Way::Mesh { names: Some(names) } => {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            format!("ISTIO_MUTUAL, with a server that is {}", names.join(" or "))
        }
        Way::Originate(origination) => {
            let mode = if origination.mutual { "MUTUAL" } else { "SIMPLE" };
            format!("{mode}, TLS to the server itself, which the server's meshd does not look into")
        }
        Way::Refused(why) => format!("the client does not connect: {why}"),
    }
}

impl From<policy::Mode> for Mode {
    fn from(mode: policy::Mode) -> Self {
        match mode {
            policy::Mode::Strict => Self::Strict,
            policy::Mode::Permissive => Self::Permissive,
            policy::Mode::Disable => Self::Disable,
        }
    }
}

pub(super) fn decided_by(verdict: &HttpVerdict) -> String {
    match verdict {
        HttpVerdict::Allow { rule: Some(rule) } => rule.to_string(),
        HttpVerdict::Allow { rule: None } => "no ALLOW policy applies".to_owned(),
        HttpVerdict::Deny { reason } => reason.to_string(),
        HttpVerdict::Custom { .. } => verdict.to_string(),
    }
}

fn action(action: policy::api::Action) -> &'static str {
    match action {
        policy::api::Action::Allow => "ALLOW",
        policy::api::Action::Deny => "DENY",
        policy::api::Action::Custom => "CUSTOM",
        policy::api::Action::Audit => "AUDIT",
    }
}

fn first_address(workload: &Workload) -> IpAddr {
    workload.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

fn client<'a>(world: &'a World, from: &ExplainSource) -> Result<Client<'a>, ExplainError> {
    let enrolled = |workload: &'a Workload, address| Client {
        shown: workload.name.to_string(),
        identity: Some(workload.spiffe_id.clone()),
        address,
        workload: Some(workload),
    };
    match from {
        ExplainSource::Identity(identity) => {
            // Any workload of that identity gives the address; policies on addresses need one.
            let known = world.workloads().iter().find(|w| w.spiffe_id == *identity);
            let address = known.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), first_address);
            Ok(Client {
                shown: identity.to_string(),
                identity: Some(identity.clone()),
                address,
                workload: known,
            })
        }
        ExplainSource::Workload { namespace, name } => {
            let found = world.by_name(namespace, name).map(|w| enrolled(w, first_address(w)));
            found.ok_or_else(|| ExplainError::Unknown(format!("workload {namespace}/{name}")))
        }
        ExplainSource::Address(address) => {
            let sharing: Vec<_> = world.sharing(*address).collect();
            match sharing.as_slice() {
                [] => Ok(Client {
                    shown: address.to_string(),
                    identity: None,
                    address: *address,
                    workload: None,
                }),
                [workload] => Ok(enrolled(workload, *address)),
                several => {
                    let names: Vec<_> = several.iter().map(|w| w.name.to_string()).collect();
                    Err(ExplainError::SharedAddress(*address, names.join(", ")))
                }
            }
        }
    }
}

fn server<'a>(world: &'a World, to: &ExplainTarget, port: u16) -> Result<Server<'a>, ExplainError> {
    let address = match to {
        ExplainTarget::Address(address) => *address,
        ExplainTarget::Named { namespace, name } => {
            if let Some(workload) = world.by_name(namespace, name) {
                // On a shared address the port would lead to another workload.
                if !workload.ports.captures(port) {
                    return Err(ExplainError::NotCaptured(workload.name.to_string(), port));
                }
                first_address(workload)
            } else {
                let service = world
                    .services()
                    .iter()
                    .find(|s| *s.name.namespace == **namespace && *s.name.name == **name)
                    .ok_or_else(|| {
                        ExplainError::Unknown(format!("workload or service {namespace}/{name}"))
                    })?;
                *service
                    .addresses
                    .first()
                    .ok_or_else(|| ExplainError::NoEndpoint(service.name.to_string()))?
            }
        }
    };
    let wanted = SocketAddr::new(address, port);
    let Destination::Meshed { endpoints, service } = world.resolve(wanted) else {
        return Err(match world.sharing(address).next() {
            Some(workload) if world.by_address(address).is_some() => {
                ExplainError::NotCaptured(workload.name.to_string(), port)
            }
            Some(_) => ExplainError::NotCaptured(address.to_string(), port),
            None => ExplainError::Unknown(format!("destination {wanted}")),
        });
    };
    // What the mesh's own policy says of others is nothing.
    let meshed = endpoints.iter().find_map(|endpoint| Some((endpoint.addr, endpoint.workload?)));
    let (address, workload) = meshed.ok_or_else(|| ExplainError::NoEndpoint(wanted.to_string()))?;
    let mut steps = Vec::new();
    if let Some(service) = service {
        steps.push(format!(
            "{wanted} is service {} with {} endpoint(s); decided for {} at {}",
            service.name,
            endpoints.len(),
            workload.name,
            address
        ));
    }
    Ok(Server { workload, address, wanted, steps })
}
