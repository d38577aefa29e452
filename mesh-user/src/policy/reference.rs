//! A second, naive reading of Istio's documentation, straight over the documents as written, to hold
//! `decide` against. It shares no code with the compiled form: only the API types and the verdict.

mod http;

use std::net::IpAddr;

use super::{
    DenyReason, HttpVerdict, L4Request, RuleRef, Verdict,
    api::{Action, ApiMode, Condition, Operation, Rule, Source, WorkloadSelector},
    documents::{AuthorizationPolicy, PolicySet},
};
use crate::world::{Workload, World};

pub(super) use http::Seen as HttpSeen;

/// The mesh around the workload.
pub(super) struct Mesh<'a> {
    pub(super) root: &'a str,
    pub(super) domains: &'a [&'a str],
}

/// What a list says when the attribute is there, or that TCP cannot see it.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    Yes,
    No,
    Http,
}

/// A connection, or a request on it.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) connection: &'a L4Request<'a>,
    pub(super) http: Option<&'a HttpSeen<'a>>,
}

/// The policies for a workload; `dry_run` says whether those that are only watched count as if they were not.
fn applicable<'a>(
    mesh: &Mesh<'_>,
    world: &World,
    workload: &Workload,
    set: &'a PolicySet,
    dry_run: bool,
) -> Vec<&'a AuthorizationPolicy> {
    let mut applicable: Vec<&AuthorizationPolicy> = set
        .authorization_policies
        .iter()
        .filter(|p| dry_run || !p.dry_run)
        .filter(|p| &*p.namespace == mesh.root || &*p.namespace == workload.namespace())
        .filter(|p| {
            let targets: Vec<_> =
                p.spec.target_ref.iter().chain(p.spec.target_refs.iter().flatten()).collect();
            let serves = |name: &str| {
                world.services().iter().any(|s| {
                    *s.name.name == *name
                        && s.name.namespace == p.namespace
                        && s.workloads.contains(&workload.id)
                })
            };
            let service = |kind: &str, group: Option<&str>| {
                kind == "Service" && ["", "core"].contains(&group.unwrap_or(""))
            };
            if targets.is_empty() {
                selects(p.spec.selector.as_ref(), workload)
            } else {
                targets.iter().any(|t| service(&t.kind, t.group.as_deref()) && serves(&t.name))
            }
        })
        .collect();
    // Those in force come first among those of one action.
    applicable.sort_by_key(|p| (p.dry_run, p.namespace.to_string(), p.name.to_string()));
    applicable
}

fn find(
    mesh: &Mesh<'_>,
    policies: &[&AuthorizationPolicy],
    action: Action,
    asked: Asked<'_>,
) -> Vec<(RuleRef, String)> {
    let mut found = Vec::new();
    for policy in policies.iter().filter(|p| p.spec.action.unwrap_or(Action::Allow) == action) {
        for (i, rule) in policy.spec.rules.clone().unwrap_or_default().iter().enumerate() {
            if rule_matches(mesh, policy, action, rule, asked) {
                let (namespace, name) = (policy.namespace.clone(), policy.name.clone());
                let provider = policy.spec.provider.as_ref().and_then(|p| p.name.clone()).unwrap_or_default();
                found.push((RuleRef { namespace, name, rule: i }, provider));
            }
        }
    }
    found
}

pub(super) fn decide(
    mesh: &Mesh<'_>,
    world: &World,
    workload: &Workload,
    set: &PolicySet,
    request: &L4Request<'_>,
) -> Verdict {
    match decide_any(mesh, world, workload, set, Asked { connection: request, http: None }, false).0 {
        HttpVerdict::Allow { rule } => Verdict::Allow { rule },
        HttpVerdict::Deny { reason } => Verdict::Deny { reason },
        HttpVerdict::Custom { rule, .. } => Verdict::Deny { reason: DenyReason::CustomUnavailable(rule) },
    }
}

