//! What rules say of requests, where HTTP leaves a way around it: other spellings of a path or host, what a `not` list lets
//! through, and connections that are no HTTP at all.

use super::{Found, Lint, action};
use crate::policy::{
    AuthorizationPolicy,
    api::{Action, Operation, Rule},
    http::{Normalization, PathTemplate},
    matcher, targets,
};

impl Lint<'_> {
    pub(super) fn requests(
        &self,
        policy: &AuthorizationPolicy,
        rule: &Rule,
        at: &str,
        found: &mut Vec<Found>,
    ) {
        let action = action(policy);
        for (i, to) in rule.to.iter().flatten().enumerate() {
            let at = format!("{at}.to[{i}].operation");
            if action == Action::Deny {
                self.denied_paths(&to.operation, &at, found);
                self.left_open(policy, &to.operation, &at, found);
            }
            if matches!(action, Action::Deny | Action::Allow) {
                hosts_without_port(&to.operation, action, &at, found);
            }
        }
        self.not_http(policy, rule, at, found);
    }

    fn denied_paths(&self, operation: &Operation, at: &str, found: &mut Vec<Found>) {
        let Some(paths) = &operation.paths else { return };
        let field = format!("{at}.paths");
        if self.facts.normalization == Normalization::None {
            found.push(Found {
                check: "paths-not-normalized",
                field: field.clone(),
                problem: "pathNormalization is NONE: /x/../admin and /%61dmin pass a DENY rule on /admin".to_owned(),
                advice: "set pathNormalization.normalization to BASE or more, or allow paths instead of denying them",
            });
        }
        let is_exact = |path: &&String| {
            !path.contains('*') && !PathTemplate::is_template(path) && !path.ends_with('/') && path.len() > 1
        };
        let covered = |path: &String| {
            let below = format!("{path}/");
            paths.iter().any(|other| {
                *other == below || other.strip_suffix('*').is_some_and(|prefix| below.starts_with(prefix))
            })
        };
        let open: Vec<_> =
            paths.iter().filter(is_exact).filter(|p| !covered(p)).map(String::as_str).collect();
        if let Some(first) = open.first() {
            found.push(Found {
                check: "exact-path-denied",
                field,
                problem: format!(
                    "{} denied exactly: {first}/ is another path, and many applications answer it alike",
                    if open.len() == 1 { format!("{first} is") } else { format!("{} are", open.join(", ")) }
                ),
                advice: "list the path with a slash and with /* behind it too, or allow paths instead of denying them",
            });
        }
    }

    /// A DENY rule leaves alone what its `not` lists name.
    fn left_open(
        &self,
        policy: &AuthorizationPolicy,
        operation: &Operation,
        at: &str,
        found: &mut Vec<Found>,
    ) {
        for (i, path) in operation.not_paths.iter().flatten().enumerate() {
            let suffix = path.strip_prefix('*').filter(|suffix| !suffix.is_empty());
            let prefix = path.strip_suffix('*').filter(|prefix| !prefix.is_empty() && !prefix.ends_with('/'));
            let example = match (suffix, prefix) {
                (Some(suffix), _) => format!("/admin/x{suffix}"),
                (None, Some(prefix)) => format!("{prefix}-admin"),
                (None, None) => continue,
            };
            found.push(Found {
                check: "not-paths-too-wide",
                field: format!("{at}.notPaths[{i}]"),
                problem: format!("{path} leaves {example} open too"),
                advice: "end a prefix with /*, and name files one by one",
            });
        }
        let lists = [("notPaths", &operation.not_paths), ("notMethods", &operation.not_methods)];
        for (name, values) in lists {
            let Some(values) = values else { continue };
            let unguarded =
                |w: &&crate::world::Workload| self.compiled.for_workload(w.id).enforced.allow.is_empty();
            let selected = self.selected(&policy.namespace, policy.spec.selector.as_ref());
            let attached = targets::is_attached(&policy.spec);
            if let Some(workload) = selected.filter(|_| !attached).find(unguarded) {
                found.push(Found {
                    check: "not-list-open-to-all",
                    field: format!("{at}.{name}"),
                    problem: format!(
                        "{} is left open to everybody at {}, which has no ALLOW policy",
                        values.join(", "),
                        workload.name
                    ),
                    advice: "say in an ALLOW policy who may use what this rule leaves alone",
                });
            }
        }
    }

    /// On TCP an ALLOW rule with HTTP fields never matches, and other rules match whatever these say.
    fn not_http(&self, policy: &AuthorizationPolicy, rule: &Rule, at: &str, found: &mut Vec<Found>) {
        let fields = matcher::http_fields(rule);
        if fields.is_empty() {
            return;
        }
        let ports = asked_ports(rule);
        let effect = match action(policy) {
            Action::Allow => "the rule never matches there",
            Action::Deny | Action::Custom => {
                "they are ignored there, and all that the rest of the rule matches is denied"
            }
            Action::Audit => "they are ignored there, and more is reported",
        };
        let names = fields.join(", ");
        for workload in self.selected(&policy.namespace, policy.spec.selector.as_ref()) {
            let silent = self.ports_without_http(workload);
            let hit = silent.iter().find(|(port, _)| ports.as_ref().is_none_or(|asked| asked.contains(port)));
            if let Some((port, why)) = hit {
                found.push(Found {
                    check: "http-fields-on-tcp",
                    field: at.to_owned(),
                    problem: format!("{names}: port {port} of {} speaks no HTTP ({why}); {effect}", workload.name),
                    advice: "name the HTTP ports in the rule's ports, and write rules without HTTP fields for the others",
                });
                return;
            }
        }
        if action(policy) == Action::Deny && ports.is_none() {
            found.push(Found {
                check: "http-deny-on-every-port",
                field: at.to_owned(),
                problem: format!("{names}: the rule names no ports, and at one that speaks no HTTP {effect}"),
                advice: "name the HTTP ports in the rule's ports",
            });
        }
    }
}

