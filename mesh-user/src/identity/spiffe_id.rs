//! `spiffe://<trust domain>/<path>`, parsed once and kept valid.
//!
//! Source: SPIFFE-ID.md sections 2.1 to 2.4.

use std::{fmt, str::FromStr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A SPIFFE ID is at most this many bytes (SPIFFE-ID.md section 2.4).
const MAX_BYTES: usize = 2048;
/// A trust domain is at most this many bytes (SPIFFE-ID.md section 2.1).
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const CLUSTER_LOCAL: &str = "cluster.local";

/// Why a string is no SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The scheme is missing or another one.
    #[error("a SPIFFE ID starts with \"spiffe://\"")]
    Scheme,
    /// Longer than the standard allows.
    #[error("a SPIFFE ID has at most {MAX_BYTES} bytes, a trust domain at most {MAX_TRUST_DOMAIN_BYTES}")]
    TooLong,
    /// Empty, or a character outside `[a-z0-9._-]`.
    #[error("trust domain {0:?}: use lower-case letters, digits, '.', '-' and '_'")]
    TrustDomain(String),
    /// An empty or dot segment, a trailing slash, or a character outside `[a-zA-Z0-9._-]`.
    #[error(
        "path {0:?}: segments are non-empty, are not \".\" or \"..\", and use letters, digits, '.', '-' and '_'"
    )]
    Path(String),
}

/// The name of a trust domain, such as `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct TrustDomain(Arc<str>);

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeIdError;

    fn try_from(name: String) -> Result<Self, SpiffeIdError> {
        name.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0.as_ref().to_owned()
    }
}

impl TrustDomain {
    /// `cluster.local`, Istio's default; in policies it stands for the mesh's own trust domain.
    pub fn cluster_local() -> Self {
        Self(CLUSTER_LOCAL.into())
    }

    /// The name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(name: &str) -> Result<Self, SpiffeIdError> {
        if name.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(SpiffeIdError::TrustDomain(name.to_owned()));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// Starts with `/`; may be empty.
    path: Arc<str>,
}

impl SpiffeId {
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, Istio's form.
    ///
    /// # Errors
    /// When a segment is not valid in a SPIFFE path.
    pub fn for_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        let path = format!("/ns/{namespace}/sa/{service_account}");
        for segment in [namespace, service_account] {
            if segment.contains('/') {
                return Err(SpiffeIdError::Path(path));
            }
        }
        Self::new(trust_domain.clone(), &path)
    }

    /// `spiffe://<trust domain>/node/<name>`: a node's agent. No service account has this form.
    ///
    /// # Errors
    /// When the name is not valid as a segment of a SPIFFE path.
    pub fn for_node(trust_domain: &TrustDomain, name: &str) -> Result<Self, SpiffeIdError> {
        let path = format!("/node/{name}");
        if Self::is_segment(name) {
            Self::new(trust_domain.clone(), &path)
        } else {
            Err(SpiffeIdError::Path(path))
        }
    }

    /// The node's name, when this is a node's agent.
    pub fn node(&self) -> Option<&str> {
        self.path.strip_prefix("/node/").filter(|name| Self::is_segment(name))
    }

    /// Whether the text can stand between two slashes of a path.
    pub fn is_segment(text: &str) -> bool {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        !text.is_empty() && text.len() <= 253 && text != "." && text != ".." && text.bytes().all(allowed)
    }

    fn new(trust_domain: TrustDomain, path: &str) -> Result<Self, SpiffeIdError> {
        if "spiffe://".len() + trust_domain.as_str().len() + path.len() > MAX_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let valid = path.is_empty()
            || path.strip_prefix('/').is_some_and(|p| {
                p.split('/').all(|s| !s.is_empty() && s != "." && s != ".." && s.bytes().all(allowed))
            });
        if !valid {
            return Err(SpiffeIdError::Path(path.to_owned()));
        }
        Ok(Self { trust_domain, path: path.into() })
    }

    /// The same path in another trust domain: a trust-domain alias names the same workload.
    ///
    /// # Errors
    /// When the result is longer than a SPIFFE ID may be.
    pub fn in_trust_domain(&self, trust_domain: &TrustDomain) -> Result<Self, SpiffeIdError> {
        Self::new(trust_domain.clone(), &self.path)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash, or empty.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Namespace and service account, when the path has Istio's form.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let mut segments = self.path.strip_prefix('/')?.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
            _ => None,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(id: &str) -> Result<Self, SpiffeIdError> {
        if id.len() > MAX_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = id.strip_prefix("spiffe://").ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self::new(domain.parse()?, path)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istio_form_round_trips() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(id.service_account(), Some(("shop", "web")));
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(SpiffeId::for_service_account(id.trust_domain(), "shop", "web").unwrap(), id);
    }

    #[test]
    fn a_nodes_agent_is_no_service_account() {
        let id = SpiffeId::for_node(&TrustDomain::cluster_local(), "node-a").unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/node/node-a");
        assert_eq!((id.node(), id.service_account()), (Some("node-a"), None));
        assert_eq!("spiffe://a/node/b/c".parse::<SpiffeId>().unwrap().node(), None);
        for bad in ["", "a/b", "..", "a b"] {
            assert!(SpiffeId::for_node(&TrustDomain::cluster_local(), bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_longest_that_the_standard_allows_are_read() {
        let domain = "d".repeat(255);
        let start = format!("spiffe://{domain}/");
        let longest = format!("{start}{}", "p".repeat(2048 - start.len()));
        assert_eq!(longest.parse::<SpiffeId>().unwrap().to_string(), longest);
        assert_eq!(format!("{longest}p").parse::<SpiffeId>(), Err(SpiffeIdError::TooLong));
        assert_eq!(format!("spiffe://d{domain}/p").parse::<SpiffeId>(), Err(SpiffeIdError::TooLong));
    }

    #[test]
    fn ids_differ_by_the_case_of_their_paths() {
        let id = |path: &str| format!("spiffe://a/{path}").parse::<SpiffeId>().unwrap();
        assert_ne!(id("ns/Shop"), id("ns/shop"));
    }

    #[test]
    fn malformed_ids_are_refused() {
        for bad in [
            "",
            "http://a/b",
            "spiffe://",
            "spiffe:///ns/a",
            "spiffe://Upper/x",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/./b",
            "spiffe://a/../b",
            "spiffe://a/b%20",
            "spiffe://a:80/b",
            "spiffe://u@a/b",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://a/b/",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad} was accepted");
        }
        assert!(format!("spiffe://a/{}", "x".repeat(2048)).parse::<SpiffeId>().is_err());
        assert!(SpiffeId::for_service_account(&"a".parse().unwrap(), "x/sa/y", "z").is_err());
    }
}
