//! SPIFFE IDs by template: what stands in `{{ }}` is filled in from what is known of a workload. Nothing is ever altered or
//! escaped: a value that cannot stand in a SPIFFE ID is an error. Pure.
//!
//! Source: SPIFFE-ID.md section 2; Google Cloud, "Service account types", for the names that `gcpName` and `gcpProject` read.

use std::{collections::BTreeMap, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SpiffeId, SpiffeIdError, TrustDomain};

/// Istio's form.
const ISTIO: &str = "spiffe://{{trustDomain}}/ns/{{namespace}}/sa/{{serviceAccount}}";
/// A SPIFFE ID is no longer, and a template that is has no use.
const MAX_BYTES: usize = 2048;
const GCP_SUFFIX: &str = ".iam.gserviceaccount.com";
/// First segments that no workload has: nodes' agents, `meshd ca` and the bundle endpoint prove themselves by them.
const RESERVED: [&str; 3] = ["ca", "node", "spiffe-bundle-endpoint"];

/// How a SPIFFE ID is made of what is known of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct IdentityTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Part {
    Text(String),
    Value(Value),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Value {
    TrustDomain,
    Namespace,
    Name,
    ServiceAccount,
    GcpName,
    GcpProject,
    User,
    Unit,
    Label(String),
}

/// What is known of a workload.
#[derive(Debug, Clone, Copy)]
pub struct WorkloadFacts<'a> {
    /// The mesh's own.
    pub trust_domain: &'a TrustDomain,
    /// As configured.
    pub namespace: &'a str,
    /// As configured.
    pub name: &'a str,
    /// As configured.
    pub service_account: &'a str,
    /// The user that it runs as, where it is known by that.
    pub user: Option<&'a str>,
    /// The systemd unit that it is, where it is known by that.
    pub unit: Option<&'a str>,
    /// As configured.
    pub labels: &'a BTreeMap<String, String>,
}

/// An identity, and what it was made of: only who was made of the same has it by intent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MadeOf(Vec<String>);

/// Why a template is none, or cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Longer than what it is to make.
    #[error("a template has at most {MAX_BYTES} bytes")]
    TooLong,
    /// It is not read.
    #[error(
        "{{{{{0}}}}} is unknown: there are trustDomain, namespace, name, serviceAccount, gcpName, gcpProject, user, \
         unit and label \"NAME\""
    )]
    Unknown(String),
    /// A brace without its other half.
    #[error("{0:?} has a {{{{ without }}}}, or a brace outside of them")]
    Braces(String),
    /// The workload has none.
    #[error("the workload has no {0}, which the template asks for")]
    Missing(String),
    /// It would end a segment, or cannot be written at all.
    #[error(
        "{what} {value:?} cannot stand in a SPIFFE ID, which has letters, digits, '.', '-' and '_': give the workload \
         a spiffeId of its own, or use another template"
    )]
    Value {
        /// Which.
        what: String,
        /// As configured.
        value: String,
    },
    /// `gcpName` or `gcpProject` of something else.
    #[error(
        "serviceAccount {0:?} is no NAME@PROJECT.iam.gserviceaccount.com, which {{{{gcpName}}}} and {{{{gcpProject}}}} read"
    )]
    NotGcp(String),
    /// What comes out is no SPIFFE ID.
    #[error("{id}: {source}")]
    Id {
        /// What comes out.
        id: String,
        /// The cause.
        source: SpiffeIdError,
    },
    /// Nobody could believe it.
    #[error(
        "{id} is not of the mesh's trust domain {own}, nor of another node's workload in a trust domain that is believed"
    )]
    OtherTrustDomain {
        /// What comes out.
        id: SpiffeId,
        /// The mesh's.
        own: TrustDomain,
    },
    /// It has no path, or another's.
    #[error(
        "{0} is no workload's: a workload has a path, and one that does not begin with /node or /spiffe-bundle-endpoint"
    )]
    Reserved(SpiffeId),
}

impl Default for IdentityTemplate {
    fn default() -> Self {
        let literal = |text: &str| Part::Text(text.to_owned());
        let parts = vec![
            literal("spiffe://"),
            Part::Value(Value::TrustDomain),
            literal("/ns/"),
            Part::Value(Value::Namespace),
            literal("/sa/"),
            Part::Value(Value::ServiceAccount),
        ];
        Self { text: ISTIO.to_owned(), parts }
    }
}

