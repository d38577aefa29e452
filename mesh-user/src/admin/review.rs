//! Policies before they are enforced: what in them bites (`lint`), and what they would do to what was seen (`impact`). The
//! documents come in the request, are validated as files are, and change nothing.

use serde::{Deserialize, Serialize};

use crate::policy::{
    CompiledPolicies, PolicyError, PolicySet,
    impact::{Change, Impact},
    lint::{self, Facts, Finding},
    traffic::{Content, Seen},
};

/// `POST /v1/policy/lint` and `POST /v1/policy/impact`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyFiles {
    /// The documents. Empty, without `replace`: those in force.
    pub files: Vec<PolicyFile>,
    /// They are all there are. Else they are added to those in force, in place of those of the same kind and name.
    pub replace: bool,
}

/// One file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// What findings and errors call it.
    pub name: String,
    /// Its YAML.
    pub text: String,
}

/// One element of the answer of `lint`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LintRow {
    /// The file.
    pub file: String,
    /// 1-based, where the field is there.
    pub line: Option<u64>,
    /// Kind, namespace and name.
    pub document: String,
    /// Its path.
    pub field: String,
    /// Name of the check.
    pub check: String,
    /// What happens.
    pub problem: String,
    /// What to do.
    pub advice: String,
}

/// The answer of `impact`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImpactReport {
    /// Documents that were proposed.
    pub documents: u64,
    /// Different connections and requests that were decided anew.
    pub replayed: u64,
    /// Connections and requests behind them.
    pub count: u64,
    /// Since the start: those that were not remembered.
    pub left_out: u64,
    /// How far back is remembered.
    pub window_s: u64,
    /// What is decided differently.
    pub changes: Vec<ImpactRow>,
    /// What the answer does not cover; one sentence each.
    pub notes: Vec<String>,
}

/// Connections or requests that are decided differently.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImpactRow {
    /// What it becomes: `denied`, `allowed`, `asks`, `unknown`.
    pub change: String,
    /// By the policies in force.
    pub before: String,
    /// By those proposed.
    pub after: String,
    /// The client: workload or address.
    pub source: String,
    /// Its address.
    pub source_address: String,
    /// The identity it proved; none: plaintext.
    pub source_spiffe_id: Option<String>,
    /// The server, `namespace/name:port`.
    pub destination: String,
    /// Of a request.
    pub method: Option<String>,
    /// Of a request, normalized, without query.
    pub path: Option<String>,
    /// Of a request.
    pub host: Option<String>,
    /// Of a request with a token, `iss/sub`.
    pub request_principal: Option<String>,
    /// Connections or requests.
    pub count: u64,
    /// Unix time.
    pub last_seen_unix_s: u64,
}

/// Looks through the documents, or those in force.
///
/// # Errors
/// When one is not valid.
pub fn lint(
    in_force: &PolicySet,
    given: &PolicyFiles,
    facts: Facts<'_>,
) -> Result<Vec<LintRow>, PolicyError> {
    if given.files.is_empty() && !given.replace {
        return Ok(lint::lint(in_force, facts).into_iter().map(LintRow::from).collect());
    }
    let set = proposed(in_force, given)?;
    let mut findings = lint::lint(&set, facts);
    // The others are in force, and only what they are compared with.
    findings.retain(|finding| given.files.iter().any(|file| file.name == finding.file));
    Ok(findings.into_iter().map(LintRow::from).collect())
}

/// Decides what was seen by the documents in force and by those proposed.
///
/// # Errors
/// When one is not valid.
pub fn impact(
    in_force: (&PolicySet, &CompiledPolicies),
    given: &PolicyFiles,
    facts: Facts<'_>,
) -> Result<ImpactReport, PolicyError> {
    let set = proposed(in_force.0, given)?;
    let compiled = CompiledPolicies::compile(facts.world, &set);
    let impact = Impact::of(facts.world, in_force.1, &compiled, facts.seen.iter().cloned());
    let mut notes = Vec::new();
    if !impact.other_tokens.is_empty() {
        notes.push(format!(
            "RequestAuthentication differs for {}: tokens are not remembered, so requests count as from whom they were",
            impact.other_tokens.join(", ")
        ));
    }
    Ok(ImpactReport {
        documents: set.status.len() as u64,
        replayed: impact.replayed as u64,
        count: facts.seen.iter().map(|seen| seen.count).sum(),
        changes: impact.changes.iter().map(row).collect(),
        notes,
        ..ImpactReport::default()
    })
}

fn proposed(in_force: &PolicySet, given: &PolicyFiles) -> Result<PolicySet, PolicyError> {
    let set = PolicySet::parse(given.files.iter().map(|file| (file.name.as_str(), file.text.as_str())))?;
    Ok(if given.replace { set } else { in_force.with(&set) })
}

impl From<Finding> for LintRow {
    fn from(finding: Finding) -> Self {
        Self {
            file: finding.file,
            line: finding.line,
            document: finding.document,
            field: finding.field,
            check: finding.check.to_owned(),
            problem: finding.problem,
            advice: finding.advice,
        }
    }
}

fn row(Change { seen, before, after }: &Change) -> ImpactRow {
    let Seen { traffic, count, last_seconds } = seen;
    let mut row = ImpactRow {
        change: after.class().to_owned(),
        before: before.why().to_owned(),
        after: after.why().to_owned(),
        source: traffic.client(),
        source_address: traffic.source_ip.to_string(),
        source_spiffe_id: traffic.peer.as_ref().map(ToString::to_string),
        destination: format!("{}:{}", traffic.server, traffic.destination.port()),
        count: *count,
        last_seen_unix_s: *last_seconds,
        ..ImpactRow::default()
    };
    if let Content::Request(request) = &traffic.content {
        let claim = |name: &str| request.claims.as_ref()?.get(name)?.as_str();
        row.method = Some(request.method.to_string());
        row.path = request.path.as_deref().map(str::to_owned);
        row.host = request.host.as_deref().map(str::to_owned);
        row.request_principal = claim("iss").zip(claim("sub")).map(|(iss, sub)| format!("{iss}/{sub}"));
    }
    row
}