/// The first answer, and, where it is to ask a provider, the answers after it and each further one allowed.
pub(super) fn decide_any(
    mesh: &Mesh<'_>,
    world: &World,
    workload: &Workload,
    set: &PolicySet,
    asked: Asked<'_>,
    dry_run: bool,
) -> (HttpVerdict, Vec<HttpVerdict>) {
    if asked.connection.peer.is_none()
        && mode(mesh, workload, set, asked.connection.dst.port()) == ApiMode::Strict
    {
        return (HttpVerdict::Deny { reason: DenyReason::StrictPlaintext }, Vec::new());
    }
    let policies = applicable(mesh, world, workload, set, dry_run);
    let mut custom = find(mesh, &policies, Action::Custom, asked);
    if asked.http.is_some() {
        // "Each provider once, by name."
        custom.sort_by_key(|(_, provider)| provider.clone());
        custom.dedup_by_key(|(_, provider)| provider.clone());
    }
    let ask = |(rule, provider): (RuleRef, String)| HttpVerdict::Custom {
        provider: provider.as_str().into(),
        rule,
    };
    let mut answers: Vec<_> = custom.into_iter().map(ask).collect();
    let is = |p: &&AuthorizationPolicy, action| p.spec.action.unwrap_or(Action::Allow) == action;
    let first = |action| find(mesh, &policies, action, asked).into_iter().next().map(|(rule, _)| rule);
    answers.push(if let Some(rule) = first(Action::Deny) {
        HttpVerdict::Deny { reason: DenyReason::Rule(rule) }
    } else if !policies.iter().any(|p| is(p, Action::Allow)) {
        HttpVerdict::Allow { rule: None }
    } else {
        match first(Action::Allow) {
            Some(rule) => HttpVerdict::Allow { rule: Some(rule) },
            None => HttpVerdict::Deny { reason: DenyReason::NoAllowMatched },
        }
    });
    let first = answers.remove(0);
    (first, answers)
}

/// The AUDIT rules in force that match, and those of dry runs whatever their action, in no order.
pub(super) fn observe(
    mesh: &Mesh<'_>,
    world: &World,
    workload: &Workload,
    set: &PolicySet,
    asked: Asked<'_>,
) -> (Vec<RuleRef>, Vec<RuleRef>) {
    let policies = applicable(mesh, world, workload, set, true);
    let (watched, enforced): (Vec<_>, Vec<_>) = policies.into_iter().partition(|p| p.dry_run);
    let rules = |policies: &[&AuthorizationPolicy], action| {
        find(mesh, policies, action, asked).into_iter().map(|(rule, _)| rule).collect::<Vec<_>>()
    };
    let actions = [Action::Custom, Action::Deny, Action::Allow, Action::Audit];
    (rules(&enforced, Action::Audit), actions.into_iter().flat_map(|a| rules(&watched, a)).collect())
}

fn selects(selector: Option<&WorkloadSelector>, workload: &Workload) -> bool {
    let wanted = selector.and_then(|s| s.match_labels.clone()).unwrap_or_default();
    wanted.iter().all(|(k, v)| workload.labels.get(k) == Some(v))
}

