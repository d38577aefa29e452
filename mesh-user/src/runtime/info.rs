//! What a container runtime says of a sandbox beyond the protocol: the `info` of a verbose `PodSandboxStatus`, JSON of the
//! runtime's own. containerd (`internal/cri/server/sandbox_status.go`) and CRI-O (`server/sandbox_status.go`) both name
//! the sandbox's process and its OCI specification; containerd keeps the namespace's path in its metadata too. Pure.

use std::{collections::HashMap, path::PathBuf};

use serde::Deserialize;

/// The runtimes' answers are tens of kilobytes.
const MAX_BYTES: usize = 1 << 20;
const MAX_PATH_BYTES: usize = 4096;

/// Where a runtime says that a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Whereabouts {
    /// The file of its network namespace, as the runtime's own mount namespace has it.
    pub(super) netns: Option<PathBuf>,
    /// Its first process, as the runtime's own process namespace numbers it.
    pub(super) pid: Option<i32>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Info {
    pid: i64,
    runtime_spec: Option<Spec>,
    metadata: Option<Versioned>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Namespace {
    r#type: String,
    path: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Versioned {
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    #[serde(rename = "NetNSPath")]
    netns_path: String,
}

/// Reads the `info` of a verbose answer.
///
/// # Errors
/// In words, when it is not as either runtime writes it.
pub(super) fn read(info: &HashMap<String, String>) -> Result<Whereabouts, String> {
    let text = info.get("info").ok_or("the runtime tells nothing of the sandbox beyond the protocol")?;
    if text.len() > MAX_BYTES {
        return Err(format!("the runtime's info has {} bytes, more than {MAX_BYTES}", text.len()));
    }
    let info: Info = serde_json::from_str(text).map_err(|error| format!("the runtime's info: {error}"))?;
    let of_spec = info.runtime_spec.and_then(|spec| spec.linux).unwrap_or_default().namespaces;
    let of_spec = of_spec.into_iter().find(|namespace| namespace.r#type == "network");
    let of_metadata = info.metadata.map(|versioned| versioned.metadata.netns_path);
    let netns = of_spec.map(|namespace| namespace.path).filter(|path| !path.is_empty());
    let netns = netns.or(of_metadata).filter(|path| !path.is_empty());
    let netns = netns.map(path).transpose()?;
    let pid = i32::try_from(info.pid).ok().filter(|pid| *pid > 1);
    if netns.is_none() && pid.is_none() {
        return Err("the runtime names neither a process nor a network namespace".to_owned());
    }
    Ok(Whereabouts { netns, pid })
}

/// Absolute, and without steps that lead elsewhere.
fn path(text: String) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let plain = path
        .components()
        .all(|part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_)));
    if !path.is_absolute() || !plain || path.as_os_str().len() > MAX_PATH_BYTES {
        return Err("the runtime's path of the network namespace is not a plain absolute one".to_owned());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Whereabouts, String> {
        read(&HashMap::from([("info".to_owned(), text.to_owned())]))
    }

    #[test]
    fn both_runtimes_forms_are_read() {
        let containerd = r#"{"pid":4242,"processStatus":"running","netNamespaceClosed":false,
            "runtimeSpec":{"ociVersion":"1.1.0","linux":{"namespaces":[{"type":"pid"},
            {"type":"network","path":"/var/run/netns/cni-1"}]}},
            "metadata":{"Version":"v1","Metadata":{"ID":"x","NetNSPath":"/var/run/netns/cni-1"}}}"#;
        let crio = r#"{"image":"pause","pid":77,"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/var/run/netns/9f"}]}}}"#;
        let named = |path: &str, pid| Whereabouts { netns: Some(path.into()), pid: Some(pid) };
        assert_eq!(read_text(containerd).unwrap(), named("/var/run/netns/cni-1", 4242));
        assert_eq!(read_text(crio).unwrap(), named("/var/run/netns/9f", 77));
        let metadata_only = r#"{"pid":0,"metadata":{"Metadata":{"NetNSPath":"/n"}}}"#;
        assert_eq!(read_text(metadata_only).unwrap(), Whereabouts { netns: Some("/n".into()), pid: None });
        // A sandbox of its own machine has no path.
        let pid_only = r#"{"pid":9,"runtimeSpec":{"linux":{"namespaces":[{"type":"network"}]}}}"#;
        assert_eq!(read_text(pid_only).unwrap(), Whereabouts { netns: None, pid: Some(9) });
    }

    #[test]
    fn what_leads_nowhere_or_elsewhere_is_refused() {
        let deep = "[".repeat(100_000);
        let long = format!(r#"{{"pid":2,"x":"{}"}}"#, "x".repeat(MAX_BYTES));
        for text in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"pid":-4}"#,
            r#"{"pid":1}"#,
            r#"{"pid":4294967298}"#,
            r#"{"pid":"7"}"#,
            r#"{"metadata":{"Metadata":{"NetNSPath":"../proc/1/ns/net"}}}"#,
            r#"{"metadata":{"Metadata":{"NetNSPath":"/var/../proc/1/ns/net"}}}"#,
            &deep,
            &long,
        ] {
            assert!(read_text(text).is_err(), "{}", &text[..text.len().min(60)]);
        }
        assert!(read(&HashMap::new()).is_err());
    }
}
