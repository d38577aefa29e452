//! Who may ask `meshd ca`, and for what. A caller is known by a bearer token that Kubernetes believes, by an earlier
//! certificate of this CA, or by what the kernel says of the other end of a Unix socket; never by what it says of itself.

mod grant;
mod join_tokens;
pub mod kubernetes;
mod rates;
mod refusal;

use std::{fmt, net::SocketAddr, sync::Arc, time::SystemTime};

use http::{HeaderMap, header::AUTHORIZATION};

pub use grant::{ConfiguredNodes, Either, Placement, grant, service_identity};
pub(in crate::ca) use join_tokens::SCHEMA as JOIN_TOKEN_SCHEMA;
pub use join_tokens::{JoinToken, JoinTokens};
pub use rates::Rates;
pub use refusal::Refusal;

use crate::{
    config::{AuthorityConfig, UnixSocketConfig},
    identity::{SpiffeId, TrustDomain},
    tls::{PeerRole, PeerVerifier, VerifiedPeer},
};

/// How it was proven who a caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// A bound service-account token.
    KubernetesToken,
    /// A one-time token.
    JoinToken,
    /// A certificate of this CA.
    Certificate,
    /// `SO_PEERCRED`.
    UnixPeer,
}

impl Proof {
    /// For records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KubernetesToken => "kubernetes_token",
            Self::JoinToken => "join_token",
            Self::Certificate => "certificate",
            Self::UnixPeer => "unix_peer",
        }
    }
}

/// Somebody whom we know.
#[derive(Debug, Clone)]
pub struct Caller {
    /// For records: a SPIFFE ID, a service account as Kubernetes writes it, or a user.
    pub name: Arc<str>,
    /// How that is known.
    pub proof: Proof,
    /// What it may have itself.
    pub identity: SpiffeId,
    /// The node it is on, where that is known.
    pub node: Option<Arc<str>>,
    /// The node whose agent it is.
    pub agent_of: Option<Arc<str>>,
    /// The pod of a service-account token.
    pub pod: Option<Arc<str>>,
    /// Whose rate its requests count for.
    pub rate_key: Arc<str>,
}

/// The other end of a connection, as TLS or the kernel knows it.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Over TLS.
    Network {
        /// Its address.
        address: SocketAddr,
        /// The certificate that it proved to have the key of.
        certificate: Option<Arc<VerifiedPeer>>,
    },
    /// Over the Unix socket.
    Local {
        /// Its user.
        uid: u32,
        /// Its process.
        pid: Option<i32>,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { address, .. } => write!(f, "{address}"),
            Self::Local { uid, pid: Some(pid) } => write!(f, "pid {pid} uid {uid}"),
            Self::Local { uid, pid: None } => write!(f, "uid {uid}"),
        }
    }
}

/// Finds out who asks.
#[derive(Debug)]
pub struct Callers {
    trust_domain: TrustDomain,
    verifier: Arc<PeerVerifier>,
    tokens: Option<kubernetes::Tokens>,
    node_agents: Vec<String>,
    local: Option<UnixSocketConfig>,
}

impl Callers {
    /// `verifier` believes this CA's own certificates and no others; `tokens` where Kubernetes is configured.
    pub fn new(
        config: &AuthorityConfig,
        verifier: Arc<PeerVerifier>,
        tokens: Option<kubernetes::Tokens>,
    ) -> Self {
        Self {
            trust_domain: config.trust_domain.clone(),
            verifier,
            tokens,
            node_agents: config.kubernetes.as_ref().map(|k| k.node_agents.clone()).unwrap_or_default(),
            local: config.unix_socket.clone(),
        }
    }

    /// Who sends a request with these headers over a connection with this peer. A token that is not believed is an end: the
    /// certificate beside it is not looked at.
    ///
    /// # Errors
    /// When nobody that we know.
    pub async fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller, Refusal> {
        if let Some(token) = bearer(headers)? {
            return self.by_token(token).await;
        }
        match peer {
            Peer::Network { certificate: Some(certificate), .. } => self.by_certificate(certificate),
            Peer::Network { certificate: None, .. } => Err(Refusal::Anonymous),
            Peer::Local { uid, .. } => self.by_user(*uid),
        }
    }

    async fn by_token(&self, token: &str) -> Result<Caller, Refusal> {
        let Some(tokens) = &self.tokens else {
            return Err(Refusal::Token("no Kubernetes is configured, whose tokens they could be".to_owned()));
        };
        let account = tokens.review(token).await?;
        let full = format!("{}/{}", account.namespace, account.name);
        let name: Arc<str> = format!("system:serviceaccount:{}:{}", account.namespace, account.name).into();
        let identity = SpiffeId::for_service_account(&self.trust_domain, &account.namespace, &account.name)
            .map_err(|error| Refusal::Token(error.to_string()))?;
        let is_agent = self.node_agents.contains(&full);
        let node = match account.node.clone() {
            None if is_agent => Some(tokens.node_of(&account).await?),
            node => node,
        };
        let node: Option<Arc<str>> = node.map(Into::into);
        Ok(Caller {
            rate_key: format!("{name} {}", account.pod_uid).into(),
            name,
            proof: Proof::KubernetesToken,
            identity,
            agent_of: node.clone().filter(|_| is_agent),
            node,
            pod: Some(account.pod.into()),
        })
    }

