//! The commands that ask the daemon.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use mesh_user::{
    admin::{AdminClient, ClientError, ConnectionList, ReloadReport, Status},
    daemon,
};
use serde::de::DeserializeOwned;

use crate::{
    args::{Arguments, Command, Output},
    policy, render,
};

/// Runs one of them to its exit code.
pub(crate) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask(arguments, out))
}

async fn ask(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let client = AdminClient::new(&arguments.runtime_dir);
    let format = arguments.output;
    match &arguments.command {
        Command::Status { live: true } => {
            client.text("/healthz/live").await?;
            render::done(out, format, "meshd answers")?;
        }
        Command::Status { live: false } => {
            let status: Status = client.get("/v1/status").await?;
            render::status(out, format, &status)?;
            return Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Workloads => render::workloads(out, format, &list(&client, "/v1/workloads").await?)?,
        Command::Connections { watch, limit } => connections(&client, format, *watch, *limit, out).await?,
        Command::Certs => render::certs(out, format, &list(&client, "/v1/certs").await?, unix_now())?,
        Command::Policies => render::policies(out, format, &list(&client, "/v1/policies").await?)?,
        Command::Jwks => render::jwks(out, format, &list(&client, "/v1/jwks").await?, unix_now())?,
        Command::Policy(command) => return policy::online(&client, arguments, command, out).await,
        Command::Check { cgroup } => {
            let rows = match list(&client, "/v1/check").await {
                Err(error) if is_not_running(&error) => {
                    eprintln!(
                        "no meshd runs with {}: this is what the node can do",
                        arguments.runtime_dir.display()
                    );
                    let scratch = Path::new("/run").join(format!("meshctl-check-{}", std::process::id()));
                    daemon::preflight(cgroup.as_deref(), &scratch)
                }
                rows => rows?,
            };
            render::check(out, format, &rows)?;
            let missing = rows.iter().any(|row: &mesh_user::admin::CheckRow| row.required && !row.proven);
            return Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        Command::Reload => {
            let report: ReloadReport = client.post("/v1/reload").await?;
            render::reload(out, format, &report)?;
        }
        Command::Metrics => out.write_all(client.text("/metrics").await?.as_bytes())?,
        Command::Config(_)
        | Command::Cleanup { .. }
        | Command::Ca(_)
        | Command::Nodes { .. }
        | Command::Bugreport { .. }
        | Command::Install(_)
        | Command::Uninstall { .. }
        | Command::CanaryPeer(_) => {
            anyhow::bail!("this command does not ask the daemon")
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_not_running(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<ClientError>(), Some(ClientError::NotRunning { .. }))
}

async fn list<T: DeserializeOwned>(client: &AdminClient, path: &str) -> anyhow::Result<Vec<T>> {
    Ok(client.get(path).await?)
}

async fn connections(
    client: &AdminClient,
    format: Output,
    watch: bool,
    limit: usize,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    // On a terminal each list replaces the one before; in a pipe they follow each other.
    let clear = watch && format == Output::Table && std::io::stdout().is_terminal();
    loop {
        let list: ConnectionList = client.get(&format!("/v1/connections?limit={limit}")).await?;
        if clear {
            write!(out, "\x1b[H\x1b[2J")?;
        }
        render::connections(out, format, &list)?;
        out.flush()?;
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

pub(crate) fn unix_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default()
}
