//! Requests to the admin API and to the metrics endpoint: only the ones that are meant do something, every
//! answer is HTTP, and none says that meshd failed.
//! Input: whether it is the metrics endpoint (1 byte), what the client sends.
#![no_main]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use libfuzzer_sys::fuzz_target;
use mesh_fuzz::{Input, block_on};
use mesh_user::admin::{
    AdminSource, CertRow, CheckRow, ConnectionRow, ExplainError, ExplainQuery, Explanation, ImpactReport,
    JwksRow, LintRow, PolicyFiles, PolicyRow, ReloadReport, Status, WorkloadRow, fuzz::serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

const MOST_ANSWERED_BYTES: usize = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (metrics_only, request) = (input.byte() % 2 == 1, input.0);
    let request = &request[..request.len().min(64 * 1024)];
    let source = Arc::new(Source::default());
    let answer = block_on(exchange(Arc::clone(&source), metrics_only, request));
    assert!(answer.len() < MOST_ANSWERED_BYTES);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", answer.escape_ascii());
    for status in statuses(&answer) {
        assert!(matches!(status, 100 | 200 | 400 | 404 | 405 | 413 | 414 | 431), "status {status}");
        assert!(!metrics_only || status != 200 || contains(request, b"/metrics"));
    }
    if source.reloaded.load(SeqCst) > 0 {
        assert!(!metrics_only && contains(request, b"POST "), "a reload that nobody asked for");
    }
});

async fn exchange(source: Arc<Source>, metrics_only: bool, request: &[u8]) -> Vec<u8> {
    let (mut client, server) = duplex(16 * 1024);
    serve(server, source, metrics_only);
    let (mut reader, mut writer) = tokio::io::split(&mut client);
    let mut answer = Vec::new();
    let asking = async {
        // The server may have heard enough.
        let _ = writer.write_all(request).await;
        let _ = writer.shutdown().await;
    };
    let ((), read) = tokio::join!(asking, reader.read_to_end(&mut answer));
    drop(read);
    answer
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Those of the status lines; no body of the source's looks like one.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let lines = text.lines().filter_map(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
    lines.collect()
}

#[derive(Default)]
struct Source {
    reloaded: AtomicUsize,
}

impl AdminSource for Source {
    fn status(&self) -> Status {
        Status { ready: true, ..Status::default() }
    }
    fn workloads(&self) -> Vec<WorkloadRow> {
        vec![WorkloadRow::default()]
    }
    fn connections(&self) -> Vec<ConnectionRow> {
        Vec::new()
    }
    fn certs(&self) -> Vec<CertRow> {
        Vec::new()
    }
    fn policies(&self) -> Vec<PolicyRow> {
        Vec::new()
    }
    fn check(&self) -> Vec<CheckRow> {
        Vec::new()
    }
    fn jwks(&self) -> Vec<JwksRow> {
        Vec::new()
    }
    fn lint(&self, files: &PolicyFiles) -> Result<Vec<LintRow>, String> {
        assert!(files.files.iter().map(|file| file.text.len()).sum::<usize>() < 4 << 20);
        Ok(Vec::new())
    }
    fn impact(&self, _files: &PolicyFiles) -> Result<ImpactReport, String> {
        Ok(ImpactReport::default())
    }
    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
        assert!(query.port > 0 || matches!(query.to, mesh_user::admin::ExplainTarget::Address(_)));
        Ok(Explanation::default())
    }
    fn reload(&self) -> Result<ReloadReport, String> {
        self.reloaded.fetch_add(1, SeqCst);
        Ok(ReloadReport::default())
    }
    fn metrics_text(&self) -> String {
        "# EOF\n".to_owned()
    }
    fn admin_refused(&self, _reason: &'static str) {}
}
