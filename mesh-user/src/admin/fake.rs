//! A daemon that only tells stories, for the tests of the admin API here and in `tests/admin_credentials.rs`.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::{
    AdminSource, CertRow, CheckRow, ConnectionRow, ExplainError, ExplainQuery, Explanation, ImpactReport,
    JwksRow, LintRow, Mode, PolicyFile, PolicyFiles, PolicyRow, ReloadReport, Status, WorkloadRow,
};

#[derive(Default)]
pub(super) struct Fake {
    /// Connections that were refused.
    pub(super) refused: AtomicUsize,
    /// How often it was asked for its status.
    pub(super) answered: AtomicUsize,
    pub(super) reload_fails: bool,
    pub(super) not_ready: bool,
    pub(super) connections: Vec<ConnectionRow>,
}

impl AdminSource for Fake {
    fn status(&self) -> Status {
        self.answered.fetch_add(1, SeqCst);
        Status { node: "node-a".into(), ready: !self.not_ready, ..Status::default() }
    }
    fn workloads(&self) -> Vec<WorkloadRow> {
        vec![WorkloadRow { name: "web".into(), mode: Mode::Strict, ..WorkloadRow::default() }]
    }
    fn connections(&self) -> Vec<ConnectionRow> {
        self.connections.clone()
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
        let row = |file: &PolicyFile| LintRow { file: file.name.clone(), ..LintRow::default() };
        Ok(files.files.iter().map(row).collect())
    }
    fn impact(&self, files: &PolicyFiles) -> Result<ImpactReport, String> {
        if files.files.is_empty() { Err("p.yaml:1:1: nothing".into()) } else { Ok(ImpactReport::default()) }
    }
    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
        if query.port == 1 {
            return Err(ExplainError::Unknown("workload shop/ghost".into()));
        }
        Ok(Explanation { allowed: true, decided_by: format!("{query:?}"), ..Explanation::default() })
    }
    fn reload(&self) -> Result<ReloadReport, String> {
        if self.reload_fails {
            Err("node.yaml:3:5: unknown field".into())
        } else {
            Ok(ReloadReport::default())
        }
    }
    fn metrics_text(&self) -> String {
        "# EOF\n".into()
    }
    fn admin_refused(&self, _reason: &'static str) {
        self.refused.fetch_add(1, SeqCst);
    }
}
