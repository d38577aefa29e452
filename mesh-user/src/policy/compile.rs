//! Documents -> what one workload needs: its modes, and the policies that select it with parsed matchers.
//! Runs when the world or the documents change, never per connection.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    AuthorizationPolicy, Mode, PeerAuthentication, PolicySet, RuleRef,
    api::{Action, ApiMode, MutualTls, Rule, WorkloadSelector},
    jwt_rules::{self, Applicable},
    matcher::{self, Scope, Test},
    namespaces::ByNamespace,
};
use crate::{
    jwt::JwtRule,
    world::{Workload, WorkloadId, World},
};

/// Policy of every workload in one world.
#[derive(Debug, Default)]
pub struct CompiledPolicies {
    workloads: Vec<Arc<WorkloadPolicy>>,
    closed: WorkloadPolicy,
}

impl CompiledPolicies {
    /// Compiles for every workload of `world`.
    pub fn compile(world: &World, set: &PolicySet) -> Self {
        let mut policies: Vec<_> =
            set.authorization_policies.iter().filter_map(|p| Policy::compile(world, p)).collect();
        policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut peers: Vec<_> = set.peer_authentications.iter().collect();
        peers.sort_by(|a, b| oldest_first(a, b));
        let root = world.root_namespace();
        let policies: Vec<_> = policies.into_iter().map(Arc::new).collect();
        let policies = ByNamespace::new(root, policies.iter().map(|p| (&*p.namespace, Arc::clone(p))));
        let peers = ByNamespace::new(root, peers.into_iter().map(|p| (&*p.namespace, p)));
        let requests = Applicable::by_namespace(world, &set.request_authentications);
        // Nothing else about a workload is asked: the replicas of a Deployment have one policy.
        let mut known = HashMap::new();
        let compile = |workload| {
            let selected_by: (&str, &BTreeMap<_, _>) = (Workload::namespace(workload), &workload.labels);
            let policy = || Arc::new(WorkloadPolicy::compile(workload, &peers, &policies, &requests));
            Arc::clone(known.entry(selected_by).or_insert_with(policy))
        };
        Self { workloads: world.workloads().iter().map(compile).collect(), closed: WorkloadPolicy::default() }
    }

    /// The policy of a workload of that world. An id of another world gets one that refuses everything.
    pub fn for_workload(&self, id: WorkloadId) -> &WorkloadPolicy {
        self.workloads.get(id.0 as usize).map_or(&self.closed, |policy| policy)
    }
}

/// On conflict the oldest counts, then the one whose name sorts first (pilot `sortConfigByCreationTime`).
fn oldest_first(a: &PeerAuthentication, b: &PeerAuthentication) -> Ordering {
    (a.created, &a.name, &a.namespace).cmp(&(b.created, &b.name, &b.namespace))
}

/// Policy of one workload.
#[derive(Debug)]
pub struct WorkloadPolicy {
    pub(super) mode: Mode,
    pub(super) port_modes: BTreeMap<u16, Mode>,
    /// The documents that set the modes, for people.
    pub(super) mode_sources: Vec<String>,
    pub(super) custom: Vec<Arc<Policy>>,
    pub(super) deny: Vec<Arc<Policy>>,
    pub(super) allow: Vec<Arc<Policy>>,
    /// By issuer.
    requests: Arc<[Arc<JwtRule>]>,
}

impl Default for WorkloadPolicy {
    /// Refuses everything: STRICT, and an ALLOW policy without a rule.
    fn default() -> Self {
        let nothing = Policy {
            namespace: "".into(),
            name: "unknown workload".into(),
            action: Action::Allow,
            rules: Vec::new(),
            labels: BTreeMap::new(),
        };
        Self {
            mode: Mode::Strict,
            port_modes: BTreeMap::new(),
            mode_sources: Vec::new(),
            custom: Vec::new(),
            deny: Vec::new(),
            allow: vec![Arc::new(nothing)],
            requests: Arc::default(),
        }
    }
}

impl WorkloadPolicy {
    fn compile(
        workload: &Workload,
        peers: &ByNamespace<'_, &PeerAuthentication>,
        policies: &ByNamespace<'_, Arc<Policy>>,
        requests: &ByNamespace<'_, Applicable<'_>>,
    ) -> Self {
        let applies = |action| {
            let reaching = policies.reaching(workload.namespace());
            reaching.filter(|p| p.action == action && workload.has_labels(&p.labels)).cloned().collect()
        };
        let mut policy = Self {
            mode: Mode::Permissive,
            port_modes: BTreeMap::new(),
            mode_sources: Vec::new(),
            custom: applies(Action::Custom),
            deny: applies(Action::Deny),
            allow: applies(Action::Allow),
            requests: jwt_rules::of_workload(workload, requests),
        };
        policy.set_modes(workload, peers);
        policy
    }

    /// Mesh, then namespace, then workload; each level only if it is set (pilot `ComposePeerAuthentication`).
    /// In the root namespace a policy with a selector applies to nothing.
    fn set_modes(&mut self, workload: &Workload, peers: &ByNamespace<'_, &PeerAuthentication>) {
        let mesh = peers.of_mesh().iter().find(|p| selector(p).is_none());
        let local = peers.below_root(workload.namespace());
        let namespace = local.iter().find(|p| selector(p).is_none());
        let own = local.iter().find(|p| selector(p).is_some_and(|l| workload.has_labels(l)));
        for peer in [mesh, namespace, own].into_iter().flatten() {
            if let Some(mode) = mode(peer.spec.mtls) {
                self.mode = mode;
                self.mode_sources = vec![format!("PeerAuthentication {}/{}", peer.namespace, peer.name)];
            }
        }
        let ports = own.and_then(|p| p.spec.port_level_mtls.as_ref());
        for (port, mtls) in ports.into_iter().flatten() {
            self.port_modes.insert(*port, mode(*mtls).unwrap_or(self.mode));
        }
        if let Some(own) = own.filter(|_| !self.port_modes.is_empty()) {
            self.mode_sources.push(format!("PeerAuthentication {}/{} (ports)", own.namespace, own.name));
        }
    }

