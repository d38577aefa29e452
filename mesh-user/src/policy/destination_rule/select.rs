//! Which rule counts for a client and a host. Built when documents or world change; a connection only looks up.
//!
//! Looked for in the client's namespace, in the service's, in the root namespace, and in each the closest host first.
//! Rules of one host, namespace, export and selector are one rule, whose policy is that of the oldest that has any; one
//! with a selector comes before one without. Of several left, exported differently, the youngest counts, as in Istio.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{ClientTls, DestinationRule, TlsPolicy, host};
use crate::world::{Workload, World, WorldHost};

/// The TLS of a rule, for one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied<'a> {
    /// `namespace/name`.
    pub rule: &'a str,
    /// What it says.
    pub tls: &'a ClientTls,
}

/// All rules, ready to be looked up.
#[derive(Debug, Default)]
pub struct DestinationRules {
    root_namespace: Arc<str>,
    by_namespace: HashMap<Arc<str>, OfNamespace>,
    /// Those that say DISABLE.
    plaintext: Vec<DestinationRule>,
}

/// Rules of one namespace.
#[derive(Debug, Default)]
struct OfNamespace {
    exact: HashMap<String, Vec<Merged>>,
    /// The closest first.
    wildcards: Vec<(String, Vec<Merged>)>,
}

/// What several rules of one host make together.
#[derive(Debug)]
struct Merged {
    export_to: BTreeSet<String>,
    selector: Option<BTreeMap<String, String>>,
    /// Of the rule whose policy it is.
    rule: String,
    policy: Option<TlsPolicy>,
}

/// From where a rule is looked at.
#[derive(Clone, Copy)]
enum Seen<'a> {
    /// From its own namespace.
    Within(&'a str),
    /// From the root namespace, where only what is its own comes before the service's.
    OwnOnly(&'a str),
    /// From another namespace.
    From(&'a str),
}

impl DestinationRules {
    /// Makes `rules` ready for the hosts of `world`.
    pub(in crate::policy) fn new(world: &World, rules: &[DestinationRule]) -> Self {
        let mut sorted: Vec<_> = rules.iter().collect();
        let age = |rule: &&DestinationRule| {
            (rule.selector.is_none(), rule.created, Arc::clone(&rule.name), Arc::clone(&rule.namespace))
        };
        sorted.sort_by_cached_key(age);
        let mut by_namespace: HashMap<_, BTreeMap<String, Vec<Merged>>> = HashMap::new();
        for rule in sorted {
            let host = host::resolve(&rule.host, &rule.namespace, world.trust_domains());
            let of_namespace = by_namespace.entry(Arc::clone(&rule.namespace)).or_default();
            merge(of_namespace.entry(host).or_default(), rule);
        }
        let by_namespace =
            by_namespace.into_iter().map(|(namespace, hosts)| (namespace, OfNamespace::new(hosts)));
        Self {
            root_namespace: world.root_namespace().into(),
            by_namespace: by_namespace.collect(),
            plaintext: rules.iter().filter(|rule| rule.says_plaintext()).cloned().collect(),
        }
    }

    /// Whether a rule may have a client speak plaintext where its meshd would speak first otherwise.
    pub fn may_say_plaintext(&self, client: &Workload) -> bool {
        self.plaintext.iter().any(|rule| rule.may_concern(client))
    }

    /// What the rule that applies says about connections of `client` to a port of `to`; none: no rule applies, or it says
    /// nothing about TLS.
    pub fn find(&self, client: &Workload, to: &WorldHost<'_>, port: u16) -> Option<Applied<'_>> {
        if self.by_namespace.is_empty() {
            return None;
        }
        let own = client.namespace();
        let service = host::of(to);
        let of_service = match to {
            WorldHost::Service(service) => &*service.name.namespace,
            WorldHost::Outside(outside) => &*outside.namespace,
        };
        let root = &*self.root_namespace;
        let first = if own == root { Seen::OwnOnly(own) } else { Seen::Within(own) };
        let levels = [(own, first), (of_service, Seen::From(own)), (root, Seen::From(own))];
        let found = levels
            .into_iter()
            .find_map(|(namespace, seen)| self.by_namespace.get(namespace)?.find(&service, seen, client))?;
        let tls = found.policy.as_ref()?.of_port(port)?;
        Some(Applied { rule: &found.rule, tls })
    }
}

fn merge(merged: &mut Vec<Merged>, rule: &DestinationRule) {
    let same = |m: &&mut Merged| m.export_to == rule.export_to && m.selector == rule.selector;
    let name = format!("{}/{}", rule.namespace, rule.name);
    match merged.iter_mut().find(same) {
        Some(first) if first.policy.is_none() && rule.policy.is_some() => {
            first.policy.clone_from(&rule.policy);
            first.rule = name;
        }
        Some(_) => {}
        None => merged.push(Merged {
            export_to: rule.export_to.clone(),
            selector: rule.selector.clone(),
            rule: name,
            policy: rule.policy.clone(),
        }),
    }
}

impl OfNamespace {
    fn new(hosts: BTreeMap<String, Vec<Merged>>) -> Self {
        let mut all = Self::default();
        for (host, rules) in hosts {
            if host.starts_with('*') {
                all.wildcards.push((host, rules));
            } else {
                all.exact.insert(host, rules);
            }
        }
        all.wildcards.sort_by(|(a, _), (b, _)| host::closeness(a).cmp(&host::closeness(b)));
        all
    }

    fn find(&self, service: &str, seen: Seen<'_>, client: &Workload) -> Option<&Merged> {
        let wildcards = self.wildcards.iter().filter(|(rule, _)| host::matches(rule, service));
        let matching = self.exact.get(service).into_iter().chain(wildcards.map(|(_, rules)| rules));
        matching.into_iter().find_map(|rules| {
            let mut reaching = rules.iter().filter(|rule| rule.reaches(seen));
            let selecting = reaching.clone().find(|rule| rule.selects(client));
            selecting.or_else(|| reaching.rfind(|rule| rule.selector.is_none()))
        })
    }
}

impl Merged {
    fn reaches(&self, seen: Seen<'_>) -> bool {
        let to = |namespace: &str| self.export_to.contains(namespace);
        let is_public = self.export_to.is_empty() || to("*");
        match seen {
            Seen::From(client) => self.selector.is_none() && (is_public || to(client)),
            Seen::Within(own) => is_public || to(".") || to(own),
            Seen::OwnOnly(own) => {
                self.selector.is_some() || self.export_to.len() == 1 && (to(".") || to(own))
            }
        }
    }

    /// By its selector, which it has.
    fn selects(&self, client: &Workload) -> bool {
        self.selector.as_ref().is_some_and(|labels| client.has_labels(labels))
    }
}
