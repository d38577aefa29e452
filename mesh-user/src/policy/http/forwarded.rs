//! Who the original client of a request is: the connection's source, unless the client is a proxy whose `X-Forwarded-For`
//! the node's file says to believe. Anybody may write that header, so nobody's counts by default.
//!
//! Source: Envoy, "x-forwarded-for" (`use_remote_address` false, `xff_num_trusted_hops`), which counts from the right.

use std::net::{IpAddr, SocketAddr};

use super::Headers;
use crate::{
    config::ForwardedForConfig,
    identity::{SpiffeId, TrustDomain},
    policy::{aliases, values::StringMatch},
};

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// Whose word counts, and how far from the right.
#[derive(Debug, Default)]
pub struct ForwardedFor {
    trusted: Vec<StringMatch>,
    proxies: usize,
}

impl ForwardedFor {
    pub(in crate::policy) fn new(config: &ForwardedForConfig, trust_domains: &[TrustDomain]) -> Self {
        let trusted = config.trusted_principals.iter().flat_map(|p| aliases::expand(p, trust_domains));
        Self {
            trusted: trusted.map(|principal| StringMatch::parse(&principal)).collect(),
            proxies: usize::from(config.num_trusted_proxies),
        }
    }

    /// The original client of a request from `peer`, which sent it from `source`. What a trusted peer does not say, or
    /// says in no address, leaves it the source itself, as in Envoy.
    pub fn remote_ip(&self, peer: Option<&SpiffeId>, source: SocketAddr, headers: &dyn Headers) -> IpAddr {
        let source = source.ip().to_canonical();
        let Some(peer) = peer else { return source };
        let is_it = |trusted: &StringMatch| trusted.matches_joined(peer.trust_domain().as_str(), peer.path());
        if !self.trusted.iter().any(is_it) {
            return source;
        }
        // Field lines are one list, in their order (RFC 9110 section 5.3).
        let mut addresses = Vec::new();
        headers.each_value(X_FORWARDED_FOR, &mut |line| addresses.extend(line.split(|byte| *byte == b',')));
        let address = addresses.len().checked_sub(self.proxies + 1).and_then(|at| addresses.get(at));
        let address = address.and_then(|text| std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok());
        address.map_or(source, |address: IpAddr| address.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lines(&'static [&'static str]);

    impl Headers for Lines {
        fn each_value<'h>(&'h self, name: &str, each: &mut dyn FnMut(&'h [u8])) {
            if name == X_FORWARDED_FOR {
                self.0.iter().for_each(|line| each(line.as_bytes()));
            }
        }
    }

    const GATEWAY: &str = "spiffe://cluster.local/ns/istio-system/sa/gateway";

    fn remote(trusted: &str, proxies: u8, peer: Option<&str>, lines: &'static [&'static str]) -> String {
        let config =
            ForwardedForConfig { trusted_principals: vec![trusted.to_owned()], num_trusted_proxies: proxies };
        let domains = ["cluster.local".parse().unwrap(), "old.example".parse().unwrap()];
        let peer: Option<SpiffeId> = peer.map(|peer| peer.parse().unwrap());
        let forwarded = ForwardedFor::new(&config, &domains);
        forwarded.remote_ip(peer.as_ref(), "10.0.0.1:5".parse().unwrap(), &Lines(lines)).to_string()
    }

    #[test]
    fn only_a_proven_peer_that_is_named_is_believed() {
        let exact = "cluster.local/ns/istio-system/sa/gateway";
        for (trusted, peer, expected) in [
            (exact, Some(GATEWAY), "1.2.3.4"),
            ("*/sa/gateway", Some(GATEWAY), "1.2.3.4"),
            (exact, Some("spiffe://old.example/ns/istio-system/sa/gateway"), "1.2.3.4"),
            (exact, Some("spiffe://cluster.local/ns/shop/sa/web"), "10.0.0.1"),
            (exact, Some("spiffe://evil.example/ns/istio-system/sa/gateway"), "10.0.0.1"),
            ("*", None, "10.0.0.1"),
        ] {
            assert_eq!(remote(trusted, 0, peer, &["1.2.3.4"]), expected, "{trusted} {peer:?}");
        }
        let nobody = ForwardedFor::default();
        let gateway: SpiffeId = GATEWAY.parse().unwrap();
        let source = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(nobody.remote_ip(Some(&gateway), source, &Lines(&["1.2.3.4"])).to_string(), "10.0.0.1");
    }

    #[test]
    fn the_address_is_counted_from_the_right() {
        for (proxies, lines, expected) in [
            (0, &["6.6.6.6, 1.2.3.4"][..], "1.2.3.4"),
            (1, &["6.6.6.6, 1.2.3.4 ,5.6.7.8"], "1.2.3.4"),
            (1, &["6.6.6.6,1.2.3.4", "5.6.7.8"], "1.2.3.4"),
            (0, &["2001:db8::7"], "2001:db8::7"),
            (0, &["::ffff:1.2.3.4"], "1.2.3.4"),
            // Nothing that could be told.
            (1, &["1.2.3.4"], "10.0.0.1"),
            (0, &[], "10.0.0.1"),
            (0, &[""], "10.0.0.1"),
            (0, &["1.2.3.4, unknown"], "10.0.0.1"),
            (0, &["1.2.3.4:80"], "10.0.0.1"),
            (255, &["1.2.3.4"], "10.0.0.1"),
        ] {
            assert_eq!(remote("*", proxies, Some(GATEWAY), lines), expected, "{proxies} {lines:?}");
        }
    }
}
