//! Where a request's head carries tokens for a rule, and the head without them. As Envoy's extractor finds them, with one
//! difference: Envoy takes the first of a header, parameter or cookie that is repeated, and an application may take
//! another; here each of them is a token, and all must be believed.

use std::borrow::Cow;

use hyper::header::{AUTHORIZATION, COOKIE, HeaderName};
use percent_encoding::percent_decode_str;

use super::{
    Headers, RequestHead,
    refusal::Refusal,
    rule::{HeaderLocation, JwtRule},
    values,
};

/// Different tokens that one request may carry for one rule. Each costs a signature.
const MAX_TOKENS: usize = 4;

/// Texts that must be tokens, each once, in the order in which Envoy verifies them: what a refusal says is what is wrong
/// with the first, whose claims count are those of the last.
pub(super) fn tokens(rule: &JwtRule, head: &RequestHead<'_>) -> Result<Vec<String>, Refusal> {
    let mut found = Vec::new();
    // Envoy sorts headers by name and prefix, parameters and cookies by name.
    let mut headers: Vec<&HeaderLocation> = rule.from_headers.iter().collect();
    headers.sort_by_key(|h| (h.name.as_str(), h.prefix.as_str()));
    for location in headers {
        in_header(head.headers, location, &mut found);
    }
    let mut params: Vec<&String> = rule.from_params.iter().collect();
    params.sort();
    for param in params {
        let pairs = query(head.path_and_query).split('&').filter(|pair| has_name(pair, param));
        found.extend(
            pairs.map(|pair| decoded(pair.split_once('=').map_or("", |(_, value)| value)).into_owned()),
        );
    }
    if !rule.from_cookies.is_empty() {
        let mut cookies = cookies(head.headers);
        cookies.retain(|(name, _)| rule.from_cookies.contains(name));
        cookies.sort_by(|(a, _), (b, _)| a.cmp(b));
        found.extend(cookies.into_iter().map(|(_, value)| value));
    }
    let mut distinct: Vec<String> = Vec::new();
    for token in found {
        if !distinct.contains(&token) {
            distinct.push(token);
        }
        if distinct.len() > MAX_TOKENS {
            return Err(Refusal::TooManyTokens);
        }
    }
    distinct.reverse();
    Ok(distinct)
}

/// What stands behind the prefix, wherever that stands, must be a token to its end. Lines of `Authorization`, which is one
/// value (RFC 9110 section 11.6.2), are one text; each line of another header is its own.
fn in_header(headers: &dyn Headers, location: &HeaderLocation, found: &mut Vec<String>) {
    let mut lines = values(headers, location.name.as_str());
    if location.name == AUTHORIZATION && lines.len() > 1 {
        lines = vec![lines.join(",").into()];
    }
    let tokens = lines.iter().filter_map(|line| {
        let at = line.find(location.prefix.as_str())?;
        Some(line.get(at + location.prefix.len()..)?.trim().to_owned())
    });
    found.extend(tokens);
}

fn query(path_and_query: &str) -> &str {
    path_and_query.split_once('?').map_or("", |(_, query)| query)
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

fn has_name(pair: &str, name: &str) -> bool {
    !pair.is_empty() && decoded(pair.split('=').next().unwrap_or_default()) == name
}

/// Names and values, in the order they came.
fn cookies(headers: &dyn Headers) -> Vec<(String, String)> {
    let mut cookies = Vec::new();
    for line in values(headers, COOKIE.as_str()) {
        for (name, value) in line.split(';').filter_map(|pair| pair.split_once('=')) {
            let unquoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            cookies.push((name.trim().to_owned(), unquoted.to_owned()));
        }
    }
    cookies
}

/// The head's path and query without the rule's parameters; none: it has none of them. All else stays as it was written.
pub(super) fn without_params(path_and_query: &str, names: &[String]) -> Option<String> {
    let (path, query) = path_and_query.split_once('?')?;
    let (gone, kept): (Vec<&str>, Vec<&str>) =
        query.split('&').partition(|pair| names.iter().any(|name| has_name(pair, name)));
    if gone.is_empty() {
        return None;
    }
    Some(if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) })
}

/// The values of `Cookie` without the rule's cookies; none: it has none of them.
pub(super) fn without_cookies(headers: &dyn Headers, names: &[String]) -> Option<Vec<String>> {
    let is_gone = |pair: &&str| {
        let name = pair.split_once('=').map_or("", |(name, _)| name.trim());
        names.iter().any(|own| own == name)
    };
    let lines = values(headers, COOKIE.as_str());
    if !lines.iter().any(|line| line.split(';').any(|pair| is_gone(&pair))) {
        return None;
    }
    let kept = lines.iter().map(|line| {
        let pairs: Vec<&str> = line.split(';').filter(|pair| !is_gone(pair)).collect();
        pairs.join(";").trim_start().to_owned()
    });
    Some(kept.filter(|line| !line.is_empty()).collect())
}

/// Headers of the rule that carry tokens and are there.
pub(super) fn carriers<'a>(rule: &'a JwtRule, headers: &dyn Headers) -> impl Iterator<Item = &'a HeaderName> {
    rule.from_headers
        .iter()
        .filter(|location| {
            let mut found = Vec::new();
            in_header(headers, location, &mut found);
            !found.is_empty()
        })
        .map(|location| &location.name)
}