impl FromStr for IdentityTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_BYTES {
            return Err(TemplateError::TooLong);
        }
        let braces = || TemplateError::Braces(text.to_owned());
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (inner, behind) = after.split_once("}}").ok_or_else(braces)?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Value(value(inner.trim())?));
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        let outside = |part: &Part| matches!(part, Part::Text(text) if text.contains(['{', '}']));
        if parts.iter().any(outside) {
            return Err(braces());
        }
        Ok(Self { text: text.to_owned(), parts })
    }
}

fn value(inner: &str) -> Result<Value, TemplateError> {
    Ok(match inner {
        "trustDomain" => Value::TrustDomain,
        "namespace" => Value::Namespace,
        "name" => Value::Name,
        "serviceAccount" => Value::ServiceAccount,
        "gcpName" => Value::GcpName,
        "gcpProject" => Value::GcpProject,
        "user" => Value::User,
        "unit" => Value::Unit,
        _ => {
            let label = inner.strip_prefix("label").map(str::trim_start);
            let label = label.and_then(|l| l.strip_prefix('"')?.strip_suffix('"'));
            let label = label.filter(|l| !l.is_empty() && !l.contains('"'));
            Value::Label(label.ok_or_else(|| TemplateError::Unknown(inner.to_owned()))?.to_owned())
        }
    })
}

impl IdentityTemplate {
    /// The identity of the workload that is known by `facts`. Another trust domain than the mesh's own is good where
    /// `is_believed` says so.
    ///
    /// # Errors
    /// When a value is missing or cannot be part of a SPIFFE ID, or what comes out is none of the mesh's workloads'.
    pub fn fill(
        &self,
        facts: &WorkloadFacts<'_>,
        is_believed: impl Fn(&TrustDomain) -> bool,
    ) -> Result<(SpiffeId, MadeOf), TemplateError> {
        let (mut id, mut made_of) = (String::new(), vec![self.text.clone()]);
        for part in &self.parts {
            match part {
                Part::Text(text) => id.push_str(text),
                Part::Value(value) => {
                    let text = value.of(facts)?;
                    id.push_str(text);
                    made_of.push(text.to_owned());
                }
            }
        }
        let id: SpiffeId = id.parse().map_err(|source| TemplateError::Id { id, source })?;
        if id.trust_domain() != facts.trust_domain && !is_believed(id.trust_domain()) {
            return Err(TemplateError::OtherTrustDomain { id, own: facts.trust_domain.clone() });
        }
        let first = id.path().split('/').nth(1).unwrap_or_default();
        if first.is_empty() || RESERVED.contains(&first) {
            return Err(TemplateError::Reserved(id));
        }
        Ok((id, MadeOf(made_of)))
    }
}

impl Value {
    fn of<'a>(&self, facts: &WorkloadFacts<'a>) -> Result<&'a str, TemplateError> {
        let missing = || TemplateError::Missing(self.to_string());
        let gcp = || {
            let account = facts.service_account;
            let parts = account.strip_suffix(GCP_SUFFIX).and_then(|rest| rest.split_once('@'));
            parts.ok_or_else(|| TemplateError::NotGcp(account.to_owned()))
        };
        let text = match self {
            Self::TrustDomain => facts.trust_domain_text(),
            Self::Namespace => facts.namespace,
            Self::Name => facts.name,
            Self::ServiceAccount => facts.service_account,
            Self::GcpName => gcp()?.0,
            Self::GcpProject => gcp()?.1,
            Self::User => facts.user.ok_or_else(missing)?,
            Self::Unit => facts.unit.ok_or_else(missing)?,
            Self::Label(name) => facts.labels.get(name).ok_or_else(missing)?,
        };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if text.is_empty() || !text.bytes().all(allowed) {
            return Err(TemplateError::Value { what: self.to_string(), value: text.to_owned() });
        }
        Ok(text)
    }
}

