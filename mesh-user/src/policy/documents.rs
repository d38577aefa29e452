//! Multi-document YAML -> [`PolicySet`]. Refuses what Istio's own validation refuses and every unknown field,
//! naming file, place and document; passes over kinds that are not Istio security.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    PolicyScope, PolicyStatus,
    api::{AuthorizationPolicySpec, Document, Head, Metadata, PeerAuthenticationSpec},
    destination_rule::{DestinationRule, DestinationRuleSpec},
    list, notes,
    request_authentication::{RequestAuthentication, RequestAuthenticationSpec},
    status, targets, validate,
};
use crate::config::yaml::{self, Problem};

const SECURITY: [&str; 2] = ["security.istio.io/v1", "security.istio.io/v1beta1"];
const NETWORKING: [&str; 3] =
    ["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
/// This group's other kinds say how clients are routed; they are named so that nobody believes in them.
const NETWORKING_GROUP: &str = "networking.istio.io/";
/// The annotation of a policy that is to be watched before it is enforced.
const DRY_RUN: &str = "istio.io/dry-run";

/// Why policy documents cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError(Box<InDocument>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct InDocument {
    file: String,
    document: String,
    problem: Problem,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.problem.fmt_in(&self.0.file, f)?;
        write!(f, " in {}", self.0.document)
    }
}

impl PolicyError {
    /// What is wrong, without the place.
    pub fn what(&self) -> String {
        let Problem { what, hint, .. } = &self.0.problem;
        hint.as_ref().map_or_else(|| what.clone(), |hint| format!("{what} ({hint})"))
    }
}

/// A parsed `PeerAuthentication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// None counts as the oldest, as the zero time does in Istio.
    pub created: Option<OffsetDateTime>,
    /// What it says.
    pub spec: PeerAuthenticationSpec,
}

/// A parsed `AuthorizationPolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Annotation `istio.io/dry-run`: evaluated and reported, never enforced.
    pub dry_run: bool,
    /// What it says.
    pub spec: AuthorizationPolicySpec,
}

/// All policy documents, valid each, with what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicySet {
    /// In the order they were read.
    pub peer_authentications: Vec<PeerAuthentication>,
    /// In the order they were read.
    pub authorization_policies: Vec<AuthorizationPolicy>,
    /// In the order they were read.
    pub request_authentications: Vec<RequestAuthentication>,
    /// In the order they were read.
    pub destination_rules: Vec<DestinationRule>,
    /// One per document of an Istio kind; [`PolicySet::status_in`] says what it means in a world.
    pub status: Vec<PolicyStatus>,
    /// Documents that were passed over, for the log.
    pub warnings: Vec<String>,
    /// Of each of `status`.
    texts: Vec<Text>,
    seen: HashMap<(String, String, String), String>,
}

/// A document as it was written, to point at its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Text {
    text: Arc<str>,
    /// Of its file.
    first_line: u64,
}

/// One document's text and place.
struct Chunk<'a> {
    file: &'a str,
    text: &'a str,
    first_line: u64,
    number: usize,
    /// Index in the `items` of a List.
    item: Option<usize>,
}

impl Chunk<'_> {
    fn place(&self) -> String {
        match self.item {
            None => format!("document {}", self.number),
            Some(item) => format!("document {} items[{item}]", self.number),
        }
    }

    fn text(&self) -> Text {
        Text { text: self.text.into(), first_line: self.first_line }
    }

    fn error(&self, problem: Problem) -> PolicyError {
        let document = self.place();
        PolicyError(Box::new(InDocument { file: self.file.to_owned(), document, problem }))
    }

    /// A problem found after parsing, placed by its path.
    fn invalid(&self, kind: &str, metadata: &Metadata, path: &str, what: String) -> PolicyError {
        let mut problem = Problem::at(self.text, path, what, None);
        problem.line = problem.line.map(|line| line + self.first_line - 1);
        let document = format!("{} ({kind} {})", self.place(), metadata.name);
        PolicyError(Box::new(InDocument { file: self.file.to_owned(), document, problem }))
    }
}

