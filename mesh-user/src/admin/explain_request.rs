//! What becomes of a request, decided as the gate does it: its path is made normal, its token is judged, then the rules are
//! asked. Pure; what it says holds no token and no value of a header that carries credentials.

use std::borrow::Cow;

use super::{
    api::ExplainedRequest,
    explain::{Decided, Knowledge, decided_by},
    question::RequestQuery,
};
use crate::{
    http::looks_like,
    jwt::{self, Authenticated, Outcome, Refusal},
    policy::{
        HttpVerdict, L4Request, WorkloadPolicy,
        http::{HttpRequest, NormalizedPath},
    },
};

/// Headers whose values are credentials.
const CREDENTIALS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];
/// A shorter text is no secret, and would be found everywhere.
const SHORTEST_SECRET: usize = 8;

/// Judges one request on a connection.
pub(super) fn judge(
    known: &Knowledge<'_>,
    policy: &WorkloadPolicy,
    connection: &L4Request<'_>,
    query: &RequestQuery,
) -> Decided {
    let host = query.host.clone().unwrap_or_else(|| connection.dst.to_string());
    let mut sent = Sent { path: Cow::Borrowed(&query.path), headers: query.headers.clone() };
    if let Some(token) = &query.token {
        sent.carry(token, policy);
    }
    let mut decided = judged(known, policy, connection, query, &host, &sent);
    let secrets: Vec<_> = query.token.iter().map(String::as_str).chain(sent.credentials()).collect();
    decided.redact(&secrets);
    decided
}

/// What would be on the wire.
struct Sent<'a> {
    path: Cow<'a, str>,
    headers: Vec<(String, String)>,
}

impl Sent<'_> {
    /// Puts the token where the first rule looks, preferably where most do: `Authorization: Bearer`.
    fn carry(&mut self, token: &str, policy: &WorkloadPolicy) {
        let rules = policy.request_authentication();
        let mut headers = rules.iter().flat_map(|rule| &rule.from_headers);
        let usual = headers.clone().any(|place| place.name == "authorization" && place.prefix == "Bearer ");
        let params = rules.iter().flat_map(|rule| &rule.from_params).next();
        let cookies = rules.iter().flat_map(|rule| &rule.from_cookies).next();
        if usual || rules.is_empty() {
            self.headers.push(("authorization".to_owned(), format!("Bearer {token}")));
        } else if let Some(place) = headers.next() {
            self.headers.push((place.name.to_string(), format!("{}{token}", place.prefix)));
        } else if let Some(name) = params {
            let separator = if self.path.contains('?') { '&' } else { '?' };
            self.path = format!("{}{separator}{name}={token}", self.path).into();
        } else if let Some(name) = cookies {
            self.headers.push(("cookie".to_owned(), format!("{name}={token}")));
        }
    }

    fn credentials(&self) -> impl Iterator<Item = &str> {
        let secret = |name: &str| CREDENTIALS.iter().any(|known| known.eq_ignore_ascii_case(name));
        self.headers.iter().filter(move |(name, _)| secret(name)).map(|(_, value)| value.as_str())
    }
}

fn judged(
    known: &Knowledge<'_>,
    policy: &WorkloadPolicy,
    connection: &L4Request<'_>,
    query: &RequestQuery,
    host: &str,
    sent: &Sent<'_>,
) -> Decided {
    let mut answer = ExplainedRequest {
        method: query.method.clone(),
        path: query.path.split('?').next().unwrap_or_default().to_owned(),
        host: host.to_owned(),
        ..ExplainedRequest::default()
    };
    if !policy.inspects_requests(connection.dst.port()) {
        let mut decided = Decided::connection(policy, connection);
        let step = "no rule at this port asks about requests or tokens: the connection is decided, its requests are not read";
        decided.before.push(step.to_owned());
        decided.request = Some(answer);
        return decided;
    }
    let path = match NormalizedPath::of_request(&sent.path, known.normalization) {
        Ok(path) => path,
        Err(error) => {
            answer.status = Some(400);
            return Decided::refused(policy, connection, error.to_string(), Vec::new(), answer);
        }
    };
    let mut before = Vec::new();
    if let Some(path) = &path {
        if path.path() != answer.path {
            before.push(format!("rules see the path {} as {}", answer.path, path.path()));
        }
        path.path().clone_into(&mut answer.path);
    }
    let (claims, said, edits) = match token(known, policy, connection, query, host, sent, path.as_ref()) {
        Ok(believed) => believed,
        Err(refused) => {
            answer.status = Some(refused.status().as_u16());
            answer.token = said_of(&refused);
            let why = format!("{}: {}", refused.policy, refused.reason);
            return Decided::refused(policy, connection, why, before, answer);
        }
    };
    answer.principal = claims.as_ref().and_then(Authenticated::principal);
    before.push(said.clone());
    answer.token = said;
    let headers = edited(&sent.headers, &edits);
    let request = HttpRequest {
        method: &query.method,
        path: path.as_ref(),
        authority: Some(host).filter(|host| !host.is_empty()),
        headers: &headers,
        claims: claims.as_ref().map(|claims| &claims.claims),
        remote_ip: known.policies.forwarded_for().remote_ip(connection.peer, connection.src, &sent.headers),
    };
    let explained = policy.explain_http(connection, &request);
    // Authorizers are asked before tokens are judged.
    let unproven = HttpRequest { claims: None, headers: &sent.headers, ..request };
    let next = |asked: Option<&str>| policy.authorizer_after(asked, connection, Some(&unproven));
    let authorized = HttpVerdict::from(policy.decide_authorized(connection, Some(&request)));
    let first = next(None);
    let mut asked = first.clone();
    while let Some((provider, rule)) = asked {
        asked = next(Some(&provider));
        let then = asked.as_ref().map_or_else(|| authorized.to_string(), |(_, rule)| rule.to_string());
        before.push(format!("{rule} asks {provider}; if that allows it: {then}"));
    }
    let verdict = match first {
        Some((provider, rule)) => HttpVerdict::Custom { provider, rule },
        None => authorized,
    };
    answer.status = (!verdict.is_allowed()).then_some(403);
    Decided {
        allowed: verdict.is_allowed(),
        by: decided_by(&verdict),
        before,
        policies: explained.policies,
        mode_sources: explained.mode_sources,
        observed: explained.observed,
        request: Some(answer),
    }
}

