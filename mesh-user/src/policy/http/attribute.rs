//! One attribute of a request against a list of values, as Istio has Envoy's RBAC filter compare it. A request
//! that lacks the attribute matches no value, so a `not` list matches it.
//!
//! Source: istio/istio `pilot/pkg/security/authz/{model/generator.go,matcher/header.go}`.

use super::{
    HttpRequest, NormalizedPath, PathTemplate,
    claims::{self, PrincipalMatch},
    template,
};
use crate::policy::{traffic::KEPT_CLAIMS, values::StringMatch};

/// What of a request a list of values is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::policy) enum HttpAttribute<'a> {
    Method,
    Host,
    Path,
    Principal,
    Audiences,
    Presenter,
    /// Its name as written.
    Header(&'a str),
    /// `[a][b]` as written.
    Claim(&'a str),
    /// Envoy's own; meshd has no Envoy.
    Unsupported,
}

impl<'a> HttpAttribute<'a> {
    /// The attribute of a `when` key; none: the key is not HTTP's.
    ///
    /// # Errors
    /// When the key has not the form `a[b]` that it must have.
    pub(in crate::policy) fn of_key(key: &'a str) -> Result<Option<Self>, String> {
        match key {
            "request.auth.principal" => return Ok(Some(Self::Principal)),
            "request.auth.audiences" => return Ok(Some(Self::Audiences)),
            "request.auth.presenter" => return Ok(Some(Self::Presenter)),
            _ => {}
        }
        let form = || format!("{key:?} needs a name in brackets, as in \"request.headers[name]\"");
        let inner = |brackets: &'a str| brackets.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(brackets) = key.strip_prefix("request.headers") {
            let name = inner(brackets).filter(|name| is_header_name(name)).ok_or_else(form)?;
            return Ok(Some(Self::Header(name)));
        }
        if let Some(brackets) = key.strip_prefix("request.auth.claims") {
            let named = inner(brackets).is_some_and(|inner| !inner.is_empty());
            return if named { Ok(Some(Self::Claim(brackets))) } else { Err(form()) };
        }
        for prefix in ["experimental.envoy.filters.", "request.experimental.inline.headers"] {
            if let Some(rest) = key.strip_prefix(prefix) {
                let named = rest.find('[').is_some_and(|open| rest.ends_with(']') && open + 2 < rest.len());
                return if named { Ok(Some(Self::Unsupported)) } else { Err(form()) };
            }
        }
        Ok(None)
    }
}

/// A token (RFC 9110 section 5.6.2), or a pseudo-header.
fn is_header_name(name: &str) -> bool {
    let name = name.strip_prefix(':').unwrap_or(name);
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(token)
}

/// One value of `paths`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) enum PathMatch {
    Text(StringMatch),
    Template(PathTemplate),
}

impl PathMatch {
    fn parse(value: &str) -> Result<Self, String> {
        let parsed = if PathTemplate::is_template(value) {
            PathTemplate::parse(value).map(Self::Template)
        } else {
            template::check_plain(value).map(|()| Self::Text(StringMatch::parse(value)))
        };
        parsed.map_err(|error| format!("{value:?}: {error}"))
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

/// A parsed list of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) enum HttpTest {
    Method(Vec<StringMatch>),
    Host(Vec<StringMatch>),
    Path(Vec<PathMatch>),
    /// Its name in lower case.
    Header(String, Vec<StringMatch>),
    Principal(Vec<PrincipalMatch>),
    /// The way to the claim.
    Claim(Vec<String>, Vec<StringMatch>),
    Unsupported,
}

impl HttpTest {
    pub(in crate::policy) fn parse(attribute: HttpAttribute<'_>, values: &[String]) -> Result<Self, String> {
        let strings = || values.iter().map(|v| StringMatch::parse(v)).collect();
        Ok(match attribute {
            HttpAttribute::Method => Self::Method(strings()),
            HttpAttribute::Host => Self::Host(strings()),
            HttpAttribute::Path => {
                Self::Path(values.iter().map(|v| PathMatch::parse(v)).collect::<Result<_, _>>()?)
            }
            HttpAttribute::Principal => {
                Self::Principal(values.iter().map(|v| PrincipalMatch::parse(v)).collect())
            }
            HttpAttribute::Audiences => Self::Claim(vec!["aud".to_owned()], strings()),
            HttpAttribute::Presenter => Self::Claim(vec!["azp".to_owned()], strings()),
            HttpAttribute::Header(name) => Self::Header(name.to_ascii_lowercase(), strings()),
            HttpAttribute::Claim(brackets) => Self::Claim(claims::way(brackets)?, strings()),
            HttpAttribute::Unsupported => Self::Unsupported,
        })
    }

    /// Whether one of the values matches.
    pub(in crate::policy) fn matches(&self, request: &HttpRequest<'_>) -> bool {
        match self {
            // `*` asks of a header, and of these two, only that it is there (Envoy's present_match).
            Self::Method(patterns) => {
                patterns.iter().any(|p| *p == StringMatch::Present || p.matches(request.method))
            }
            Self::Host(patterns) => request.authority.is_some_and(|host| {
                patterns.iter().any(|p| *p == StringMatch::Present || p.matches_ignoring_case(host))
            }),
            Self::Header(name, patterns) => {
                let mut matched = false;
                request.each_header(name, &mut |value| {
                    matched |= patterns.iter().any(|p| *p == StringMatch::Present || p.matches_bytes(value));
                });
                matched
            }
            Self::Path(patterns) => {
                request.path.is_some_and(|path| patterns.iter().any(|p| p.matches(path.path())))
            }
            Self::Principal(patterns) => {
                request.claims.is_some_and(|claims| patterns.iter().any(|p| p.matches(claims)))
            }
            Self::Claim(way, patterns) => {
                request.claims.is_some_and(|claims| claims::matches(claims, way, patterns))
            }
            Self::Unsupported => false,
        }
    }

    /// Whether it asks about what [`crate::policy::traffic`] does not keep of a request that came with or without a token.
    pub(in crate::policy) fn is_unkept(&self, token: bool) -> bool {
        match self {
            // The query is not kept either.
            Self::Header(name, _) => !matches!(name.as_str(), ":method" | ":authority" | "host"),
            Self::Claim(way, _) => {
                token && !matches!(way.as_slice(), [name] if KEPT_CLAIMS.contains(&name.as_str()))
            }
            _ => false,
        }
    }

    /// What the request has there, for people.
    pub(in crate::policy) fn describe(&self, request: &HttpRequest<'_>) -> String {
        match self {
            Self::Method(_) => request.method.to_owned(),
            Self::Host(_) => request.authority.unwrap_or("a request without a host").to_owned(),
            Self::Path(_) => request.path.map_or("a request without a path", NormalizedPath::path).to_owned(),
            Self::Header(name, _) => {
                let mut values = Vec::new();
                request.each_header(name, &mut |value| values.push(String::from_utf8_lossy(value)));
                if values.is_empty() {
                    format!("a request without header {name}")
                } else {
                    values.join(" and ")
                }
            }
            Self::Principal(_) => request.claims.map_or_else(no_token, claims::principal),
            Self::Claim(way, _) => request.claims.map_or_else(no_token, |claims| {
                let claim = claims::find(claims, way).map(ToString::to_string);
                claim.unwrap_or_else(|| format!("a token without claim {}", way.join(".")))
            }),
            Self::Unsupported => "what meshd does not have".to_owned(),
        }
    }
}

fn no_token() -> String {
    "a request without a token".to_owned()
}