/// The ports that a rule is for; none: all, or all but some.
fn asked_ports(rule: &Rule) -> Option<Vec<u16>> {
    let parsed = |ports: &Vec<String>| ports.iter().filter_map(|p| p.parse().ok()).collect::<Vec<u16>>();
    let when =
        rule.when.iter().flatten().filter(|c| c.key == "destination.port").find_map(|c| c.values.as_ref());
    if let Some(ports) = when {
        return Some(parsed(ports));
    }
    let operations: Vec<_> =
        rule.to.iter().flatten().map(|to| to.operation.ports.as_ref().map(parsed)).collect();
    if operations.is_empty() {
        return None;
    }
    operations.into_iter().collect::<Option<Vec<_>>>().map(|ports| ports.concat())
}

fn hosts_without_port(operation: &Operation, action: Action, at: &str, found: &mut Vec<Found>) {
    for (name, hosts) in [("hosts", &operation.hosts), ("notHosts", &operation.not_hosts)] {
        let Some(hosts) = hosts else { continue };
        let bare = |host: &&String| {
            let without_port = host.strip_prefix('[').map_or(!host.contains(':'), |v6| v6.ends_with(']'));
            without_port && !host.ends_with('*') && !host.is_empty()
        };
        let covered = |host: &String| {
            let with_port = format!("{}:", host.to_ascii_lowercase());
            hosts.iter().any(|other| {
                let other = other.to_ascii_lowercase();
                other.starts_with(&with_port)
                    || other.strip_suffix('*').is_some_and(|prefix| with_port.starts_with(prefix))
            })
        };
        let open: Vec<_> = hosts.iter().filter(bare).filter(|h| !covered(h)).map(String::as_str).collect();
        if let Some(first) = open.first() {
            let effect = match (action, name) {
                (Action::Deny, "hosts") | (Action::Allow, "notHosts") => "passes",
                _ => "is refused",
            };
            found.push(Found {
                check: "host-without-port",
                field: format!("{at}.{name}"),
                problem: format!(
                    "{}: a request to {first}:PORT carries the port in its host and {effect}",
                    open.join(", ")
                ),
                advice: "list each host with :* behind it too",
            });
        }
    }
}
