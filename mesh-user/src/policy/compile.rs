//! Documents -> what one workload needs: its modes, and the policies that select it with parsed matchers.
//! Runs when the world or the documents change, never per connection.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    AuthorizationPolicy, Mode, PeerAuthentication, PolicySet,
    api::{Action, ApiMode, MutualTls, WorkloadSelector},
    destination_rule::DestinationRules,
    http::ForwardedFor,
    jwt_rules::{self, Applicable},
    matcher::Scope,
    namespaces::ByNamespace,
    ports::PortSet,
    rule::CompiledRule,
    targets::{self, Services},
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
    destination_rules: DestinationRules,
    forwarded_for: ForwardedFor,
}

impl CompiledPolicies {
    /// Compiles for every workload of `world`.
    pub fn compile(world: &World, set: &PolicySet) -> Self {
        let mut policies: Vec<_> =
            set.authorization_policies.iter().filter_map(|p| Policy::compile(world, p)).collect();
        policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let services = Services::new(world, set);
        let attached = attach(&services, set, &mut policies);
        let mut peers: Vec<_> = set.peer_authentications.iter().collect();
        peers.sort_by(|a, b| oldest_first(a, b));
        let root = world.root_namespace();
        let policies: Vec<_> = policies.into_iter().map(Arc::new).collect();
        let policies = ByNamespace::new(root, policies.iter().map(|p| (&*p.namespace, Arc::clone(p))));
        let peers = ByNamespace::new(root, peers.into_iter().map(|p| (&*p.namespace, p)));
        let requests = Applicable::by_namespace(world, &services, &set.request_authentications);
        // Nothing else about a workload is asked: the replicas of a Deployment have one policy.
        let mut known = HashMap::new();
        let compile = |workload| {
            let workload: &Workload = workload;
            let attached = attached.get(&workload.id).map_or(&[][..], Vec::as_slice);
            let selected_by: (&str, &BTreeMap<_, _>, _) =
                (Workload::namespace(workload), &workload.labels, attached);
            let policy =
                || Arc::new(WorkloadPolicy::compile(workload, attached, &peers, &policies, &requests));
            Arc::clone(known.entry(selected_by).or_insert_with(policy))
        };
        Self {
            workloads: world.workloads().iter().map(compile).collect(),
            closed: WorkloadPolicy::default(),
            destination_rules: DestinationRules::new(world, &set.destination_rules),
            forwarded_for: ForwardedFor::new(world.forwarded_for(), world.trust_domains()),
        }
    }

    /// Who the original clients of requests are.
    pub fn forwarded_for(&self) -> &ForwardedFor {
        &self.forwarded_for
    }

    /// How clients' connections to hosts are secured.
    pub fn destination_rules(&self) -> &DestinationRules {
        &self.destination_rules
    }

    /// The policy of a workload of that world. An id of another world gets one that refuses everything.
    pub fn for_workload(&self, id: WorkloadId) -> &WorkloadPolicy {
        self.workloads.get(id.0 as usize).map_or(&self.closed, |policy| policy)
    }
}

/// Behind a document that sets the mode of single ports.
const PORTS: &str = " (ports)";

/// Numbers the policies, which are sorted, and says which of them each workload has by `targetRefs`.
fn attach(
    services: &Services<'_>,
    set: &PolicySet,
    policies: &mut [Policy],
) -> HashMap<WorkloadId, Vec<usize>> {
    for (number, policy) in policies.iter_mut().enumerate() {
        policy.number = number;
    }
    let mut attached: HashMap<_, Vec<_>> = HashMap::new();
    for policy in set.authorization_policies.iter().filter(|p| targets::is_attached(&p.spec)) {
        let key = (&policy.namespace, &policy.name);
        let Ok(number) = policies.binary_search_by(|p| (&p.namespace, &p.name).cmp(&key)) else { continue };
        for workload in services.endpoints(&policy.namespace, targets::refs(&policy.spec)) {
            attached.entry(workload).or_default().push(number);
        }
    }
    for numbers in attached.values_mut() {
        numbers.sort_unstable();
        numbers.dedup();
    }
    attached
}

/// On conflict the oldest counts, then the one whose name sorts first (pilot `sortConfigByCreationTime`).
pub(super) fn oldest_first(a: &PeerAuthentication, b: &PeerAuthentication) -> Ordering {
    (a.created, &a.name, &a.namespace).cmp(&(b.created, &b.name, &b.namespace))
}

/// Policies that select one workload, by action, each list sorted by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Actions {
    pub(super) custom: Vec<Arc<Policy>>,
    pub(super) deny: Vec<Arc<Policy>>,
    pub(super) allow: Vec<Arc<Policy>>,
    pub(super) audit: Vec<Arc<Policy>>,
}

impl Actions {
    fn new<'a>(policies: impl Iterator<Item = &'a Arc<Policy>>) -> Self {
        let mut actions = Self::default();
        for policy in policies {
            let of_action = match policy.action {
                Action::Custom => &mut actions.custom,
                Action::Deny => &mut actions.deny,
                Action::Allow => &mut actions.allow,
                Action::Audit => &mut actions.audit,
            };
            of_action.push(Arc::clone(policy));
        }
        actions
    }

    /// In the order they are considered; AUDIT, which decides nothing, at the end.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.custom.iter().chain(&self.deny).chain(&self.allow).chain(&self.audit)
    }

    fn http_ports(&self) -> PortSet {
        let rules =
            self.all().flat_map(|policy| policy.rules.iter().map(|rule| rule.http_ports(policy.action)));
        rules.fold(PortSet::default(), PortSet::union)
    }
}

