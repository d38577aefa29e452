//! `RequestAuthentication`: the document as it is written, what Istio's webhook and schema refuse in it, and its rules made
//! ready for `jwt`. Which workloads it applies to is decided in `compile`; no token is seen here.
//!
//! Sources: istio.io/api `security/v1/request_authentication.proto` (with its schema rules);
//! istio/istio pkg/config/validation/validation.go, `ValidateRequestAuthentication`.

use std::{sync::Arc, time::Duration};

use hyper::header::{self, HeaderName, HeaderValue};
use serde::Deserialize;
use time::OffsetDateTime;

use super::{
    api::{TargetRef, WorkloadSelector},
    targets,
};
use crate::jwt::{
    HeaderLocation, JwksSource, JwtRule, KeyLocation, KeySet, KeySource, comparable_audience, fetchable,
};

/// How long a key server may take where a rule does not say, as in Istio.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Always lists, as Istio tells Envoy (`buildSpaceDelimitedClaims`).
const ALWAYS_SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];
/// They say where a message ends, or whose it is; a claim must not.
const FRAMING: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// `RequestAuthentication.spec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct RequestAuthenticationSpec {
    pub selector: Option<WorkloadSelector>,
    pub target_ref: Option<TargetRef>,
    pub target_refs: Option<Vec<TargetRef>>,
    pub jwt_rules: Option<Vec<JwtRuleSpec>>,
}

/// `JWTRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct JwtRuleSpec {
    pub issuer: Option<String>,
    pub audiences: Option<Vec<String>>,
    pub jwks_uri: Option<String>,
    pub jwks: Option<String>,
    pub from_headers: Option<Vec<JwtHeader>>,
    pub from_params: Option<Vec<String>>,
    pub from_cookies: Option<Vec<String>>,
    pub output_payload_to_header: Option<String>,
    pub forward_original_token: Option<bool>,
    pub output_claim_to_headers: Option<Vec<ClaimToHeader>>,
    pub timeout: Option<String>,
    pub space_delimited_claims: Option<Vec<String>>,
}

/// `JWTHeader`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct JwtHeader {
    pub name: String,
    pub prefix: Option<String>,
}

/// `ClaimToHeader`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct ClaimToHeader {
    pub header: String,
    pub claim: String,
}

/// A parsed `RequestAuthentication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestAuthentication {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Orders rules of one issuer; none counts as the oldest.
    pub created: Option<OffsetDateTime>,
    /// Which workloads it is for.
    pub selector: Option<WorkloadSelector>,
    /// What it is attached to instead of workloads.
    pub targets: Vec<TargetRef>,
    /// In the order of the document.
    pub rules: Vec<Arc<JwtRule>>,
}

/// Path of the field and what is wrong with it.
type Invalid = (String, String);

impl RequestAuthentication {
    /// Checks a document and makes its rules ready.
    pub(super) fn new(
        namespace: &str,
        name: &str,
        created: Option<OffsetDateTime>,
        spec: &RequestAuthenticationSpec,
    ) -> Result<Self, Invalid> {
        let selects = super::validate::selector(spec.selector.as_ref())?;
        let listed = spec.target_refs.as_deref().unwrap_or_default();
        if usize::from(selects) + usize::from(spec.target_ref.is_some()) + usize::from(!listed.is_empty()) > 1
        {
            let what = "only one of selector, targetRef and targetRefs can be set";
            return Err(("spec.selector".to_owned(), what.to_owned()));
        }
        for (i, target) in spec.target_ref.iter().chain(listed).enumerate() {
            let path = if spec.target_ref.is_some() {
                "spec.targetRef".to_owned()
            } else {
                format!("spec.targetRefs[{i}]")
            };
            check_target(target).map_err(|what| (path, what.to_owned()))?;
        }
        let policy: Arc<str> = format!("{namespace}/{name}").into();
        let rules = spec.jwt_rules.iter().flatten().enumerate().map(|(index, rule)| {
            let path = |field: &str| format!("spec.jwtRules[{index}]{field}");
            let rule = jwt_rule(&policy, index, rule).map_err(|(field, what)| (path(&field), what))?;
            Ok(Arc::new(rule))
        });
        Ok(Self {
            namespace: namespace.into(),
            name: name.into(),
            created,
            selector: spec.selector.clone(),
            targets: spec.target_ref.iter().chain(listed).cloned().collect(),
            rules: rules.collect::<Result<_, Invalid>>()?,
        })
    }

