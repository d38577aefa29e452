//! How a workload's programs are told apart on this node: exactly one of a network namespace, a cgroup,
//! a pod, a systemd unit or a user. Pure data; capture opens the paths.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which programs on this node a workload is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "SelectorFields", into = "SelectorFields")]
pub enum Selector {
    /// All of this network namespace, by the path of its file.
    Netns(PathBuf),
    /// This cgroup and all below it, in the host's network namespace.
    Cgroup(PathBuf),
    /// This unit of systemd, by its cgroup: as a cgroup, wherever systemd has it now.
    Unit(String),
    /// The pod of this UID, in the network namespace it has now.
    Pod(String),
    /// This user (name or number), in the host's network namespace.
    User(String),
}

/// As the file writes it.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SelectorFields {
    /// Path of a network namespace's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    /// Path of a cgroup's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<PathBuf>,
    /// A unit's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    /// A pod's UID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// A user's name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
}

impl JsonSchema for Selector {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Selector".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one = |key: &str, value: serde_json::Value| {
            serde_json::json!({
                "type": "object", "properties": { key: value }, "required": [key], "additionalProperties": false
            })
        };
        schemars::json_schema!({
            "description": "Which programs on this node the workload is: exactly one of netns, cgroup, unit, pod, user.",
            "oneOf": [
                one("netns", serde_json::json!({ "type": "string", "description": "Path of a network namespace's file." })),
                one("cgroup", serde_json::json!({ "type": "string", "description": "Path of a cgroup's folder; all below it counts." })),
                one("unit", serde_json::json!({ "type": "string", "description": "A systemd unit's name, such as nginx.service." })),
                one("pod", serde_json::json!({ "type": "string", "description": "A Kubernetes pod's UID; the container runtime says where it lives." })),
                one("user", serde_json::json!({ "type": ["string", "integer"], "description": "A user's name or number." })),
            ]
        })
    }
}

impl TryFrom<SelectorFields> for Selector {
    type Error = &'static str;

    fn try_from(fields: SelectorFields) -> Result<Self, Self::Error> {
        match (fields.netns, fields.cgroup, fields.unit, fields.pod, fields.user) {
            (Some(path), None, None, None, None) => Ok(Self::Netns(path)),
            (None, Some(path), None, None, None) => Ok(Self::Cgroup(path)),
            (None, None, Some(unit), None, None) => Ok(Self::Unit(unit)),
            (None, None, None, Some(pod), None) => Ok(Self::Pod(pod)),
            (None, None, None, None, Some(user)) => Ok(Self::User(user)),
            _ => Err("a selector has exactly one of netns, cgroup, unit, pod, user"),
        }
    }
}

impl From<Selector> for SelectorFields {
    fn from(selector: Selector) -> Self {
        match selector {
            Selector::Netns(path) => Self { netns: Some(path), ..Self::default() },
            Selector::Cgroup(path) => Self { cgroup: Some(path), ..Self::default() },
            Selector::Unit(unit) => Self { unit: Some(unit), ..Self::default() },
            Selector::Pod(pod) => Self { pod: Some(pod), ..Self::default() },
            Selector::User(user) => Self { user: Some(user), ..Self::default() },
        }
    }
}

impl Selector {
    /// The user that selects, where one does.
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::User(user) => Some(user),
            _ => None,
        }
    }

    /// The UID of the pod that selects, where one does.
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    /// The systemd unit that selects, where one does.
    pub fn unit(&self) -> Option<&str> {
        match self {
            Self::Unit(unit) => Some(unit),
            _ => None,
        }
    }
}