fn said_of(refused: &jwt::Refused) -> String {
    let hint = match refused.reason {
        Refusal::KeysUnavailable => "; the daemon has no keys yet (meshctl jwks), and offline there are none",
        _ => "",
    };
    format!("the token is refused by RequestAuthentication {}: {}{hint}", refused.policy, refused.reason)
}

/// Who the request is from, and that in words.
fn token(
    known: &Knowledge<'_>,
    policy: &WorkloadPolicy,
    connection: &L4Request<'_>,
    query: &RequestQuery,
    host: &str,
    sent: &Sent<'_>,
    path: Option<&NormalizedPath<'_>>,
) -> Result<(Option<Authenticated>, String, jwt::Edits), jwt::Refused> {
    if let Some(claims) = &query.claims {
        let text = |name: &str| claims.get(name).and_then(|v| v.as_str()).map(str::to_owned);
        let given = Authenticated {
            issuer: text("iss"),
            subject: text("sub"),
            audiences: Vec::new(),
            presenter: text("azp"),
            claims: claims.clone(),
            policy: "".into(),
        };
        let said = "the claims given count as those of a token that was believed".to_owned();
        return Ok((Some(given), said, jwt::Edits::default()));
    }
    let rules = policy.request_authentication();
    if rules.is_empty() {
        let said = "no RequestAuthentication applies: tokens are not looked at".to_owned();
        return Ok((None, said, jwt::Edits::default()));
    }
    let head = jwt::RequestHead {
        method: &query.method,
        scheme: if connection.peer.is_some() { "https" } else { "http" },
        authority: host,
        path_and_query: path.map_or(&sent.path, NormalizedPath::as_str),
        headers: &sent.headers,
    };
    let decision = jwt::authenticate(rules, &head, known.keys, known.now_seconds);
    match decision.outcome {
        Outcome::Anonymous => {
            let said = "no token where a rule looks for one: it goes on as nobody".to_owned();
            Ok((None, said, decision.edits))
        }
        Outcome::Authenticated(token) => {
            let who = token.principal().unwrap_or_else(|| "nobody in particular (no iss or sub)".to_owned());
            let said =
                format!("RequestAuthentication {} believes the token: it goes on as {who}", token.policy);
            Ok((Some(*token), said, decision.edits))
        }
        Outcome::Refused(refused) => Err(refused),
    }
}

/// As rules see them: without what a token's rules take out, with what they write of its claims.
fn edited(sent: &[(String, String)], edits: &jwt::Edits) -> Vec<(String, String)> {
    let stays =
        |(name, _): &&(String, String)| !edits.remove.iter().any(|gone| looks_like(name, gone.as_str()));
    let added = edits
        .append
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    sent.iter().filter(stays).cloned().chain(added).collect()
}

impl Decided {
    fn refused(
        policy: &WorkloadPolicy,
        connection: &L4Request<'_>,
        why: String,
        mut before: Vec<String>,
        answer: ExplainedRequest,
    ) -> Self {
        before.push(if answer.token.is_empty() { why.clone() } else { answer.token.clone() });
        let mode_sources = policy.explain(connection).mode_sources;
        Self { by: why, before, mode_sources, request: Some(answer), ..Self::default() }
    }

    fn redact(&mut self, secrets: &[&str]) {
        let secrets: Vec<_> = secrets.iter().filter(|secret| secret.len() >= SHORTEST_SECRET).collect();
        let clean = |text: &mut String| {
            for secret in &secrets {
                if text.contains(**secret) {
                    *text = text.replace(**secret, "<hidden>");
                }
            }
        };
        clean(&mut self.by);
        self.before.iter_mut().for_each(clean);
        for policy in &mut self.policies {
            policy.rules.iter_mut().for_each(|rule| clean(&mut rule.why));
        }
        if let Some(request) = &mut self.request {
            [&mut request.path, &mut request.host, &mut request.token].into_iter().for_each(clean);
            request.principal.iter_mut().for_each(clean);
        }
    }
}