    /// It is for gateways and waypoints alone, which meshd is not.
    pub(super) fn targets_only_proxies(&self) -> bool {
        targets::only_proxies(self.targets.iter())
    }

    /// What of it is not enforced as written, one line each.
    pub(super) fn not_enforced(&self) -> Vec<String> {
        if self.targets_only_proxies() {
            return vec!["targetRefs name gateways and waypoints; the policy is not enforced yet".to_owned()];
        }
        let mut notes = Vec::new();
        let proxies = targets::proxies(self.targets.iter());
        if !proxies.is_empty() {
            notes.push(format!("meshd is no gateway; left out of targetRefs: {}", proxies.join(", ")));
        }
        notes.extend(self.rules.iter().filter_map(|rule| {
            let index = rule.index;
            let why = match &rule.keys {
                KeySource::Inline(keys) if keys.is_empty() => "jwks has no key that is used".to_owned(),
                KeySource::Remote(source) => fetchable(source.location.url()).err()?,
                KeySource::Inline(_) => return None,
            };
            Some(format!("jwtRules[{index}]: {why}: all tokens of its issuer are refused"))
        }));
        notes
    }
}

/// `validatePolicyTargetReference`.
fn check_target(target: &TargetRef) -> Result<(), &'static str> {
    if target.name.is_empty() {
        return Err("name must be set");
    }
    if target.namespace.as_deref().is_some_and(|namespace| !namespace.is_empty()) {
        return Err("namespace must not be set; a target is in the policy's own");
    }
    match (target.group.as_deref().unwrap_or_default(), target.kind.as_str()) {
        ("" | "core", "Service")
        | ("networking.istio.io", "ServiceEntry")
        | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass") => Ok(()),
        _ => Err("must be a Service, ServiceEntry, Gateway or GatewayClass, each with its group"),
    }
}

/// `validateJwtRule`, and what Envoy or the resource's schema would refuse later. Errors name the field below the rule.
fn jwt_rule(policy: &Arc<str>, index: usize, spec: &JwtRuleSpec) -> Result<JwtRule, Invalid> {
    let keys = key_source(spec)?;
    let from_headers = from_headers(spec.from_headers.as_deref().unwrap_or_default())?;
    let mut rule = JwtRule {
        policy: Arc::clone(policy),
        index,
        issuer: spec.issuer.clone().filter(|issuer| !issuer.is_empty()),
        audiences: not_empty("audiences", spec.audiences.as_ref())?
            .map(|a| comparable_audience(a).to_owned())
            .collect(),
        keys,
        from_headers,
        from_params: not_empty("fromParams", spec.from_params.as_ref())?.cloned().collect(),
        from_cookies: not_empty("fromCookies", spec.from_cookies.as_ref())?.cloned().collect(),
        output_payload_to_header: match spec.output_payload_to_header.as_deref() {
            None | Some("") => None,
            Some(name) => {
                Some(output_header(name).map_err(|what| (".outputPayloadToHeader".to_owned(), what))?)
            }
        },
        output_claim_to_headers: claim_headers(spec.output_claim_to_headers.as_deref().unwrap_or_default())?,
        forward_original_token: spec.forward_original_token.unwrap_or_default(),
        space_delimited_claims: not_empty("spaceDelimitedClaims", spec.space_delimited_claims.as_ref())?
            .cloned()
            .collect(),
    };
    if rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty() {
        rule.from_headers.push(HeaderLocation { name: header::AUTHORIZATION, prefix: "Bearer ".to_owned() });
        rule.from_params.push("access_token".to_owned());
    }
    for always in ALWAYS_SPACE_DELIMITED {
        if !rule.space_delimited_claims.iter().any(|claim| claim == always) {
            rule.space_delimited_claims.push(always.to_owned());
        }
    }
    Ok(rule)
}

