//! The verdict: mode first, then CUSTOM, DENY, ALLOW, as Istio orders them; for a connection that is decided as
//! TCP, and for a request. Nothing that is to be reported only, AUDIT and dry runs, is looked at here.

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::Serialize;

use super::{
    DenyReason, L4Request, Mode, RuleRef, Verdict, WorkloadPolicy,
    compile::{Actions, Policy},
    connection::Connection,
    http::HttpRequest,
};

/// The answer for a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "camelCase")]
pub enum HttpVerdict {
    /// Pass it on.
    Allow {
        /// The ALLOW rule that matched; none: no ALLOW policy applies to the workload.
        rule: Option<RuleRef>,
    },
    /// Refuse it: 403 `RBAC: access denied`, for gRPC status 7.
    Deny {
        /// Why.
        reason: DenyReason,
    },
    /// Ask an external authorizer. Where all of [`WorkloadPolicy::authorizer_after`] allow the request,
    /// [`WorkloadPolicy::decide_authorized`] goes on.
    Custom {
        /// Its name in `meshConfig.extensionProviders`. A caller that does not know it denies the request.
        provider: Arc<str>,
        /// The rule that asks for it.
        rule: RuleRef,
    },
}

impl HttpVerdict {
    /// Whether the request may proceed without asking anybody.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

impl From<Verdict> for HttpVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow { rule } => Self::Allow { rule },
            Verdict::Deny { reason } => Self::Deny { reason },
        }
    }
}

impl fmt::Display for HttpVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow { rule } => Verdict::Allow { rule: rule.clone() }.fmt(f),
            Self::Deny { reason } => write!(f, "denied: {reason}"),
            Self::Custom { provider, rule } => write!(f, "{rule} asks {provider}"),
        }
    }
}

impl WorkloadPolicy {
    /// Whether the connection may reach the workload, decided as TCP. Allocates nothing but a deny's or allow's
    /// two reference counts.
    pub fn decide(&self, request: &L4Request<'_>) -> Verdict {
        if self.is_strict_plaintext(request) {
            return Verdict::Deny { reason: DenyReason::StrictPlaintext };
        }
        connection_verdict(&[&self.enforced], &Connection::new(request, None))
    }

    /// Whether a request on a connection may reach the workload, or the first external authorizer that has to be asked.
    pub fn decide_http(&self, connection: &L4Request<'_>, request: &HttpRequest<'_>) -> HttpVerdict {
        if self.is_strict_plaintext(connection) {
            return HttpVerdict::Deny { reason: DenyReason::StrictPlaintext };
        }
        request_verdict(&[&self.enforced], &Connection::new(connection, Some(request)))
    }

    /// The external authorizer to ask after `asked`, or first, and the rule that wants it: in the order of their names,
    /// as Istio chains its filters, each once. Without a request the connection is decided as TCP. None where STRICT
    /// refuses the connection anyway.
    pub fn authorizer_after(
        &self,
        asked: Option<&str>,
        connection: &L4Request<'_>,
        request: Option<&HttpRequest<'_>>,
    ) -> Option<(Arc<str>, RuleRef)> {
        if self.enforced.custom.is_empty() || self.is_strict_plaintext(connection) {
            return None;
        }
        let found = next_authorizer(&[&self.enforced], &Connection::new(connection, request), asked);
        found.map(|(provider, rule)| (Arc::clone(provider), rule.clone()))
    }

    /// What DENY and ALLOW say once all authorizers have allowed it.
    pub fn decide_authorized(
        &self,
        connection: &L4Request<'_>,
        request: Option<&HttpRequest<'_>>,
    ) -> Verdict {
        if self.is_strict_plaintext(connection) {
            return Verdict::Deny { reason: DenyReason::StrictPlaintext };
        }
        deny_or_allow(&[&self.enforced], &Connection::new(connection, request))
    }

    /// Whether there are external authorizers that may have to be asked.
    pub fn asks_authorizers(&self) -> bool {
        !self.enforced.custom.is_empty()
    }

    /// These, by name.
    pub fn authorizers(&self) -> BTreeSet<&str> {
        self.enforced.custom.iter().map(|policy| &*policy.provider).collect()
    }

    pub(super) fn is_strict_plaintext(&self, request: &L4Request<'_>) -> bool {
        request.peer.is_none() && self.mode(request.dst.port()) == Mode::Strict
    }
}

/// What several sets of policies say of a TCP connection as if they were one.
pub(super) fn connection_verdict(sets: &[&Actions], connection: &Connection<'_>) -> Verdict {
    match first_match(sets, |set| &set.custom, connection) {
        Some(rule) => Verdict::Deny { reason: DenyReason::CustomUnavailable(rule.clone()) },
        None => deny_or_allow(sets, connection),
    }
}

/// The same of a request, before any authorizer is asked.
pub(super) fn request_verdict(sets: &[&Actions], connection: &Connection<'_>) -> HttpVerdict {
    match next_authorizer(sets, connection, None) {
        Some((provider, rule)) => HttpVerdict::Custom { provider: Arc::clone(provider), rule: rule.clone() },
        None => deny_or_allow(sets, connection).into(),
    }
}

fn next_authorizer<'a>(
    sets: &[&'a Actions],
    connection: &Connection<'_>,
    asked: Option<&str>,
) -> Option<(&'a Arc<str>, &'a RuleRef)> {
    let mut next: Option<(&Arc<str>, &RuleRef)> = None;
    for policy in sets.iter().flat_map(|set| &set.custom) {
        let waits = asked.is_none_or(|asked| *asked < *policy.provider);
        if waits
            && next.is_none_or(|(first, _)| policy.provider < *first)
            && let Some(rule) = policy.first_match(connection)
        {
            next = Some((&policy.provider, rule));
        }
    }
    next
}

fn deny_or_allow(sets: &[&Actions], connection: &Connection<'_>) -> Verdict {
    if let Some(rule) = first_match(sets, |set| &set.deny, connection) {
        return Verdict::Deny { reason: DenyReason::Rule(rule.clone()) };
    }
    if sets.iter().all(|set| set.allow.is_empty()) {
        return Verdict::Allow { rule: None };
    }
    match first_match(sets, |set| &set.allow, connection) {
        Some(rule) => Verdict::Allow { rule: Some(rule.clone()) },
        None => Verdict::Deny { reason: DenyReason::NoAllowMatched },
    }
}

fn first_match<'a>(
    sets: &[&'a Actions],
    of_action: fn(&Actions) -> &Vec<Arc<Policy>>,
    connection: &Connection<'_>,
) -> Option<&'a RuleRef> {
    sets.iter().copied().flat_map(of_action).find_map(|policy| policy.first_match(connection))
}

impl Policy {
    pub(super) fn first_match(&self, connection: &Connection<'_>) -> Option<&RuleRef> {
        self.rules.iter().find(|rule| rule.matches(connection)).map(|rule| &rule.reference)
    }
}
