//! What access log and metrics are told of each request.

use std::time::SystemTime;

use super::flags_of;
use crate::{
    http::{Observer, RequestReport, Verdict},
    proxy::{Live, Mesh},
    telemetry::{RequestEvent, RequestMetrics, RequestOutcome, RequestRecord, RequestSizes, ResponseFlags},
};

pub(super) struct Reporter<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) live: &'a Live,
    pub(super) requests: RequestMetrics,
}

/// Why a request ended early.
fn flags(report: &RequestReport<'_>) -> ResponseFlags {
    match report.verdict {
        Verdict::Allowed => flags_of(report.error),
        Verdict::Denied => ResponseFlags::Denied,
        Verdict::Undecided => ResponseFlags::Reset,
        Verdict::Refused(_) => ResponseFlags::Failed,
    }
}

impl Observer for Reporter<'_> {
    fn request(&self, report: &RequestReport<'_>) {
        let verdict = match report.verdict {
            Verdict::Allowed => "allow",
            Verdict::Denied => "deny",
            Verdict::Undecided => "-",
            Verdict::Refused(_) => "refuse",
        };
        let status = report.status.map(|status| status.as_u16());
        self.mesh.metrics.request(verdict, status);
        let outcome = RequestOutcome {
            response_code: status,
            is_grpc: report.is_grpc,
            grpc_status: report.grpc_status,
            flags: flags(report),
        };
        let sizes = RequestSizes {
            duration: report.duration,
            request_bytes: report.bytes_received,
            response_bytes: report.bytes_sent,
        };
        self.requests.ended(outcome, &sizes);
        self.mesh.access_log.log_request(|| {
            let known = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            let mut record = RequestRecord::on(&self.live.record, RequestEvent::Request);
            record.time = SystemTime::now();
            record.protocol = report.version.map(|version| version.to_string());
            record.method = known(report.method);
            record.host = known(report.host);
            record.path = known(report.path);
            record.status = status;
            record.verdict = verdict;
            record.rule = report.rule.map(ToOwned::to_owned);
            record.request_principal = report.principal.map(ToOwned::to_owned);
            record.bytes_sent = report.bytes_sent;
            record.bytes_received = report.bytes_received;
            record.duration_ms = u64::try_from(report.duration.as_millis()).unwrap_or(u64::MAX);
            record.error = match (report.verdict, report.error) {
                (Verdict::Refused(refusal), None) => Some(refusal.to_string()),
                (_, error) => error.map(ToString::to_string),
            };
            record
        });
    }
}
