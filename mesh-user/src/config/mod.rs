//! The node's configuration file: its types, its schema, its errors with line and column.
//! Reads that one file and nothing else; says no to what it does not understand.

mod authority;
mod extension_providers;
mod federation;
mod kubernetes;
mod locate;
#[cfg(test)]
mod reference;
mod selector;
#[cfg(test)]
mod tests;
mod types;
mod validate;
pub mod yaml;

use std::{fmt, path::Path};

pub use authority::{
    AuditConfig, AuthorityConfig, AuthorityLimits, IdentityPattern, JoinTokenConfig, KeyKind,
    KubernetesConfig, NodeConfig, RootsConfig, RotationConfig, SharedStateConfig, UnixSocketConfig,
};
pub use extension_providers::{
    ExtensionProvider, GrpcAuthorizer, HeaderPattern, HttpAuthorizer, RequestBodyInCheck,
};
pub use federation::{EndpointProfile, FederatedTrustDomain, FederationConfig, endpoint_url};
pub use kubernetes::{BeforeEnrolment, ClusterConfig};
pub use selector::Selector;
pub use types::*;
use yaml::Problem;

/// Why the node's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{file}: cannot read the configuration: {source}; check the path and its permissions")]
    Read {
        /// Its path.
        file: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The file was read and something in it is wrong; one line per problem.
    #[error("{}", Problems { file, problems })]
    Invalid {
        /// Its name.
        file: String,
        /// Everything that is wrong, in the order of the file's sections.
        problems: Vec<Problem>,
    },
}

struct Problems<'a> {
    file: &'a str,
    problems: &'a [Problem],
}

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt_in(self.file, f)?;
        }
        Ok(())
    }
}

/// Reads a file and parses it with the name that errors call it.
fn load<T>(path: &Path, parse: impl FnOnce(&str, &str) -> Result<T, ConfigError>) -> Result<T, ConfigError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &file),
        Err(source) => Err(ConfigError::Read { file, source }),
    }
}

impl Config {
    /// Reads, parses and validates the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is not YAML, has an unknown or missing field, or contradicts itself.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load(path, Self::parse)
    }

    /// Parses and validates `text`; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let invalid = |problems| ConfigError::Invalid { file: name.to_owned(), problems };
        let config: Self = yaml::parse(text, 1).map_err(|problem| invalid(vec![problem]))?;
        let problems = validate::check(&config, text);
        if problems.is_empty() { Ok(config) } else { Err(invalid(problems)) }
    }

    /// JSON schema of the file.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}
