//! One access-log line of a request: everything said about it at its end. Holds names, addresses and counts, never a
//! header, a query, a body or a token.

use std::{fmt::Write, sync::Arc, time::SystemTime};

use serde::Serialize;
use serde_json::Value;

use super::{
    escape::{ascii_json, text_value},
    record::{ConnectionRecord, Party, as_rfc3339},
};

/// What a line tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RequestEvent {
    /// A request has ended.
    Request,
    /// Rules that only watch have matched: AUDIT, or a dry run. Told when the request, or a connection, is decided.
    Audit,
}

/// One request.
#[derive(Debug, Clone, Serialize)]
pub struct RequestRecord {
    /// When it ended, or was decided.
    #[serde(serialize_with = "as_rfc3339")]
    pub time: SystemTime,
    /// What the line tells of.
    pub event: RequestEvent,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The identity that the client proved.
    pub peer_spiffe_id: Option<Arc<str>>,
    /// The identity that its token proved, `<iss>/<sub>`.
    pub request_principal: Option<String>,
    /// `HTTP/1.1` and so on; absent where the head could not be read, and of a connection.
    pub protocol: Option<String>,
    /// Method.
    pub method: Option<String>,
    /// Host as sent.
    pub host: Option<String>,
    /// Path as sent, without its query.
    pub path: Option<String>,
    /// Status that the client got.
    pub status: Option<u16>,
    /// `allow` or `deny`; `refuse` for what is no proper request.
    pub verdict: &'static str,
    /// The rule or reason behind the verdict.
    pub rule: Option<String>,
    /// Rules of AUDIT policies that matched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audit: Vec<String>,
    /// What dry-run policies would have made of it, and their rules that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<String>,
    /// Body bytes to the client.
    pub bytes_sent: u64,
    /// Body bytes from the client.
    pub bytes_received: u64,
    /// From the end of its head to the end of its response.
    pub duration_ms: u64,
    /// The failure in words, where there was one.
    pub error: Option<String>,
}

impl RequestRecord {
    /// A request on a connection, about which nothing is known yet.
    pub fn on(connection: &ConnectionRecord, event: RequestEvent) -> Self {
        Self {
            time: SystemTime::now(),
            event,
            source: connection.source.clone(),
            destination: connection.destination.clone(),
            peer_spiffe_id: connection.peer_spiffe_id.clone(),
            request_principal: None,
            protocol: None,
            method: None,
            host: None,
            path: None,
            status: None,
            verdict: "-",
            rule: None,
            audit: Vec::new(),
            dry_run: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration_ms: 0,
            error: None,
        }
    }

    /// One JSON object in printable ASCII, without line break.
    pub fn to_json(&self) -> String {
        ascii_json(&serde_json::to_string(self).unwrap_or_default())
    }

    /// `key=value` pairs in printable ASCII, without line break; unknown fields are left out.
    pub fn to_text(&self) -> String {
        let mut line = String::new();
        if let Ok(Value::Object(fields)) = serde_json::to_value(self) {
            fields.iter().for_each(|(key, value)| put(&mut line, key, value));
        }
        line.trim_start().to_owned()
    }
}

fn put(line: &mut String, key: &str, value: &Value) {
    let mut text = |text: &str| {
        let _infallible = match key {
            "time" => write!(line, " {text}"),
            _ => write!(line, " {key}={}", text_value(text)),
        };
    };
    match value {
        Value::Null => {}
        Value::String(value) => text(value),
        Value::Object(party) => {
            for (name, value) in party {
                let name = if name == "address" { key.to_owned() } else { format!("{key}_{name}") };
                put(line, &name, value);
            }
        }
        Value::Array(values) => {
            text(&values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","));
        }
        other => text(&other.to_string()),
    }
}
