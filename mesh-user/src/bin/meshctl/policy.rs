//! `meshctl policy`: reads what the command line names (documents, a token), asks the daemon or decides from files. A token
//! is sent to nobody but the daemon, and never printed.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, ensure};
use mesh_user::{
    admin::{
        AdminClient, ExplainBody, Explanation, ImpactReport, LintRow, PolicyFile, PolicyFiles, RequestQuery,
        client::query_value,
    },
    config::Config,
};

use crate::{
    args::{Arguments, ExplainArguments, PolicyCommand},
    offline, render,
};

/// Documents in all, in bytes: what the daemon takes, with room for JSON's escapes.
const MAX_DOCUMENTS_BYTES: u64 = 3 << 20;
/// A token is at most 16 KiB.
const MAX_TOKEN_BYTES: u64 = 32 * 1024;

/// Runs one of them that needs no daemon; none: it does.
pub(crate) fn offline(
    arguments: &Arguments,
    command: &PolicyCommand,
    out: &mut dyn Write,
) -> anyhow::Result<Option<ExitCode>> {
    match command {
        PolicyCommand::Explain(ExplainArguments { config: Some(config), policies, .. }) => {
            let PolicyCommand::Explain(explain) = command else { return Ok(None) };
            let query = question(explain)?.parse()?;
            let explanation = offline::explain(config, policies.as_deref(), &query)?;
            render::explanation(out, arguments.output, &explanation)?;
            Ok(Some(crate::verdict_code(explanation.allowed)))
        }
        PolicyCommand::Lint { path, config: Some(config) } => {
            let rows = offline::lint(config, &documents(path.as_deref())?)?;
            render::lint(out, arguments.output, &rows)?;
            Ok(Some(lint_code(&rows)))
        }
        _ => Ok(None),
    }
}

/// Runs one of them that asks the daemon.
pub(crate) async fn online(
    client: &AdminClient,
    arguments: &Arguments,
    command: &PolicyCommand,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Explain(explain) => {
            let question = question(explain)?;
            let explanation: Explanation = if question.request.is_some() {
                client.post_json("/v1/policy/explain", &question).await?
            } else {
                let (from, to) = (query_value(&explain.from), query_value(&explain.to));
                client.get(&format!("/v1/policy/explain?from={from}&to={to}")).await?
            };
            render::explanation(out, arguments.output, &explanation)?;
            Ok(crate::verdict_code(explanation.allowed))
        }
        PolicyCommand::Lint { path, .. } => {
            let files = documents(path.as_deref())?;
            let rows: Vec<LintRow> = client.post_json("/v1/policy/lint", &files).await?;
            render::lint(out, arguments.output, &rows)?;
            Ok(lint_code(&rows))
        }
        PolicyCommand::Impact { path } => {
            let files = documents(Some(path))?;
            let report: ImpactReport = client.post_json("/v1/policy/impact", &files).await?;
            render::impact(out, arguments.output, &report, crate::online::unix_now())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn lint_code(rows: &[LintRow]) -> ExitCode {
    if rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn question(arguments: &ExplainArguments) -> anyhow::Result<ExplainBody> {
    let ExplainArguments { method, path, host, header, token, claims, .. } = arguments;
    let asks = method.is_some()
        || path.is_some()
        || host.is_some()
        || !header.is_empty()
        || token.is_some()
        || claims.is_some();
    let mut body = ExplainBody { from: arguments.from.clone(), to: arguments.to.clone(), request: None };
    if !asks {
        return Ok(body);
    }
    let mut request = RequestQuery { host: host.clone(), ..RequestQuery::default() };
    if let Some(method) = method {
        request.method.clone_from(method);
    }
    if let Some(path) = path {
        request.path.clone_from(path);
    }
    for line in header {
        let (name, value) = line.split_once(':').context("--header needs the form \"name: value\"")?;
        request.headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    request.token = token.as_deref().map(read_token).transpose()?;
    if let Some(claims) = claims {
        let parsed = serde_json::from_str(claims).context("--claims is no JSON object")?;
        request.claims = Some(parsed);
    }
    body.request = Some(request);
    Ok(body)
}

/// From a file or standard input: an argument would be in the process list.
fn read_token(from: &Path) -> anyhow::Result<String> {
    let reader: Box<dyn Read> = if from == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        let file = File::open(from).with_context(|| {
            format!("--token {} cannot be read; it names a file, or - for standard input", from.display())
        })?;
        Box::new(file)
    };
    let mut text = String::new();
    reader.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text).context("the token cannot be read")?;
    ensure!(text.len() as u64 <= MAX_TOKEN_BYTES, "the token is larger than 32 KiB");
    Ok(text.trim().to_owned())
}

/// A folder holds all documents there are to be, a file some of them; none: those in force.
fn documents(path: Option<&Path>) -> anyhow::Result<PolicyFiles> {
    let Some(path) = path else { return Ok(PolicyFiles::default()) };
    let replace = path.is_dir();
    let paths = if replace { offline::policy_files(path)? } else { vec![path.to_owned()] };
    let mut files = Vec::new();
    let mut left = MAX_DOCUMENTS_BYTES;
    for path in paths {
        let mut text = String::new();
        let file = File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let read = file.take(left + 1).read_to_string(&mut text);
        read.with_context(|| format!("{} cannot be read", path.display()))?;
        left = left.checked_sub(text.len() as u64).context("the documents are larger than 3 MiB together")?;
        files.push(PolicyFile { name: path.display().to_string(), text });
    }
    Ok(PolicyFiles { files, replace })
}

/// What a node's file says, and the documents of its folder, for the commands that need no daemon.
pub(crate) fn load(file: &Path) -> anyhow::Result<(Config, PolicyFiles)> {
    let config = Config::load(file)?;
    let files = if config.policies_dir.exists() {
        documents(Some(&config.policies_dir))?
    } else {
        PolicyFiles::default()
    };
    Ok((config, files))
}
