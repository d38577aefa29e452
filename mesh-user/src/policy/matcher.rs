//! The smallest part of a rule: one attribute of the connection against a list of values. Values are parsed
//! here once; matching allocates nothing.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::{
    L4Request,
    api::{Action, AuthorizationPolicySpec, Operation, Rule, Source},
};
use crate::identity::TrustDomain;

/// What values mean, depending on where their policy is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scope<'a> {
    /// The policy's namespace.
    pub(super) namespace: &'a str,
    /// The mesh's own trust domain first, then its aliases.
    pub(super) trust_domains: &'a [TrustDomain],
}

/// What a list of values is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    SourceIp,
    DestinationIp,
    DestinationPort,
    Sni,
    /// Cannot be seen on a TCP connection.
    Http,
}

/// A list in a source or an operation.
pub(super) struct Field<'a> {
    pub(super) name: &'static str,
    pub(super) values: Option<&'a Vec<String>>,
    pub(super) negated: bool,
    attribute: Attribute,
}

pub(super) fn source_fields(s: &Source) -> impl Iterator<Item = Field<'_>> {
    use Attribute::{Http, Namespace, Principal, ServiceAccount, SourceIp};
    // On TCP the original client is the connection's source (no X-Forwarded-For, no PROXY protocol).
    fields([
        ("principals", "notPrincipals", &s.principals, &s.not_principals, Principal),
        ("requestPrincipals", "notRequestPrincipals", &s.request_principals, &s.not_request_principals, Http),
        ("namespaces", "notNamespaces", &s.namespaces, &s.not_namespaces, Namespace),
        (
            "serviceAccounts",
            "notServiceAccounts",
            &s.service_accounts,
            &s.not_service_accounts,
            ServiceAccount,
        ),
        ("ipBlocks", "notIpBlocks", &s.ip_blocks, &s.not_ip_blocks, SourceIp),
        ("remoteIpBlocks", "notRemoteIpBlocks", &s.remote_ip_blocks, &s.not_remote_ip_blocks, SourceIp),
    ])
}

pub(super) fn operation_fields(o: &Operation) -> impl Iterator<Item = Field<'_>> {
    use Attribute::{DestinationPort, Http};
    fields([
        ("hosts", "notHosts", &o.hosts, &o.not_hosts, Http),
        ("ports", "notPorts", &o.ports, &o.not_ports, DestinationPort),
        ("methods", "notMethods", &o.methods, &o.not_methods, Http),
        ("paths", "notPaths", &o.paths, &o.not_paths, Http),
    ])
}

type Pair<'a> = (&'static str, &'static str, &'a Option<Vec<String>>, &'a Option<Vec<String>>, Attribute);