    /// Peer authentication of the workload's own port.
    pub fn mode(&self, port: u16) -> Mode {
        self.port_modes.get(&port).copied().unwrap_or(self.mode)
    }

    /// All rules on requests' tokens that apply, for [`crate::jwt::authenticate`]; empty: tokens are not looked at.
    pub fn request_authentication(&self) -> &Arc<[Arc<JwtRule>]> {
        &self.requests
    }

    /// The mode of every port without one of its own.
    pub fn default_mode(&self) -> Mode {
        self.mode
    }

    /// Ports with a mode of their own.
    pub fn port_modes(&self) -> &BTreeMap<u16, Mode> {
        &self.port_modes
    }
}

fn mode(mtls: Option<MutualTls>) -> Option<Mode> {
    match mtls?.mode? {
        ApiMode::Unset => None,
        ApiMode::Disable => Some(Mode::Disable),
        ApiMode::Permissive => Some(Mode::Permissive),
        ApiMode::Strict => Some(Mode::Strict),
    }
}

fn selector(policy: &PeerAuthentication) -> Option<&BTreeMap<String, String>> {
    labels(policy.spec.selector.as_ref())
}

/// The labels a selector asks for; none: it selects the whole namespace.
pub(super) fn labels(selector: Option<&WorkloadSelector>) -> Option<&BTreeMap<String, String>> {
    selector.and_then(|s| s.match_labels.as_ref()).filter(|l| !l.is_empty())
}

/// A compiled `AuthorizationPolicy`.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) action: Action,
    pub(super) rules: Vec<CompiledRule>,
    labels: BTreeMap<String, String>,
}

impl Policy {
    /// None: it never takes part in a decision on TCP.
    fn compile(world: &World, policy: &AuthorizationPolicy) -> Option<Self> {
        let action = policy.spec.action.unwrap_or(Action::Allow);
        if action == Action::Audit || matcher::targets_only_proxies(&policy.spec) {
            return None;
        }
        let scope = Scope { namespace: &policy.namespace, trust_domains: world.trust_domains() };
        let rules = policy.spec.rules.iter().flatten().enumerate();
        Some(Self {
            rules: rules.map(|(i, rule)| CompiledRule::new(policy, i, rule, action, &scope)).collect(),
            namespace: Arc::clone(&policy.namespace),
            name: Arc::clone(&policy.name),
            action,
            labels: labels(policy.spec.selector.as_ref()).cloned().unwrap_or_default(),
        })
    }
}

/// A rule: one of `from`, one of `to`, all of `when`. An empty list matches.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) reference: RuleRef,
    /// HTTP fields of an ALLOW rule: on TCP it never matches.
    pub(super) never: Vec<String>,
    pub(super) from: Vec<Vec<Term>>,
    pub(super) to: Vec<Vec<Term>>,
    pub(super) when: Vec<Term>,
}

/// One list of values against the connection.
#[derive(Debug)]
pub(super) struct Term {
    /// Field or key as written, for people.
    pub(super) name: String,
    pub(super) values: Vec<String>,
    pub(super) negated: bool,
    pub(super) test: Test,
}

impl CompiledRule {
    fn new(
        policy: &AuthorizationPolicy,
        index: usize,
        rule: &Rule,
        action: Action,
        scope: &Scope<'_>,
    ) -> Self {
        let reference =
            RuleRef { namespace: Arc::clone(&policy.namespace), name: Arc::clone(&policy.name), rule: index };
        let mut never = if action == Action::Allow { matcher::http_fields(rule) } else { Vec::new() };
        let mut terms =
            |fields: &mut dyn Iterator<Item = (String, bool, &Vec<String>, Result<Test, String>)>| {
                let mut terms = Vec::new();
                for (name, negated, values, test) in fields {
                    match test {
                        // An ALLOW rule is in `never` then; DENY and CUSTOM ignore what they cannot see.
                        Ok(Test::Http) => {}
                        Ok(test) => terms.push(Term { name, values: values.clone(), negated, test }),
                        // Validation refuses these; a set built by hand fails closed: ALLOW never, DENY wider.
                        Err(what) if action == Action::Allow => never.push(what),
                        Err(_) => {}
                    }
                }
                terms
            };
        let mut field_terms = |fields: &mut dyn Iterator<Item = matcher::Field<'_>>| {
            terms(&mut fields.filter_map(|f| {
                let values = f.values?;
                Some((f.name.to_owned(), f.negated, values, matcher::field_test(&f, values, scope)))
            }))
        };
        let from = rule.from.iter().flatten();
        let from = from.map(|f| field_terms(&mut matcher::source_fields(&f.source))).collect();
        let to = rule.to.iter().flatten();
        let to = to.map(|t| field_terms(&mut matcher::operation_fields(&t.operation))).collect();
        let when = terms(&mut rule.when.iter().flatten().flat_map(|c| {
            [(false, c.values.as_ref()), (true, c.not_values.as_ref())].into_iter().filter_map(
                |(negated, values)| {
                    let values = values?;
                    Some((c.key.clone(), negated, values, matcher::condition_test(&c.key, values, scope)))
                },
            )
        }));
        Self { reference, never, from, to, when }
    }
}
