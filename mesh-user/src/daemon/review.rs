//! The questions about policy, asked of what is in force: `explain`, `lint`, `impact`, and the state of issuers' keys.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    admin::{
        self, ExplainError, ExplainQuery, Explanation, ImpactReport, JwksRow, Knowledge, LintRow,
        PolicyFiles, review,
    },
    discovery::jwks::JwksStatus,
    policy::{lint::Facts, traffic::Seen},
    proxy::{
        Mesh, Requests, View,
        memory::{NotedContent, WINDOW_SECONDS},
    },
    telemetry::Direction,
};

pub(super) fn explain(mesh: &Mesh, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
    let view = mesh.view();
    let known = Knowledge {
        world: view.world(),
        policies: &view.snapshot.policies,
        normalization: view.snapshot.config.path_normalization.normalization.into(),
        keys: mesh.keys.as_ref(),
        now_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
    };
    admin::explain(&known, query)
}

pub(super) fn lint(mesh: &Mesh, files: &PolicyFiles) -> Result<Vec<LintRow>, String> {
    let view = mesh.view();
    let seen = seen(mesh, &view);
    review::lint(&view.snapshot.documents, files, facts(&view, &seen)).map_err(|error| error.to_string())
}

pub(super) fn impact(mesh: &Mesh, files: &PolicyFiles) -> Result<ImpactReport, String> {
    let view = mesh.view();
    let seen = seen(mesh, &view);
    let in_force = (&*view.snapshot.documents, &*view.snapshot.policies);
    let mut report =
        review::impact(in_force, files, facts(&view, &seen)).map_err(|error| error.to_string())?;
    report.left_out = mesh.memory.left_out();
    report.window_s = WINDOW_SECONDS;
    if view.snapshot.config.observation.entries == 0 {
        report
            .notes
            .push("observation.entries is 0: nothing is remembered, so nothing was replayed".to_owned());
    }
    Ok(report)
}

fn facts<'a>(view: &'a View, seen: &'a [Seen]) -> Facts<'a> {
    Facts {
        world: view.world(),
        normalization: view.snapshot.config.path_normalization.normalization.into(),
        seen,
        providers: &view.snapshot.config.extension_providers,
    }
}

/// A connection that is still open counts as seen now, whenever it began.
fn seen(mesh: &Mesh, view: &View) -> Vec<Seen> {
    for live in mesh.connections.list() {
        let content = match live.requests {
            Requests::Uninspected => NotedContent::Unread,
            Requests::None { .. } => NotedContent::NotHttp,
            Requests::Inspected => continue,
        };
        let workload = view.world().by_name(&live.workload.namespace, &live.workload.name);
        if let Some(workload) = workload.filter(|_| live.record.direction == Direction::Inbound) {
            let mode = view.snapshot.policies.for_workload(workload.id).mode(live.request().dst.port());
            mesh.memory.keep(&live.noted(mode, content));
        }
    }
    mesh.memory.seen()
}

/// What about keys of token issuers an operator must act on.
pub(super) fn key_problems(places: &[JwksStatus]) -> Vec<String> {
    let failing = places.iter().filter(|place| place.keys == 0);
    let problem = |place: &JwksStatus| {
        let error = place.last_error.as_ref()?;
        Some(format!("there are no keys from {}, so tokens that need them are refused: {error}", place.url))
    };
    failing.filter_map(problem).collect()
}

pub(super) fn jwks_row(status: JwksStatus) -> JwksRow {
    JwksRow {
        url: status.url,
        keys: status.keys as u64,
        skipped: status.skipped as u64,
        fetched_unix_s: status.fetched_at_seconds,
        next_in_s: status.next_in_seconds,
        failures: status.failures.into(),
        last_error: status.last_error.unwrap_or_default(),
    }
}
