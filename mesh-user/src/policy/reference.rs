//! A second, naive reading of Istio's documentation, straight over the documents as written, to hold
//! `decide` against. It shares no code with the compiled form: only the API types and the verdict.

use std::net::IpAddr;

use super::{
    DenyReason, L4Request, RuleRef, Verdict,
    api::{Action, ApiMode, Condition, Operation, Rule, Source, WorkloadSelector},
    documents::{AuthorizationPolicy, PolicySet},
};
use crate::world::Workload;

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

pub(super) fn decide(
    mesh: &Mesh<'_>,
    workload: &Workload,
    set: &PolicySet,
    request: &L4Request<'_>,
) -> Verdict {
    if request.peer.is_none() && mode(mesh, workload, set, request.dst.port()) == ApiMode::Strict {
        return Verdict::Deny { reason: DenyReason::StrictPlaintext };
    }
    let mut applicable: Vec<&AuthorizationPolicy> = set
        .authorization_policies
        .iter()
        .filter(|p| p.spec.target_refs.is_none() && p.spec.target_ref.is_none())
        .filter(|p| &*p.namespace == mesh.root || &*p.namespace == workload.namespace())
        .filter(|p| selects(p.spec.selector.as_ref(), workload))
        .collect();
    applicable.sort_by_key(|p| (p.namespace.to_string(), p.name.to_string()));
    let find = |action: Action| {
        for policy in applicable.iter().filter(|p| p.spec.action.unwrap_or(Action::Allow) == action) {
            for (i, rule) in policy.spec.rules.clone().unwrap_or_default().iter().enumerate() {
                if rule_matches(mesh, policy, action, rule, request) {
                    let (namespace, name) = (policy.namespace.clone(), policy.name.clone());
                    return Some(RuleRef { namespace, name, rule: i });
                }
            }
        }
        None
    };
    if let Some(rule) = find(Action::Custom) {
        return Verdict::Deny { reason: DenyReason::CustomUnavailable(rule) };
    }
    if let Some(rule) = find(Action::Deny) {
        return Verdict::Deny { reason: DenyReason::Rule(rule) };
    }
    if !applicable.iter().any(|p| p.spec.action.unwrap_or(Action::Allow) == Action::Allow) {
        return Verdict::Allow { rule: None };
    }
    match find(Action::Allow) {
        Some(rule) => Verdict::Allow { rule: Some(rule) },
        None => Verdict::Deny { reason: DenyReason::NoAllowMatched },
    }
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
    request: &L4Request<'_>,
) -> bool {
    let source = |s: &Source| source_results(mesh, policy, s, request);
    let operation = |o: &Operation| operation_results(o, request);
    let from: Vec<Vec<Seen>> = rule.from.iter().flatten().map(|f| source(&f.source)).collect();
    let to: Vec<Vec<Seen>> = rule.to.iter().flatten().map(|t| operation(&t.operation)).collect();
    let when: Vec<Seen> =
        rule.when.iter().flatten().flat_map(|c| condition_results(mesh, policy, c, request)).collect();
    // "ALLOW: a rule with an HTTP field never matches a TCP connection. DENY: the field is ignored."
    if action == Action::Allow && from.iter().chain(&to).flatten().chain(&when).any(|s| *s == Seen::Http) {
        return false;
    }
    let all = |results: &Vec<Seen>| results.iter().all(|s| *s != Seen::No);
    (from.is_empty() || from.iter().any(all)) && (to.is_empty() || to.iter().any(all)) && all(&when)
}

fn lists(
    positive: Option<&Vec<String>>,
    negative: Option<&Vec<String>>,
    hit: &dyn Fn(&str) -> bool,
) -> Vec<Seen> {
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

fn http(present: &[bool]) -> Vec<Seen> {
    present.iter().filter(|p| **p).map(|_| Seen::Http).collect()
}

fn source_results(
    mesh: &Mesh<'_>,
    policy: &AuthorizationPolicy,
    s: &Source,
    request: &L4Request<'_>,
) -> Vec<Seen> {
    let mut results = http(&[s.request_principals.is_some(), s.not_request_principals.is_some()]);
    let principal = |v: &str| principal_hit(mesh, v, request);
    results.extend(lists(s.principals.as_ref(), s.not_principals.as_ref(), &principal));
    let namespace = |v: &str| peer_part(request, 2).is_some_and(|ns| glob(v, &ns));
    results.extend(lists(s.namespaces.as_ref(), s.not_namespaces.as_ref(), &namespace));
    let account = |v: &str| account_hit(policy, v, request);
    results.extend(lists(s.service_accounts.as_ref(), s.not_service_accounts.as_ref(), &account));
    let ip = |v: &str| cidr(v, request.src.ip());
    results.extend(lists(s.ip_blocks.as_ref(), s.not_ip_blocks.as_ref(), &ip));
    results.extend(lists(s.remote_ip_blocks.as_ref(), s.not_remote_ip_blocks.as_ref(), &ip));
    results
}

fn operation_results(o: &Operation, request: &L4Request<'_>) -> Vec<Seen> {
    let mut results = http(&[
        o.hosts.is_some(),
        o.not_hosts.is_some(),
        o.methods.is_some(),
        o.not_methods.is_some(),
        o.paths.is_some(),
        o.not_paths.is_some(),
    ]);
    let port = |v: &str| v == request.dst.port().to_string();
    results.extend(lists(o.ports.as_ref(), o.not_ports.as_ref(), &port));
    results
}

fn condition_results(
    mesh: &Mesh<'_>,
    policy: &AuthorizationPolicy,
    c: &Condition,
    request: &L4Request<'_>,
) -> Vec<Seen> {
    let hit = |v: &str| match c.key.as_str() {
        "source.ip" | "remote.ip" => cidr(v, request.src.ip()),
        "source.namespace" => peer_part(request, 2).is_some_and(|ns| glob(v, &ns)),
        "source.principal" => principal_hit(mesh, v, request),
        "source.serviceAccount" => account_hit(policy, v, request),
        "destination.ip" => cidr(v, request.dst.ip()),
        "destination.port" => v == request.dst.port().to_string(),
        "connection.sni" => request.sni.is_some_and(|sni| glob(v, sni)),
        other => panic!("the generator does not make {other}"),
    };
    if c.key.starts_with("request.") || c.key.starts_with("experimental.") {
        return http(&[c.values.is_some(), c.not_values.is_some()]);
    }
    lists(c.values.as_ref(), c.not_values.as_ref(), &hit)
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
fn glob(pattern: &str, value: &str) -> bool {
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
