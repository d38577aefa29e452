//! The commands about `meshd ca`: they ask it over its own admin socket, or look at its file.

use std::{io::Write, path::Path};

use anyhow::Context;
use mesh_user::{
    admin::{AdminClient, CaStatus, JoinTokenRow, NewJoinToken, NewJoinTokenAnswer, RevokedAnswer},
    config::AuthorityConfig,
    telemetry::record::rfc3339,
};

use crate::{
    args::{CaCommand, CaService, Output, TokenCommand},
    ca_keys, render,
};

/// Runs one of them.
pub(crate) fn run(
    command: &CaCommand,
    runtime_dir: &Path,
    format: Output,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    match command {
        CaCommand::ConfigSchema => writeln!(out, "{:#}", AuthorityConfig::schema())?,
        CaCommand::ConfigValidate { file } => {
            let config = AuthorityConfig::load(file)?;
            render::done(out, format, &format!("{} is valid for {}", file.display(), config.trust_domain))?;
        }
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return runtime.block_on(async {
                if ca_keys::run(command, runtime_dir, format, out).await? {
                    return Ok(());
                }
                ask(command, format, out).await
            });
        }
    }
    Ok(())
}

fn client(service: &CaService) -> AdminClient {
    AdminClient::of_ca(&service.ca_runtime_dir)
}

async fn ask(command: &CaCommand, format: Output, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        CaCommand::Metrics(service) => out.write_all(client(service).text("/metrics").await?.as_bytes())?,
        CaCommand::Token(TokenCommand::Create { node, ttl, service }) => {
            let wanted = NewJoinToken { node: node.clone(), ttl_seconds: *ttl };
            let made: NewJoinTokenAnswer = client(service).post_json("/v1/join-tokens", &wanted).await?;
            // Alone on its line, so that a script can take it.
            render::either(out, format, &made, |out| writeln!(out, "{}", made.token))?;
        }
        CaCommand::Token(TokenCommand::List(service)) => {
            let rows: Vec<JoinTokenRow> = client(service).get("/v1/join-tokens").await?;
            render::either(out, format, &rows, |out| {
                let row = |row: &JoinTokenRow| {
                    let redeemed = row.redeemed.map(time).unwrap_or_default();
                    [row.id.clone(), row.node.clone(), time(row.expires), redeemed]
                };
                render::table(out, ["ID", "NODE", "EXPIRES", "REDEEMED"], rows.iter().map(row))
            })?;
        }
        CaCommand::Token(TokenCommand::Revoke { id, service }) => {
            let hex = id.bytes().all(|b| b.is_ascii_hexdigit()) && !id.is_empty();
            hex.then_some(())
                .with_context(|| format!("{id:?} is no join token's name; see `meshctl ca token list`"))?;
            let revoked: RevokedAnswer =
                client(service).post(&format!("/v1/join-tokens/{id}/revoke")).await?;
            render::done(out, format, &format!("join token {} is revoked", revoked.id))?;
        }
        _ => anyhow::bail!("this command does not ask meshd ca"),
    }
    Ok(())
}

pub(crate) fn time(seconds: i64) -> String {
    let since = std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    rfc3339(std::time::UNIX_EPOCH + since)
}

pub(crate) fn show(out: &mut dyn Write, status: &CaStatus) -> std::io::Result<()> {
    let end = |seconds: u64| time(i64::try_from(seconds).unwrap_or(i64::MAX));
    let rows = [
        ("version", status.version.clone()),
        ("trust domain", status.trust_domain.clone()),
        ("listens on", status.listen.join(" ")),
        ("issued", status.issued.to_string()),
        ("connections", status.connections.to_string()),
        ("agents that watch trust", status.watchers.to_string()),
        ("trust version", status.trust_version.to_string()),
        ("roots", status.roots.to_string()),
        ("issuer ends", status.issuer_end_seconds.map(end).unwrap_or_default()),
        ("own certificate ends", end(status.own_end_seconds)),
    ];
    for (name, value) in rows {
        writeln!(out, "{name:<24} {}", render::clean(&value))?;
    }
    Ok(())
}
