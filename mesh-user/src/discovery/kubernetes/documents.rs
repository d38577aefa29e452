//! Policy documents of the API server, each judged by itself: one that cannot be used is rejected alone, and its last good
//! version stays in force. Those of namespaces that are not enrolled are not even read. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Map, Value, json};

use super::objects::{Key, Table};
use crate::policy::{PolicyScope, PolicySet, PolicyStatus};

/// Which condition of `status.conditions` is meshd's.
pub(super) const CONDITION: &str = "meshd.io/Accepted";
/// The reason of a document that cannot be used.
pub(super) const INVALID: &str = "Invalid";
/// Larger documents than an API server stores by default are none.
const MAX_BYTES: usize = 3 << 20;
/// A condition's message may be as long as this (Kubernetes' API conventions), and shows in terminals.
const MAX_MESSAGE_CHARS: usize = 1024;

/// Kinds of documents that meshd enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum PolicyKind {
    PeerAuthentication,
    AuthorizationPolicy,
    RequestAuthentication,
    DestinationRule,
}

impl PolicyKind {
    pub(super) const ALL: [Self; 4] = [
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
        Self::DestinationRule,
    ];

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::DestinationRule => "DestinationRule",
        }
    }

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::PeerAuthentication => "peerauthentications",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::RequestAuthentication => "requestauthentications",
            Self::DestinationRule => "destinationrules",
        }
    }

    /// Group and versions, the best first.
    pub(super) fn resources(self) -> Vec<ApiResource> {
        let (group, versions) = match self {
            Self::DestinationRule => ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"][..]),
            _ => ("security.istio.io", &["v1", "v1beta1"][..]),
        };
        let resource = |version: &&str| {
            let kind = GroupVersionKind::gvk(group, version, self.kind());
            ApiResource::from_gvk_with_plural(&kind, self.plural())
        };
        versions.iter().map(resource).collect()
    }
}

/// A document as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) uid: Arc<str>,
    /// Of its spec.
    pub(super) generation: i64,
    /// JSON: what the parser of files reads too.
    text: Arc<str>,
    /// What its status says of meshd now.
    pub(super) said: Option<Said>,
}

/// What a document's own status says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) accepted: bool,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) generation: i64,
}

impl Document {
    pub(super) fn keep(object: DynamicObject, kind: PolicyKind) -> Option<Self> {
        let (meta, mut data) = (object.metadata, object.data);
        let dry_run = meta.annotations.as_ref().and_then(|a| a.get("istio.io/dry-run"));
        let mut metadata = Map::new();
        metadata.insert("name".to_owned(), json!(meta.name));
        metadata.insert("namespace".to_owned(), json!(meta.namespace));
        metadata.insert("creationTimestamp".to_owned(), json!(meta.creation_timestamp));
        metadata.insert(
            "annotations".to_owned(),
            json!(dry_run.map(|value| json!({ "istio.io/dry-run": value }))),
        );
        // Every version of these APIs has the same fields.
        let version = kind.resources().first()?.api_version.clone();
        let mut document = json!({ "apiVersion": version, "kind": kind.kind(), "metadata": metadata });
        if let Some(spec) = data.get_mut("spec") {
            document["spec"] = spec.take();
        }
        Some(Self {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            generation: meta.generation.unwrap_or_default(),
            said: said(data.get("status")),
            text: document.to_string().into(),
        })
    }
}

fn said(status: Option<&Value>) -> Option<Said> {
    let conditions = status?.get("conditions")?.as_array()?;
    let own = conditions.iter().find(|condition| condition["type"] == CONDITION)?;
    let text = |field: &str| own[field].as_str().unwrap_or_default().to_owned();
    // Istio's own conditions have it as text.
    let generation = &own["observedGeneration"];
    let generation = generation.as_i64().or_else(|| generation.as_str()?.parse().ok());
    Some(Said {
        accepted: own["status"] == "True",
        reason: text("reason"),
        message: text("message"),
        generation: generation.unwrap_or_default(),
    })
}

/// What became of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) kind: PolicyKind,
    pub(super) key: Key,
    pub(super) uid: Arc<str>,
    /// What its status should say.
    pub(super) verdict: Said,
    /// What it says.
    pub(super) said: Option<Said>,
    /// An older version of it is in force.
    pub(super) older_in_force: bool,
}

#[derive(Debug)]
struct Judged {
    text: Arc<str>,
    uid: Arc<str>,
    read: Result<Arc<PolicySet>, String>,
    last_good: Option<Arc<PolicySet>>,
}

