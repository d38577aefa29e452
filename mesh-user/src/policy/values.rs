//! Values of a rule, parsed once: strings with a star, addresses, ports, service accounts. Matching allocates
//! nothing.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Istio's string match: exact, `prefix*`, `*suffix`, or `*` for any non-empty value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StringMatch {
    Present,
    Exact(String),
    Prefix(String),
    Suffix(String),
}

impl StringMatch {
    pub(super) fn parse(pattern: &str) -> Self {
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

    pub(super) fn matches(&self, value: &str) -> bool {
        self.matches_bytes(value.as_bytes())
    }

    pub(super) fn matches_bytes(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => !value.is_empty(),
            Self::Exact(exact) => value == exact.as_bytes(),
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            Self::Suffix(suffix) => value.ends_with(suffix.as_bytes()),
        }
    }

    pub(super) fn matches_ignoring_case(&self, value: &str) -> bool {
        let same = |part: Option<&[u8]>, wanted: &str| {
            part.is_some_and(|part| part.eq_ignore_ascii_case(wanted.as_bytes()))
        };
        let value = value.as_bytes();
        match self {
            Self::Present => !value.is_empty(),
            Self::Exact(exact) => same(Some(value), exact),
            Self::Prefix(prefix) => same(value.get(..prefix.len()), prefix),
            Self::Suffix(suffix) => {
                let start = value.len().checked_sub(suffix.len());
                same(start.and_then(|start| value.get(start..)), suffix)
            }
        }
    }

    /// Whether `front` and `back` in a row match.
    pub(super) fn matches_joined(&self, front: &str, back: &str) -> bool {
        match self {
            Self::Present => !(front.is_empty() && back.is_empty()),
            Self::Exact(exact) => exact.strip_prefix(front) == Some(back),
            Self::Prefix(prefix) => {
                let behind = || prefix.strip_prefix(front).is_some_and(|rest| back.starts_with(rest));
                front.starts_with(prefix.as_str()) || behind()
            }
            Self::Suffix(suffix) => {
                let before = || suffix.strip_suffix(back).is_some_and(|rest| front.ends_with(rest));
                back.ends_with(suffix.as_str()) || before()
            }
        }
    }
}

pub(super) fn service_account(value: &str, policy_namespace: &str) -> Result<(String, String), String> {
    let (namespace, name) = value.split_once('/').unwrap_or((policy_namespace, value));
    if value.contains('*') || name.contains('/') || name.is_empty() || value.starts_with('/') {
        return Err(format!("{value:?}: write \"namespace/account\" or \"account\", without wildcards"));
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

pub(super) fn port(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{value:?} is no port (1 to 65535)")),
    }
}

pub(super) fn ip_blocks(values: &[String]) -> Result<Vec<IpNet>, String> {
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

#[cfg(test)]
mod tests {
    use super::StringMatch;

    #[test]
    fn two_parts_match_as_their_joined_text_does() {
        let texts = ["", "a", "b", "ab", "ba", "aa", "/x", "td/x"];
        for pattern in ["*", "a", "ab", "a*", "ab*", "*a", "*ab", "aba*", "*aba", "td/x", "td/*", "*d/x"] {
            let pattern = StringMatch::parse(pattern);
            for (front, back) in texts.iter().flat_map(|front| texts.map(|back| (front, back))) {
                let joined = pattern.matches(&format!("{front}{back}"));
                assert_eq!(pattern.matches_joined(front, back), joined, "{pattern:?} {front:?} {back:?}");
            }
        }
    }
}
