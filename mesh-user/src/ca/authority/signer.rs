//! Authorities with their keys in memory. Keys are read from files of the CA's folder and go nowhere else.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rcgen::{
    BasicConstraints, CertificateRevocationListParams, KeyIdMethod, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;

use super::{
    rotation::{Kind, Stage},
    rows::{Row, Source, id_of, parse},
    settings::AuthoritySettings,
};
use crate::{
    ca::{
        CaError, files,
        keys::{SecretKey, check},
        leaf,
    },
    identity::TrustDomain,
};

/// An authority that can sign.
pub(super) struct Signer {
    pub(super) id: String,
    certificate: CertificateDer<'static>,
    /// What is sent behind a leaf.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) not_after: OffsetDateTime,
    issuer: rcgen::Issuer<'static, SecretKey>,
    /// Its subject key identifier, which its lists name.
    key_identifier: KeyIdMethod,
    /// Whether its key usage lets it sign revocation lists.
    pub(super) signs_lists: bool,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a revocation list is to say.
pub(super) struct ListTerms {
    pub(super) number: u64,
    pub(super) this_update: OffsetDateTime,
    pub(super) next_update: OffsetDateTime,
    pub(super) entries: Vec<RevokedCertParams>,
}

impl Signer {
    fn new(
        certificate: CertificateDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        key: SecretKey,
    ) -> Result<Self, String> {
        let not_after = check(&certificate, &key)?;
        let parsed = parse(&certificate).map_err(|e| e.to_string())?;
        let key_identifier = parsed
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(KeyIdMethod::PreSpecified(id.0.to_vec())),
                _ => None,
            })
            .unwrap_or(KeyIdMethod::Sha256);
        let issuer = rcgen::Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| format!("cannot issue with it: {e}"))?;
        let usages = issuer.key_usages();
        let signs_lists = usages.is_empty() || usages.contains(&KeyUsagePurpose::CrlSign);
        let id = id_of(&certificate).map_err(|e| e.to_string())?;
        Ok(Self { id, certificate, chain, not_after, issuer, key_identifier, signs_lists })
    }

    /// For [`leaf::sign`].
    pub(super) fn issuer(&self) -> (&rcgen::Issuer<'static, SecretKey>, OffsetDateTime) {
        (&self.issuer, self.not_after)
    }

    /// Whether peers would believe what it signs.
    pub(super) fn prove(
        &self,
        roots: &[CertificateDer<'static>],
        domain: &TrustDomain,
    ) -> Result<(), String> {
        leaf::prove(self.issuer(), &self.chain, roots, domain)
    }

    /// Signs a revocation list (RFC 5280 section 5).
    pub(super) fn sign_list(
        &self,
        terms: ListTerms,
    ) -> Result<CertificateRevocationListDer<'static>, CaError> {
        let params = CertificateRevocationListParams {
            this_update: terms.this_update,
            next_update: terms.next_update,
            crl_number: SerialNumber::from(terms.number),
            issuing_distribution_point: None,
            revoked_certs: terms.entries,
            key_identifier_method: self.key_identifier.clone(),
        };
        let failed =
            |e: rcgen::Error| CaError::Sign { subject: "a revocation list".to_owned(), what: e.to_string() };
        Ok(params.signed_by(&self.issuer).map_err(failed)?.into())
    }
}