fn fields<const N: usize>(pairs: [Pair<'_>; N]) -> impl Iterator<Item = Field<'_>> {
    pairs.into_iter().flat_map(|(name, not_name, values, not_values, attribute)| {
        [
            Field { name, values: values.as_ref(), negated: false, attribute },
            Field { name: not_name, values: not_values.as_ref(), negated: true, attribute },
        ]
    })
}

/// A parsed list of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    Principal(Vec<StringMatch>),
    Namespace(Vec<StringMatch>),
    /// Namespace and service account.
    ServiceAccount(Vec<(String, String)>),
    SourceIp(Vec<IpNet>),
    DestinationIp(Vec<IpNet>),
    DestinationPort(Vec<u16>),
    Sni(Vec<StringMatch>),
    Http,
}

pub(super) fn field_test(field: &Field<'_>, values: &[String], scope: &Scope<'_>) -> Result<Test, String> {
    Test::parse(field.attribute, values, scope)
}

/// Parses the values of a `when` condition.
pub(super) fn condition_test(key: &str, values: &[String], scope: &Scope<'_>) -> Result<Test, String> {
    let attribute = match key {
        "source.ip" | "remote.ip" => Attribute::SourceIp,
        "source.namespace" => Attribute::Namespace,
        "source.principal" => Attribute::Principal,
        "source.serviceAccount" => Attribute::ServiceAccount,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        "connection.sni" => Attribute::Sni,
        "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter" => Attribute::Http,
        _ if ["request.headers[", "request.auth.claims[", "experimental."]
            .iter()
            .any(|p| key.starts_with(p)) =>
        {
            Attribute::Http
        }
        _ => return Err(format!("unknown key {key:?}{}", nearest_key(key))),
    };
    Test::parse(attribute, values, scope)
}

fn nearest_key(key: &str) -> String {
    const KEYS: [&str; 9] = [
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "destination.ip",
        "destination.port",
        "connection.sni",
        "request.auth.principal",
    ];
    let score = |k: &&str| strsim::jaro_winkler(k, key);
    let best = KEYS.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    best.filter(|k| score(k) > 0.75).map_or_else(String::new, |k| format!(", did you mean {k:?}?"))
}

impl Test {
    fn parse(attribute: Attribute, values: &[String], scope: &Scope<'_>) -> Result<Self, String> {
        let strings = || values.iter().map(|v| StringMatch::parse(v)).collect();
        Ok(match attribute {
            Attribute::Principal => {
                let expanded = values.iter().flat_map(|v| super::aliases::expand(v, scope.trust_domains));
                Self::Principal(expanded.map(|v| StringMatch::parse(&v)).collect())
            }
            Attribute::Namespace => Self::Namespace(strings()),
            Attribute::Sni => Self::Sni(strings()),
            Attribute::ServiceAccount => Self::ServiceAccount(
                values.iter().map(|v| service_account(v, scope.namespace)).collect::<Result<_, _>>()?,
            ),
            Attribute::SourceIp => Self::SourceIp(ip_blocks(values)?),
            Attribute::DestinationIp => Self::DestinationIp(ip_blocks(values)?),
            Attribute::DestinationPort => {
                Self::DestinationPort(values.iter().map(|v| port(v)).collect::<Result<_, _>>()?)
            }
            Attribute::Http => Self::Http,
        })
    }

    /// Whether one of the values matches; what the connection does not have matches none.
    pub(super) fn matches(&self, connection: &Connection<'_>) -> bool {
        let any = |patterns: &[StringMatch], value: Option<&str>| {
            value.is_some_and(|value| patterns.iter().any(|p| p.matches(value)))
        };
        match self {
            Self::Principal(patterns) => any(patterns, connection.principal.as_deref()),
            Self::Namespace(patterns) => any(patterns, connection.account.map(|(namespace, _)| namespace)),
            Self::ServiceAccount(accounts) => connection.account.is_some_and(|(namespace, name)| {
                accounts.iter().any(|(ns, sa)| ns == namespace && sa == name)
            }),
            Self::SourceIp(blocks) => blocks.iter().any(|b| b.contains(&connection.source_ip)),
            Self::DestinationIp(blocks) => blocks.iter().any(|b| b.contains(&connection.destination_ip)),
            Self::DestinationPort(ports) => ports.contains(&connection.destination_port),
            Self::Sni(patterns) => any(patterns, connection.sni),
            Self::Http => false,
        }
    }
}

/// Istio's string match: exact, `prefix*`, `*suffix`, or `*` for any non-empty value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StringMatch {
    Present,
    Exact(String),
    Prefix(String),
    Suffix(String),
}

impl StringMatch {
    fn parse(pattern: &str) -> Self {
        // the order is Istio's (pkg/.../authz/matcher/string.go): a leading star wins over a trailing one
        if pattern == "*" {
            Self::Present
        } else if let Some(suffix) = pattern.strip_prefix('*') {
            Self::Suffix(suffix.to_owned())
        } else if let Some(prefix) = pattern.strip_suffix('*') {
            Self::Prefix(prefix.to_owned())
        } else {
            Self::Exact(pattern.to_owned())
        }
    }

    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Present => !value.is_empty(),
            Self::Exact(exact) => value == exact,
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => value.ends_with(suffix.as_str()),
        }
    }
}

