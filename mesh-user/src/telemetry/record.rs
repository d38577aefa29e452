//! One access-log line: everything said about a connection at its end. Holds names, addresses and counts,
//! never payload, keys or certificates.

use std::{fmt::Write, net::SocketAddr, num::NonZeroU8, sync::Arc, time::SystemTime};

use serde::{Serialize, Serializer};
use time::{
    OffsetDateTime,
    format_description::well_known::{Iso8601, iso8601},
};

use super::{
    escape::{ascii_json, text_value, truncate},
    labels::{Direction, RelayKind, ResponseFlags},
};

/// One end of a connection.
#[derive(Debug, Clone, Serialize)]
pub struct Party {
    /// Its address, as the wire or the application knows it.
    pub address: SocketAddr,
    /// Workload name, where known.
    pub workload: Option<Arc<str>>,
    /// Namespace, where known.
    pub namespace: Option<Arc<str>>,
}

/// One connection, told at its end.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectionRecord {
    /// When it ended.
    #[serde(serialize_with = "as_rfc3339")]
    pub time: SystemTime,
    /// Seen from the enrolled workload.
    pub direction: Direction,
    /// The client.
    pub source: Party,
    /// The server; for outbound connections to a service this is the endpoint taken.
    pub destination: Party,
    /// Where the application wanted to go, where that differs from the destination.
    pub original_destination: Option<SocketAddr>,
    /// The service called, `name.namespace` or its full name.
    pub service: Option<Arc<str>>,
    /// The identity that the peer proved.
    pub peer_spiffe_id: Option<Arc<str>>,
    /// The identity that meshd proved for the workload.
    pub own_spiffe_id: Option<Arc<str>>,
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// The rule or reason behind the verdict, for example `shop/allow-web rule 0`.
    pub rule: Option<String>,
    /// Peer authentication mode of the server's port: `STRICT`, `PERMISSIVE`, `DISABLE`.
    pub mode: Option<&'static str>,
    /// Mode of the `DestinationRule` that applies: `DISABLE`, `SIMPLE`, `MUTUAL`, `ISTIO_MUTUAL`; absent: none applies.
    pub tls_mode: Option<&'static str>,
    /// The relay kind at the end; absent when no relay ran.
    pub relay: Option<RelayKind>,
    /// How it was captured: `listener`, `held`, `sk_lookup`.
    pub capture_form: &'static str,
    /// `TLSv1.3`, `TLSv1.2`.
    pub tls_version: Option<&'static str>,
    /// Cipher suite by its IANA name.
    pub tls_cipher: Option<&'static str>,
    /// Whether the session was resumed.
    pub resumed: Option<bool>,
    /// Application bytes from server to client.
    pub bytes_sent: u64,
    /// Application bytes from client to server.
    pub bytes_received: u64,
    /// From accept to end.
    pub duration_ms: u64,
    /// Why it ended.
    pub response_flags: ResponseFlags,
    /// The failure in words, where there was one.
    pub error: Option<String>,
}

const RFC3339_MILLIS: iso8601::EncodedConfig = iso8601::Config::DEFAULT
    .set_time_precision(iso8601::TimePrecision::Second { decimal_digits: NonZeroU8::new(3) })
    .encode();

/// UTC with milliseconds, `2026-11-22T02:25:14.000Z`.
pub fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Iso8601::<RFC3339_MILLIS>).unwrap_or_default()
}

pub(super) fn as_rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

impl ConnectionRecord {
    /// One JSON object in printable ASCII, without line break.
    pub fn to_json(&self) -> String {
        let mut cut = self.clone();
        for field in [&mut cut.rule, &mut cut.error].into_iter().flatten() {
            field.truncate(truncate(field).len());
        }
        ascii_json(&serde_json::to_string(&cut).unwrap_or_default())
    }

    /// `key=value` pairs in printable ASCII, without line break; unknown fields are left out.
    pub fn to_text(&self) -> String {
        let mut line = rfc3339(self.time);
        let mut put = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                let _infallible = write!(line, " {key}={}", text_value(value));
            }
        };
        put("direction", Some(self.direction.as_str()));
        put("source", Some(&self.source.address.to_string()));
        put("source_workload", workload(&self.source).as_deref());
        put("destination", Some(&self.destination.address.to_string()));
        put("destination_workload", workload(&self.destination).as_deref());
        put("original_destination", self.original_destination.map(|a| a.to_string()).as_deref());
        put("service", self.service.as_deref());
        put("peer_spiffe_id", self.peer_spiffe_id.as_deref());
        put("own_spiffe_id", self.own_spiffe_id.as_deref());
        put("verdict", Some(self.verdict));
        put("rule", self.rule.as_deref());
        put("mode", self.mode);
        put("tls_mode", self.tls_mode);
        put("relay", self.relay.map(RelayKind::as_str));
        put("capture_form", Some(self.capture_form));
        put("tls_version", self.tls_version);
        put("tls_cipher", self.tls_cipher);
        put("resumed", self.resumed.map(|r| if r { "true" } else { "false" }));
        put("bytes_sent", Some(&self.bytes_sent.to_string()));
        put("bytes_received", Some(&self.bytes_received.to_string()));
        put("duration_ms", Some(&self.duration_ms.to_string()));
        put("response_flags", Some(self.response_flags.as_str()));
        put("error", self.error.as_deref());
        line
    }
}

fn workload(party: &Party) -> Option<String> {
    Some(format!("{}/{}", party.namespace.as_deref()?, party.workload.as_deref()?))
}
