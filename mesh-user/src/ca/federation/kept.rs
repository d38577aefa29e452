//! The last good bundle of each federated trust domain, in a folder: what is believed after a restart while an endpoint is
//! down. Public data, which only meshd's user may change.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::document::Bundle;
use crate::{
    ca::{CaError, files},
    identity::TrustDomain,
};

/// In the state folder.
const FOLDER: &str = "federation";
const SUFFIX: &str = ".json";

/// The folder of kept bundles.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

/// A bundle as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Kept {
    /// Also in the file's name; both have to agree.
    pub(super) trust_domain: TrustDomain,
    /// SHA-256 of the file that the trust began with, hex: another one makes a new beginning.
    pub(super) began_with: Option<String>,
    /// The highest sequence number that was in force.
    pub(super) newest: Option<u64>,
    /// As it was fetched.
    pub(super) bundle: String,
}

impl Folder {
    /// Makes the folder where it is missing, and forgets whoever is not among `federated`.
    pub(super) fn open(state_dir: &Path, federated: &[&TrustDomain]) -> Result<Self, CaError> {
        let folder = Self(state_dir.join(FOLDER));
        if federated.is_empty() && !folder.0.exists() {
            return Ok(folder);
        }
        files::open_directory(&folder.0)?;
        let io = |source| CaError::Io { path: folder.0.clone(), action: "list it", source };
        for entry in std::fs::read_dir(&folder.0).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let of = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            if of.is_some_and(|of| !federated.iter().any(|domain| domain.as_str() == of)) {
                let path = folder.0.join(&name);
                std::fs::remove_file(&path).map_err(|source| CaError::Io {
                    path,
                    action: "forget a trust domain",
                    source,
                })?;
            }
        }
        Ok(folder)
    }

    /// What was kept of a trust domain. A file that makes no sense is as good as none: it is said and passed over.
    pub(super) fn load(&self, domain: &TrustDomain) -> Option<(Kept, Bundle)> {
        let path = self.0.join(file_name(domain));
        let text = match files::read_secret(&path) {
            Ok(text) => text?,
            Err(error) => {
                tracing::warn!(%error, "a kept trust bundle is not used");
                return None;
            }
        };
        let read = || {
            let kept: Kept = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            if kept.trust_domain != *domain {
                return Err(format!("is of {}", kept.trust_domain));
            }
            let bundle = Bundle::read(&path, &kept.bundle, false)?;
            Ok((kept, bundle))
        };
        read()
            .inspect_err(
                |error| tracing::warn!(file = %path.display(), %error, "a kept trust bundle is not used"),
            )
            .ok()
    }

    /// On disk when this returns, whole or not at all.
    pub(super) fn store(&self, kept: &Kept) -> Result<(), CaError> {
        let text = serde_json::to_vec(kept).map_err(|error| CaError::Invalid {
            path: self.0.clone(),
            what: format!("a bundle cannot be written: {error}"),
        })?;
        files::write(&self.0, &file_name(&kept.trust_domain), &text, 0o600)
    }
}

fn file_name(domain: &TrustDomain) -> String {
    format!("{domain}{SUFFIX}")
}
