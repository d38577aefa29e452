//! How a request's head is changed before the application sees it: headers that only meshd may write are taken away
//! whatever the client sent, tokens are taken out, claims put in. Never changes a head that is refused.

use hyper::{
    HeaderMap,
    header::{COOKIE, HeaderName, HeaderValue},
};

use super::{RequestHead, claims, locate, rule::JwtRule, token::Token};

/// Changes to a request's head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// All values of these go first.
    pub remove: Vec<HeaderName>,
    /// Then these come, beside values that are there.
    pub append: Vec<(HeaderName, HeaderValue)>,
    /// Replaces path and query; none: they stay.
    pub path_and_query: Option<String>,
}

impl Edits {
    /// What is taken away from every request: headers that a rule writes, so that nobody else does.
    pub(super) fn sanitizing<'a>(rules: impl IntoIterator<Item = &'a JwtRule>) -> Self {
        let mut edits = Self::default();
        for rule in rules {
            let claims = rule.output_claim_to_headers.iter().map(|(name, _)| name);
            rule.output_payload_to_header.iter().chain(claims).for_each(|name| edits.remove(name));
        }
        edits
    }

    /// Adds what a token that was believed brings, and takes it away where the rule says so.
    pub(super) fn believe(&mut self, rule: &JwtRule, token: &Token, head: &RequestHead<'_>) {
        if !rule.forward_original_token {
            locate::carriers(rule, head.headers).for_each(|name| self.remove(name));
            self.path_and_query = locate::without_params(head.path_and_query, &rule.from_params);
            if let Some(lines) = locate::without_cookies(head.headers, &rule.from_cookies) {
                self.remove(&COOKIE);
                let values = lines.iter().filter_map(|line| HeaderValue::from_bytes(line.as_bytes()).ok());
                self.append.extend(values.map(|value| (COOKIE, value)));
            }
        }
        if let Some(name) = &rule.output_payload_to_header
            && let Ok(value) = HeaderValue::from_str(token.payload())
        {
            self.put(name, value);
        }
        for (name, path) in &rule.output_claim_to_headers {
            if let Some(value) = claims::header_value(&token.claims, path) {
                self.put(name, value);
            }
        }
    }

    /// What a token says is kept out of logs and of HTTP/2's tables.
    fn put(&mut self, name: &HeaderName, mut value: HeaderValue) {
        value.set_sensitive(true);
        self.append.push((name.clone(), value));
    }

    fn remove(&mut self, name: &HeaderName) {
        if !self.remove.contains(name) {
            self.remove.push(name.clone());
        }
    }

    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.append.is_empty() && self.path_and_query.is_none()
    }

    /// Changes headers; the caller changes path and query.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.append {
            headers.append(name.clone(), value.clone());
        }
    }
}
