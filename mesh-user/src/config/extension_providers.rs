//! External authorizers as Istio's `meshConfig.extensionProviders` describes them: the shape of the entries, each value
//! parsed once. What meshd cannot do is refused here or told by [`ExtensionProvider::ignored`]; nothing is passed over.

use std::{collections::BTreeMap, fmt, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What Istio waits at most where an entry does not say (pilot `timeoutOrDefault`).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// An external authorizer that `CUSTOM` policies name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtensionProvider {
    /// What policies call it: lowercase letters, digits and `-`.
    pub name: String,
    /// It speaks Envoy's gRPC API `envoy.service.auth.v3.Authorization`.
    #[serde(default)]
    pub envoy_ext_authz_grpc: Option<GrpcAuthorizer>,
    /// It answers an HTTP request: 200 allows.
    #[serde(default)]
    pub envoy_ext_authz_http: Option<HttpAuthorizer>,
}

/// An authorizer that speaks gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcAuthorizer {
    /// `[namespace/]host`: an address, a service of this file as `name.namespace.svc...`, or a DNS name.
    pub service: String,
    /// Port of the service.
    pub port: u16,
    /// The longest wait for an answer, connecting included.
    #[serde(default)]
    pub timeout: ProviderTimeout,
    /// Let through what could not be asked about.
    #[serde(default)]
    pub fail_open: bool,
    /// Means nothing here: meshd has no routes.
    #[serde(default)]
    pub clear_route_cache: bool,
    /// The status a client gets when nobody could be asked.
    #[serde(default)]
    pub status_on_error: StatusOnError,
    /// Refused: meshd decides before it reads a body.
    #[serde(default)]
    pub include_request_body_in_check: Option<RequestBodyInCheck>,
}

/// An authorizer that answers HTTP requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpAuthorizer {
    /// As of a gRPC one.
    pub service: String,
    /// Port of the service.
    pub port: u16,
    /// The longest wait for an answer, connecting included.
    #[serde(default)]
    pub timeout: ProviderTimeout,
    /// Put in front of the request's path.
    #[serde(default)]
    pub path_prefix: String,
    /// Let through what could not be asked about, or is answered with a 5xx.
    #[serde(default)]
    pub fail_open: bool,
    /// Means nothing here: meshd has no routes.
    #[serde(default)]
    pub clear_route_cache: bool,
    /// The status a client gets when nobody could be asked.
    #[serde(default)]
    pub status_on_error: StatusOnError,
    /// Deprecated by Istio: counts where `includeRequestHeadersInCheck` is empty.
    #[serde(default)]
    pub include_headers_in_check: Vec<HeaderPattern>,
    /// Headers of the request that are told beside `Host` and `Authorization`: exact, `prefix*` or `*suffix`.
    #[serde(default)]
    pub include_request_headers_in_check: Vec<HeaderPattern>,
    /// Headers that each check has, whatever the request says.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub include_additional_headers_in_check: BTreeMap<FixedName, FixedValue>,
    /// Refused: meshd decides before it reads a body.
    #[serde(default)]
    pub include_request_body_in_check: Option<RequestBodyInCheck>,
    /// Headers of an answer that allows which the application gets in place of the client's.
    #[serde(default)]
    pub headers_to_upstream_on_allow: Vec<HeaderPattern>,
    /// Headers of an answer that denies which the client gets; empty: all.
    #[serde(default)]
    pub headers_to_downstream_on_deny: Vec<HeaderPattern>,
    /// Headers of an answer that allows which the client gets beside the application's.
    #[serde(default)]
    pub headers_to_downstream_on_allow: Vec<HeaderPattern>,
}

/// How much of a body an authorizer would be told; meshd tells none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
pub struct RequestBodyInCheck {
    /// Bytes at most.
    pub max_request_bytes: u32,
    /// Tell the beginning of a longer one.
    pub allow_partial_message: bool,
    /// As bytes, not as text.
    pub pack_as_bytes: bool,
}

/// The part of both kinds that does not depend on the protocol.
#[derive(Debug, Clone, Copy)]
pub struct CommonSettings<'a> {
    /// `[namespace/]host`
    pub service: &'a str,
    /// Port of the service.
    pub port: u16,
    /// The longest wait for an answer.
    pub timeout: Duration,
    /// Let through what could not be asked about.
    pub fail_open: bool,
    /// What a client gets when nobody could be asked.
    pub status_on_error: StatusCode,
    body: bool,
    clear_route_cache: bool,
}