/// "The workload-specific policy wins over the namespace's, that over the mesh's; UNSET inherits."
pub(super) fn mode(mesh: &Mesh<'_>, workload: &Workload, set: &PolicySet, port: u16) -> ApiMode {
    let broad = |s: Option<&WorkloadSelector>| {
        s.and_then(|s| s.match_labels.as_ref()).is_none_or(std::collections::BTreeMap::is_empty)
    };
    let mut candidates: [Vec<_>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    for peer in &set.peer_authentications {
        let (in_root, here) = (&*peer.namespace == mesh.root, &*peer.namespace == workload.namespace());
        match (broad(peer.spec.selector.as_ref()), in_root, here) {
            (true, true, _) => candidates[0].push(peer),
            (true, false, true) => candidates[1].push(peer),
            (false, false, true) if selects(peer.spec.selector.as_ref(), workload) => {
                candidates[2].push(peer);
            }
            _ => {}
        }
    }
    let mut result = ApiMode::Permissive;
    let mut ports = None;
    for level in candidates {
        let Some(oldest) = level.into_iter().min_by_key(|p| (p.created, p.name.clone())) else { continue };
        match oldest.spec.mtls.and_then(|m| m.mode) {
            None | Some(ApiMode::Unset) => {}
            Some(set) => result = set,
        }
        ports = oldest.spec.port_level_mtls.as_ref();
    }
    match ports.and_then(|p| p.get(&port)).and_then(|m| m.and_then(|m| m.mode)) {
        None | Some(ApiMode::Unset) => result,
        Some(own) => own,
    }
}

fn rule_matches(
    mesh: &Mesh<'_>,
    policy: &AuthorizationPolicy,
    action: Action,
    rule: &Rule,
    asked: Asked<'_>,
) -> bool {
    let source = |s: &Source| source_results(mesh, policy, s, asked);
    let operation = |o: &Operation| operation_results(o, asked);
    let from: Vec<Vec<Seen>> = rule.from.iter().flatten().map(|f| source(&f.source)).collect();
    let to: Vec<Vec<Seen>> = rule.to.iter().flatten().map(|t| operation(&t.operation)).collect();
    let when: Vec<Seen> =
        rule.when.iter().flatten().flat_map(|c| condition_results(mesh, policy, c, asked)).collect();
    // "ALLOW: a rule with an HTTP field never matches a TCP connection. DENY: the field is ignored."
    if action == Action::Allow && from.iter().chain(&to).flatten().chain(&when).any(|s| *s == Seen::Http) {
        return false;
    }
    let all = |results: &Vec<Seen>| results.iter().all(|s| *s != Seen::No);
    (from.is_empty() || from.iter().any(all)) && (to.is_empty() || to.iter().any(all)) && all(&when)
}

type List = Option<Vec<String>>;

fn lists(positive: &List, negative: &List, hit: &dyn Fn(&str) -> bool) -> Vec<Seen> {
    let seen = |yes: bool| if yes { Seen::Yes } else { Seen::No };
    let mut results = Vec::new();
    if let Some(values) = positive {
        results.push(seen(values.iter().any(|v| hit(v))));
    }
    if let Some(values) = negative {
        results.push(seen(!values.iter().any(|v| hit(v))));
    }
    results
}

/// As `lists`, of what only a request has.
fn http_lists(
    positive: &List,
    negative: &List,
    asked: Asked<'_>,
    hit: &dyn Fn(&HttpSeen<'_>, &str) -> bool,
) -> Vec<Seen> {
    match asked.http {
        Some(http) => lists(positive, negative, &|v| hit(http, v)),
        None => [positive, negative].into_iter().flatten().map(|_| Seen::Http).collect(),
    }
}

fn source_results(mesh: &Mesh<'_>, policy: &AuthorizationPolicy, s: &Source, asked: Asked<'_>) -> Vec<Seen> {
    let request = asked.connection;
    let mut results =
        http_lists(&s.request_principals, &s.not_request_principals, asked, &|http, v| http.principal(v));
    let principal = |v: &str| principal_hit(mesh, v, request);
    results.extend(lists(&s.principals, &s.not_principals, &principal));
    let namespace = |v: &str| peer_part(request, 2).is_some_and(|ns| glob(v, &ns));
    results.extend(lists(&s.namespaces, &s.not_namespaces, &namespace));
    let account = |v: &str| account_hit(policy, v, request);
    results.extend(lists(&s.service_accounts, &s.not_service_accounts, &account));
    let ip = |v: &str| cidr(v, request.src.ip());
    results.extend(lists(&s.ip_blocks, &s.not_ip_blocks, &ip));
    let remote = |v: &str| cidr(v, remote_ip(asked));
    results.extend(lists(&s.remote_ip_blocks, &s.not_remote_ip_blocks, &remote));
    results
}

fn remote_ip(asked: Asked<'_>) -> IpAddr {
    asked.http.map_or(asked.connection.src.ip(), |http| http.remote_ip)
}

fn operation_results(o: &Operation, asked: Asked<'_>) -> Vec<Seen> {
    let mut results = http_lists(&o.hosts, &o.not_hosts, asked, &|http, v| http.host(v));
    results.extend(http_lists(&o.methods, &o.not_methods, asked, &|http, v| http.method(v)));
    results.extend(http_lists(&o.paths, &o.not_paths, asked, &|http, v| http.path(v)));
    let port = |v: &str| v == asked.connection.dst.port().to_string();
    results.extend(lists(&o.ports, &o.not_ports, &port));
    results
}

fn condition_results(
    mesh: &Mesh<'_>,
    policy: &AuthorizationPolicy,
    c: &Condition,
    asked: Asked<'_>,
) -> Vec<Seen> {
    let request = asked.connection;
    let hit = |v: &str| match c.key.as_str() {
        "source.ip" => cidr(v, request.src.ip()),
        "remote.ip" => cidr(v, remote_ip(asked)),
        "source.namespace" => peer_part(request, 2).is_some_and(|ns| glob(v, &ns)),
        "source.principal" => principal_hit(mesh, v, request),
        "source.serviceAccount" => account_hit(policy, v, request),
        "destination.ip" => cidr(v, request.dst.ip()),
        "destination.port" => v == request.dst.port().to_string(),
        "connection.sni" => request.sni.is_some_and(|sni| glob(v, sni)),
        other => panic!("the generator does not make {other}"),
    };
    if c.key.starts_with("request.") {
        return http_lists(&c.values, &c.not_values, asked, &|http, v| http.key(&c.key, v));
    }
    lists(&c.values, &c.not_values, &hit)
}

/// Part `index` of `<domain>/ns/<namespace>/sa/<account>`.
fn peer_part(request: &L4Request<'_>, index: usize) -> Option<String> {
    let id = request.peer?.to_string();
    id.trim_start_matches("spiffe://").split('/').nth(index).map(str::to_owned)
}

fn account_hit(policy: &AuthorizationPolicy, value: &str, request: &L4Request<'_>) -> bool {
    let own = format!("{}/{value}", policy.namespace);
    let wanted = if value.contains('/') { value } else { &own };
    match (peer_part(request, 2), peer_part(request, 4)) {
        (Some(namespace), Some(account)) => format!("{namespace}/{account}") == wanted,
        _ => false,
    }
}

/// An exact principal of one of our domains, or of `cluster.local`, is meant in all of our domains.
fn principal_hit(mesh: &Mesh<'_>, value: &str, request: &L4Request<'_>) -> bool {
    let Some(id) = request.peer else { return false };
    let peer = id.to_string().trim_start_matches("spiffe://").to_owned();
    let parts: Vec<&str> = value.splitn(2, '/').collect();
    if parts.len() == 2 && value.split('/').count() == 5 && !parts[0].contains('*') {
        let ours = parts[0] == "cluster.local" || mesh.domains.contains(&parts[0]);
        if ours {
            return mesh.domains.iter().any(|domain| glob(&format!("{domain}/{}", parts[1]), &peer));
        }
    }
    glob(value, &peer)
}

/// Tries every way to cut the star out.
pub(super) fn glob(pattern: &str, value: &str) -> bool {
    match pattern.find('*') {
        _ if pattern == "*" => !value.is_empty(),
        None => pattern == value,
        Some(star) => (0..=value.len()).any(|from| {
            (from..=value.len()).any(|to| {
                format!("{}{}", &value[..from], &value[to..]) == pattern.replace('*', "") && from == star
            })
        }),
    }
}

/// Compares bit by bit.
fn cidr(block: &str, ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| -> Vec<bool> {
        let bytes = match ip.to_canonical() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        bytes.iter().flat_map(|b| (0..8).map(move |i| b & (0x80 >> i) != 0)).collect()
    };
    let (base, length) = block.split_once('/').map_or((block, None), |(b, l)| (b, Some(l)));
    let (base, ip) = (bits(base.parse().unwrap()), bits(ip));
    let length = length.map_or(base.len(), |l| l.parse().unwrap());
    base.len() == ip.len() && base[..length] == ip[..length]
}