impl PolicySet {
    /// Parses files, each a name for errors and its text.
    ///
    /// # Errors
    /// On the first document that cannot be used; a set is whole or not at all.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, PolicyError> {
        let mut set = Self::default();
        for (file, text) in files {
            for chunk in split(file, text) {
                set.add(&chunk)?;
            }
        }
        Ok(set)
    }

    /// The line of a field such as `spec.rules[0].to`, in the file of the document that `status[document]` is about.
    pub fn line(&self, document: usize, field: &str) -> Option<u64> {
        let text = self.texts.get(document)?;
        let line = Problem::at(&text.text, field, "", None).line?;
        Some(line + text.first_line - 1)
    }

    /// This set with the documents of `other`, which take the place of those of the same kind and name.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let key = |s: &PolicyStatus| (s.kind.clone(), s.namespace.clone(), s.name.clone());
        let replaced: HashSet<_> = other.status.iter().map(key).collect();
        let stays = |kind: &str, namespace: &str, name: &str| {
            !replaced.contains(&(kind.to_owned(), namespace.to_owned(), name.to_owned()))
        };
        let mut all = self.clone();
        let mut stay = self.status.iter().map(|s| !replaced.contains(&key(s)));
        all.texts.retain(|_| stay.next().unwrap_or(true));
        all.status.retain(|s| !replaced.contains(&key(s)));
        all.peer_authentications.retain(|p| stays("PeerAuthentication", &p.namespace, &p.name));
        all.authorization_policies.retain(|p| stays("AuthorizationPolicy", &p.namespace, &p.name));
        all.request_authentications.retain(|r| stays("RequestAuthentication", &r.namespace, &r.name));
        all.destination_rules.retain(|r| stays("DestinationRule", &r.namespace, &r.name));
        all.texts.extend_from_slice(&other.texts);
        all.status.extend_from_slice(&other.status);
        all.peer_authentications.extend_from_slice(&other.peer_authentications);
        all.authorization_policies.extend_from_slice(&other.authorization_policies);
        all.request_authentications.extend_from_slice(&other.request_authentications);
        all.destination_rules.extend_from_slice(&other.destination_rules);
        all.warnings.extend_from_slice(&other.warnings);
        all
    }

    /// Adds the documents of `other`, but those of a kind and name that are here already; returns these.
    pub fn absorb(&mut self, other: &Self) -> Vec<PolicyStatus> {
        let key = |s: &PolicyStatus| (s.kind.clone(), s.namespace.clone(), s.name.clone());
        let taken: Vec<_> =
            other.status.iter().filter(|s| self.seen.contains_key(&key(s))).cloned().collect();
        let is_new = |kind: &str, namespace: &str, name: &str| {
            !taken.iter().any(|s| s.kind == kind && s.namespace == namespace && s.name == name)
        };
        for (status, text) in other.status.iter().zip(&other.texts) {
            if is_new(&status.kind, &status.namespace, &status.name) {
                self.seen.insert(key(status), status.file.clone());
                self.status.push(status.clone());
                self.texts.push(text.clone());
            }
        }
        let new = |p: &&PeerAuthentication| is_new("PeerAuthentication", &p.namespace, &p.name);
        self.peer_authentications.extend(other.peer_authentications.iter().filter(new).cloned());
        let new = |p: &&AuthorizationPolicy| is_new("AuthorizationPolicy", &p.namespace, &p.name);
        self.authorization_policies.extend(other.authorization_policies.iter().filter(new).cloned());
        let new = |r: &&RequestAuthentication| is_new("RequestAuthentication", &r.namespace, &r.name);
        self.request_authentications.extend(other.request_authentications.iter().filter(new).cloned());
        let new = |r: &&DestinationRule| is_new("DestinationRule", &r.namespace, &r.name);
        self.destination_rules.extend(other.destination_rules.iter().filter(new).cloned());
        self.warnings.extend_from_slice(&other.warnings);
        taken
    }

    /// A set that is already parsed.
    #[cfg(test)]
    pub(super) fn of(
        peer_authentications: Vec<PeerAuthentication>,
        authorization_policies: Vec<AuthorizationPolicy>,
    ) -> Self {
        Self { peer_authentications, authorization_policies, ..Self::default() }
    }

    fn add(&mut self, chunk: &Chunk<'_>) -> Result<(), PolicyError> {
        let head: Head = yaml::parse(chunk.text, chunk.first_line).map_err(|p| chunk.error(p))?;
        let (Some(version), Some(kind)) = (&head.api_version, &head.kind) else {
            let what = "apiVersion and kind are required in a policy document";
            return Err(chunk.error(Problem::at("", "", what, None)));
        };
        match (SECURITY.contains(&version.as_str()), kind.as_str()) {
            (true, "PeerAuthentication") => self.add_peer_authentication(chunk),
            (true, "AuthorizationPolicy") => self.add_authorization_policy(chunk),
            (true, "RequestAuthentication") => self.add_request_authentication(chunk),
            (true, other) => {
                let what = format!("unknown kind {other:?} in {version}");
                Err(chunk.error(Problem::at("", "", what, None)))
            }
            (false, "DestinationRule") if NETWORKING.contains(&version.as_str()) => {
                self.add_destination_rule(chunk)
            }
            (false, "DestinationRule") if version.starts_with(NETWORKING_GROUP) => {
                let what = format!("unknown apiVersion {version:?}");
                let hint = Some(format!("known: {}", NETWORKING.join(", ")));
                Err(chunk.error(Problem::at("", "", what, hint)))
            }
            (false, kind) if version.starts_with(NETWORKING_GROUP) => self.not_enforced(chunk, &head, kind),
            (false, _) if version.starts_with("security.istio.io/") => {
                let what = format!("unknown apiVersion {version:?}");
                let hint = Some(format!("known: {}", SECURITY.join(", ")));
                Err(chunk.error(Problem::at("", "", what, hint)))
            }
            (false, "List") if version == "v1" => self.add_list(chunk),
            (false, kind) => {
                let (file, place) = (chunk.file, chunk.place());
                self.warnings.push(format!("{file}: {place}: {version} {kind} is not a policy"));
                Ok(())
            }
        }
    }

    fn add_list(&mut self, chunk: &Chunk<'_>) -> Result<(), PolicyError> {
        if chunk.item.is_some() {
            return Err(chunk.error(Problem::at("", "", "a List inside a List is not read", None)));
        }
        let items = list::items(chunk.text, chunk.first_line).map_err(|p| chunk.error(p))?;
        for (i, item) in items.iter().enumerate() {
            let first_line = chunk.first_line + item.line as u64 - 1;
            self.add(&Chunk { text: &item.text, first_line, item: Some(i), ..*chunk })?;
        }
        Ok(())
    }

    fn add_peer_authentication(&mut self, chunk: &Chunk<'_>) -> Result<(), PolicyError> {
        const KIND: &str = "PeerAuthentication";
        let document: Document<PeerAuthenticationSpec> =
            yaml::parse(chunk.text, chunk.first_line).map_err(|p| chunk.error(p))?;
        let metadata = &document.metadata;
        let spec = document.spec.unwrap_or_default();
        let created = created(chunk, KIND, metadata)?;
        validate::peer_authentication(&spec).map_err(|(p, what)| chunk.invalid(KIND, metadata, &p, what))?;
        let namespace = self.claim(chunk, KIND, metadata)?;
        if let Some(status) = self.status.last_mut() {
            status::mode(spec.mtls.and_then(|m| m.mode)).clone_into(&mut status.action);
        }
        self.peer_authentications.push(PeerAuthentication {
            namespace: namespace.into(),
            name: metadata.name.as_str().into(),
            created,
            spec,
        });
        Ok(())
    }

    fn add_authorization_policy(&mut self, chunk: &Chunk<'_>) -> Result<(), PolicyError> {
        const KIND: &str = "AuthorizationPolicy";
        let document: Document<AuthorizationPolicySpec> =
            yaml::parse(chunk.text, chunk.first_line).map_err(|p| chunk.error(p))?;
        let metadata = &document.metadata;
        let spec = document.spec.unwrap_or_default();
        validate::authorization_policy(&spec).map_err(|(p, what)| chunk.invalid(KIND, metadata, &p, what))?;
        let namespace = self.claim(chunk, KIND, metadata)?;
        let policy = AuthorizationPolicy {
            namespace: namespace.into(),
            name: metadata.name.as_str().into(),
            dry_run: self.is_dry_run(chunk, metadata),
            spec,
        };
        if let Some(status) = self.status.last_mut() {
            status::action(policy.spec.action).clone_into(&mut status.action);
            status.not_enforced = notes::not_enforced(&policy);
            status.accepted = !targets::only_proxies(targets::refs(&policy.spec));
        }
        self.authorization_policies.push(policy);
        Ok(())
    }

    fn add_request_authentication(&mut self, chunk: &Chunk<'_>) -> Result<(), PolicyError> {
        const KIND: &str = "RequestAuthentication";
        let document: Document<RequestAuthenticationSpec> =
            yaml::parse(chunk.text, chunk.first_line).map_err(|p| chunk.error(p))?;
        let metadata = &document.metadata;
        let created = created(chunk, KIND, metadata)?;
        let namespace = self.claim(chunk, KIND, metadata)?;
        let spec = document.spec.unwrap_or_default();
        let parsed = RequestAuthentication::new(&namespace, &metadata.name, created, &spec)
            .map_err(|(path, what)| chunk.invalid(KIND, metadata, &path, what))?;
        if let Some(status) = self.status.last_mut() {
            status.not_enforced = parsed.not_enforced();
            status.accepted = !parsed.targets_only_proxies();
        }
        self.request_authentications.push(parsed);
        Ok(())
    }

    fn add_destination_rule(&mut self, chunk: &Chunk<'_>) -> Result<(), PolicyError> {
        const KIND: &str = "DestinationRule";
        let document: Document<DestinationRuleSpec> =
            yaml::parse(chunk.text, chunk.first_line).map_err(|p| chunk.error(p))?;
        let metadata = &document.metadata;
        let created = created(chunk, KIND, metadata)?;
        let Some(spec) = &document.spec else {
            return Err(chunk.invalid(KIND, metadata, "spec", "host is required".to_owned()));
        };
        let namespace = self.claim(chunk, KIND, metadata)?;
        let rule = DestinationRule::new(&namespace, &metadata.name, created, spec)
            .map_err(|(path, what)| chunk.invalid(KIND, metadata, &path, what))?;
        if let Some(status) = self.status.last_mut() {
            status.action = rule.modes();
            status.not_enforced = rule.not_enforced().to_vec();
            status.accepted = rule.is_enforced();
        }
        self.destination_rules.push(rule);
        Ok(())
    }

    /// As Go's `strconv.ParseBool` reads it, which Istio uses: what is no boolean counts as false.
    fn is_dry_run(&mut self, chunk: &Chunk<'_>, metadata: &Metadata) -> bool {
        let annotations = metadata.annotations.as_ref();
        match annotations.and_then(|a| a.get(DRY_RUN)).map(String::as_str) {
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some(other) => {
                let (file, place) = (chunk.file, chunk.place());
                self.warnings.push(format!("{file}: {place}: {DRY_RUN} {other:?} is no boolean: enforced"));
                false
            }
        }
    }

    /// Takes the document's name, which must be free, and opens its status.
    fn claim(&mut self, chunk: &Chunk<'_>, kind: &str, metadata: &Metadata) -> Result<String, PolicyError> {
        let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let key = (kind.to_owned(), namespace.clone(), metadata.name.clone());
        let place = format!("{} {}", chunk.file, chunk.place());
        if let Some(first) = self.seen.insert(key, place) {
            let what = format!("{kind} {namespace}/{} is already defined in {first}", metadata.name);
            return Err(chunk.invalid(kind, metadata, "metadata.name", what));
        }
        self.texts.push(chunk.text());
        self.status.push(PolicyStatus {
            kind: kind.to_owned(),
            namespace: namespace.clone(),
            name: metadata.name.clone(),
            file: chunk.file.to_owned(),
            scope: PolicyScope::Namespace,
            action: String::new(),
            workloads: 0,
            accepted: true,
            not_enforced: Vec::new(),
            conflicts: Vec::new(),
        });
        Ok(namespace)
    }

    #[allow(clippy::unnecessary_wraps, reason = "one arm of a match whose others fail")]
    fn not_enforced(&mut self, chunk: &Chunk<'_>, head: &Head, kind: &str) -> Result<(), PolicyError> {
        let metadata = head.metadata.as_ref();
        let part = |get: fn(&super::api::LooseMetadata) -> &Option<String>, default: &str| {
            metadata.and_then(|m| get(m).clone()).unwrap_or_else(|| default.to_owned())
        };
        self.texts.push(chunk.text());
        self.status.push(PolicyStatus {
            kind: kind.to_owned(),
            namespace: part(|m| &m.namespace, "default"),
            name: part(|m| &m.name, ""),
            file: chunk.file.to_owned(),
            scope: PolicyScope::Namespace,
            action: String::new(),
            workloads: 0,
            accepted: false,
            not_enforced: vec![format!("{kind} is not enforced yet")],
            conflicts: Vec::new(),
        });
        Ok(())
    }
}