/// Remembers what was read, so that a change costs what changed.
#[derive(Debug, Default)]
pub(super) struct Judge(HashMap<(PolicyKind, Key), Judged>);

impl Judge {
    /// The set in force, and what became of each document of the namespaces that count.
    pub(super) fn judge(
        &mut self,
        tables: &[Table<Document>],
        counts: &BTreeSet<Arc<str>>,
        root_namespace: &str,
    ) -> (PolicySet, Vec<Judgement>) {
        let (mut set, mut judgements) = (PolicySet::default(), Vec::new());
        let is_there = |(kind, key): &(PolicyKind, Key)| {
            tables.get(*kind as usize).is_some_and(|table| table.contains_key(key))
        };
        self.0.retain(|document, _| is_there(document));
        for (kind, table) in PolicyKind::ALL.into_iter().zip(tables) {
            let concerns = |key: &Key| *key.namespace == *root_namespace || counts.contains(&key.namespace);
            let mut sorted: Vec<_> = table.iter().filter(|(key, _)| concerns(key)).collect();
            sorted.sort_unstable_by_key(|(key, _)| *key);
            for (key, document) in sorted {
                let judged = self.read(kind, key, document);
                if let Some(good) = judged.read.as_ref().ok().or(judged.last_good.as_ref()) {
                    set.absorb(good);
                }
                judgements.push(judgement(kind, key, document, judged));
            }
        }
        (set, judgements)
    }

    fn read(&mut self, kind: PolicyKind, key: &Key, document: &Document) -> &Judged {
        let known = self.0.remove(&(kind, key.clone()));
        let judged = match known {
            Some(known) if known.text == document.text && known.uid == document.uid => known,
            // One that was deleted and made anew is another.
            other => {
                let last_good = other.filter(|known| known.uid == document.uid);
                let last_good = last_good.and_then(|known| known.read.ok().or(known.last_good));
                Judged {
                    read: read(kind, key, &document.text),
                    text: Arc::clone(&document.text),
                    uid: Arc::clone(&document.uid),
                    last_good,
                }
            }
        };
        self.0.entry((kind, key.clone())).or_insert(judged)
    }
}

fn read(kind: PolicyKind, key: &Key, text: &str) -> Result<Arc<PolicySet>, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it is larger than {} MiB", MAX_BYTES >> 20));
    }
    let place = format!("{} {}/{}", kind.kind(), key.namespace, key.name);
    PolicySet::parse([(place.as_str(), text)]).map(Arc::new).map_err(|error| error.what())
}

fn judgement(kind: PolicyKind, key: &Key, document: &Document, judged: &Judged) -> Judgement {
    let older_in_force = judged.read.is_err() && judged.last_good.is_some();
    let (accepted, reason, message) = match &judged.read {
        Ok(set) => match set.status.first() {
            Some(status) if !status.not_enforced.is_empty() => {
                (status.accepted, "PartlyEnforced", status.not_enforced.join("; "))
            }
            Some(status) if !status.accepted => {
                (false, "NotEnforced", "meshd does not enforce it".to_owned())
            }
            _ => (true, "Accepted", "meshd enforces it".to_owned()),
        },
        Err(why) if older_in_force => {
            (false, INVALID, format!("{why}; the last good version stays in force where it was known"))
        }
        Err(why) => (false, INVALID, format!("{why}; it is not in force")),
    };
    let message = message.chars().take(MAX_MESSAGE_CHARS).collect();
    let reason = reason.to_owned();
    Judgement {
        kind,
        key: key.clone(),
        uid: Arc::clone(&document.uid),
        verdict: Said { accepted, reason, message, generation: document.generation },
        said: document.said.clone(),
        older_in_force,
    }
}

impl Judgement {
    /// In one line.
    pub(super) fn told(&self) -> String {
        format!("{} {}/{}: {}", self.kind.kind(), self.key.namespace, self.key.name, self.verdict.message)
    }

    /// For the list of policies, where the newest version is not one that is enforced.
    pub(super) fn row(&self) -> Option<PolicyStatus> {
        (self.verdict.reason == INVALID).then(|| PolicyStatus {
            kind: self.kind.kind().to_owned(),
            namespace: self.key.namespace.to_string(),
            name: self.key.name.to_string(),
            file: "the API server".to_owned(),
            scope: PolicyScope::Namespace,
            action: String::new(),
            workloads: 0,
            accepted: false,
            not_enforced: vec![format!("rejected: {}", self.verdict.message)],
            conflicts: Vec::new(),
        })
    }
}
