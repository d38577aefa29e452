//! The commands that need no daemon: thin calls into the library over the node's file and policies folder.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use mesh_user::{
    admin::{
        self, ExplainQuery, Explanation, Knowledge, LintRow, NoKeys, PolicyFiles, review, server::SOCKET_NAME,
    },
    ca::{
        OwnBundle,
        authority::{Authority, AuthoritySettings},
    },
    capture,
    config::Config,
    policy::{CompiledPolicies, PolicySet, lint::Facts},
    world::World,
};
use serde::Serialize;

use crate::{args::BundleFormat, policy};

/// What `config validate` found in valid files.
#[derive(Debug, Serialize)]
pub(crate) struct Validation {
    pub(crate) valid: bool,
    pub(crate) file: PathBuf,
    pub(crate) policies_dir: PathBuf,
    pub(crate) workloads: usize,
    pub(crate) remote_workloads: usize,
    pub(crate) services: usize,
    pub(crate) policies: usize,
    /// What policies say and meshd does not enforce, one line each.
    pub(crate) not_enforced: Vec<String>,
    pub(crate) notes: Vec<String>,
}

/// Checks a node's file with its policies.
pub(crate) fn validate(file: &Path, policies: Option<&Path>) -> anyhow::Result<Validation> {
    let config = Config::load(file)?;
    let world = World::build(&config)?;
    let dir = policies.unwrap_or(&config.policies_dir).to_path_buf();
    let mut notes = Vec::new();
    // A node without policies is valid; a folder named on the command line must exist.
    if policies.is_none() && !dir.exists() {
        notes.push(format!("{} does not exist: no policies", dir.display()));
    }
    let set = read_policies(&dir, policies.is_some())?;
    let not_enforced = set.status.iter().flat_map(|status| {
        let name = format!("{} {}/{}", status.kind, status.namespace, status.name);
        status.not_enforced.iter().map(move |what| format!("{name}: {what}"))
    });
    Ok(Validation {
        valid: true,
        file: file.to_path_buf(),
        not_enforced: not_enforced.collect(),
        policies: set.status.len(),
        policies_dir: dir,
        workloads: config.workloads.len(),
        remote_workloads: config.remote_workloads.len(),
        services: world.services().len(),
        notes,
    })
}

/// The node's file as JSON schema.
pub(crate) fn schema() -> serde_json::Value {
    Config::schema()
}

/// Decides a connection or a request from files.
pub(crate) fn explain(
    file: &Path,
    policies: Option<&Path>,
    query: &ExplainQuery,
) -> anyhow::Result<Explanation> {
    let config = Config::load(file)?;
    let world = World::build(&config)?;
    let set = read_policies(policies.unwrap_or(&config.policies_dir), policies.is_some())?;
    let known = Knowledge {
        world: &world,
        policies: &CompiledPolicies::compile(&world, &set),
        normalization: config.path_normalization.normalization.into(),
        keys: &NoKeys,
        now_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
    };
    Ok(admin::explain(&known, query)?)
}

/// Looks through documents with a node's file; without documents, through those of its folder.
pub(crate) fn lint(file: &Path, given: &PolicyFiles) -> anyhow::Result<Vec<LintRow>> {
    let (config, in_force) = policy::load(file)?;
    let world = World::build(&config)?;
    let texts = in_force.files.iter().map(|file| (file.name.as_str(), file.text.as_str()));
    let facts = Facts {
        world: &world,
        normalization: config.path_normalization.normalization.into(),
        seen: &[],
        providers: &config.extension_providers,
    };
    Ok(review::lint(&PolicySet::parse(texts)?, given, facts)?)
}

/// The documents of a folder, as the daemon finds them.
pub(crate) fn policy_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let entries = std::fs::read_dir(dir)
        .with_context(|| format!("the policies folder {} cannot be read", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_policies(dir: &Path, must_exist: bool) -> anyhow::Result<PolicySet> {
    let mut files = Vec::new();
    if must_exist || dir.exists() {
        for path in policy_files(dir)? {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("{} cannot be read", path.display()))?;
            files.push((path.display().to_string(), text));
        }
    }
    Ok(PolicySet::parse(files.iter().map(|(name, text)| (name.as_str(), text.as_str())))?)
}

/// Removes what a dead daemon left; refused while one runs.
pub(crate) fn cleanup(runtime_dir: &Path, folders: &[PathBuf]) -> anyhow::Result<()> {
    // Without this the lock would make the folder of a daemon that never ran here.
    anyhow::ensure!(
        runtime_dir.is_dir(),
        "{} does not exist: nothing to clean up there; --runtime-dir names another folder",
        runtime_dir.display()
    );
    capture::cleanup(runtime_dir)?;
    let socket = runtime_dir.join(SOCKET_NAME);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", socket.display()));
        }
        _ => {}
    }
    // Whatever else lies there is not meshd's.
    let _ = std::fs::remove_dir(runtime_dir);
    for folder in folders {
        match std::fs::remove_dir(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Issues an intermediate for another node from this node's CA, which is made if there is none yet.
pub(crate) fn issue_intermediate(config: &Path, out: &Path) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let lifetime = Duration::from_secs(config.ca.svid_lifetime_seconds);
    let ca = Authority::open(AuthoritySettings {
        lifetime,
        max_lifetime: lifetime,
        ..AuthoritySettings::new(config.ca_directory(), config.trust_domain.clone())
    })?;
    Ok(ca.issue_intermediate(out)?)
}

/// The roots of this node's own trust domain, as text.
pub(crate) fn bundle(config: &Path, format: BundleFormat) -> anyhow::Result<String> {
    let config = Config::load(config)?;
    let bundle = OwnBundle::read(&config.ca_directory())?.with_jwt_authorities(&config.jwt_directory())?;
    Ok(match format {
        BundleFormat::Pem => bundle.pem().trim_end().to_owned(),
        BundleFormat::Spiffe => format!("{:#}", bundle.spiffe()?),
    })
}