/// Policy of one workload.
#[derive(Debug)]
pub struct WorkloadPolicy {
    pub(super) mode: Mode,
    pub(super) port_modes: BTreeMap<u16, Mode>,
    /// The documents that set the modes, for people.
    pub(super) mode_sources: Vec<String>,
    pub(super) enforced: Actions,
    /// `istio.io/dry-run`; none: there are none.
    pub(super) dry_run: Option<Box<Actions>>,
    /// Where an answer depends on the request.
    http_ports: PortSet,
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
            provider: "".into(),
            dry_run: false,
            rules: Vec::new(),
            labels: BTreeMap::new(),
            attached: false,
            number: 0,
        };
        Self {
            mode: Mode::Strict,
            port_modes: BTreeMap::new(),
            mode_sources: Vec::new(),
            enforced: Actions { allow: vec![Arc::new(nothing)], ..Actions::default() },
            dry_run: None,
            http_ports: PortSet::default(),
            requests: Arc::default(),
        }
    }
}

impl WorkloadPolicy {
    fn compile(
        workload: &Workload,
        attached: &[usize],
        peers: &ByNamespace<'_, &PeerAuthentication>,
        policies: &ByNamespace<'_, Arc<Policy>>,
        requests: &ByNamespace<'_, Applicable<'_>>,
    ) -> Self {
        let applies = |p: &&Arc<Policy>| {
            if p.attached {
                attached.binary_search(&p.number).is_ok()
            } else {
                workload.has_labels(&p.labels)
            }
        };
        let reaching = || policies.reaching(workload.namespace()).filter(applies);
        let enforced = Actions::new(reaching().filter(|p| !p.dry_run));
        let dry_run = Actions::new(reaching().filter(|p| p.dry_run));
        let watched = dry_run.all().next().is_some();
        let mut policy = Self {
            mode: Mode::Permissive,
            port_modes: BTreeMap::new(),
            mode_sources: Vec::new(),
            http_ports: enforced.http_ports().union(dry_run.http_ports()),
            enforced,
            dry_run: watched.then(|| Box::new(dry_run)),
            requests: jwt_rules::of_workload(workload, requests),
        };
        policy.set_modes(workload, peers);
        policy
    }

    /// Whether what may happen at the workload's own port depends on the request: an ALLOW, DENY or AUDIT rule
    /// that can match there asks for HTTP, or a CUSTOM rule can match there. Dry-run policies count: they are to
    /// be evaluated as they would be.
    pub fn needs_http(&self, port: u16) -> bool {
        self.http_ports.contains(port)
    }

    /// Whether requests at the workload's own port have to be read: a rule asks about them, or their tokens are judged.
    pub fn inspects_requests(&self, port: u16) -> bool {
        self.needs_http(port) || !self.requests.is_empty()
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
            self.mode_sources.push(format!("PeerAuthentication {}/{}{PORTS}", own.namespace, own.name));
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

    /// The document that set the port's mode, as `PeerAuthentication namespace/name`; none: the default.
    pub fn mode_source(&self, port: u16) -> Option<&str> {
        let of_ports = self.mode_sources.last().and_then(|s| s.strip_suffix(PORTS));
        let whole = || self.mode_sources.first().map(String::as_str).filter(|s| !s.ends_with(PORTS));
        if self.port_modes.contains_key(&port) { of_ports } else { whole() }
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

pub(super) fn selector(policy: &PeerAuthentication) -> Option<&BTreeMap<String, String>> {
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
    /// Of CUSTOM.
    pub(super) provider: Arc<str>,
    pub(super) dry_run: bool,
    pub(super) rules: Vec<CompiledRule>,
    labels: BTreeMap<String, String>,
    /// By `targetRefs`, so that labels do not count.
    attached: bool,
    /// Its place among all that are compiled.
    number: usize,
}

impl Policy {
    /// None: it never takes part in a decision.
    fn compile(world: &World, policy: &AuthorizationPolicy) -> Option<Self> {
        if targets::only_proxies(targets::refs(&policy.spec)) {
            return None;
        }
        let action = policy.spec.action.unwrap_or(Action::Allow);
        let scope = Scope {
            namespace: &policy.namespace,
            trust_domains: world.trust_domains(),
            forwarded: !world.forwarded_for().trusted_principals.is_empty(),
        };
        let rules = policy.spec.rules.iter().flatten().enumerate();
        let provider = policy.spec.provider.as_ref().and_then(|p| p.name.as_deref());
        Some(Self {
            rules: rules.map(|(i, rule)| CompiledRule::new(policy, i, rule, action, &scope)).collect(),
            namespace: Arc::clone(&policy.namespace),
            name: Arc::clone(&policy.name),
            action,
            provider: provider.unwrap_or_default().into(),
            dry_run: policy.dry_run,
            labels: labels(policy.spec.selector.as_ref()).cloned().unwrap_or_default(),
            attached: targets::is_attached(&policy.spec),
            number: 0,
        })
    }
}
