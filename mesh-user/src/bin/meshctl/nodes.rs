//! `meshctl nodes`: every node's agent, by the Leases that they keep.

use std::{io::Write, path::Path, process::ExitCode};

use mesh_user::admin::nodes::{self, NodeRow};

use crate::{args::Output, online::unix_now, render};

/// Prints them; fails when an agent is missing, silent or not ready.
pub(crate) fn run(
    kubeconfig: Option<&Path>,
    namespace: &str,
    format: Output,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(async {
        let client = nodes::connect(kubeconfig).await?;
        nodes::list(&client, namespace, unix_now()).await
    })?;
    table(out, format, &rows)?;
    let all_ready = !rows.is_empty() && rows.iter().all(NodeRow::is_ready);
    Ok(if all_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(out: &mut dyn Write, format: Output, rows: &[NodeRow]) -> std::io::Result<()> {
    render::either(out, format, rows, |out| {
        if render::empty(out, rows.is_empty(), "no nodes")? {
            return Ok(());
        }
        let row = |row: &NodeRow| {
            let (summary, known) = (&row.summary, row.age_s.is_some());
            let count = |count: u64| if known { count.to_string() } else { String::new() };
            [
                row.node.clone(),
                row.state.clone(),
                row.age_s.map(render::duration).unwrap_or_default(),
                summary.version.clone(),
                summary.kernel.clone(),
                summary.relay.clone(),
                count(summary.workloads),
                count(summary.connections),
                summary.problems.join("; "),
            ]
        };
        let header =
            ["NODE", "STATE", "AGE", "VERSION", "KERNEL", "RELAY", "WORKLOADS", "CONNECTIONS", "PROBLEMS"];
        render::table(out, header, rows.iter().map(row))
    })
}
