//! Which identity a caller may have. Pure: who the caller is was proven before, what runs where is asked of a
//! [`Placement`], and what a CSR says is not looked at.

use std::collections::HashMap;

use futures_util::future::BoxFuture;

use super::{Caller, Refusal};
use crate::{
    config::{IdentityPattern, NodeConfig},
    identity::{SpiffeId, TrustDomain},
};

/// What runs where.
pub trait Placement: Send + Sync {
    /// Whether a workload with this identity runs on that node now. No when it is not known.
    fn runs_on(&self, node: &str, id: &SpiffeId) -> bool;

    /// Waits a moment where the answer may change by itself, as news of a pod may be on its way.
    fn settle<'a>(&'a self, _node: &'a str, _id: &'a SpiffeId) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Both of two: what is not known to the first is asked of the second.
#[derive(Debug)]
pub struct Either<A, B>(pub A, pub B);

impl<A: Placement, B: Placement> Placement for Either<A, B> {
    fn runs_on(&self, node: &str, id: &SpiffeId) -> bool {
        self.0.runs_on(node, id) || self.1.runs_on(node, id)
    }

    fn settle<'a>(&'a self, node: &'a str, id: &'a SpiffeId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.0.settle(node, id).await;
            if !self.0.runs_on(node, id) {
                self.1.settle(node, id).await;
            }
        })
    }
}

impl<T: Placement + ?Sized> Placement for std::sync::Arc<T> {
    fn runs_on(&self, node: &str, id: &SpiffeId) -> bool {
        (**self).runs_on(node, id)
    }

    fn settle<'a>(&'a self, node: &'a str, id: &'a SpiffeId) -> BoxFuture<'a, ()> {
        (**self).settle(node, id)
    }
}

/// What the configuration says of nodes.
#[derive(Debug, Default)]
pub struct ConfiguredNodes(HashMap<String, Vec<IdentityPattern>>);

impl ConfiguredNodes {
    /// From the configuration's `nodes`.
    pub fn new(nodes: &[NodeConfig]) -> Self {
        Self(nodes.iter().map(|node| (node.name.clone(), node.identities.clone())).collect())
    }
}

impl Placement for ConfiguredNodes {
    fn runs_on(&self, node: &str, id: &SpiffeId) -> bool {
        self.0.get(node).is_some_and(|patterns| patterns.iter().any(|pattern| pattern.matches(id)))
    }
}

/// The identity to certify for `caller`: its own, or `asked`, that of a workload on the node whose agent it is.
///
/// # Errors
/// When the caller may not have it.
pub fn grant(
    caller: &Caller,
    asked: Option<&str>,
    trust_domain: &TrustDomain,
    placement: &dyn Placement,
) -> Result<SpiffeId, Refusal> {
    let asked = match asked {
        Some(asked) => asked.parse::<SpiffeId>().map_err(|error| Refusal::BadRequest(error.to_string()))?,
        None => return Ok(caller.identity.clone()),
    };
    if asked == caller.identity {
        return Ok(asked);
    }
    let refused = |why: String| Err(Refusal::NotAllowed(why));
    let Some(node) = caller.agent_of.as_deref() else {
        return refused(format!("{} is no node's agent, and may have its own identity only", caller.name));
    };
    if asked.trust_domain() != trust_domain {
        return refused(format!("{asked} is not of trust domain {trust_domain}"));
    }
    // Before any pattern is asked: `/node/*` written there by mistake must not let one node be another.
    if is_reserved(&asked) {
        return refused(format!("{asked} is no workload's identity"));
    }
    if !placement.runs_on(node, &asked) {
        return refused(format!("no workload with {asked} is known to run on node {node}"));
    }
    Ok(asked)
}

/// The service's own identity: no workload and no node can have it.
///
/// # Errors
/// When the trust domain's name is too long for it.
pub fn service_identity(trust_domain: &TrustDomain) -> Result<SpiffeId, crate::identity::SpiffeIdError> {
    format!("spiffe://{trust_domain}/ca").parse()
}

/// Whether an identity is a node's or this service's.
pub(super) fn is_reserved(id: &SpiffeId) -> bool {
    let first = id.path().split('/').nth(1);
    matches!(first, None | Some("" | "node" | "ca"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ca::callers::Proof;

    fn caller(identity: &str, agent_of: Option<&str>) -> Caller {
        Caller {
            name: identity.into(),
            proof: Proof::Certificate,
            identity: identity.parse().unwrap(),
            node: agent_of.map(Arc::from),
            agent_of: agent_of.map(Arc::from),
            pod: None,
            rate_key: identity.into(),
        }
    }

    #[test]
    fn a_caller_gets_its_own_identity_and_an_agent_those_of_its_node_only() {
        let domain: TrustDomain = "a.b".parse().unwrap();
        let pattern = |text: &str| text.parse().unwrap();
        let nodes = ConfiguredNodes::new(&[
            NodeConfig {
                name: "n1".into(),
                identities: vec![
                    pattern("spiffe://a.b/ns/shop/*"),
                    pattern("spiffe://a.b/node/*"),
                    pattern("spiffe://a.b/ca"),
                ],
            },
            NodeConfig { name: "n2".into(), identities: vec![pattern("spiffe://a.b/ns/bank/sa/teller")] },
        ]);
        let (web, n1) = ("spiffe://a.b/ns/shop/sa/web", "spiffe://a.b/node/n1");
        let mut wrong = Vec::new();
        for (identity, agent_of, asked, allowed) in [
            (web, None, None, Some(web)),
            (web, None, Some(web), Some(web)),
            (web, None, Some("spiffe://a.b/ns/shop/sa/other"), None),
            (n1, Some("n1"), None, Some(n1)),
            (n1, Some("n1"), Some(web), Some(web)),
            (n1, Some("n1"), Some("spiffe://a.b/ns/bank/sa/teller"), None),
            (n1, Some("n1"), Some("spiffe://a.b/node/n2"), None),
            (n1, Some("n1"), Some("spiffe://a.b/ca"), None),
            (n1, Some("n1"), Some("spiffe://a.c/ns/shop/sa/web"), None),
            (n1, Some("n1"), Some("spiffe://a.b"), None),
            (n1, Some("n1"), Some(""), None),
            (n1, Some("n1"), Some("web"), None),
            ("spiffe://a.b/node/n3", Some("n3"), Some(web), None),
        ] {
            let granted =
                grant(&caller(identity, agent_of), asked, &domain, &nodes).ok().map(|id| id.to_string());
            if granted.as_deref() != allowed {
                wrong.push(format!("{identity} asked for {asked:?} and got {granted:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
