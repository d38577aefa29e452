//! The audit log of the API server: what accounts of meshd asked, and what they were answered.
//!
//! Source: Kubernetes, "Auditing" (audit.k8s.io/v1).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::roles::Permission;

/// Service accounts have a name of this and theirs.
const ACCOUNTS: &str = "system:serviceaccount:meshd-system:";

/// Of one API server, whatever becomes of it.
pub(crate) struct AuditLog {
    file: PathBuf,
    policy: PathBuf,
}

impl AuditLog {
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Self> {
        let (file, policy) = (folder.join("audit.log"), folder.join("audit-policy.json"));
        let rules = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            "omitStages": ["RequestReceived"], "rules": [ { "level": "Metadata" } ] });
        fs::write(&policy, rules.to_string())?;
        Ok(Self { file, policy })
    }

    /// What the API server is started with.
    pub(crate) fn flags(&self) -> Vec<String> {
        vec![
            format!("--audit-log-path={}", self.file.display()),
            format!("--audit-policy-file={}", self.policy.display()),
        ]
    }

    /// Of `account` in namespace `meshd-system`.
    fn requests(&self, account: &str) -> Vec<Value> {
        let user = format!("{ACCOUNTS}{account}");
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["user"]["username"] == *user).collect()
    }

    /// What `account` asked for and was refused, beyond `granted`: an API server that starts refuses what its roles allow.
    pub(crate) fn refused(&self, account: &str, granted: &BTreeSet<Permission>) -> BTreeSet<Permission> {
        let mut refused: BTreeSet<_> =
            self.requests(account).iter().filter(|event| code(event) == 403).flat_map(needed).collect();
        refused.retain(|asked| !granted.iter().any(|permission| covers(permission, asked)));
        refused
    }

    /// Those of `granted` that no request of `account` has used.
    pub(crate) fn unused(&self, account: &str, granted: &BTreeSet<Permission>) -> BTreeSet<Permission> {
        let used: BTreeSet<_> = self
            .requests(account)
            .iter()
            .filter(|event| (200..300).contains(&code(event)))
            .flat_map(needed)
            .collect();
        let is_unused = |permission: &&Permission| !used.iter().any(|asked| covers(permission, asked));
        granted.iter().filter(is_unused).cloned().collect()
    }
}

fn code(event: &Value) -> u64 {
    event["responseStatus"]["code"].as_u64().unwrap_or(0)
}

fn covers(granted: &Permission, asked: &Permission) -> bool {
    let (group, resource, verb, name) = granted;
    (group, resource, verb) == (&asked.0, &asked.1, &asked.2) && (name.is_none() || *name == asked.3)
}

/// What a request for a resource needs.
fn needed(event: &Value) -> Vec<Permission> {
    let object = &event["objectRef"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let (Some(resource), Some(verb)) = (text(&object["resource"]), text(&event["verb"])) else {
        return Vec::new();
    };
    let resource = match text(&object["subresource"]) {
        Some(sub) => format!("{resource}/{sub}"),
        None => resource,
    };
    let group = text(&object["apiGroup"]).unwrap_or_default();
    let one = |verb: &str| (group.clone(), resource.clone(), verb.to_owned(), text(&object["name"]));
    let mut needed = vec![one(&verb)];
    // Server-side apply that makes an object is asked for both.
    if verb == "patch" && code(event) == 201 {
        needed.push(one("create"));
    }
    needed
}