/// The keys of this CA that were used; shared with what runs in transactions.
pub(super) struct Keyring {
    directory: PathBuf,
    /// Of what others made.
    material: PathBuf,
    signers: Mutex<BTreeMap<String, Arc<Signer>>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Keyring {
    pub(super) fn new(settings: &AuthoritySettings) -> Self {
        let (directory, material) = (settings.directory.clone(), settings.material().to_owned());
        Self { directory, material, signers: Mutex::default() }
    }

    /// The authority with its key. One that is in memory stays, even if its file was replaced by another's.
    ///
    /// # Errors
    /// When it has no key here, or the file's is another one's, or it is not valid now.
    pub(super) fn get(&self, row: &Row) -> Result<Arc<Signer>, CaError> {
        let mut signers = self.signers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = signers.get(&row.id);
        if let Some(known) = known
            && known.certificate == row.certificate
            && known.chain == row.chain
        {
            return Ok(Arc::clone(known));
        }
        let name = row
            .key_file
            .as_deref()
            .ok_or_else(|| CaError::Refused(format!("the key of {} is not here", row.subject())))?;
        let folder = if row.source == Source::Own { &self.directory } else { &self.material };
        let path = folder.join(name);
        let invalid = |what: String| CaError::Invalid { path: path.clone(), what };
        let Some(pem) = files::read_secret(&path)? else {
            let what = format!("is missing: restore it, it is the key of {}", row.subject());
            return Err(CaError::Incomplete { path, what });
        };
        let key = SecretKey::from_pem(&pem).map_err(|e| invalid(format!("is no private key: {e}")))?;
        let of = |what| invalid(format!("the certificate of this key, {}, {what}", row.subject()));
        let signer = Signer::new(row.certificate.clone(), row.chain.clone(), key).map_err(of)?;
        let signer = Arc::new(signer);
        signers.insert(row.id.clone(), Arc::clone(&signer));
        Ok(signer)
    }

    /// Wipes what is not needed any more.
    pub(super) fn keep_only(&self, ids: &[&str]) {
        let mut signers = self.signers.lock().unwrap_or_else(PoisonError::into_inner);
        signers.retain(|id, _| ids.contains(&id.as_str()));
    }

    /// A new root: its key is in a file of its own when this returns, and nobody knows of it yet. Part of its name is random:
    /// peers tell the revocation lists of authorities apart by name.
    pub(super) fn create_root(&self, settings: &AuthoritySettings, now: i64) -> Result<Row, CaError> {
        let name = format!("meshd root {} {}", settings.trust_domain, short()?);
        let key = SecretKey::generate().map_err(failed(&name))?;
        let root = leaf::self_signed(
            &name,
            &settings.trust_domain,
            &key,
            settings.root_lifetime,
            settings.backdate,
        )?;
        self.put((Kind::Root, None), root.der().clone(), Vec::new(), &key, now)
    }

    /// A new intermediate below a root of this CA.
    pub(super) fn create_intermediate(
        &self,
        settings: &AuthoritySettings,
        root: &Row,
        now: i64,
    ) -> Result<Row, CaError> {
        let name = format!("meshd intermediate {} {}", settings.trust_domain, short()?);
        let key = SecretKey::generate().map_err(failed(&name))?;
        let certificate = self.sign_intermediate(settings, root, &name, &key)?;
        let chain = vec![certificate.clone()];
        self.put((Kind::Intermediate, Some(root.id.clone())), certificate, chain, &key, now)
    }

    /// The certificate of an intermediate that may sign leafs only.
    fn sign_intermediate(
        &self,
        settings: &AuthoritySettings,
        root: &Row,
        name: &str,
        key: &SecretKey,
    ) -> Result<CertificateDer<'static>, CaError> {
        let root = self.get(root)?;
        let mut params = leaf::authority(
            name,
            BasicConstraints::Constrained(0),
            settings.intermediate_lifetime,
            settings.backdate,
        )?;
        params.not_after = params.not_after.min(root.not_after);
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &root.issuer).map_err(failed(name))?.der().clone())
    }

    /// Certificate and key of an intermediate that another node signs with.
    pub(super) fn hand_out(
        &self,
        settings: &AuthoritySettings,
        root: &Row,
    ) -> Result<(CertificateDer<'static>, SecretKey), CaError> {
        let name = format!("meshd intermediate {} {}", settings.trust_domain, short()?);
        let key = SecretKey::generate().map_err(failed(&name))?;
        Ok((self.sign_intermediate(settings, root, &name, &key)?, key))
    }

    fn put(
        &self,
        (kind, parent): (Kind, Option<String>),
        certificate: CertificateDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        key: &SecretKey,
        now: i64,
    ) -> Result<Row, CaError> {
        let id = id_of(&certificate)?;
        let key_file = key_file(kind, &id);
        files::write(&self.directory, &key_file, key.to_pem().as_bytes(), 0o600)?;
        Ok(Row {
            id,
            kind,
            source: Source::Own,
            certificate,
            chain,
            parent,
            key_file: Some(key_file),
            stage: Stage::Prepared,
            since: now,
            trusted_version: None,
            created: now,
        })
    }

    /// Removes the key files that no authority needs: of those withdrawn, and what a crash left between a key's file and its
    /// row. Never a file that somebody else put there.
    pub(super) fn sweep(&self, rows: &[Row]) -> Result<(), CaError> {
        let io = |action| move |source| CaError::Io { path: self.directory.clone(), action, source };
        let needed = |name: &str| {
            rows.iter().any(|row| row.key_file.as_deref() == Some(name) && row.stage != Stage::Withdrawn)
        };
        let of_withdrawn = |name: &str| {
            rows.iter().any(|row| row.source == Source::Own && row.key_file.as_deref() == Some(name))
        };
        for entry in std::fs::read_dir(&self.directory).map_err(io("list it"))? {
            let entry = entry.map_err(io("list it"))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if needed(name) || !(of_withdrawn(name) || is_key_file(name)) {
                continue;
            }
            match std::fs::remove_file(entry.path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CaError::Io { path: entry.path(), action: "remove it", source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn failed(name: &str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |error| CaError::Sign { subject: name.to_owned(), what: error.to_string() }
}

fn short() -> Result<String, CaError> {
    Ok(super::rows::hex(&crate::ca::keys::random_serial()?[4..8]))
}

fn key_file(kind: Kind, id: &str) -> String {
    match kind {
        Kind::Root => format!("root-{id}.key"),
        Kind::Intermediate => format!("intermediate-{id}.key"),
    }
}

fn is_key_file(name: &str) -> bool {
    let name = name.strip_prefix('.').and_then(|rest| rest.strip_suffix(".new")).unwrap_or(name);
    let id = name.strip_prefix("root-").or_else(|| name.strip_prefix("intermediate-"));
    id.and_then(|rest| rest.strip_suffix(".key"))
        .is_some_and(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
