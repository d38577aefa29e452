//! Set-up of `tracing`: one subscriber on stderr whose filter can change while running. Secrets have no
//! `Debug` or `Display` that shows them, so no filter can bring one out.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Environment variable whose filter outranks the node's file.
pub const FILTER_VARIABLE: &str = "MESHD_LOG";

/// Form of the daemon's own log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter does not parse.
    #[error(
        "log filter {filter:?} is not valid: {source}; write for example `info` or `info,mesh_user::proxy=debug`"
    )]
    Filter {
        /// As given.
        filter: String,
        /// What the parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// A subscriber exists already.
    #[error("logging is set up already in this process: {0}")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
    /// The subscriber is gone.
    #[error("the log filter cannot be changed: {0}")]
    Gone(#[from] reload::Error),
}

/// Changes the filter of the running process.
#[derive(Debug, Clone)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    fixed_by_environment: bool,
}

/// Sets up logging on stderr. [`FILTER_VARIABLE`] in the environment outranks `filter`.
pub fn init(filter: &str, format: LogFormat) -> Result<LogFilter, LoggingError> {
    let from_environment = std::env::var(FILTER_VARIABLE).ok().filter(|value| !value.is_empty());
    let parsed = parse(from_environment.as_deref().unwrap_or(filter))?;
    let (filter_layer, handle) = reload::Layer::new(parsed);
    let registry = tracing_subscriber::registry().with(filter_layer);
    let stderr = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => registry.with(stderr.json().flatten_event(true)).try_init()?,
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            registry.with(stderr.with_ansi(colour).with_target(true)).try_init()?;
        }
    }
    Ok(LogFilter { handle, fixed_by_environment: from_environment.is_some() })
}

impl LogFilter {
    /// Applies the filter of a reloaded configuration; one from the environment stays.
    pub fn set(&self, filter: &str) -> Result<(), LoggingError> {
        let parsed = parse(filter)?;
        if !self.fixed_by_environment {
            self.handle.reload(parsed)?;
        }
        Ok(())
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|source| LoggingError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_with_what_to_write() {
        let error = parse("info,mesh_user=loud").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("mesh_user=loud") && error.contains("info,mesh_user::proxy=debug"), "{error}");
    }
}
