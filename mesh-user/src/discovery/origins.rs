//! The files that `DestinationRule`s name, read and made ready for handshakes. What cannot be read or used refuses the
//! connections of its own rule and nothing else. Keys are never shown, nor what a file holds.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use super::system_roots::system_roots;
use crate::{
    policy::{
        PolicySet, PolicyStatus,
        destination_rule::{DestinationRule, Origination},
    },
    tls::{Originator, OriginatorParts},
};

/// A larger file is a mistake, and not read.
const MAX_FILE_BYTES: u64 = 4 << 20;
const NO_SECRETS: &str = "credentialName names a Kubernetes secret, which cannot be had here: name files instead \
                          (caCertificates, clientCertificate, privateKey)";

/// What a file holds; a key, maybe.
#[derive(Clone, PartialEq, Eq)]
struct Contents(Zeroizing<Vec<u8>>);

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// All files that rules name, as they were at one moment; why not, where one cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RuleFiles(BTreeMap<PathBuf, Result<Contents, String>>);

impl RuleFiles {
    /// Of documents that may be wrong: then of none.
    pub(super) fn named_in(policies: &[(PathBuf, String)]) -> Self {
        let texts = policies.iter().filter(|(_, text)| text.contains("DestinationRule"));
        let set = PolicySet::parse(texts.map(|(_, text)| ("", text.as_str()))).unwrap_or_default();
        let originations = set.destination_rules.iter().flat_map(DestinationRule::originations);
        Self(originations.flat_map(|o| o.files()).map(|path| (path.clone(), read(path))).collect())
    }

    pub(super) fn read_again(&self) -> Self {
        Self(self.0.keys().map(|path| (path.clone(), read(path))).collect())
    }

    fn contents(&self, path: &Path) -> Result<&[u8], String> {
        let of_file = |why: &str| format!("{}: {why}", path.display());
        match self.0.get(path) {
            Some(Ok(contents)) => Ok(&contents.0),
            Some(Err(why)) => Err(of_file(why)),
            None => Err(of_file("was not read")),
        }
    }

    fn pem<T: PemObject>(&self, path: &Path, what: &str) -> Result<Vec<T>, String> {
        let of_file = |why: String| format!("{}: {why}", path.display());
        let found: Result<Vec<T>, _> = T::pem_slice_iter(self.contents(path)?).collect();
        // The error would quote the file.
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(of_file(format!("holds no {what} in PEM"))),
            Err(_) => Err(of_file("is no good PEM".to_owned())),
        }
    }
}

fn read(path: &Path) -> Result<Contents, String> {
    if !path.is_absolute() {
        return Err("is no absolute path on the node".to_owned());
    }
    read_bounded(path).map_err(|error| format!("cannot be read: {error}"))
}

fn read_bounded(path: &Path) -> io::Result<Contents> {
    // Rules may name anything: what is no file must neither block nor go on for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut contents = Zeroizing::new(Vec::new());
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 MiB"));
    }
    Ok(Contents(contents))
}

/// TLS to servers outside the mesh's identities, by what rules say of it.
#[derive(Debug, Default)]
pub struct Origins {
    made: HashMap<Arc<Origination>, Result<Arc<Originator>, String>>,
}

impl Origins {
    /// `elsewhere` are rules that others than the node's owner wrote: none of its files is read for them.
    pub(super) fn new(rules: &[DestinationRule], files: &RuleFiles, elsewhere: &[DestinationRule]) -> Self {
        let (mut made, mut system) = (HashMap::new(), None);
        for (rules, files) in [(rules, files), (elsewhere, &RuleFiles::default())] {
            for origination in rules.iter().flat_map(DestinationRule::originations) {
                if let Entry::Vacant(entry) = made.entry(Arc::clone(origination)) {
                    entry.insert(make(origination, files, &mut system).map(Arc::new));
                }
            }
        }
        Self { made }
    }

    /// Ready to open connections as a rule says.
    ///
    /// # Errors
    /// Why none can be opened.
    pub fn of(&self, origination: &Origination) -> Result<&Originator, &str> {
        match self.made.get(origination) {
            Some(Ok(originator)) => Ok(originator),
            Some(Err(why)) => Err(why),
            None => Err("the rule is not ready"),
        }
    }

    #[cfg(test)]
    pub(super) fn made_for_tests(&self) -> impl Iterator<Item = Arc<Origination>> {
        self.made.keys().cloned()
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.made.keys().flat_map(|origination| origination.files())
    }

    /// Adds to each rule's status why its connections are refused; returns the same for the log.
    pub(super) fn report(&self, rules: &[DestinationRule], status: &mut [PolicyStatus]) -> Vec<String> {
        let mut warnings = Vec::new();
        let statuses = status.iter_mut().filter(|status| status.kind == "DestinationRule");
        // Rules and their statuses are in the same order.
        for (rule, status) in rules.iter().zip(statuses) {
            let reasons: Vec<_> = rule.originations().filter_map(|o| self.of(o).err()).collect();
            for (i, why) in reasons.iter().enumerate() {
                if !reasons[..i].contains(why) {
                    status.not_enforced.push(format!("its connections are refused: {why}"));
                    let (namespace, name) = (&rule.namespace, &rule.name);
                    warnings.push(format!(
                        "DestinationRule {namespace}/{name}: its connections are refused: {why}"
                    ));
                }
            }
        }
        warnings
    }
}

type Roots = Vec<CertificateDer<'static>>;

fn make(
    origination: &Origination,
    files: &RuleFiles,
    system: &mut Option<Roots>,
) -> Result<Originator, String> {
    if origination.credential.is_some() {
        return Err(NO_SECRETS.to_owned());
    }
    let client = match &origination.client {
        None => None,
        Some(client) => {
            let chain = files.pem(&client.certificate, "certificate")?;
            Some((chain, private_key(files, &client.key)?))
        }
    };
    let authorities = match &origination.authorities {
        Some(path) => files.pem(path, "certificate")?,
        None if origination.believes_anybody => Vec::new(),
        None => system.get_or_insert_with(|| system_roots("servers")).clone(),
    };
    if authorities.is_empty() && !origination.believes_anybody {
        return Err("this node has no authorities of its own: name caCertificates".to_owned());
    }
    let revocations = origination.revocations.as_deref();
    let revocations =
        revocations.map(|path| files.pem::<CertificateRevocationListDer<'static>>(path, "revocation list"));
    Originator::new(OriginatorParts {
        authorities,
        revocations: revocations.transpose()?,
        client,
        names: origination.names.clone(),
        believes_anybody: origination.believes_anybody,
    })
}

fn private_key(files: &RuleFiles, path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    files
        .pem::<PrivateKeyDer<'static>>(path, "private key")?
        .into_iter()
        .next()
        .ok_or_else(|| format!("{}: holds no private key", path.display()))
}
