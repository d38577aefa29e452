//! Tokens that are judged where they come and missed by nobody where they do not: Istio lets a request without a token pass
//! unless an `AuthorizationPolicy` demands one.

use super::{Found, Lint};
use crate::{
    policy::{
        RequestAuthentication, WorkloadPolicy,
        http::HttpTest,
        matcher::Test,
        rule::{CompiledRule, Term},
        targets::Services,
    },
    world::Workload,
};

impl Lint<'_> {
    pub(super) fn token_not_demanded(&self, request: &RequestAuthentication, found: &mut Vec<Found>) {
        let world = self.facts.world;
        let open = |workload: &&Workload| !asks_for_tokens(self.compiled.for_workload(workload.id));
        let names: Vec<_> = if request.targets.is_empty() {
            let selected = self.selected(&request.namespace, request.selector.as_ref());
            selected.filter(open).map(|w| w.name.to_string()).collect()
        } else {
            let services = Services::new(world, self.set);
            let behind = services.endpoints(&request.namespace, request.targets.iter());
            behind.filter_map(|id| world.workload(id)).filter(open).map(|w| w.name.to_string()).collect()
        };
        let Some(first) = names.first() else { return };
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        found.push(Found {
            check: "token-not-demanded",
            field: "spec.jwtRules".to_owned(),
            problem: format!("no rule of {first}{more} asks about tokens: a request without one passes"),
            advice: "add a DENY policy with notRequestPrincipals: [\"*\"], or requestPrincipals to the ALLOW rules",
        });
    }
}

fn asks_for_tokens(policy: &WorkloadPolicy) -> bool {
    let asks = |term: &Term| matches!(&term.test, Test::Http(HttpTest::Principal(_) | HttpTest::Claim(..)));
    let rule_asks = |rule: &CompiledRule| rule.from.iter().flatten().chain(&rule.when).any(asks);
    let enforced = policy.enforced.custom.iter().chain(&policy.enforced.deny).chain(&policy.enforced.allow);
    enforced.flat_map(|policy| &policy.rules).any(rule_asks)
}