impl ExtensionProvider {
    /// What both kinds have; none: it is of no kind, or of two, which validation refuses.
    pub fn common(&self) -> Option<CommonSettings<'_>> {
        macro_rules! common {
            ($kind:expr) => {
                Some(CommonSettings {
                    service: &$kind.service,
                    port: $kind.port,
                    timeout: $kind.timeout.0,
                    fail_open: $kind.fail_open,
                    status_on_error: $kind.status_on_error.0,
                    body: $kind.include_request_body_in_check.is_some(),
                    clear_route_cache: $kind.clear_route_cache,
                })
            };
        }
        match (&self.envoy_ext_authz_grpc, &self.envoy_ext_authz_http) {
            (Some(grpc), None) => common!(grpc),
            (None, Some(http)) => common!(http),
            _ => None,
        }
    }

    /// What of the entry changes nothing, one line each.
    pub fn ignored(&self) -> Vec<String> {
        let mut ignored = Vec::new();
        if self.common().is_some_and(|common| common.clear_route_cache) {
            ignored.push("clearRouteCache means nothing: meshd has no routes".to_owned());
        }
        if let Some(http) = &self.envoy_ext_authz_http
            && !http.include_headers_in_check.is_empty()
            && !http.include_request_headers_in_check.is_empty()
        {
            let why = "includeHeadersInCheck does not count beside includeRequestHeadersInCheck";
            ignored.push(why.to_owned());
        }
        ignored
    }
}

/// What is wrong with a list of providers: path within the file, and why.
pub(super) fn problems(providers: &[ExtensionProvider]) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    for (i, provider) in providers.iter().enumerate() {
        let path = format!("extensionProviders[{i}]");
        let mut wrong = |field: &str, what: &str| problems.push((format!("{path}{field}"), what.to_owned()));
        if !is_name(&provider.name) {
            wrong(".name", "use 1 to 63 lowercase letters, digits and '-', no '-' at either end");
        }
        if providers[..i].iter().any(|earlier| earlier.name == provider.name) {
            wrong(".name", "is the name of an earlier entry too");
        }
        let Some(common) = provider.common() else {
            wrong("", "needs one of envoyExtAuthzGrpc and envoyExtAuthzHttp");
            continue;
        };
        let kind =
            if provider.envoy_ext_authz_grpc.is_some() { "envoyExtAuthzGrpc" } else { "envoyExtAuthzHttp" };
        let mut wrong = |field: &str, what: &str| wrong(&format!(".{kind}.{field}"), what);
        if !is_service(common.service) {
            wrong("service", "is no [namespace/]host: an address, a service's full name or a DNS name");
        }
        if common.port == 0 {
            wrong("port", "port 0 does not exist");
        }
        if common.body {
            wrong("includeRequestBodyInCheck", "meshd decides before it reads a body: remove it");
        }
        if let Some(http) = &provider.envoy_ext_authz_http {
            let prefix = &http.path_prefix;
            let visible = prefix.bytes().all(|b| matches!(b, 0x21..=0x7e) && !b"#?".contains(&b));
            let good = prefix.is_empty() || (prefix.starts_with('/') && visible);
            if !good {
                wrong("pathPrefix", "must begin with '/' and hold no '?', '#' or space");
            }
        }
    }
    problems
}

/// A label of DNS (pilot `validateProviderName`).
fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_service(service: &str) -> bool {
    let (namespace, host) = service.split_once('/').map_or((None, service), |(ns, host)| (Some(ns), host));
    let name = |text: &str| {
        (1..=253).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    namespace.is_none_or(name) && (name(host) || host.parse::<std::net::IpAddr>().is_ok())
}

/// A type that is written as text: parsed from it, written as it.
macro_rules! as_text {
    ($name:ident) => {
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                String::json_schema(generator)
            }
        }
    };
}

/// `google.protobuf.Duration` as JSON writes it, 1 ms to an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProviderTimeout(pub Duration);

as_text!(ProviderTimeout);

impl Default for ProviderTimeout {
    fn default() -> Self {
        Self(DEFAULT_TIMEOUT)
    }
}

impl fmt::Display for ProviderTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{}s", self.0.as_secs()),
            millis => write!(f, "{}.{millis:03}s", self.0.as_secs()),
        }
    }
}

impl TryFrom<String> for ProviderTimeout {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no duration of 1 ms to an hour, such as \"5s\" or \"0.5s\"");
        let number = text.strip_suffix('s').ok_or_else(wrong)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
        };
        if !digits(whole, 4) || !digits(fraction, 9) {
            return Err(wrong());
        }
        let nanos: u32 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
        let duration = Duration::new(whole.parse().map_err(|_| wrong())?, nanos);
        let good = !duration.is_zero() && duration <= Duration::from_secs(3600);
        if good && nanos.is_multiple_of(1_000_000) { Ok(Self(duration)) } else { Err(wrong()) }
    }
}

/// A status as Istio writes it, in quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StatusOnError(pub StatusCode);

as_text!(StatusOnError);

impl Default for StatusOnError {
    fn default() -> Self {
        Self(StatusCode::FORBIDDEN)
    }
}

impl fmt::Display for StatusOnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl TryFrom<String> for StatusOnError {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let status = text.parse().ok().filter(|status: &StatusCode| {
            (200..600).contains(&status.as_u16()) && status.canonical_reason().is_some()
        });
        status.map(Self).ok_or_else(|| format!("{text:?} is no status of HTTP such as \"403\""))
    }
}

/// Names of headers: one, or all that begin or end so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HeaderPattern {
    /// This name.
    Exact(String),
    /// `prefix*`
    Prefix(String),
    /// `*suffix`
    Suffix(String),
}

as_text!(HeaderPattern);

