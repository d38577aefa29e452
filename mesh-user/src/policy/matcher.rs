//! The smallest part of a rule: one attribute of the connection or the request against a list of values. Which
//! fields and keys there are, and which of them are HTTP's, is said here and nowhere else.

use ipnet::IpNet;

use super::{
    api::{Operation, Rule, Source},
    connection::Connection,
    http::{HttpAttribute, HttpTest},
    values::{self, StringMatch},
};
use crate::identity::TrustDomain;

/// What values mean, depending on where their policy is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scope<'a> {
    /// The policy's namespace.
    pub(super) namespace: &'a str,
    /// The mesh's own trust domain first, then its aliases.
    pub(super) trust_domains: &'a [TrustDomain],
    /// Somebody's `X-Forwarded-For` is believed, so that who the client is depends on the request.
    pub(super) forwarded: bool,
}

/// What a list of values is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attribute<'a> {
    Principal,
    Namespace,
    ServiceAccount,
    SourceIp,
    RemoteIp,
    DestinationIp,
    DestinationPort,
    Sni,
    /// Cannot be seen on a TCP connection.
    Http(HttpAttribute<'a>),
}

/// A list in a source or an operation.
pub(super) struct Field<'a> {
    pub(super) name: &'static str,
    pub(super) values: Option<&'a Vec<String>>,
    pub(super) negated: bool,
    attribute: Attribute<'static>,
}

pub(super) fn source_fields(s: &Source) -> impl Iterator<Item = Field<'_>> {
    use Attribute::{Http, Namespace, Principal, RemoteIp, ServiceAccount, SourceIp};
    let request_principal = Http(HttpAttribute::Principal);
    fields([
        ("principals", "notPrincipals", &s.principals, &s.not_principals, Principal),
        (
            "requestPrincipals",
            "notRequestPrincipals",
            &s.request_principals,
            &s.not_request_principals,
            request_principal,
        ),
        ("namespaces", "notNamespaces", &s.namespaces, &s.not_namespaces, Namespace),
        (
            "serviceAccounts",
            "notServiceAccounts",
            &s.service_accounts,
            &s.not_service_accounts,
            ServiceAccount,
        ),
        ("ipBlocks", "notIpBlocks", &s.ip_blocks, &s.not_ip_blocks, SourceIp),
        ("remoteIpBlocks", "notRemoteIpBlocks", &s.remote_ip_blocks, &s.not_remote_ip_blocks, RemoteIp),
    ])
}

pub(super) fn operation_fields(o: &Operation) -> impl Iterator<Item = Field<'_>> {
    use Attribute::{DestinationPort, Http};
    fields([
        ("hosts", "notHosts", &o.hosts, &o.not_hosts, Http(HttpAttribute::Host)),
        ("ports", "notPorts", &o.ports, &o.not_ports, DestinationPort),
        ("methods", "notMethods", &o.methods, &o.not_methods, Http(HttpAttribute::Method)),
        ("paths", "notPaths", &o.paths, &o.not_paths, Http(HttpAttribute::Path)),
    ])
}