    /// Once more: the connection may be older than its certificate's revocation, or than its end.
    fn by_certificate(&self, peer: &VerifiedPeer) -> Result<Caller, Refusal> {
        let refused = |why: String| Err(Refusal::Certificate(why));
        if let Err(error) = self.verifier.verify_again(peer, PeerRole::Client, None, SystemTime::now()) {
            return refused(error.to_string());
        }
        let identity = peer.spiffe_id.clone();
        if *identity.trust_domain() != self.trust_domain {
            return refused(format!("{identity} is not of trust domain {}", self.trust_domain));
        }
        let node: Option<Arc<str>> = identity.node().map(Into::into);
        if node.is_none() && grant::is_reserved(&identity) {
            return refused(format!("{identity} is the service's own"));
        }
        let name: Arc<str> = identity.to_string().into();
        Ok(Caller {
            rate_key: Arc::clone(&name),
            name,
            proof: Proof::Certificate,
            identity,
            agent_of: node.clone(),
            node,
            pod: None,
        })
    }

    fn by_user(&self, uid: u32) -> Result<Caller, Refusal> {
        let local = self.local.as_ref().filter(|local| uid == 0 || local.uids.contains(&uid));
        let Some(local) = local else { return Err(Refusal::User(uid)) };
        let mut caller = self.node_agent(&local.node, Proof::UnixPeer)?;
        caller.name = format!("uid:{uid}").into();
        caller.rate_key = Arc::clone(&caller.name);
        Ok(caller)
    }

    /// Whether `caller`, who has been let in over `peer`, would be let in again by what can have changed since.
    ///
    /// # Errors
    /// When its certificate has expired or was revoked.
    pub fn still_known(&self, peer: &Peer, caller: &Caller) -> Result<(), Refusal> {
        match peer {
            Peer::Network { certificate: Some(certificate), .. } if caller.proof == Proof::Certificate => {
                self.by_certificate(certificate).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Who has redeemed a token of this node.
    ///
    /// # Errors
    /// When the node's name is not valid in a SPIFFE ID.
    pub fn node_agent(&self, node: &str, proof: Proof) -> Result<Caller, Refusal> {
        let identity = SpiffeId::for_node(&self.trust_domain, node)
            .map_err(|error| Refusal::BadRequest(error.to_string()))?;
        let name: Arc<str> = identity.to_string().into();
        let node: Arc<str> = node.into();
        Ok(Caller {
            rate_key: Arc::clone(&name),
            name,
            proof,
            identity,
            agent_of: Some(Arc::clone(&node)),
            node: Some(node),
            pod: None,
        })
    }
}

/// The one bearer token (RFC 6750 section 2.1), if there is any `authorization` at all.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::BadHeader("there are several"));
    }
    let text = value.to_str().map_err(|_| Refusal::BadHeader("it is no text"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Some(token.trim()))
        }
        _ => Err(Refusal::BadHeader("it has another form")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arc_swap::ArcSwap;

    use super::*;
    use crate::{
        identity::TrustBundles,
        tls::{
            provider,
            test_pki::{Leaf, TestCa},
        },
    };

    #[test]
    fn a_certificate_counts_while_it_is_valid_ours_and_not_the_services_own() {
        let (ca, other) = (TestCa::new("a.b"), TestCa::new("c.d"));
        let believed = ArcSwap::from_pointee(TrustBundles {
            roots: [&ca, &other].map(|ca| (ca.trust_domain.clone(), vec![ca.root()])).into(),
            ..TrustBundles::default()
        });
        let algorithms = provider().signature_verification_algorithms;
        let domain = ca.trust_domain.clone();
        let verifier =
            PeerVerifier::new(domain.clone(), Vec::new(), Duration::ZERO, Arc::new(believed), algorithms);
        let config = AuthorityConfig::parse("trustDomain: a.b\n", "ca.yaml").unwrap();
        let callers = Callers::new(&config, Arc::new(verifier), None);
        let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
        let seen = |issuer: &TestCa, id: &str, not_after| {
            let svid = issuer.issue(&Leaf { not_after, ..Leaf::of(id) });
            VerifiedPeer {
                spiffe_id: id.parse().unwrap(),
                not_before: svid.not_before,
                not_after: svid.not_after,
                serial: svid.serial.clone(),
                chain: svid.chain.into(),
                proven_at: SystemTime::now(),
            }
        };
        let later = SystemTime::now() + Duration::from_secs(600);
        let node = callers.by_certificate(&seen(&ca, "spiffe://a.b/node/n1", later)).unwrap();
        assert_eq!(node.agent_of.as_deref(), Some("n1"));
        let workload = callers.by_certificate(&seen(&ca, "spiffe://a.b/ns/x/sa/y", later)).unwrap();
        assert_eq!((workload.agent_of, workload.node), (None, None));
        let mut wrong = Vec::new();
        for (issuer, id, not_after, says) in [
            (&ca, "spiffe://a.b/node/n1", ago(10), "expired"),
            (&ca, "spiffe://a.b/ca", later, "service's own"),
            (&ca, "spiffe://a.b/node/n1/x", later, "service's own"),
            (&other, "spiffe://c.d/node/n1", later, "trust domain"),
            (&other, "spiffe://a.b/node/n1", later, "no path"),
        ] {
            let refused = callers.by_certificate(&seen(issuer, id, not_after)).map(drop);
            let why = refused.err().map(|refusal| refusal.to_string()).unwrap_or_default();
            if !why.contains(says) {
                wrong.push(format!("{id}: {why:?} does not say {says:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn there_is_one_bearer_token_or_none() {
        let headers = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            headers
        };
        assert_eq!(bearer(&headers(&[])).unwrap(), None);
        for good in ["Bearer x.y.z", "bearer x.y.z", "BEARER  x.y.z "] {
            assert_eq!(bearer(&headers(&[good])).unwrap(), Some("x.y.z"));
        }
        for bad in [&["Basic x"][..], &["Bearer"], &["Bearer "], &["x"], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(&headers(bad)).unwrap_err().reason(), "bad_header", "{bad:?}");
        }
    }
}