fn created(
    chunk: &Chunk<'_>,
    kind: &str,
    metadata: &Metadata,
) -> Result<Option<OffsetDateTime>, PolicyError> {
    let Some(text) = metadata.creation_timestamp.as_deref() else { return Ok(None) };
    OffsetDateTime::parse(text, &Rfc3339).map(Some).map_err(|_| {
        let what = format!("{text:?} is no RFC 3339 time");
        chunk.invalid(kind, metadata, "metadata.creationTimestamp", what)
    })
}

/// Cuts a file at its document markers. In YAML a line that starts with `---` is one even inside a block
/// scalar (YAML 1.2.2, rule c-forbidden), so lines are enough.
fn split<'a>(file: &'a str, text: &'a str) -> Vec<Chunk<'a>> {
    let mut chunks = Vec::new();
    let (mut start, mut first_line, mut offset, mut line_number) = (0, 1, 0, 0);
    for line in text.split_inclusive('\n') {
        line_number += 1;
        let marker =
            line.strip_prefix("---").is_some_and(|r| r.is_empty() || r.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > start {
            chunks.push((start, offset, first_line));
            (start, first_line) = (offset, line_number);
        }
        offset += line.len();
    }
    chunks.push((start, offset, first_line));
    let chunks = chunks.into_iter().map(|(start, end, first_line)| (&text[start..end], first_line));
    let written = chunks.filter(|(text, _)| {
        text.lines().any(|l| !matches!(l.trim(), "" | "---" | "...") && !l.trim_start().starts_with('#'))
    });
    let numbered = written.enumerate();
    numbered
        .map(|(i, (text, first_line))| Chunk { file, text, first_line, number: i + 1, item: None })
        .collect()
}
