//! Clients in rules that nobody can be, and what was left over from trying a policy out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Found, Lint};
use crate::policy::{
    AuthorizationPolicy, L4Request,
    api::Rule,
    connection::Connection,
    matcher::{self, Scope, Test},
};

/// What values of a list parse to.
type Parse<'r> = Box<dyn Fn(&[String]) -> Result<Test, String> + 'r>;

/// A list of a rule: where it is, and what each of its values parses to.
struct List<'r> {
    field: String,
    values: &'r [String],
    parse: Parse<'r>,
}

pub(super) fn dry_run(policy: &AuthorizationPolicy, found: &mut Vec<Found>) {
    if policy.dry_run {
        found.push(Found {
            check: "dry-run",
            field: "metadata.annotations".to_owned(),
            problem: "istio.io/dry-run: the policy is reported and never enforced".to_owned(),
            advice: "remove the annotation once the access log shows what you expect",
        });
    }
}

impl Lint<'_> {
    pub(super) fn unknown_clients(
        &self,
        policy: &AuthorizationPolicy,
        rule: &Rule,
        at: &str,
        found: &mut Vec<Found>,
    ) {
        let scope = Scope {
            namespace: &policy.namespace,
            trust_domains: self.facts.world.trust_domains(),
            forwarded: false,
        };
        for list in lists(rule, at, scope) {
            let strange = |value: &&String| {
                let test = (list.parse)(std::slice::from_ref(*value));
                test.is_ok_and(|test| self.asks_for_nobody(value, &test))
            };
            let nobody: Vec<_> = list.values.iter().filter(strange).map(String::as_str).collect();
            if !nobody.is_empty() {
                found.push(Found {
                    check: "unknown-client",
                    field: list.field.clone(),
                    problem: format!("no workload that this node knows is {}", nobody.join(", ")),
                    advice: "a principal is <trust domain>/ns/<namespace>/sa/<service account>, without spiffe://; \
                             meshctl workloads lists them",
                });
            }
        }
    }

    fn asks_for_nobody(&self, value: &str, test: &Test) -> bool {
        let world = self.facts.world;
        match test {
            // Workloads of other trust domains are not in the node's file.
            Test::Principal(_) => {
                let domain = value.split('/').next().unwrap_or_default();
                let ours = value.contains("://")
                    || domain == "cluster.local"
                    || world.trust_domains().iter().any(|td| td.as_str() == domain);
                if !ours && !domain.contains('*') && value.contains('/') {
                    return false;
                }
            }
            Test::Namespace(_) | Test::ServiceAccount(_) => {}
            _ => return false,
        }
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        !world.workloads().iter().any(|workload| {
            let client = L4Request { peer: Some(&workload.spiffe_id), src: nowhere, dst: nowhere, sni: None };
            test.matches(&Connection::new(&client, None))
        })
    }
}

fn lists<'r>(rule: &'r Rule, at: &str, scope: Scope<'r>) -> Vec<List<'r>> {
    let mut lists = Vec::new();
    for (i, from) in rule.from.iter().flatten().enumerate() {
        for field in matcher::source_fields(&from.source) {
            let Some(values) = field.values else { continue };
            lists.push(List {
                field: format!("{at}.from[{i}].source.{}", field.name),
                values,
                parse: Box::new(move |values| matcher::field_test(&field, values, &scope)),
            });
        }
    }
    for (i, condition) in rule.when.iter().flatten().enumerate() {
        for (name, values) in [("values", &condition.values), ("notValues", &condition.not_values)] {
            let Some(values) = values else { continue };
            lists.push(List {
                field: format!("{at}.when[{i}].{name}"),
                values,
                parse: Box::new(move |values| matcher::condition_test(&condition.key, values, &scope)),
            });
        }
    }
    lists
}
