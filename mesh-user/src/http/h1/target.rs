//! The request target and the host it names (RFC 9112 section 3.2), so that gate and application read the same two.

use std::ops::Range;

use super::super::{error::Refusal, gate::is_target};

/// Path and query, and the authority that the target itself names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Where path and query lie in the target; empty for `CONNECT` and for an absolute form without a path.
    pub(super) path: Range<usize>,
    /// An absolute form whose path begins with its query, or has none: it stands for `/`.
    pub(super) implied_slash: bool,
    /// Where the authority lies.
    pub(super) authority: Option<Range<usize>>,
}

/// Takes a target apart.
pub(super) fn target(method: &str, target: &[u8]) -> Result<Target, Refusal> {
    if !is_target(target) {
        return Err(Refusal::Target);
    }
    let all = 0..target.len();
    if method == "CONNECT" {
        let port = target.iter().rposition(|byte| *byte == b':').is_some_and(|at| at + 1 < target.len());
        return (port && is_host(target))
            .then_some(Target { path: 0..0, implied_slash: false, authority: Some(all) })
            .ok_or(Refusal::Target);
    }
    if target[0] == b'/' || (target == b"*" && method == "OPTIONS") {
        return Ok(Target { path: all, implied_slash: false, authority: None });
    }
    let start = ["http://", "https://"]
        .iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|t| t.eq_ignore_ascii_case(scheme.as_bytes())))
        .map(|scheme| scheme.len())
        .ok_or(Refusal::Target)?;
    let end =
        target[start..].iter().position(|byte| b"/?".contains(byte)).map_or(target.len(), |at| start + at);
    if start == end || !is_host(&target[start..end]) {
        return Err(Refusal::Target);
    }
    Ok(Target {
        path: end..target.len(),
        implied_slash: target.get(end) != Some(&b'/'),
        authority: Some(start..end),
    })
}

/// `uri-host [ ":" port ]` (RFC 9110 section 7.2), or empty. No user information and no list.
pub(in super::super) fn is_host(value: &[u8]) -> bool {
    let (name_good, port) = if value.first() == Some(&b'[') {
        let Some(end) = value.iter().position(|byte| *byte == b']') else { return false };
        let inner = &value[1..end];
        let good = inner.iter().all(|byte| byte.is_ascii_hexdigit() || b":.v".contains(byte));
        (good && !inner.is_empty(), &value[end + 1..])
    } else {
        let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte);
        (value[..end].iter().all(good) && (end > 0 || value.is_empty()), &value[end..])
    };
    name_good && (port.is_empty() || (port[0] == b':' && port[1..].iter().all(u8::is_ascii_digit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, whether a slash is implied, authority.
    type Parts<'a> = (&'a str, bool, Option<&'a str>);

    #[test]
    fn a_target_has_one_reading() {
        let cases: [(&str, &str, Option<Parts<'_>>); 25] = [
            ("GET", "/", Some(("/", false, None))),
            ("GET", "/a/../b?c=/d", Some(("/a/../b?c=/d", false, None))),
            ("GET", "//host/a", Some(("//host/a", false, None))),
            ("GET", "/a\\b%00%2f", Some(("/a\\b%00%2f", false, None))),
            ("OPTIONS", "*", Some(("*", false, None))),
            ("GET", "*", None),
            ("GET", "**", None),
            ("GET", "a", None),
            ("GET", "", None),
            ("GET", "/a#b", None),
            ("GET", "/é", None),
            ("GET", "/a\0", None),
            ("GET", "http://h/a", Some(("/a", false, Some("h")))),
            ("GET", "HTTPS://h:1/a?b", Some(("/a?b", false, Some("h:1")))),
            ("GET", "http://h", Some(("", true, Some("h")))),
            ("GET", "http://h?q", Some(("?q", true, Some("h")))),
            ("GET", "http:///a", None),
            ("GET", "http://u@h/a", None),
            ("GET", "http://h\\a/", None),
            ("GET", "ftp://h/a", None),
            ("GET", "h:80", None),
            ("CONNECT", "h:80", Some(("", false, Some("h:80")))),
            ("CONNECT", "[::1]:80", Some(("", false, Some("[::1]:80")))),
            ("CONNECT", "h", None),
            ("CONNECT", "/a", None),
        ];
        for (method, text, expected) in cases {
            let found = target(method, text.as_bytes()).ok();
            let found = found.as_ref().map(|found| {
                (
                    &text[found.path.clone()],
                    found.implied_slash,
                    found.authority.clone().map(|range| &text[range]),
                )
            });
            assert_eq!(found, expected, "{method} {text}");
        }
    }

    #[test]
    fn a_host_is_a_name_and_a_port() {
        for (host, good) in [
            ("", true),
            ("a.b-c_d", true),
            ("a:80", true),
            ("a:", true),
            ("[::1]:80", true),
            ("[fe80::1]", true),
            ("a,b", false),
            ("a:80:90", false),
            ("a:x", false),
            (":80", false),
            ("[::1", false),
            ("[]", false),
            ("[::1]x", false),
            ("u@a", false),
            ("a/b", false),
            ("a b", false),
            ("a?b", false),
            ("é", false),
        ] {
            assert_eq!(is_host(host.as_bytes()), good, "{host}");
        }
    }
}
