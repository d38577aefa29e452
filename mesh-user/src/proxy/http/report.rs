//! What access log and metrics are told of each request.

use std::time::SystemTime;

use crate::{
    http::{Observer, RequestReport, Verdict},
    proxy::{Live, Mesh},
    telemetry::{RequestEvent, RequestRecord},
};

pub(super) struct Reporter<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) live: &'a Live,
}

impl Observer for Reporter<'_> {
    fn request(&self, report: &RequestReport<'_>) {
        let verdict = match report.verdict {
            Verdict::Allowed => "allow",
            Verdict::Denied => "deny",
            Verdict::Undecided => "-",
            Verdict::Refused(_) => "refuse",
        };
        self.mesh.metrics.request(verdict, report.status.map(|status| status.as_u16()));
        self.mesh.access_log.log_request(|| {
            let known = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            let mut record = RequestRecord::on(&self.live.record, RequestEvent::Request);
            record.time = SystemTime::now();
            record.protocol = report.version.map(|version| version.to_string());
            record.method = known(report.method);
            record.host = known(report.host);
            record.path = known(report.path);
            record.status = report.status.map(|status| status.as_u16());
            record.verdict = verdict;
            record.rule = report.rule.map(ToOwned::to_owned);
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