fn service_account(value: &str, policy_namespace: &str) -> Result<(String, String), String> {
    let (namespace, name) = value.split_once('/').unwrap_or((policy_namespace, value));
    if value.contains('*') || name.contains('/') || name.is_empty() || value.starts_with('/') {
        return Err(format!("{value:?}: write \"namespace/account\" or \"account\", without wildcards"));
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

fn port(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{value:?} is no port (1 to 65535)")),
    }
}

fn ip_blocks(values: &[String]) -> Result<Vec<IpNet>, String> {
    values.iter().map(|v| ip_block(v)).collect()
}

/// An address or a CIDR block; v4-mapped ones become IPv4, as addresses do before they are compared.
fn ip_block(value: &str) -> Result<IpNet, String> {
    let net = match value.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => IpNet::from(
            value.parse::<IpAddr>().map_err(|_| format!("{value:?} is no IP address or CIDR block"))?,
        ),
    };
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => {
            v6.addr().to_ipv4_mapped().map(|ip| (ip, v6.prefix_len() - 96))
        }
        _ => None,
    };
    Ok(mapped.and_then(|(ip, length)| Ipv4Net::new(ip, length).ok()).map_or(net, IpNet::V4))
}

/// A connection as rules see it.
#[derive(Debug)]
pub(super) struct Connection<'a> {
    /// The SPIFFE ID without its scheme.
    principal: Option<String>,
    account: Option<(&'a str, &'a str)>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
    sni: Option<&'a str>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(request: &L4Request<'a>) -> Self {
        Self {
            principal: request.peer.map(|id| format!("{}{}", id.trust_domain(), id.path())),
            account: request.peer.and_then(|id| id.service_account()),
            source_ip: request.src.ip().to_canonical(),
            destination_ip: request.dst.ip().to_canonical(),
            destination_port: request.dst.port(),
            sni: request.sni,
        }
    }

    /// What a test looked at, for people.
    pub(super) fn describe(&self, test: &Test) -> String {
        match test {
            Test::Principal(_) | Test::Namespace(_) | Test::ServiceAccount(_) => {
                self.principal.clone().unwrap_or_else(|| "a peer without identity (plaintext)".to_owned())
            }
            Test::SourceIp(_) => self.source_ip.to_string(),
            Test::DestinationIp(_) => self.destination_ip.to_string(),
            Test::DestinationPort(_) => format!("port {}", self.destination_port),
            Test::Sni(_) => self.sni.unwrap_or("no SNI").to_owned(),
            Test::Http => "what TCP does not show".to_owned(),
        }
    }
}

/// Whether a policy is attached to gateways or waypoints, which meshd is not.
pub(super) fn targets_only_proxies(spec: &AuthorizationPolicySpec) -> bool {
    spec.target_ref.is_some() || spec.target_refs.as_ref().is_some_and(|t| !t.is_empty())
}

/// What of a policy is not enforced as written, one line each.
pub(super) fn not_enforced(spec: &AuthorizationPolicySpec) -> Vec<String> {
    if targets_only_proxies(spec) {
        return vec!["targetRefs name gateways and waypoints; the policy is not enforced yet".to_owned()];
    }
    let mut notes = Vec::new();
    let effect = match spec.action.unwrap_or(Action::Allow) {
        Action::Audit => return vec!["AUDIT is not enforced yet; it never decides".to_owned()],
        Action::Allow => "the rule never matches, so less is allowed",
        Action::Deny => "they are ignored, so the rule denies more",
        Action::Custom => {
            notes.push("external authorization is not available; what a rule matches is denied".to_owned());
            "they are ignored, so the rule denies more"
        }
    };
    for (i, rule) in spec.rules.iter().flatten().enumerate() {
        let http = http_fields(rule);
        if !http.is_empty() {
            notes.push(format!("rules[{i}] uses HTTP fields ({}) on TCP: {effect}", http.join(", ")));
        }
    }
    notes
}

/// Names of a rule's HTTP fields and keys.
pub(super) fn http_fields(rule: &Rule) -> Vec<String> {
    let sources = rule.from.iter().flatten().flat_map(|f| source_fields(&f.source));
    let operations = rule.to.iter().flatten().flat_map(|t| operation_fields(&t.operation));
    let fields = sources.chain(operations).filter(|f| f.values.is_some() && f.attribute == Attribute::Http);
    let conditions = rule.when.iter().flatten();
    let keys =
        conditions.filter(|c| matches!(condition_test(&c.key, &[], &Scope::default()), Ok(Test::Http)));
    fields.map(|f| f.name.to_owned()).chain(keys.map(|c| c.key.clone())).collect()
}
