//! What becomes of `CUSTOM` policies whose external authorizer is missing or cannot be asked about everything: for people
//! only. Decisions ask for the authorizer itself.

use super::{
    PolicySet, PolicyStatus,
    api::{Action, Rule},
};

/// What an external authorizer can be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorizerKind {
    /// Requests and connections.
    Grpc,
    /// Requests.
    Http,
}

impl PolicySet {
    /// Adds to statuses, which are in the order of [`Self::status_in`], what the authorizers that there are make of
    /// CUSTOM policies.
    pub fn note_authorizers(
        &self,
        status: &mut [PolicyStatus],
        known: impl Fn(&str) -> Option<AuthorizerKind>,
    ) {
        let policies = status.iter_mut().filter(|status| status.kind == "AuthorizationPolicy");
        for (status, policy) in policies.zip(&self.authorization_policies) {
            let spec = &policy.spec;
            if spec.action != Some(Action::Custom) || policy.dry_run || !status.accepted {
                continue;
            }
            let name = spec.provider.as_ref().and_then(|p| p.name.as_deref()).unwrap_or_default();
            match known(name) {
                Some(AuthorizerKind::Grpc) => {}
                Some(AuthorizerKind::Http) => status.not_enforced.push(format!(
                    "{name} speaks HTTP and cannot be asked about connections that are not HTTP: what a rule matches is denied"
                )),
                None => status.not_enforced.push(format!(
                    "extensionProviders has no {name:?}: what a rule matches is denied"
                )),
            }
            let rules = spec.rules.iter().flatten().enumerate();
            for (i, _) in rules.filter(|(_, rule)| asks_for_token(rule)) {
                status.not_enforced.push(format!(
                    "rules[{i}] asks about a token: authorizers are asked before tokens are judged, so none is seen, as in Istio"
                ));
            }
        }
    }
}

fn asks_for_token(rule: &Rule) -> bool {
    let sources = rule.from.iter().flatten().map(|from| &from.source);
    let mut principals =
        sources.map(|s| s.request_principals.is_some() || s.not_request_principals.is_some());
    let mut keys = rule.when.iter().flatten().map(|condition| condition.key.starts_with("request.auth."));
    principals.any(|asks| asks) || keys.any(|asks| asks)
}
