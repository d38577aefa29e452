//! The HTTP half of the naive reading: owned values, regular expressions, no parsing ahead.

use std::net::IpAddr;

use regex::Regex;
use serde_json::{Map, Value};

use super::glob;

/// A request, its path without the query and normalized.
pub(in crate::policy) struct Seen<'a> {
    pub(in crate::policy) method: &'a str,
    pub(in crate::policy) path: Option<&'a str>,
    pub(in crate::policy) authority: Option<&'a str>,
    pub(in crate::policy) headers: &'a [(&'static str, &'static str)],
    pub(in crate::policy) claims: Option<&'a Map<String, Value>>,
    pub(in crate::policy) remote_ip: IpAddr,
}

/// "`*` matches when the header is there"; all other values as strings do.
fn header_glob(pattern: &str, value: &str) -> bool {
    pattern == "*" || glob(pattern, value)
}

impl Seen<'_> {
    pub(super) fn method(&self, v: &str) -> bool {
        header_glob(v, self.method)
    }

    pub(super) fn host(&self, v: &str) -> bool {
        self.authority.is_some_and(|host| header_glob(&v.to_lowercase(), &host.to_lowercase()))
    }

    pub(super) fn path(&self, v: &str) -> bool {
        let Some(path) = self.path else { return false };
        if !v.contains("{*}") && !v.contains("{**}") {
            return glob(v, path);
        }
        // "{*} matches a single glob and is not slash; {**} zero or more globs".
        let one = r"[A-Za-z0-9._~%!$&'()+,;:@=*-]";
        let regex = regex::escape(v)
            .replace(r"\{\*\*\}", &format!("(?:{one}|/)*"))
            .replace(r"\{\*\}", &format!("{one}+"));
        Regex::new(&format!("^(?:{regex})$")).unwrap().is_match(path)
    }

    pub(super) fn principal(&self, v: &str) -> bool {
        let text = |name: &str| self.claims?.get(name)?.as_str().map(str::to_owned);
        let (Some(issuer), Some(subject)) = (text("iss"), text("sub")) else { return false };
        // One star counts, the first one at either end; what it stands before or behind is text.
        let regex = |pattern: &str, star: &str| {
            let body = match star {
                "first" if pattern.starts_with('*') => format!(".*{}", regex::escape(&pattern[1..])),
                "last" if pattern.ends_with('*') => {
                    format!("{}.*", regex::escape(&pattern[..pattern.len() - 1]))
                }
                _ => regex::escape(pattern),
            };
            let body = if body == ".*" { ".+".to_owned() } else { body };
            Regex::new(&format!("^(?:{body})$")).unwrap()
        };
        let (first, last) = (v.starts_with('*'), v.ends_with('*'));
        match v.rsplit_once('/') {
            _ if v == "*" => !issuer.is_empty() && !subject.is_empty(),
            Some((i, s)) if first => regex(i, "first").is_match(&issuer) && s == subject,
            Some((i, s)) => i == issuer && regex(s, "last").is_match(&subject),
            None if first => !issuer.is_empty() && regex(v, "first").is_match(&subject),
            None if last => regex(v, "last").is_match(&issuer) && !subject.is_empty(),
            None => issuer == v && subject.is_empty(),
        }
    }

    pub(super) fn key(&self, key: &str, v: &str) -> bool {
        match key {
            "request.auth.principal" => return self.principal(v),
            "request.auth.audiences" => return self.claim(&["aud"], v),
            "request.auth.presenter" => return self.claim(&["azp"], v),
            _ => {}
        }
        if let Some(name) = key.strip_prefix("request.headers[") {
            let name = name.trim_end_matches(']').to_lowercase();
            return self.headers.iter().any(|(n, value)| *n == name && header_glob(v, value));
        }
        let names = key.trim_start_matches("request.auth.claims").replace("][", "]\0[");
        let names: Vec<&str> = names.split('\0').map(|n| n.trim_matches(['[', ']'])).collect();
        self.claim(&names, v)
    }

    fn claim(&self, names: &[&str], v: &str) -> bool {
        let Some(claims) = self.claims else { return false };
        let pointer = format!("/{}", names.join("/"));
        let claims = Value::Object(claims.clone());
        match claims.pointer(&pointer) {
            // "Space-delimited claims are matched word by word."
            Some(Value::String(text)) if ["scope", "permission"].contains(&names.join("/").as_str()) => {
                text.split_whitespace().any(|word| glob(v, word))
            }
            Some(Value::String(text)) => glob(v, text),
            Some(Value::Array(list)) => {
                list.iter().any(|each| each.as_str().is_some_and(|text| glob(v, text)))
            }
            _ => false,
        }
    }
}
