//! A rule of a policy with its values parsed, and whether it matches. One form serves both kinds of decision: on
//! TCP, HTTP's part of a rule is ignored, and an ALLOW rule that has one never matches.

use std::sync::Arc;

use super::{
    AuthorizationPolicy, RuleRef,
    api::{Action, Rule},
    connection::Connection,
    http::HttpTest,
    matcher::{self, Scope, Test},
    ports::PortSet,
};

/// A rule: one of `from`, one of `to`, all of `when`. An empty list matches.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) reference: RuleRef,
    /// What of an ALLOW rule cannot be evaluated: it never matches.
    pub(super) never: Vec<String>,
    /// HTTP fields of an ALLOW rule: it never matches on TCP.
    pub(super) never_on_tcp: Vec<String>,
    pub(super) from: Vec<Vec<Term>>,
    pub(super) to: Vec<Vec<Term>>,
    pub(super) when: Vec<Term>,
    /// Who the original client is depends on the request.
    forwarded: bool,
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

/// A list as written, and what it parsed to.
type Parsed<'a> = (String, bool, &'a Vec<String>, Result<Test, String>);

impl CompiledRule {
    pub(super) fn new(
        policy: &AuthorizationPolicy,
        index: usize,
        rule: &Rule,
        action: Action,
        scope: &Scope<'_>,
    ) -> Self {
        let reference =
            RuleRef { namespace: Arc::clone(&policy.namespace), name: Arc::clone(&policy.name), rule: index };
        let allow = action == Action::Allow;
        let mut never = Vec::new();
        let mut terms = |lists: &mut dyn Iterator<Item = Parsed<'_>>| {
            let mut terms = Vec::new();
            for (name, negated, values, test) in lists {
                match test {
                    // Fails closed: ALLOW never matches, the others match more.
                    Ok(Test::Http(HttpTest::Unsupported)) if allow => never.push(name),
                    Ok(Test::Http(HttpTest::Unsupported)) => {}
                    Ok(test) => terms.push(Term { name, values: values.clone(), negated, test }),
                    // Validation refuses these; a set built by hand comes here.
                    Err(what) if allow => never.push(what),
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
            let lists = [(false, c.values.as_ref()), (true, c.not_values.as_ref())];
            lists.into_iter().filter_map(|(negated, values)| {
                let values = values?;
                Some((c.key.clone(), negated, values, matcher::condition_test(&c.key, values, scope)))
            })
        }));
        let never_on_tcp = if allow { matcher::http_fields(rule) } else { Vec::new() };
        Self { reference, never, never_on_tcp, from, to, when, forwarded: scope.forwarded }
    }

    pub(super) fn matches(&self, connection: &Connection<'_>) -> bool {
        let all = |terms: &[Term]| terms.iter().all(|t| t.matches(connection));
        let one = |groups: &[Vec<Term>]| groups.is_empty() || groups.iter().any(|g| all(g));
        let can_match = self.never.is_empty() && (connection.http.is_some() || self.never_on_tcp.is_empty());
        can_match && one(&self.from) && one(&self.to) && all(&self.when)
    }

    /// The ports where what the rule says depends on the request: where it can match at all, and asks for HTTP or
    /// for an external authorizer. Of an ALLOW rule any HTTP field counts, since on TCP it takes the whole rule
    /// away; else only what is asked together with that port.
    pub(super) fn http_ports(&self, action: Action) -> PortSet {
        let asks = |terms: &[Term]| {
            terms.iter().any(|term| match term.test {
                Test::Http(_) => true,
                Test::RemoteIp(_) => self.forwarded,
                _ => false,
            })
        };
        let when = ports(&self.when);
        if !self.never.is_empty() || when.is_empty() {
            return PortSet::default();
        }
        let all_of_it = action == Action::Custom
            || !self.never_on_tcp.is_empty()
            || asks(&self.when)
            || self.from.iter().any(|group| asks(group));
        if self.to.is_empty() {
            return if all_of_it { when } else { PortSet::default() };
        }
        let groups = self.to.iter().filter(|group| all_of_it || asks(group));
        groups.map(|group| ports(group)).fold(PortSet::default(), PortSet::union).intersection(when)
    }
}

/// The destination ports at which all of the terms can match.
fn ports(terms: &[Term]) -> PortSet {
    terms.iter().fold(PortSet::all(), |set, term| match &term.test {
        Test::DestinationPort(ports) => {
            let ports = ports.iter().copied().collect();
            set.intersection(if term.negated { PortSet::AllBut(ports) } else { PortSet::Only(ports) })
        }
        _ => set,
    })
}

impl Term {
    /// A negated list matches when none of its values does: also when the connection lacks the attribute.
    pub(super) fn matches(&self, connection: &Connection<'_>) -> bool {
        if let (Test::RemoteIp(_), Some(assumed)) = (&self.test, connection.assumed_client()) {
            return assumed;
        }
        if let Test::Http(test) = &self.test {
            if connection.http.is_none() {
                return true;
            }
            if let Some(assumed) = connection.assumed(test) {
                return assumed;
            }
        }
        self.test.matches(connection) != self.negated
    }
}
