//! The files of one moment, read but not understood. Comparing them tells whether anything changed, whatever
//! way an editor, a rename or a symlink swap changed it.

use std::{
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use super::{DiscoveryError, origins::RuleFiles};
use crate::config::Config;

/// A larger file is a mistake, and not read.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Beside the files of Istio's secret `cacerts`.
const OWN_REVOCATION_LIST: &str = "ca-crl.pem";

/// Texts of all files, in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inputs {
    /// The node's file.
    config: String,
    policies_dir: PathBuf,
    /// None: the folder does not exist.
    pub(super) policies: Option<Vec<(PathBuf, String)>>,
    /// In the order of `trustBundles`.
    pub(super) bundles: Vec<(PathBuf, String)>,
    /// In the order of `revocationLists`.
    pub(super) revocation_lists: Vec<(PathBuf, String)>,
    /// Where Istio has the list of a CA that is plugged in, and the list if it is there.
    pub(super) own_revocation_list: (PathBuf, Option<String>),
    /// What `DestinationRule`s name. One that cannot be read is no reason to refuse the rest.
    pub(super) rule_files: RuleFiles,
}

impl Inputs {
    /// Reads the node's file, and whatever it names. The file of a large mesh takes seconds to parse: that is left out,
    /// and no configuration returned, where its text is the one of `known`.
    pub(super) fn read(path: &Path, known: Option<&Self>) -> Result<(Self, Option<Config>), DiscoveryError> {
        let text = read(path)?;
        let (config, named) = if let Some(known) = known.filter(|known| known.config == text) {
            (None, Named::by_inputs(known))
        } else {
            let config = parse(path, &text)?;
            let named = Named::by_config(&config);
            (Some(config), named)
        };
        let Named { policies_dir, bundles, revocation_lists, own_revocation_list } = named;
        let own = match read(&own_revocation_list) {
            Err(DiscoveryError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => None,
            read => Some(read?),
        };
        let policies = read_policies(&policies_dir)?;
        let rule_files = match known.filter(|known| known.policies == policies) {
            Some(known) => known.rule_files.read_again(),
            None => RuleFiles::named_in(policies.as_deref().unwrap_or_default()),
        };
        let inputs = Self {
            config: text,
            policies,
            rule_files,
            policies_dir,
            bundles: read_all(bundles)?,
            revocation_lists: read_all(revocation_lists)?,
            own_revocation_list: (own_revocation_list, own),
        };
        Ok((inputs, config))
    }

    /// What the node's file says; `path` is what errors call it.
    pub(super) fn config(&self, path: &Path) -> Result<Config, DiscoveryError> {
        parse(path, &self.config)
    }
}

/// The files that the node's file names.
struct Named {
    policies_dir: PathBuf,
    bundles: Vec<PathBuf>,
    revocation_lists: Vec<PathBuf>,
    own_revocation_list: PathBuf,
}

impl Named {
    fn by_config(config: &Config) -> Self {
        Self {
            policies_dir: config.policies_dir.clone(),
            bundles: config.trust_bundles.iter().map(|bundle| bundle.file.clone()).collect(),
            revocation_lists: config.revocation_lists.iter().map(|list| list.file.clone()).collect(),
            own_revocation_list: config.ca_directory().join(OWN_REVOCATION_LIST),
        }
    }

    fn by_inputs(known: &Inputs) -> Self {
        let files = |texts: &[(PathBuf, String)]| texts.iter().map(|(file, _)| file.clone()).collect();
        Self {
            policies_dir: known.policies_dir.clone(),
            bundles: files(&known.bundles),
            revocation_lists: files(&known.revocation_lists),
            own_revocation_list: known.own_revocation_list.0.clone(),
        }
    }
}

fn read_all(files: Vec<PathBuf>) -> Result<Vec<(PathBuf, String)>, DiscoveryError> {
    files.into_iter().map(|file| read(&file).map(|text| (file, text))).collect()
}

fn parse(path: &Path, text: &str) -> Result<Config, DiscoveryError> {
    Ok(Config::parse(text, &path.display().to_string())?)
}

/// Folders in which a change can mean a change of the inputs.
pub(super) fn folders<'a>(
    path: &Path,
    config: &Config,
    rule_files: impl Iterator<Item = &'a PathBuf>,
) -> Vec<PathBuf> {
    let parent = |file: &Path| match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut folders = vec![parent(path), config.policies_dir.clone()];
    folders.extend(config.trust_bundles.iter().map(|b| parent(&b.file)));
    folders.extend(config.revocation_lists.iter().map(|list| parent(&list.file)));
    folders.push(config.ca_directory());
    folders.extend(rule_files.map(|file| parent(file)));
    folders.sort();
    folders.dedup();
    folders
}

fn read(path: &Path) -> Result<String, DiscoveryError> {
    let failed = |source| DiscoveryError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(failed(std::io::Error::new(ErrorKind::FileTooLarge, "larger than 32 MiB")));
    }
    Ok(text)
}

/// `*.yaml` and `*.yml` by name; hidden ones are editors' and Kubernetes' own.
fn read_policies(folder: &Path) -> Result<Option<Vec<(PathBuf, String)>>, DiscoveryError> {
    let failed = |source| DiscoveryError::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if yaml && !hidden && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    paths.into_iter().map(|path| read(&path).map(|text| (path, text))).collect::<Result<_, _>>().map(Some)
}
