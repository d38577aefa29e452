//! What is told of each request for the access log and metrics. Holds no header, no query and no body: tokens travel there.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use super::{
    bounded::bounded,
    error::{HttpError, Refusal},
    gate::{RequestHead, Version},
};

const MAX_METHOD_BYTES: usize = 32;
const MAX_HOST_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 512;

/// What was made of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The gate let it through.
    Allowed,
    /// The gate denied it.
    Denied,
    /// The client took it back while the gate was deciding.
    Undecided,
    /// It never came before the gate.
    Refused(Refusal),
}

/// One request, told at its end.
#[derive(Debug)]
pub struct RequestReport<'a> {
    /// HTTP version of the request; `None` where its head could not be read.
    pub version: Option<Version>,
    /// Method, cut to 32 bytes; empty where the head could not be read.
    pub method: &'a str,
    /// Host with port as sent, cut to 255 bytes.
    pub host: &'a str,
    /// Path as sent, without its query, cut to 512 bytes.
    pub path: &'a str,
    /// Status that the client got; `None` where it got none.
    pub status: Option<StatusCode>,
    /// What was made of it.
    pub verdict: Verdict,
    /// The rule that the gate named.
    pub rule: Option<&'a str>,
    /// Whom the gate took the request's sender for, beyond its connection.
    pub principal: Option<&'a str>,
    /// Whether it is a gRPC call, by its content type.
    pub is_grpc: bool,
    /// `grpc-status` of its response.
    pub grpc_status: Option<u8>,
    /// Body or tunnel bytes from the client.
    pub bytes_received: u64,
    /// Body or tunnel bytes to the client, those of a denial included.
    pub bytes_sent: u64,
    /// From the end of its head to the end of its response.
    pub duration: Duration,
    /// Why it ended early.
    pub error: Option<&'a HttpError>,
}

/// Takes reports. Called once per request, on the connection's task: it must not block.
pub trait Observer: Send + Sync {
    /// One request has ended.
    fn request(&self, report: &RequestReport<'_>);
}

/// Hears nothing.
impl Observer for () {
    fn request(&self, _: &RequestReport<'_>) {}
}

/// The bounded copy of a request's names that outlives its head.
#[derive(Debug, Default)]
pub(super) struct Names {
    version: Option<Version>,
    /// Method, host and path, one behind the other.
    text: String,
    host_at: usize,
    path_at: usize,
    rule: Option<Arc<str>>,
    principal: Option<Arc<str>>,
    is_grpc: bool,
}

impl Names {
    pub(super) fn of(head: &RequestHead<'_>) -> Self {
        let path = head.path.split_once('?').map_or(head.path, |(path, _)| path);
        let method = bounded(head.method, MAX_METHOD_BYTES);
        let host = bounded(head.authority, MAX_HOST_BYTES);
        Self {
            version: Some(head.version),
            text: [method, host, bounded(path, MAX_PATH_BYTES)].concat(),
            host_at: method.len(),
            path_at: method.len() + host.len(),
            rule: None,
            principal: None,
            is_grpc: head.is_grpc(),
        }
    }

    /// What the gate said of it.
    pub(super) fn decided(&mut self, rule: Option<&Arc<str>>, principal: Option<&Arc<str>>) {
        self.rule = rule.cloned();
        self.principal = principal.cloned();
    }

    pub(super) fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// A report with these names, to be completed.
    pub(super) fn report(&self, verdict: Verdict, duration: Duration) -> RequestReport<'_> {
        RequestReport {
            version: self.version,
            method: self.text.get(..self.host_at).unwrap_or_default(),
            host: self.text.get(self.host_at..self.path_at).unwrap_or_default(),
            path: self.text.get(self.path_at..).unwrap_or_default(),
            status: None,
            verdict,
            rule: self.rule.as_deref(),
            principal: self.principal.as_deref(),
            is_grpc: self.is_grpc,
            grpc_status: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration,
            error: None,
        }
    }
}
