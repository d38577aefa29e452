//! The policy of the moment before each request: its path is made normal, external authorizers are asked, its token is
//! judged, then the rules are asked.
//! Never lets anything pass that it could not look at.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::StatusCode;

use super::asking::{Asking, Edited};
use crate::{
    capture::WorkloadNet,
    http::{Decision, Denial, Edits, Gate, PathEdit, RequestHead},
    jwt::{self, Outcome},
    policy::{
        DenyReason, Observed, RuleRef, Verdict, WorkloadPolicy,
        http::{HttpRequest, NormalizedPath},
    },
    proxy::{Live, Mesh, attempt::count_denial, http::AskedTunnel, memory::NotedContent},
    telemetry::{Direction, RequestEvent, RequestRecord, escape::truncate},
};

pub(super) struct PolicyGate<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) net: &'a WorkloadNet,
    pub(super) live: &'a Live,
}

impl Gate for PolicyGate<'_> {
    async fn decide(&self, head: &RequestHead<'_>) -> Decision {
        match self.judge(head).await {
            Ok(edits) => Decision::Allow(edits),
            Err(denial) => Decision::Deny(denial),
        }
    }
}

impl PolicyGate<'_> {
    /// In the order of Istio's filters: external authorizers, tokens, then DENY and ALLOW, each on what those before it
    /// have made of the request.
    async fn judge(&self, head: &RequestHead<'_>) -> Result<Edits, Denial> {
        let view = self.mesh.view().clone();
        let name = &self.live.workload;
        // Who has left the mesh keeps its connections, and no policy is about it.
        let Some(workload) = view.world().by_name(&name.namespace, &name.name) else {
            return Ok(Edits::default());
        };
        let policy = view.snapshot.policies.for_workload(workload.id);
        let normalization = view.snapshot.config.path_normalization.normalization.into();
        // A path that cannot be made normal is nobody's.
        let path = NormalizedPath::of_request(head.path, normalization).map_err(|_| bad_path())?;
        let connection = self.live.request();
        let sent = Edited { head, edits: &Edits::default() };
        let forwarded_for = view.snapshot.policies.forwarded_for();
        let original = forwarded_for.remote_ip(connection.peer, connection.src, &sent);
        let mut edits = Edits::default();
        if let Some(path) = path.as_ref().filter(|path| path.is_changed()) {
            edits.path = Some(PathEdit::new(path.as_str()).ok_or_else(bad_path)?);
        }
        let passed = if policy.asks_authorizers() {
            let Self { mesh, net, .. } = *self;
            let asking = Asking { mesh, view: &view, net, workload, policy, connection, original };
            // Apart, so that connections that ask nobody are no larger for it.
            let asked = Box::pin(asking.about_request(head, path.as_ref(), &mut edits)).await;
            asked.map_err(|(reason, denial)| {
                count_denial(&self.mesh.metrics, &reason, Direction::Inbound);
                because(denial, &reason.to_string())
            })?
        } else {
            None
        };
        let rule = self.decide_authorized(policy, head, path.as_ref(), &mut edits, original)?;
        if self.mesh.access_log.is_on() {
            let rule = [rule.map(|rule| rule.to_string()), passed];
            let rule = rule.into_iter().flatten().collect::<Vec<_>>();
            edits.rule = (!rule.is_empty()).then(|| rule.join("; ").into());
        }
        Ok(edits)
    }

    fn decide_authorized(
        &self,
        policy: &WorkloadPolicy,
        head: &RequestHead<'_>,
        path: Option<&NormalizedPath<'_>>,
        edits: &mut Edits,
        original: IpAddr,
    ) -> Result<Option<RuleRef>, Denial> {
        let claims = self.authenticate(policy, head, path, edits)?;
        // An issuer may write any name.
        let who = claims.as_deref().filter(|_| self.mesh.access_log.is_on());
        edits.principal = who.and_then(|token| Some(truncate(&token.principal()?).into()));
        let connection = self.live.request();
        let edited = Edited { head, edits };
        let request = HttpRequest {
            method: head.method,
            path,
            authority: Some(head.authority).filter(|authority| !authority.is_empty()),
            headers: &edited,
            claims: claims.as_deref().map(|token| &token.claims),
            remote_ip: original,
        };
        let mode = policy.mode(connection.dst.port());
        self.mesh.memory.note(&self.live.noted(mode, NotedContent::Request(&request)));
        if policy.observes() {
            self.tell_observed(
                head,
                edits.principal.as_deref(),
                &policy.observe(&connection, Some(&request)),
            );
        }
        match policy.decide_authorized(&connection, Some(&request)) {
            Verdict::Allow { rule } => {
                self.live.asked_tunnel(AskedTunnel::of(&edited, claims.as_deref(), original));
                Ok(rule)
            }
            Verdict::Deny { reason } => Err(self.deny(&reason, edits.principal.take())),
        }
    }

    fn authenticate(
        &self,
        policy: &WorkloadPolicy,
        head: &RequestHead<'_>,
        path: Option<&NormalizedPath<'_>>,
        edits: &mut Edits,
    ) -> Result<Option<Box<jwt::Authenticated>>, Denial> {
        let rules = policy.request_authentication();
        if rules.is_empty() {
            return Ok(None);
        }
        let headers = Edited { head, edits };
        let request = jwt::RequestHead {
            method: head.method,
            scheme: if self.live.peer.is_some() { "https" } else { "http" },
            authority: head.authority,
            path_and_query: headers.path_and_query(path),
            headers: &headers,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let decision = jwt::authenticate(rules, &request, self.mesh.keys.as_ref(), now);
        let token = match decision.outcome {
            Outcome::Anonymous => None,
            Outcome::Authenticated(token) => Some(token),
            Outcome::Refused(refused) => {
                self.mesh.metrics.denied(&refused.policy, "bad_token", Direction::Inbound);
                let mut denial = Denial::unauthorized(refused.reason.to_string(), refused.challenge.clone());
                denial.status = refused.status();
                return Err(because(denial, &format!("{}: {}", refused.policy, refused.reason)));
            }
        };
        decision.edits.remove.iter().for_each(|name| edits.take_out(name));
        edits.append.extend(decision.edits.append);
        if let Some(path) = decision.edits.path_and_query {
            edits.path = Some(PathEdit::new(path).ok_or_else(bad_path)?);
        }
        Ok(token)
    }

    fn deny(&self, reason: &DenyReason, principal: Option<Arc<str>>) -> Denial {
        count_denial(&self.mesh.metrics, reason, Direction::Inbound);
        Denial { principal, ..because(Denial::forbidden(), &reason.to_string()) }
    }

    fn tell_observed(&self, head: &RequestHead<'_>, principal: Option<&str>, observed: &Observed) {
        tell_observed(self.mesh, &self.live.record, observed, |record| {
            record.request_principal = principal.map(str::to_owned);
            record.protocol = Some(head.version.to_string());
            record.method = Some(head.method.to_owned());
            record.host = Some(head.authority.to_owned());
            record.path = Some(head.path.split('?').next().unwrap_or_default().to_owned());
        });
    }
}

/// Writes what rules that only watch have seen, if they have seen anything.
pub(in crate::proxy) fn tell_observed(
    mesh: &Mesh,
    connection: &crate::telemetry::ConnectionRecord,
    observed: &Observed,
    complete: impl FnOnce(&mut RequestRecord),
) {
    if observed.audit.is_empty() && observed.dry_run.is_none() {
        return;
    }
    mesh.access_log.log_request(|| {
        let mut record = RequestRecord::on(connection, RequestEvent::Audit);
        record.audit = observed.audit.iter().map(ToString::to_string).collect();
        record.dry_run = observed.dry_run.as_ref().map(|dry_run| {
            let matched: Vec<_> = dry_run.matched.iter().map(ToString::to_string).collect();
            format!("{}; matched: [{}]", dry_run.verdict, matched.join(", "))
        });
        complete(&mut record);
        record
    });
}

fn bad_path() -> Denial {
    because(Denial::new(StatusCode::BAD_REQUEST, "the path cannot be normalized"), "bad path")
}

fn because(mut denial: Denial, why: &str) -> Denial {
    denial.rule = Some(Arc::from(why));
    denial
}