impl HeaderPattern {
    /// Whether it names this header, whose name is in lower case.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => name.ends_with(suffix.as_str()),
        }
    }
}

impl fmt::Display for HeaderPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

impl TryFrom<String> for HeaderPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let (kind, part): (fn(String) -> Self, &str) =
            match (lower.strip_prefix('*'), lower.strip_suffix('*')) {
                (Some(suffix), _) => (Self::Suffix, suffix),
                (None, Some(prefix)) => (Self::Prefix, prefix),
                (None, None) => (Self::Exact, &lower),
            };
        if HeaderName::from_bytes(part.as_bytes()).is_ok() && !part.contains('*') {
            return Ok(kind(part.to_owned()));
        }
        Err(format!("{text:?} is no header's name, \"prefix*\" or \"*suffix\""))
    }
}

/// The name of a header that a check always has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FixedName(String);

impl FixedName {
    /// The header.
    pub fn header(&self) -> Option<HeaderName> {
        HeaderName::from_bytes(self.0.as_bytes()).ok()
    }
}

impl From<FixedName> for String {
    fn from(name: FixedName) -> Self {
        name.0
    }
}

impl TryFrom<String> for FixedName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) if name != http::header::CONTENT_LENGTH && name != http::header::TRANSFER_ENCODING => {
                Ok(Self(name.as_str().to_owned()))
            }
            _ => Err(format!("{text:?} is no header that can be set")),
        }
    }
}

/// Its value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FixedValue(String);

impl FixedValue {
    /// The value.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

/// It may be what the authorizer knows its callers by.
impl fmt::Debug for FixedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FixedValue")
    }
}

impl From<FixedValue> for String {
    fn from(value: FixedValue) -> Self {
        value.0
    }
}

impl TryFrom<String> for FixedValue {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // Not repeated: it may be a secret.
        HeaderValue::from_str(&text).map_err(|_| "is no value that a header can have".to_owned())?;
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_istio() {
        for (text, millis) in [
            ("0.5s", Some(500)),
            ("600s", Some(600_000)),
            ("1.250s", Some(1250)),
            ("3600s", Some(3_600_000)),
            ("3601s", None),
            ("0s", None),
            ("0.0001s", None),
            ("5", None),
            ("1m", None),
            ("-1s", None),
            ("s", None),
            (".5s", None),
        ] {
            let parsed = ProviderTimeout::try_from(text.to_owned()).ok();
            assert_eq!(parsed.map(|timeout| timeout.0.as_millis()), millis, "{text}");
            if let Some(timeout) = parsed {
                assert_eq!(ProviderTimeout::try_from(timeout.to_string()), Ok(timeout));
            }
        }
    }

    #[test]
    fn patterns_name_headers_in_any_case() {
        for (pattern, name, expected) in [
            ("X-User", "x-user", Some(true)),
            ("x-user", "x-user-id", Some(false)),
            ("x-*", "x-user", Some(true)),
            ("*-id", "x-user-id", Some(true)),
            ("*-id", "x-user", Some(false)),
            ("*", "x", None),
            ("a*b", "x", None),
            ("", "x", None),
            ("a b", "x", None),
        ] {
            let parsed = HeaderPattern::try_from(pattern.to_owned()).ok();
            assert_eq!(parsed.map(|p| p.matches(name)), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let entry = |text: &str| serde_json::from_str::<ExtensionProvider>(text).unwrap();
        let http = |fields: &str| {
            entry(&format!(
                r#"{{"name":"a","envoyExtAuthzHttp":{{"service":"x.example","port":80{fields}}}}}"#
            ))
        };
        for (provider, expected) in [
            (http(""), None),
            (http(r#","pathPrefix":"/check""#), None),
            (http(r#","pathPrefix":"check""#), Some("extensionProviders[0].envoyExtAuthzHttp.pathPrefix")),
            (http(r#","pathPrefix":"/a?b""#), Some("extensionProviders[0].envoyExtAuthzHttp.pathPrefix")),
            (
                http(r#","includeRequestBodyInCheck":{"maxRequestBytes":10}"#),
                Some("extensionProviders[0].envoyExtAuthzHttp.includeRequestBodyInCheck"),
            ),
            (entry(r#"{"name":"a"}"#), Some("extensionProviders[0]")),
            (
                entry(r#"{"name":"A","envoyExtAuthzGrpc":{"service":"ns/x","port":1}}"#),
                Some("extensionProviders[0].name"),
            ),
            (
                entry(r#"{"name":"a","envoyExtAuthzGrpc":{"service":"a/b/c","port":1}}"#),
                Some("extensionProviders[0].envoyExtAuthzGrpc.service"),
            ),
            (
                entry(r#"{"name":"a","envoyExtAuthzGrpc":{"service":"::1","port":0}}"#),
                Some("extensionProviders[0].envoyExtAuthzGrpc.port"),
            ),
        ] {
            let found = problems(std::slice::from_ref(&provider));
            assert_eq!(found.first().map(|(path, _)| path.as_str()), expected, "{provider:?}");
        }
        let twice = problems(&[http(""), http("")]);
        assert_eq!(twice[0].0, "extensionProviders[1].name");
    }
}