fn not_empty<'a>(
    field: &str,
    values: Option<&'a Vec<String>>,
) -> Result<std::slice::Iter<'a, String>, Invalid> {
    let values = values.map(Vec::as_slice).unwrap_or_default();
    match values.iter().position(String::is_empty) {
        Some(i) => Err((format!(".{field}[{i}]"), "is an empty string".to_owned())),
        None => Ok(values.iter()),
    }
}

fn key_source(spec: &JwtRuleSpec) -> Result<KeySource, Invalid> {
    let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let timeout = match spec.timeout.as_deref() {
        None => DEFAULT_TIMEOUT,
        Some(text) => duration(text).map_err(|what| (".timeout".to_owned(), what))?,
    };
    let remote = |location| KeySource::Remote(JwksSource { location, timeout });
    match (text(&spec.issuer), text(&spec.jwks_uri), text(&spec.jwks)) {
        (_, Some(_), Some(_)) => {
            Err((".jwks".to_owned(), "only one of jwks and jwksUri can be set".to_owned()))
        }
        (None, None, _) => Err((String::new(), "needs an issuer or a jwksUri".to_owned())),
        (_, Some(uri), None) => {
            fetchable(&uri).map_err(|what| (".jwksUri".to_owned(), what))?;
            Ok(remote(KeyLocation::Jwks(uri.into())))
        }
        (_, None, Some(jwks)) => {
            let keys =
                KeySet::parse(jwks.as_bytes()).map_err(|error| (".jwks".to_owned(), error.to_string()))?;
            Ok(KeySource::Inline(Arc::new(keys)))
        }
        // Istio takes an issuer that is no URL, and then has no keys for it.
        (Some(issuer), None, None) => Ok(remote(KeyLocation::of_issuer(&issuer))),
    }
}

fn from_headers(listed: &[JwtHeader]) -> Result<Vec<HeaderLocation>, Invalid> {
    let each = listed.iter().enumerate().map(|(i, one)| {
        let invalid = |field: &str, what: &str| (format!(".fromHeaders[{i}].{field}"), what.to_owned());
        let name = HeaderName::from_bytes(one.name.as_bytes())
            .map_err(|_| invalid("name", "is no name of a header"))?;
        let prefix = one.prefix.clone().unwrap_or_default();
        if HeaderValue::from_str(&prefix).is_err() {
            return Err(invalid("prefix", "is no text that a header can carry"));
        }
        Ok(HeaderLocation { name, prefix })
    });
    each.collect()
}

fn claim_headers(listed: &[ClaimToHeader]) -> Result<Vec<(HeaderName, Vec<String>)>, Invalid> {
    let each = listed.iter().enumerate().map(|(i, one)| {
        let invalid = |field: &str, what: String| (format!(".outputClaimToHeaders[{i}].{field}"), what);
        // Stricter than HTTP, as `ValidateStrictHTTPHeaderName` is: `x_a` and `x-a` are one name to some servers.
        if one.header.is_empty() || !one.header.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(invalid(
                "header",
                format!("{:?} may hold only letters, digits and \"-\"", one.header),
            ));
        }
        if one.claim.is_empty() {
            return Err(invalid("claim", "is an empty string".to_owned()));
        }
        let name = output_header(&one.header).map_err(|what| invalid("header", what))?;
        Ok((name, one.claim.split('.').map(str::to_owned).collect()))
    });
    each.collect()
}

fn output_header(text: &str) -> Result<HeaderName, String> {
    let name =
        HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is no name of a header"))?;
    if FRAMING.contains(&name) {
        return Err(format!("{name} says how a message is read; choose another header"));
    }
    Ok(name)
}

/// `google.protobuf.Duration` as JSON writes it, a millisecond at least and in whole ones (`ValidateDuration`).
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as \"5s\" or \"0.500s\"");
    let number = text.strip_suffix('s').ok_or_else(wrong)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 || whole.len() > 9 {
        return Err(wrong());
    }
    let nanos: u32 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    let duration = Duration::new(whole.parse().map_err(|_| wrong())?, nanos);
    if duration.is_zero() || !nanos.is_multiple_of(1_000_000) {
        return Err(format!("{text:?}: must be 1 ms or more, in whole milliseconds"));
    }
    Ok(duration)
}
