//! All rules of a workload against one request. Istio makes of rules P1, P2, ... the requirement "P1, or P2, or ..., or each
//! of them finds no token": the first rule that believes a request's tokens decides, a request without tokens passes,
//! any other is refused. Never lets a request with a bad token pass as one without.

use std::sync::Arc;

use hyper::header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN};

use super::{
    Authenticated, Decision, Outcome, RequestHead, claims,
    edits::Edits,
    keys::KeySet,
    locate,
    refusal::{Refusal, Refused},
    rule::{JwtRule, KeyLocation, KeySource, comparable_audience},
    token::Token,
    values,
    verified::VerifiedSignatures,
};

/// How far clocks may be apart, in seconds: Envoy's default, which Istio leaves as it is.
pub const CLOCK_SKEW_SECONDS: u64 = 60;

/// Keys that were fetched. Asked per request: must neither lock nor wait.
pub trait Keys: Send + Sync {
    /// The keys that are known of a place; none: it could not be asked so far.
    fn keys(&self, location: &KeyLocation) -> Option<Arc<KeySet>>;

    /// A token named a key that is not among those known: a hint to look again, which anybody can cause.
    fn unknown_key(&self, location: &KeyLocation);

    /// Signatures that were verified before; none: each is verified anew.
    fn verified(&self) -> Option<&VerifiedSignatures> {
        None
    }
}

/// Decides a request by the rules of its workload, which are in Istio's order (by issuer).
///
/// `now` is in Unix seconds.
pub fn authenticate(rules: &[Arc<JwtRule>], head: &RequestHead<'_>, keys: &dyn Keys, now: u64) -> Decision {
    let mut edits = Edits::sanitizing(rules.iter().map(Arc::as_ref));
    if is_cors_preflight(head) {
        return Decision { outcome: Outcome::Anonymous, edits };
    }
    let mut seen = Seen::default();
    let mut refusals = Vec::new();
    for rule in rules {
        match believed(rule, head, keys, now, &mut seen) {
            Ok(token) => {
                edits.believe(rule, &token, head);
                return Decision { outcome: Outcome::Authenticated(Box::new(said(rule, &token))), edits };
            }
            Err(refusal) => refusals.push((refusal, rule)),
        }
    }
    let outcome = match weightiest(&refusals) {
        None => Outcome::Anonymous,
        Some((refusal, rule)) => Outcome::Refused(Refused::new(*refusal, &rule.policy, head)),
    };
    Decision { outcome, edits }
}

/// Envoy answers with the refusal of the first rule that found a token, unless that is an issuer it is not for: then with
/// the last refusal that says more (`AnyVerifierImpl::onComplete`). None: no rule found a token.
fn weightiest<'a>(refusals: &'a [(Refusal, &'a Arc<JwtRule>)]) -> Option<&'a (Refusal, &'a Arc<JwtRule>)> {
    let first = refusals.iter().find(|(refusal, _)| *refusal != Refusal::Missing)?;
    if !first.0.is_soft() {
        return Some(first);
    }
    Some(refusals.iter().rev().find(|(refusal, _)| !refusal.is_soft()).unwrap_or(first))
}

/// Tokens of this request that were parsed: most rules look at the same places.
#[derive(Default)]
struct Seen(Vec<(String, Result<Arc<Token>, Refusal>)>);

impl Seen {
    fn parse(&mut self, text: &str) -> Result<Arc<Token>, Refusal> {
        if let Some((_, known)) = self.0.iter().find(|(known, _)| known == text) {
            return known.clone();
        }
        let parsed = Token::parse(text).map(Arc::new);
        self.0.push((text.to_owned(), parsed.clone()));
        parsed
    }
}

/// The token whose claims count, where the rule believes all that are in its places: an application may look at another
/// one than we do.
fn believed(
    rule: &JwtRule,
    head: &RequestHead<'_>,
    keys: &dyn Keys,
    now: u64,
    seen: &mut Seen,
) -> Result<Arc<Token>, Refusal> {
    let mut last = Err(Refusal::Missing);
    for text in locate::tokens(rule, head)? {
        let token = seen.parse(&text)?;
        check(rule, &token, keys, now)?;
        last = Ok(token);
    }
    last
}

/// In Envoy's order, so that the same token is refused for the same reason.
fn check(rule: &JwtRule, token: &Token, keys: &dyn Keys, now: u64) -> Result<(), Refusal> {
    if rule.issuer.is_some() && rule.issuer != token.issuer {
        return Err(Refusal::UnknownIssuer);
    }
    token.check_time(now, CLOCK_SKEW_SECONDS)?;
    let meant = token.audiences.iter().map(|audience| comparable_audience(audience));
    if !rule.audiences.is_empty() && !meant.into_iter().any(|a| rule.audiences.iter().any(|own| own == a)) {
        return Err(Refusal::Audience);
    }
    match &rule.keys {
        KeySource::Inline(own) => token.check_signature(own, keys.verified()),
        KeySource::Remote(source) => {
            let known = keys.keys(&source.location).ok_or(Refusal::KeysUnavailable)?;
            token.check_signature(&known, keys.verified()).inspect_err(|refusal| {
                if matches!(refusal, Refusal::NoMatchingKey | Refusal::NoValidKeys) {
                    keys.unknown_key(&source.location);
                }
            })
        }
    }
}

fn said(rule: &JwtRule, token: &Token) -> Authenticated {
    Authenticated {
        issuer: token.issuer.clone(),
        subject: token.subject.clone(),
        audiences: token.audiences.clone(),
        presenter: token.claims.get("azp").and_then(|azp| azp.as_str()).map(str::to_owned),
        claims: claims::normalize(token.claims.clone(), &rule.space_delimited_claims),
        policy: Arc::clone(&rule.policy),
    }
}

/// Browsers send no credentials with it, so Istio lets it pass without (`bypassCorsPreflight`).
fn is_cors_preflight(head: &RequestHead<'_>) -> bool {
    let has = |name: HeaderName| values(head.headers, name.as_str()).iter().any(|value| !value.is_empty());
    head.method == "OPTIONS" && has(ORIGIN) && has(ACCESS_CONTROL_REQUEST_METHOD)
}
