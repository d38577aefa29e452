//! Claims of a validated token against values. Only strings and lists of strings match, as in Envoy's metadata
//! matchers; numbers, booleans and objects match nothing.

use serde_json::{Map, Value};

use crate::policy::values::StringMatch;

/// Claims that are words in one string (RFC 8693 section 4.2); Istio splits them for every issuer.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// The names in `[a][b]`; brackets that do not pair are part of one name, as in Istio.
pub(super) fn way(brackets: &str) -> Result<Vec<String>, String> {
    let inner = brackets.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(brackets);
    let nested: Vec<_> = inner.split("][").collect();
    let pairs = nested.iter().all(|name| !name.contains(['[', ']']));
    let names = if pairs { nested } else { vec![inner] };
    if names.iter().any(|name| name.is_empty()) {
        return Err(format!("{brackets:?} holds an empty claim name"));
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

pub(super) fn find<'a>(claims: &'a Map<String, Value>, way: &[String]) -> Option<&'a Value> {
    let (first, rest) = way.split_first()?;
    rest.iter().try_fold(claims.get(first)?, |claim, name| claim.as_object()?.get(name))
}

/// Whether the claim is a string that matches, or a list that holds one.
pub(super) fn matches(claims: &Map<String, Value>, way: &[String], patterns: &[StringMatch]) -> bool {
    let any = |value: &str| patterns.iter().any(|p| p.matches(value));
    let in_words = matches!(way, [name] if SPACE_DELIMITED.contains(&name.as_str()));
    match find(claims, way) {
        Some(Value::String(words)) if in_words => words.split(' ').any(|word| !word.is_empty() && any(word)),
        Some(Value::String(value)) => any(value),
        Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).any(any),
        _ => false,
    }
}

/// One value of `requestPrincipals`: the issuer and the subject are compared each on its own, so that a subject
/// with a slash cannot pass for a longer issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) struct PrincipalMatch {
    issuer: StringMatch,
    subject: StringMatch,
}

impl PrincipalMatch {
    /// Cuts at the last slash, since issuers are URLs. A star counts where it is first in the value, else where it
    /// is last; without a slash it leaves the other part open.
    pub(super) fn parse(value: &str) -> Self {
        let cut = value.rsplit_once('/');
        let exact = |text: &str| StringMatch::Exact(text.to_owned());
        let prefix = |text: &str| match text.strip_suffix('*') {
            Some("") => StringMatch::Present,
            Some(prefix) => StringMatch::Prefix(prefix.to_owned()),
            None => exact(text),
        };
        let (issuer, subject) = match (cut, value) {
            (_, "*") => (StringMatch::Present, StringMatch::Present),
            (Some((issuer, subject)), _) if value.starts_with('*') => {
                (StringMatch::parse(issuer), exact(subject))
            }
            (None, _) if value.starts_with('*') => (StringMatch::Present, StringMatch::parse(value)),
            (Some((issuer, subject)), _) if value.ends_with('*') => (exact(issuer), prefix(subject)),
            (None, _) if value.ends_with('*') => (prefix(value), StringMatch::Present),
            (Some((issuer, subject)), _) => (exact(issuer), exact(subject)),
            (None, _) => (exact(value), exact("")),
        };
        Self { issuer, subject }
    }

    pub(super) fn matches(&self, claims: &Map<String, Value>) -> bool {
        let is = |name: &str, pattern: &StringMatch| {
            claims.get(name).and_then(Value::as_str).is_some_and(|value| pattern.matches(value))
        };
        is("iss", &self.issuer) && is("sub", &self.subject)
    }
}

/// `iss/sub`, for people.
pub(super) fn principal(claims: &Map<String, Value>) -> String {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
    format!("{}/{}", text("iss"), text("sub"))
}