impl<'a> WorkloadFacts<'a> {
    fn trust_domain_text(&self) -> &'a str {
        self.trust_domain.as_str()
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TrustDomain => "trust domain",
            Self::Namespace => "namespace",
            Self::Name => "name",
            Self::ServiceAccount => "serviceAccount",
            Self::GcpName => "the name in serviceAccount",
            Self::GcpProject => "the project in serviceAccount",
            Self::User => "user",
            Self::Unit => "unit",
            Self::Label(name) => return write!(f, "label {name:?}"),
        })
    }
}

impl fmt::Display for IdentityTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for IdentityTemplate {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, TemplateError> {
        text.parse()
    }
}

impl From<IdentityTemplate> for String {
    fn from(template: IdentityTemplate) -> Self {
        template.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str) -> Result<String, String> {
        let template: IdentityTemplate = template.parse().map_err(|e: TemplateError| e.to_string())?;
        let labels =
            BTreeMap::from([("tier".to_owned(), "gold".to_owned()), ("odd".to_owned(), "a/b".to_owned())]);
        let facts = WorkloadFacts {
            trust_domain: &"own.example".parse().unwrap(),
            namespace: "shop",
            name: "web",
            service_account: "robot@proj-1.iam.gserviceaccount.com",
            user: None,
            unit: Some("nginx@1.service"),
            labels: &labels,
        };
        template
            .fill(&facts, |domain| domain.as_str() == "partner.example")
            .map(|(id, _)| id.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_is_istios_form() {
        assert_eq!(ISTIO.parse::<IdentityTemplate>().unwrap(), IdentityTemplate::default());
    }

    #[test]
    fn values_are_filled_in_as_they_are() {
        for (template, id) in [
            ("spiffe://{{trustDomain}}/ns/{{namespace}}/w/{{name}}", "spiffe://own.example/ns/shop/w/web"),
            ("spiffe://own.example/{{ label \"tier\" }}-{{name}}", "spiffe://own.example/gold-web"),
            (
                "spiffe://{{trustDomain}}/gcp/{{gcpProject}}/{{gcpName}}",
                "spiffe://own.example/gcp/proj-1/robot",
            ),
            ("spiffe://own.example/fixed", "spiffe://own.example/fixed"),
            ("spiffe://partner.example/ns/a/sa/b", "spiffe://partner.example/ns/a/sa/b"),
        ] {
            assert_eq!(filled(template).as_deref(), Ok(id));
        }
    }

    #[test]
    fn what_cannot_be_an_identity_is_an_error() {
        let long = format!("spiffe://own.example/{}", "x".repeat(2048));
        for (template, why) in [
            ("spiffe://{{trustDomain}}/{{serviceAccount}}", "serviceAccount \"robot@"),
            ("spiffe://{{trustDomain}}/{{unit}}", "unit \"nginx@1.service\" cannot stand"),
            ("spiffe://{{trustDomain}}/{{user}}", "has no user"),
            ("spiffe://{{trustDomain}}/{{label \"none\"}}", "has no label \"none\""),
            ("spiffe://{{trustDomain}}/{{label \"odd\"}}", "\"a/b\" cannot stand"),
            ("spiffe://{{trustDomain}}/{{label odd}}", "is unknown"),
            ("spiffe://{{trustDomain}}/{{Name}}", "{{Name}} is unknown"),
            ("spiffe://{{trustDomain}}/{{name", "without"),
            ("spiffe://{{trustDomain}}/{name}", "brace outside"),
            ("spiffe://{{trustDomain}}/x}}", "brace outside"),
            ("https://{{trustDomain}}/x", "starts with \"spiffe://\""),
            ("spiffe://{{trustDomain}}/x/", "segments"),
            ("spiffe://{{trustDomain}}/../{{name}}", "segments"),
            ("spiffe://other.example/x", "not of the mesh's trust domain own.example"),
            ("spiffe://{{trustDomain}}", "is no workload's"),
            ("spiffe://{{trustDomain}}/node/{{name}}", "is no workload's"),
            ("spiffe://{{trustDomain}}/spiffe-bundle-endpoint", "is no workload's"),
            (long.as_str(), "at most 2048"),
        ] {
            let error = filled(template).unwrap_err();
            assert!(error.contains(why), "{template}: {error}");
        }
    }
}