type Lists<'a> =
    (&'static str, &'static str, &'a Option<Vec<String>>, &'a Option<Vec<String>>, Attribute<'static>);

fn fields<const N: usize>(pairs: [Lists<'_>; N]) -> impl Iterator<Item = Field<'_>> {
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
    RemoteIp(Vec<IpNet>),
    DestinationIp(Vec<IpNet>),
    DestinationPort(Vec<u16>),
    Sni(Vec<StringMatch>),
    Http(HttpTest),
}

pub(super) fn field_test(field: &Field<'_>, values: &[String], scope: &Scope<'_>) -> Result<Test, String> {
    Test::parse(field.attribute, values, scope)
}

/// Parses the values of a `when` condition.
pub(super) fn condition_test(key: &str, values: &[String], scope: &Scope<'_>) -> Result<Test, String> {
    Test::parse(condition(key)?, values, scope)
}

fn condition(key: &str) -> Result<Attribute<'_>, String> {
    Ok(match key {
        "source.ip" => Attribute::SourceIp,
        "remote.ip" => Attribute::RemoteIp,
        "source.namespace" => Attribute::Namespace,
        "source.principal" => Attribute::Principal,
        "source.serviceAccount" => Attribute::ServiceAccount,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        "connection.sni" => Attribute::Sni,
        _ => match HttpAttribute::of_key(key)? {
            Some(attribute) => Attribute::Http(attribute),
            None => return Err(format!("unknown key {key:?}{}", nearest_key(key))),
        },
    })
}

fn nearest_key(key: &str) -> String {
    const KEYS: [&str; 13] = [
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "destination.ip",
        "destination.port",
        "connection.sni",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.headers[name]",
        "request.auth.claims[name]",
    ];
    let score = |k: &&str| strsim::jaro_winkler(k, key);
    let best = KEYS.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    best.filter(|k| score(k) > 0.75).map_or_else(String::new, |k| format!(", did you mean {k:?}?"))
}

/// Names of a rule's HTTP fields and keys.
pub(super) fn http_fields(rule: &Rule) -> Vec<String> {
    let is_http = |attribute| matches!(attribute, Attribute::Http(_));
    let sources = rule.from.iter().flatten().flat_map(|f| source_fields(&f.source));
    let operations = rule.to.iter().flatten().flat_map(|t| operation_fields(&t.operation));
    let fields = sources.chain(operations).filter(|f| f.values.is_some() && is_http(f.attribute));
    let keys = rule.when.iter().flatten().filter(|c| condition(&c.key).is_ok_and(is_http));
    fields.map(|f| f.name.to_owned()).chain(keys.map(|c| c.key.clone())).collect()
}

/// Keys of a rule that Istio has and meshd cannot evaluate.
pub(super) fn unsupported_keys(rule: &Rule) -> Vec<&str> {
    let conditions = rule.when.iter().flatten().map(|c| c.key.as_str());
    let unsupported = |key: &&str| condition(key) == Ok(Attribute::Http(HttpAttribute::Unsupported));
    conditions.filter(unsupported).collect()
}

impl Test {
    fn parse(attribute: Attribute<'_>, values: &[String], scope: &Scope<'_>) -> Result<Self, String> {
        let strings = || values.iter().map(|v| StringMatch::parse(v)).collect();
        Ok(match attribute {
            Attribute::Principal => {
                let expanded = values.iter().flat_map(|v| super::aliases::expand(v, scope.trust_domains));
                Self::Principal(expanded.map(|v| StringMatch::parse(&v)).collect())
            }
            Attribute::Namespace => Self::Namespace(strings()),
            Attribute::Sni => Self::Sni(strings()),
            Attribute::ServiceAccount => Self::ServiceAccount(
                values
                    .iter()
                    .map(|v| values::service_account(v, scope.namespace))
                    .collect::<Result<_, _>>()?,
            ),
            Attribute::SourceIp => Self::SourceIp(values::ip_blocks(values)?),
            Attribute::RemoteIp => Self::RemoteIp(values::ip_blocks(values)?),
            Attribute::DestinationIp => Self::DestinationIp(values::ip_blocks(values)?),
            Attribute::DestinationPort => {
                Self::DestinationPort(values.iter().map(|v| values::port(v)).collect::<Result<_, _>>()?)
            }
            Attribute::Http(attribute) => Self::Http(HttpTest::parse(attribute, values)?),
        })
    }

    /// Whether one of the values matches; what the connection does not have matches none.
    pub(super) fn matches(&self, connection: &Connection<'_>) -> bool {
        let any = |patterns: &[StringMatch], value: Option<&str>| {
            value.is_some_and(|value| patterns.iter().any(|p| p.matches(value)))
        };
        match self {
            Self::Principal(patterns) => connection.peer.is_some_and(|id| {
                patterns.iter().any(|p| p.matches_joined(id.trust_domain().as_str(), id.path()))
            }),
            Self::Namespace(patterns) => any(patterns, connection.account.map(|(namespace, _)| namespace)),
            Self::ServiceAccount(accounts) => connection.account.is_some_and(|(namespace, name)| {
                accounts.iter().any(|(ns, sa)| ns == namespace && sa == name)
            }),
            Self::SourceIp(blocks) => blocks.iter().any(|b| b.contains(&connection.source_ip)),
            Self::RemoteIp(blocks) => blocks.iter().any(|b| b.contains(&connection.remote_ip)),
            Self::DestinationIp(blocks) => blocks.iter().any(|b| b.contains(&connection.destination_ip)),
            Self::DestinationPort(ports) => ports.contains(&connection.destination_port),
            Self::Sni(patterns) => any(patterns, connection.sni),
            Self::Http(test) => connection.http.is_some_and(|http| test.matches(http)),
        }
    }
}
